"""Kernels forked from one process: each its own process, with the libraries there already, and none outlives who asked for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import pytest

from mtlib.run import forge as forges
from mtlib.run.artifacts import StageFailed
from mtlib.run.forge import kernel_env
from mtlib.run.notebook import run_notebook

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")


@pytest.fixture(scope="module")
def forge(repo):
    with forges.running(os.environ | kernel_env(repo), ["pandas", "ipykernel.kernelapp"]) as one:
        yield one


def run(forge, folder: Path, repo: Path, *cells: str, timeout: int = 60) -> str:
    notebook = jupytext.reads("".join(f"# %%\n{cell}\n" for cell in cells), fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i + 1}"
    run_notebook("x", notebook, folder / "out.ipynb", folder / "log", {}, repo, timeout, forge)
    return (folder / "log").read_text(encoding="utf-8")


def test_each_kernel_is_a_process_of_its_own_that_has_the_libraries(forge, tmp_path, repo):
    seen = "import os, sys; print('seen', os.getpid(), 'pandas' in sys.modules, [m for m in sys.modules if m[:5] == 'mtlib'])"
    said = [re.search(r"seen (\d+) (\w+) (.*)", run(forge, tmp_path, repo, seen)).groups() for _ in range(2)]
    assert said[0][0] != said[1][0] and {rest for _, *rest in map(tuple, said) for rest in [tuple(rest)]} == {
        ("True", "[]")
    }
    ordinary = run(
        None, tmp_path, repo, "import os, sys; print('env', sorted(os.environ.items()), sys.path, os.getcwd())"
    )
    forked = run(
        forge, tmp_path, repo, "import os, sys; print('env', sorted(os.environ.items()), sys.path, os.getcwd())"
    )
    changing = r"\('(JPY|KERNEL|PYTEST|MTLIB_FORGE)\w*', [^)]*\), |\('_', [^)]*\), "
    env = [re.sub(changing, "", re.search(r"env .*", text)[0]) for text in (ordinary, forked)]
    assert env[0] == env[1]  # the same environment, path and folder


def test_a_command_of_a_kernel_runs_there_too_and_tells_how_it_ended(forge, tmp_path, repo):
    (tmp_path / "told.py").write_text(
        "import os, sys\nprint('told', 'pandas' in sys.modules, sys.argv[1:], os.getcwd())\nsys.exit(7)"
    )
    run_it = "import subprocess, sys; from mtlib.run.forge import asking; asked = [*asking(), sys.executable, '-m', 'told', 'a b']"
    run_it += f"; done = subprocess.run(asked, cwd={str(tmp_path)!r}, capture_output=True, text=True)"
    said = run(forge, tmp_path, repo, run_it, "print(len(asked) > 4, done.stdout, done.stderr, done.returncode)")
    assert f"True told True ['a b'] {tmp_path}\n  7" in said
    assert "told False ['a b']" in run(None, tmp_path, repo, run_it, "print(done.stdout)")


def test_a_cell_that_fails_and_a_kernel_that_dies_are_told(forge, tmp_path, repo):
    with pytest.raises(StageFailed, match=r"cell 2 .*ValueError: no"):
        run(forge, tmp_path, repo, "1", "raise ValueError('no')")
    with pytest.raises(StageFailed, match="the kernel died"):
        run(forge, tmp_path, repo, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(StageFailed, match="longer than the limit of 1 s"):
        run(forge, tmp_path, repo, "import time; time.sleep(30)", timeout=1)
    assert "fine" in run(forge, tmp_path, repo, "print('fine')")


def test_kernels_end_with_the_process_that_runs_the_notebook(tmp_path, repo):
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom mtlib.run import forge as forges\nfrom mtlib.run.forge import kernel_env\n"
        "from tests.run.test_forge import run\nroot, out = map(Path, sys.argv[1:])\n"
        "with forges.running(os.environ | kernel_env(root), ['ipykernel.kernelapp']) as one:\n"
        "    run(one, out, root, \"import os, time; print('pid', os.getpid(), os.getppid(), flush=True); time.sleep(600)\")\n"
    )
    env = os.environ | {"PYTHONPATH": str(repo)}
    runner = subprocess.Popen([sys.executable, script, repo, tmp_path], env=env, cwd=repo)
    found = None
    for _ in range(600):
        log = tmp_path / "log"
        if log.is_file() and (found := re.search(r"pid (\d+) (\d+)", log.read_text(encoding="utf-8"))):
            break
        time.sleep(0.1)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    for pid in map(int, found.groups()):
        for _ in range(300):
            if not alive(pid):
                break
            time.sleep(0.1)
        assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_without_a_forge_an_ordinary_kernel_is_started(tmp_path, repo):
    with forges.running(os.environ | kernel_env(repo), ["ipykernel.kernelapp"]) as gone:
        gone._process.kill()
        gone._process.wait()
        assert "fine" in run(gone, tmp_path, repo, "print('fine')")

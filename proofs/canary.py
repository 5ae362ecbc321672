"""A canary key is found in no file, output, log, traceback or cache, over many routes that a run can take.

    ./run_all.sh prove canary

The key stands in the environment of every process. The routes: each hostile reply of tests/ask/hostile.py with debug
logs on, a killed asker, verbose tracebacks, and, in a clone of this checkout, the whole pipeline with a model as the judge,
then notebook 06 with a dry run, a refused key, a server that repeats the key, a kill and a failing cell. Then every file that any of them wrote, and
all they printed, is searched for the key, for either half of it, and for its usual encodings; parquet is unpacked first.
Writes proofs/results/canary.md.
"""

from __future__ import annotations

import argparse
import base64
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from mtlib.run.artifacts import write_text
from proofs.canary_routes import SETTINGS, echoing, plain, refusing
from tests.ask.asked import contents as of_any
from tests.ask.lmm_server import LmmServer

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ["demo", "--smoke", "--from", "06", "-p", "run=canary"]
PIPELINE += [part for name, value in SETTINGS.items() for part in ("-p", f"{name}={value}")]


def needles(key: str) -> dict[str, bytes]:
    """What to look for: name -> bytes."""
    raw, half = key.encode(), len(key) // 2
    found = {"key": raw, "first half": raw[:half], "second half": raw[half:], "reversed": raw[::-1]}
    found |= {"hex": raw.hex().encode(), "quoted": quote(key, safe="").encode()}
    for shift in range(3):  # base64 of a text that holds the key at any place; its rim depends on what stands around it
        found[f"base64 {shift}"] = base64.b64encode(b"x" * shift + raw)[4:-4]
    return found


def contents(path: Path) -> bytes:
    """A file's bytes, with the values of a parquet file or a data base in plain."""
    data = of_any(path)
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
        texts = frame.select_dtypes(exclude="number").astype(str).to_numpy().ravel()
        data += "\n".join([*map(str, frame.columns), *texts]).encode()
    return data


def search(folder: Path, key: str) -> tuple[int, list[str]]:
    """(files read, "file: what was found" for every finding)."""
    wanted, found, n = needles(key), [], 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        data, n = contents(path), n + 1
        found += [f"{path.relative_to(folder)}: {name}" for name, needle in wanted.items() if needle in data]
    return n, found


class Routes:
    """Runs processes with the key in their environment; all that they write stays below `folder`."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key, self.done = folder, key, []
        home = {name: str(folder / "home") for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "XDG_CACHE_HOME")}
        self.env = os.environ | home | {"OPENAI_API_KEY": key, "PYTHONPATH": str(folder / "clone")}
        self.env |= {"TMPDIR": str(folder / "tmp")}
        for name in ("home", "tmp", "out"):
            (folder / name).mkdir()

    def start(self, name: str, arguments: list[str]) -> subprocess.Popen:
        """Start Python in the clone; what it prints goes to out/<name>.txt."""
        with open(self.folder / "out" / f"{name}.txt", "wb") as out:
            command, clone = [sys.executable, *arguments], self.folder / "clone"
            return subprocess.Popen(command, cwd=clone, env=self.env, stdout=out, stderr=out, start_new_session=True)

    def run(self, name: str, arguments: list[str], code: int | None = 0) -> str:
        """Run Python to its end; a wrong exit code ends the proof. Returns what it printed."""
        rc = self.start(name, arguments).wait(1200)
        printed = (self.folder / "out" / f"{name}.txt").read_text(errors="replace")
        if rc != code:
            raise RuntimeError(f"{name}: exit {rc}, expected {code}\n{printed[-1500:]}")
        self.done.append(name)
        print(f"{name}: exit {rc}", flush=True)
        return printed

    def killed(self, name: str, arguments: list[str], server: LmmServer, asks: int) -> None:
        """SIGKILL the process and its children after so many requests."""
        process, end = self.start(name, arguments), time.monotonic() + 900
        while server.n_asks < asks and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if process.poll() is not None or server.n_asks < asks:
            raise RuntimeError(f"{name}: ended before it could be killed")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.done.append(name)
        print(f"{name}: killed", flush=True)

    def notebook(self, name: str, answer, *more: str, code: int = 0) -> LmmServer:
        """Notebook 06 against a server of its own, in a kernel of its own."""
        with LmmServer(answer) as server:
            self.run(name, ["-m", "proofs.canary_routes", "notebook", server.base_url, *more], code)
        return server


def all_routes(routes: Routes) -> int:
    """Take every route. Returns how many of them were replies of a hostile server."""
    said = routes.run("hostile replies", ["-m", "proofs.canary_routes", "hostile"])
    routes.run("verbose traceback", ["-m", "proofs.canary_routes", "traceback"])
    with LmmServer(plain, 0.05) as server:
        routes.killed("killed asker", ["-m", "proofs.canary_routes", "slow", server.base_url], server, 20)
        assert {ask.key for ask in server.asks} == {routes.key}
    with LmmServer(plain) as server:
        routes.run("the whole pipeline", ["-m", "mtlib.run.pipeline", *PIPELINE, "-p", f"base_url={server.base_url}"])
    assert server.n_asks > 10 and {ask.key for ask in server.asks} == {routes.key}
    assert routes.notebook("notebook, dry run", plain, "dry_run").n_asks == 0
    assert routes.notebook("notebook, refused key", refusing).n_asks <= 4
    assert routes.notebook("notebook, echoed key", echoing).n_asks > 3
    with LmmServer(plain, 0.2) as server:
        routes.killed("notebook, killed", ["-m", "proofs.canary_routes", "notebook", server.base_url], server, 6)
    answers = routes.folder / "clone" / "runs" / "canary" / "answers"
    answers.rename(answers.with_name("answers-before"))
    answers.write_text("a file where a folder must be")
    routes.notebook("notebook, failing cell", plain, code=1)
    return said.count("route: ")


def main() -> int:
    """Returns 0 when the key was found nowhere and the search finds one that is planted."""
    parser = argparse.ArgumentParser(prog="prove canary", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clone", type=Path, help="a clone in which runs/canary has its first stages already, to save time"
    )
    source = parser.parse_args().clone or ROOT
    key = f"sk-canary-{secrets.token_hex(24)}"
    with tempfile.TemporaryDirectory(prefix="canary-") as tmp:
        folder = Path(tmp)
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", source, folder / "clone"], check=True)
        if source != ROOT:
            shutil.copytree(source / "runs", folder / "clone" / "runs")
        routes = Routes(folder, key)
        hostile = all_routes(routes)
        n, found = search(folder, key)
        (folder / "planted").mkdir()
        (folder / "planted" / "a.log").write_text(f"Authorization: Bearer {key}")
        pd.DataFrame({"text": [f"my {key}"] * 999}).to_parquet(folder / "planted" / "b.parquet")
        (folder / "planted" / "c.txt").write_bytes(base64.b64encode(f"Bearer {key}".encode()))
        planted = {line.split(":")[0] for line in search(folder / "planted", key)[1]}
    lines = [
        "# A canary key",
        "",
        f"{hostile} hostile replies in one process, and {len(routes.done) - 1} other routes:",
        "",
    ]
    lines += [f"- {name}" for name in routes.done]
    lines += ["", f"{n} files searched (outputs, logs, notebooks, ledgers, tables, caches): {len(found)} findings."]
    lines += [f"- {line}" for line in found] + [f"Planted in three files, it was found in {len(planted)}."]
    text = "\n".join(lines) + "\n"
    print(text)
    write_text(ROOT / "proofs" / "results" / "canary.md", text)
    return 0 if not found and len(planted) == 3 and hostile + len(routes.done) - 1 >= 10 else 1


if __name__ == "__main__":
    sys.exit(main())

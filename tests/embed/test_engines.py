"""The same bytes from every engine and any number of workers; workers end with their parent."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mtlib.embed.embedding import embed_images
from mtlib.embed.listing import find_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i in range(18):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
            root / f"{i:02d}.png"
        )
    (root / "05.png").write_bytes(b"")
    return root


def embed(encoder, folder, out, **options):
    out.mkdir(parents=True)
    outcomes = embed_images(
        encoder, folder, find_images(folder)[0], out, out / "s", batch_size=4, shard_files=4, **options
    )
    return (out / "x.npy").read_bytes(), outcomes["status"].tolist()


def test_processes_give_the_bytes_of_one(one_thread, tiny, folder, tmp_path):
    done = []
    local = embed(tiny, folder, tmp_path / "local", workers=2)
    assert embed(tiny, folder, tmp_path / "two", workers=2, engine="processes", progress=done.append) == local
    assert sum(done) == 18 and len(done) == 6 and local[1].count("empty") == 1  # nothing stood yet, then five shards


def test_ray_gives_the_bytes_of_one(one_thread, tiny, folder, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (extra ray)")
    local = embed(tiny, folder, tmp_path / "local")
    assert embed(tiny, folder, tmp_path / "ray", workers=2, engine="ray") == local
    many = 2 * os.cpu_count()  # more than there is room for: fewer work, none is waited for
    assert embed(tiny, folder, tmp_path / "many", workers=many, engine="ray") == local


def test_unknown_engine_and_absent_ray_are_clear_errors(tiny, folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="engine = 'spark' is not one of local, processes, ray"):
        embed(tiny, folder, tmp_path / "a", engine="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="extra `ray`"):
        embed(tiny, folder, tmp_path / "b", engine="ray")


PARENT = """
import os, time
from multiprocessing import get_context
from mtlib.embed.embedding import end_with_parent

def child():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    process = get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


def test_workers_end_when_their_parent_is_killed(tmp_path, repo):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = os.environ | {"PYTHONPATH": str(repo)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and alive(child):
            time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""Training the vision model, killed at random points and resumed each time, ends with the same bytes.

    ./run_all.sh prove kills_vision [--kills 20]

A small AlexNet-Transformer (2 blocks, 95 x 95 pixels) is trained in a process of its own that is sent SIGKILL at a random
time, again and again until it has been killed so often; then it may finish. Its weights and history are compared with
those of a training that nothing stopped. Writes proofs/results/kills_vision.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mtlib.embed.vision import VisionConfig
from mtlib.learn.config import VisionTraining
from mtlib.learn.vision import fit_vision
from mtlib.run.artifacts import sha256, write_text
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
CONFIG = VisionConfig(n_classes=2, variant="positions", blocks=2, heads=4, layer=1, side=95)
FILES = ("weights.safetensors", "config.json", "history.parquet")


def train(folder: Path, steps: int) -> None:
    """One training on fixed noise: 3 steps an epoch, a checkpoint after every second step."""
    rng, n = np.random.default_rng(0), 15
    pixels, labels = rng.integers(0, 256, (n, 3, CONFIG.side, CONFIG.side), np.uint8), np.arange(n) % 2
    training = VisionTraining(
        vision_variant="positions", vision_epochs=steps // 3, vision_batch=4, checkpoint_steps=2, device="cpu"
    )
    fit_vision(CONFIG, pixels, labels, np.arange(12), np.arange(12, n), training, folder)


def killed_after(folder: Path, steps: int, seconds: float) -> bool:
    """Train in a child process, killed after so many seconds. Returns whether it was still at work."""
    child = os.fork()  # the libraries are loaded already, so a kill hits the training and not an import
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        train(folder, steps)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main() -> int:
    """Returns 0 when every file is byte-identical and training was killed as often as asked, else 1."""
    parser = argparse.ArgumentParser(prog="prove kills_vision", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps, kills, rng = 3 * args.kills, 0, np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="kills-") as tmp:
        whole, stopped = Path(tmp) / "whole", Path(tmp) / "stopped"
        start = time.monotonic()
        train(whole, steps)
        seconds = time.monotonic() - start
        for _ in range(10 * args.kills):
            if kills == args.kills:
                break
            alive = killed_after(stopped, steps, rng.uniform(0, 6 * seconds / steps))
            kills += alive
            if not alive:
                break
        train(stopped, steps)
        same = {name: sha256(whole / name) == sha256(stopped / name) for name in FILES}
    lines = ["# The vision model's training, killed", ""]
    lines += [f"{steps} steps, {kills} times SIGKILL at a random moment, resumed each time.", ""]
    lines += [f"- `{name}`: {'identical' if equal else 'differs'}" for name, equal in same.items()]
    text = "\n".join([*lines, "", f"{made_with()}."]) + "\n"
    print(text)
    write_text(ROOT / "proofs" / "results" / "kills_vision.md", text)
    return 0 if all(same.values()) and kills >= min(args.kills, 1) else 1


if __name__ == "__main__":
    raise SystemExit(main())

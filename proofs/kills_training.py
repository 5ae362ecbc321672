"""A training killed with SIGKILL at 20 random moments and resumed each time ends with the same bytes as one left alone.

    ./run_all.sh prove kills_training [--kills 20] [--seed 0]

Trains matryoshka_transcoder_shared (running threshold, AuxK, MonoLoss) on random data in a process of its own, kills it
at a random moment of every life, and compares weights, settings and history with an undisturbed training.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mtlib.coders.config import SparseCoderConfig
from mtlib.learn.config import TrainConfig
from mtlib.learn.loop import NAME
from mtlib.learn.train import fit
from mtlib.run.artifacts import sha256
from proofs import conclude, made_with

STEPS, D, O, N = 1500, 48, 32, 3000  # noqa: E741


def train(folder: str) -> None:
    """The training that is killed: checkpoints every 5 steps, validation every 100."""
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the progress bar of a process that will be killed)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, 12)) @ rng.normal(size=(12, D)) + 0.3 * rng.normal(size=(N, D))).astype(np.float32)
    y = np.maximum(x @ rng.normal(size=(D, O)).astype(np.float32), 0)
    settings = dict(n_latents=256, l0=8, dead_after=2000, centre="mean", scale="rms", mono_weight=0.01)
    config = SparseCoderConfig.preset("matryoshka_transcoder_shared", D, O, **settings)
    how = TrainConfig(steps=STEPS, batch=128, lr=2e-3, val_every=100, checkpoint_steps=5, grad_clip=1.0)
    fit(config, x, y, np.arange(2500), np.arange(2500, N), how, folder)


def step_of(folder: Path) -> int:
    """The step of the last checkpoint, 0 before the first."""
    from safetensors import safe_open

    state = folder / "checkpoint" / NAME
    if not state.exists():
        return 0
    with safe_open(state, "np") as f:  # "pt" opens the file twice, and may find the next one
        return json.loads(f.metadata()["record"])["step"]


def killed(start, folder: Path, n: int, rng: random.Random) -> list[int]:
    """Train with n kills, each at a random moment at least one checkpoint after the last. Returns their steps."""
    steps: list[int] = []
    for i in range(n):
        child, before = start(folder), step_of(folder)
        due = before + (STEPS - before) / (n - i + 1) * rng.uniform(0.3, 1.5)  # spread over what is left
        while child.is_alive() and step_of(folder) < min(due, STEPS - 20):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        if not child.is_alive():
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        steps.append(step_of(folder))
    last = start(folder)
    last.join()
    if last.exitcode:
        raise SystemExit(f"the last life ended with exit code {last.exitcode}")
    return steps


def main() -> int:
    """Returns 0 when every kill landed and every file is byte-identical, else 1."""
    parser = argparse.ArgumentParser(prog="prove kills_training", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtlib.learn.train", "pandas", "pyarrow.parquet"])

    def start(folder: Path):
        child = context.Process(target=train, args=(str(folder),))
        child.start()
        return child

    with tempfile.TemporaryDirectory(prefix="kills-") as tmp:
        whole, broken = Path(tmp) / "whole", Path(tmp) / "killed"
        child = start(whole)
        child.join()
        steps = killed(start, broken, args.kills, random.Random(args.seed))
        names = sorted(p.name for p in whole.iterdir())
        same = {name: (broken / name).is_file() and sha256(whole / name) == sha256(broken / name) for name in names}
    ok = child.exitcode == 0 and len(steps) == args.kills and len(same) == 4 and all(same.values())
    lines = ["# A training that is killed and resumed", "", f"{STEPS} steps, {len(steps)} SIGKILLs. {made_with()}.", ""]
    lines += [f"Last checkpoint before each kill, in steps: {', '.join(map(str, steps))}.", ""]
    lines += ["| file | after the kills |", "|---|---|"]
    lines += [f"| {name} | {'identical bytes' if equal else 'differs'} |" for name, equal in same.items()]
    return conclude("kills_training", "\n".join(lines), ok)


if __name__ == "__main__":
    sys.exit(main())

"""An embedding killed with SIGKILL at 50 random moments and resumed each time ends with the same bytes as one left alone.

    ./run_all.sh prove kills_embedding [--kills 50] [--seed 0]

Embeds 400 images, 20 of them bad, with the bundled encoder in a process of its own and kills it after a random number of
batches and a random pause. When an embedding ends, its files are compared with those of the undisturbed one and the next
begins, until all kills have landed.
"""

from __future__ import annotations

import argparse
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
from PIL import Image

from mtlib.embed.embedding import embed_images
from mtlib.embed.encoders import Encoder
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import complete
from mtlib.embed.store import open_array, write_manifest
from mtlib.run.artifacts import sha256
from proofs import conclude, made_with

N, N_BAD, BATCH, SHARD = 400, 20, 8, 16
FILES = ("x.npy", "manifest.parquet")


def write_images(folder: Path) -> None:
    """N images of noise, no two alike; every 20th is a PNG cut short."""
    folder.mkdir()
    for i in range(N):
        noise = np.random.default_rng(i).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        path = folder / f"{i:03d}.png"
        Image.fromarray(noise).save(path)
        if i % (N // N_BAD) == 7:
            path.write_bytes(path.read_bytes()[:500])


def embed(encoder: Encoder, images: Path, out: Path, progress) -> None:
    """What is killed: batches of 8, shards of 16, then the manifest."""
    out.mkdir(exist_ok=True)
    listing, _ = find_images(images)
    outcomes = embed_images(
        encoder, images, listing, out, out / "shards", BATCH, 2, lambda n: progress.send(n), shard_files=SHARD
    )
    write_manifest(out, complete(listing, outcomes, (0.6, 0.2, 0.2), 0))


def life(context, encoder: Encoder, images: Path, out: Path, batches: int | None, pause: float) -> str:
    """One process, killed after some batches and a pause (seconds); None: left alone. Returns "killed" or "ended"."""
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=embed, args=(encoder, images, out, there))
    child.start()
    there.close()
    try:
        for _ in range(batches if batches is not None else N):
            here.recv()
        time.sleep(pause)
        os.kill(child.pid, signal.SIGKILL)
    except EOFError:
        pass
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"an embedding ended with exit code {child.exitcode}")
    return "killed" if child.exitcode else "ended"


def main() -> int:
    """Returns 0 when every kill landed and every embedding has the bytes of the undisturbed one, else 1."""
    parser = argparse.ArgumentParser(prog="prove kills_embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the processes are forks of this one, so it may have no threads of its own
    encoder, context, rng = (
        Encoder.load("demo", device="cpu"),
        multiprocessing.get_context("fork"),
        random.Random(args.seed),
    )
    with tempfile.TemporaryDirectory(prefix="kills-") as tmp:
        images, whole = Path(tmp) / "images", Path(tmp) / "whole"
        write_images(images)
        life(context, encoder, images, whole, None, 0)
        wanted = {name: sha256(whole / name) for name in FILES}
        x = np.asarray(open_array(whole / "x.npy"))
        kills, ended, same, resumed = 0, 0, 0, 0
        while kills < args.kills or not ended:
            out = Path(tmp) / f"run-{ended}"
            more = kills < args.kills
            done = life(context, encoder, images, out, rng.randrange(1, 12) if more else None, rng.random() * 0.1)
            kills += done == "killed"
            resumed += done == "killed" and any((out / "shards").rglob("*.npz"))
            if done == "ended":
                same += all(sha256(out / name) == wanted[name] for name in FILES)
                ended += 1
        stray = [p for i in range(ended) for p in (Path(tmp) / f"run-{i}").glob(".*tmp*")]
    zero, distinct = int((x == 0).all(axis=1).sum()), len(np.unique(x, axis=0))
    ok = kills == args.kills and same == ended and len(x) == N - N_BAD == distinct and zero == 0
    lines = ["# An embedding that is killed and resumed", "", f"{N} images, {N_BAD} of them bad. {made_with()}.", ""]
    lines += [
        "| what | count |",
        "|---|---:|",
        f"| SIGKILLs | {kills} |",
        f"| with finished shards to resume from | {resumed} |",
    ]
    lines += [
        f"| embeddings that came to their end | {ended} |",
        f"| of them with identical {' and '.join(FILES)} | {same} |",
    ]
    lines += [
        f"| rows, expected {N - N_BAD} | {len(x)} |",
        f"| different rows | {distinct} |",
        f"| rows of zeros | {zero} |",
    ]
    lines += [
        f"| temporary files left beside x.npy (removed when the stage finishes) | {len(stray)} |",
    ]
    return conclude("kills_embedding", "\n".join(lines), ok)


if __name__ == "__main__":
    sys.exit(main())

"""Scenes embedded by every engine, with few and with many workers: the same bytes.

    ./run_all.sh prove engines [--scenes 200]

Needs the extra `ray` (pip install -e '.[ray]'). Draws scenes, embeds them once per line of the table with the demo's
encoder in shards of 16 files, and compares x.npy and the outcome of every file. Writes proofs/results/engines.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import ray
import torch

from mtlib.embed.embedding import embed_images
from mtlib.embed.encoders import Encoder
from mtlib.embed.listing import find_images
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import write_text
from mtlib.scenes.dataset import write_dataset
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
RUNS = (("local", 1), ("local", 3), ("processes", 1), ("processes", 2), ("ray", 1), ("ray", 2), ("ray", 8))


def embed(encoder: Encoder, images: Path, out: Path, engine: str, workers: int) -> dict:
    """One line of the table: rows, seconds and a hash of x.npy and of all outcomes."""
    out.mkdir()
    start = time.perf_counter()
    options = dict(batch_size=8, workers=workers, engine=engine, shard_files=16)
    outcomes = embed_images(encoder, images, find_images(images)[0], out, out / "shards", **options)
    seconds = time.perf_counter() - start
    found = hashlib.sha256((out / "x.npy").read_bytes() + outcomes.to_csv().encode()).hexdigest()
    return {"engine": engine, "workers": workers, "files": len(outcomes), "seconds": seconds, "hash": found[:16]}


def main() -> int:
    """Returns 0 when all hashes are equal, else 1."""
    parser = argparse.ArgumentParser(prog="prove engines", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    args = parser.parse_args()
    encoder = Encoder.load("demo")
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        images = Path(folder) / "images"
        write_dataset(images, args.scenes, 0, n_per_generator=0)
        next(images.rglob("*.png")).write_bytes(b"")  # a file that cannot be used keeps its place
        lines = [embed(encoder, images, Path(folder) / f"{e}-{w}", e, w) for e, w in RUNS]
    table = pd.DataFrame(lines)
    same = table["hash"].nunique() == 1
    text = "# Every engine gives the same bytes\n\n"
    text += f"{lines[0]['files']} files, one of them unreadable, on {os.cpu_count()} cores with {torch.get_num_threads()} threads in this process; "
    text += f"Ray {ray.__version__}, {made_with()}. "
    text += f"{'All hashes are equal' if same else '**The hashes differ**'}. Starting workers is most of the time of so few images.\n\n"
    names = {
        "engine": "engine",
        "workers": "workers",
        "files": "files",
        "seconds": "seconds",
        "hash": "x.npy and outcomes",
    }
    text += markdown_table(table, names) + "\n"
    print(text)
    write_text(ROOT / "proofs" / "results" / "engines.md", text)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

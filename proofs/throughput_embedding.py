"""Embedding is as fast as its encoder: decoding overlaps the forward pass, and memory is flat in the number of images.

    ./run_all.sh prove throughput_embedding [--rounds 5] [--images 50000]

Measures, in interleaved rounds of one process, the forward pass alone (on images decoded before), decoding alone (one
thread) and the whole embedding with shards, hashes and manifest; for the bundled encoder and for a ViT-B-32 with random
weights. Then embeds 1,000 and 50,000 images in processes of their own and compares their peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from mtlib.embed.embedding import embed_images
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import load_image
from mtlib.embed.listing import find_images
from proofs import conclude, made_with

ROOT = Path(__file__).resolve().parents[1]
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TINY = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
GOALS = {"ViT-B-32": ("forward", 0.9), "bundled": ("sum", 0.8)}


def random_clip(folder: Path, vision: dict, embed_dim: int) -> str:
    """Write an open_clip model with random weights; returns its encoder name."""
    folder.mkdir()
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT}
    written = {"model_cfg": config, "preprocess_cfg": {"size": vision["image_size"]}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in open_clip.CLIP(**config).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def write_images(folder: Path, n: int, side: int, suffix: str) -> None:
    """n images of smooth noise, which compress like photographs."""
    folder.mkdir()
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.{suffix}")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all threads) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(encoder: Encoder, folder: Path, batch: int, rounds: int, workers: int) -> pd.DataFrame:
    """Milliseconds per image of every round: wall and CPU of forward, decode and embed."""
    listing, _ = find_images(folder)
    paths = [folder / name for name in listing["path"]]
    pixels = torch.stack([encoder.preprocess(load_image(path)[0]) for path in paths])

    def forward():
        for i in range(0, len(pixels), batch):
            encoder.encode_tensors(pixels[i : i + batch])

    def decode():
        for path in paths:
            encoder.preprocess(load_image(path)[0])

    def embed():
        with tempfile.TemporaryDirectory() as tmp:
            embed_images(encoder, folder, listing, Path(tmp), Path(tmp) / "s", batch, workers)

    forward()
    lines = []
    for _ in range(rounds):
        line = {}
        for name, call in (("forward", forward), ("decode", decode), ("embed", embed)):
            wall, cpu = timed(call)
            line |= {f"{name}_wall": 1000 * wall / len(paths), f"{name}_cpu": 1000 * cpu / len(paths)}
        lines.append(line)
    return pd.DataFrame(lines)


def resident_mb() -> float:
    """Memory of this process now, MB (Linux); elsewhere its peak so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_of(name: str, folder: Path, n: int) -> None:
    """Embed 1,000 and then n files, memory read after every batch, and print both largest values in MB (a process of its own)."""
    torch.set_num_threads(1)
    encoder = Encoder.load(name, device="cpu")
    listing, _ = find_images(folder)
    with tempfile.TemporaryDirectory() as tmp:
        for count in (1000, n):
            seen, out = [], Path(tmp) / str(count)
            watch = lambda _, seen=seen: seen.append(resident_mb())  # noqa: E731
            embed_images(encoder, folder, listing.iloc[:count], out, out / "s", 256, 2, watch)
            print(f"{max([*seen, resident_mb()]):.1f}")


def memory(tmp: Path, n: int) -> tuple[float, float]:
    """(MB that n images need above 1,000, MB at 1,000), of a tiny encoder; the files are links to 500 images."""
    write_images(tmp / "few", 500, 64, "png")
    many = tmp / "many"
    many.mkdir()
    for i in range(n):
        os.link(tmp / "few" / f"{i % 500:05d}.png", many / f"{i:06d}.png")
    name = random_clip(tmp / "tiny", TINY, 64)
    command = [sys.executable, "-m", "proofs.throughput_embedding", "--peak-of", name, str(many), str(n)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split()[-2:])
    return after - before, before


def main() -> int:
    """Returns 0 when both goals are met and memory grows by less than 100 MB, else 1."""
    parser = argparse.ArgumentParser(prog="prove throughput_embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--peak-of", nargs=3, metavar=("ENCODER", "FOLDER", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        peak_of(args.peak_of[0], Path(args.peak_of[1]), int(args.peak_of[2]))
        return 0
    threads = torch.get_num_threads()
    lines = [
        "# Throughput of embedding",
        "",
        f"{threads} threads. {made_with()}.",
    ]
    lines += ["Milliseconds per image, medians of interleaved rounds; CPU is the time of all threads.", ""]
    lines += [
        "| encoder | forward wall | forward CPU | decode CPU | embed wall | embed CPU | images/s | share of the bound | goal |"
    ]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory(prefix="throughput-") as tmp:
        root = Path(tmp)
        write_images(root / "large", 64, 256, "jpg")
        write_images(root / "small", 768, 128, "png")
        vit = random_clip(root / "vit", open_clip.get_model_config("ViT-B-32")["vision_cfg"] | {"image_size": 224}, 512)
        ok = True
        for name, encoder, folder, batch in (("ViT-B-32", vit, "large", 16), ("bundled", "demo", "small", 256)):
            found = measure(Encoder.load(encoder, device="cpu"), root / folder, batch, args.rounds, threads)
            m = found.median()
            kind, goal = GOALS[name]
            bound = found["forward_cpu"] + (found["decode_cpu"] if kind == "sum" else 0)
            share = float((bound / found["embed_cpu"]).median())
            ok &= share >= goal
            cells = [m[c] for c in ("forward_wall", "forward_cpu", "decode_cpu", "embed_wall", "embed_cpu")]
            lines += [
                f"| {name} | "
                + " | ".join(f"{c:.2f}" for c in cells)
                + f" | {1000 / m['embed_wall']:.1f} | {share:.2f} | {goal} |"
            ]
        more, before = memory(root, args.images)
    ok &= more < 100
    lines += [
        "",
        "The bound is the CPU time of the forward pass (ViT-B-32), or of decoding and the forward pass (bundled), over that",
    ]
    lines += ["of the whole embedding: CPU time, because wall time on a shared machine depends on its neighbours.", ""]
    lines += [
        f"Largest memory of the process: {before:.0f} MB for 1,000 images, {more:.1f} MB more for {args.images:,}."
    ]
    return conclude("throughput_embedding", "\n".join(lines), ok)


if __name__ == "__main__":
    sys.exit(main())

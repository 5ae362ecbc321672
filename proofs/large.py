"""Large inputs: one pass over a million rows, 120,000 images with a kill in the middle, two processes; and what 3 million cost.

    ./run_all.sh prove large [--passes 200000x512 200000x768 1000000x768] [--latents 8192] [--images 120000]

The pass is `scan` as notebook 04 calls it, of a coder with 64 active latents per row, over a memory-mapped file made on the spot, in
a process of its own; its memory is what it holds beyond the pages of mapped files. The images are 64 px, through the bundled
encoder; the process is killed with SIGKILL when half of them are done, and the same call goes on. The last table reckons with rates that
are named, of GPUs that were not at hand. Writes proofs/results/large.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.embedding import embed_images, end_with_parent
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import load_image
from mtlib.embed.listing import find_images
from mtlib.embed.store import open_array
from mtlib.measure.scan import scan
from mtlib.report.text import markdown_table
from proofs import conclude, made_with

FAMILIES, BLOCK, SIDE = 9, 10_000, 64
LIMIT_MB = 2048  # beyond the mapped file
FILES, SOME = 20_000, 200  # images for the two engines; images whose rows are looked at
KS = (4, 8, 12, 16, 24)
# Reckoned: ViT-L-14 at 224 px takes 162 GFLOP an image (OpenCLIP's table); a coder's step 6 D S flops of products a row, writes
# its S values once and reads them twice, and AdamW moves 28 bytes of every weight a batch
GPU = {"TFLOP/s in bf16, half of an H100's": 495.0, "TB/s, of its 3.35": 2.5, "dollars an hour": 3.0}
IMAGE_FLOPS, WIDTH, LATENTS, EPOCHS, ROWS, N = 162e9, 768, 49_152, 10, 4096, 3_000_000
PHOTO, CORES = (500, 375), 16


def write_rows(path: Path, n: int, width: int) -> None:
    """x.npy (n, width): a centre of each family and noise, written in blocks."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(FAMILIES, width)).astype(np.float32)
    x = np.lib.format.open_memmap(path, "w+", np.float32, (n, width))
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        x[rows] = centres[rows % FAMILIES] + rng.standard_normal((len(rows), width), np.float32)
    x.flush()


def one_pass(path: Path, n_latents: int) -> None:
    """Everything that `scan` measures of one coder on all rows."""
    x = np.load(path, mmap_mode="r")
    levels = tuple(n_latents // 2**i for i in (4, 3, 2, 1, 0))
    shape = dict(d_in=x.shape[1], d_out=x.shape[1], n_latents=n_latents, levels=levels, ks=KS)
    coder = SparseCoder(SparseCoderConfig(**shape, selection="block_topk"), 0).eval()
    scan(coder, x, x, np.arange(len(x)), classes=np.arange(len(x)) % FAMILIES)


def _held() -> float:
    """MB of this process beyond the pages of files."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def _watched(out, work, *given) -> None:
    """Run work(*given) in a process of its own; send by how much the memory grew at most (MB), CPU seconds and seconds."""
    end_with_parent()
    done, seen, start, cpu = threading.Event(), [_held()], time.monotonic(), time.process_time()
    watcher = threading.Thread(target=lambda: [seen.append(_held()) for _ in iter(lambda: done.wait(0.05), True)])
    watcher.start()
    work(*given)
    done.set()
    watcher.join()
    out.put((max(seen) - seen[0], time.process_time() - cpu, time.monotonic() - start))


def passes(sizes: list[str], n_latents: int) -> pd.DataFrame:
    """A line per size: what one pass holds and how long it takes."""
    spawn, lines = multiprocessing.get_context("spawn"), []
    for n, width in ([int(part) for part in size.split("x")] for size in sizes):
        with tempfile.TemporaryDirectory(prefix="large-") as folder:
            write_rows(Path(folder) / "x.npy", n, width)
            out = spawn.SimpleQueue()
            process = spawn.Process(target=_watched, args=(out, one_pass, Path(folder) / "x.npy", n_latents))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"the pass over {n} rows ended with {process.exitcode}")
            held, cpu, wall = out.get()
        line = {"rows": n, "width": width, "file": n * width * 4 / 2**20, "held": held, "cpu": cpu, "wall": wall}
        lines.append(line | {"each": 1e3 * cpu / n})
        print(lines[-1], flush=True)
    return pd.DataFrame(lines)


def _draw(job: tuple[str, int, int]) -> None:
    folder, start, end = job
    for i in range(start, end):
        small = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(
            f"{folder}/{i:07d}.png", compress_level=1
        )


def write_images(folder: Path, n: int) -> None:
    """n images of 8 x 8 coloured squares, no two alike."""
    folder.mkdir()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_draw, [(str(folder), i, min(i + 1000, n)) for i in range(0, n, 1000)]))


def _embed(images: Path, out: Path, engine: str, workers: int, threads: int, n: int, progress=None) -> None:
    torch.set_num_threads(threads)
    listing = find_images(images)[0].iloc[: n or None]
    say = (lambda k: None) if progress is None else (lambda k: progress.put(k))
    out.mkdir(exist_ok=True)
    embed_images(Encoder.load("demo", device="cpu"), images, listing, out, out / "shards", 256, workers, say, engine)


def _kept(images: Path, out: Path, n: int, queue, progress) -> None:
    _watched(queue, _embed, images, out, "local", 2, 2, n, progress)


def killed_and_resumed(images: Path, out: Path, n: int) -> dict[str, float]:
    """Embed n images, killed at half; what the second call holds and takes, and whether every row is there and right."""
    spawn, seconds = multiprocessing.get_context("spawn"), []
    for life in range(2):
        queue, progress = spawn.SimpleQueue(), spawn.Queue()
        start = time.monotonic()
        process = spawn.Process(target=_kept, args=(images, out, n, queue, progress))
        process.start()
        done = 0
        while not life and done < n // 2:
            done += progress.get()
        if not life:
            os.kill(process.pid, signal.SIGKILL)
        else:
            threading.Thread(
                target=lambda progress=progress: [None for _ in iter(progress.get, None)], daemon=True
            ).start()
        process.join()
        seconds.append(time.monotonic() - start)
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(f"embedding ended with {process.exitcode}")
    held = queue.get()[0]
    x, encoder = open_array(out / "x.npy"), Encoder.load("demo", device="cpu")
    some = np.random.default_rng(0).choice(n, min(SOME, n), replace=False)
    paths = find_images(images)[0]["path"].to_numpy()
    own = encoder.encode_images([load_image(images / paths[i])[0] for i in some])
    off = np.abs(own - x[some]).max() / np.abs(own).max()
    return {"images": n, "rows": len(x), "off": off, "held": held, "first": seconds[0], "second": seconds[1]}


def speed_up(images: Path, folder: Path, n: int) -> pd.DataFrame:
    """Seconds of one and of two processes with a thread each, by the same call."""
    lines = []
    for workers in (1, 2):
        start = time.monotonic()
        _embed(images, folder / f"workers-{workers}", "processes", workers, workers, n)
        lines.append({"processes": workers, "images": n, "seconds": time.monotonic() - start})
    return pd.DataFrame(lines).assign(times=lambda t: t["seconds"].iloc[0] / t["seconds"])


def read_rate(folder: Path, n: int = SOME) -> float:
    """Photographs of PHOTO's size, JPEG, that one core reads, decodes and brings to 224 px a second."""
    small = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(small).resize(PHOTO, Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=90)
    start = time.process_time()
    for _ in range(n):
        load_image(folder / "photo.jpg")[0].resize((224, 224), Image.Resampling.BICUBIC)
    return n / (time.process_time() - start)


def reckoned(rate: float) -> pd.DataFrame:
    """Hours, bytes and dollars of N images and N rows on one GPU and on eight, that share the work; rate: `read_rate`."""
    flops, moved, price = GPU.values()
    x, weights, z = N * WIDTH * 4, 2 * WIDTH * LATENTS, N * LATENTS * 4
    step = 3 * weights * N / (1e12 * flops) + (3 * z + 28 * weights * N / ROWS) / (1e12 * moved)
    work = {
        f"read and decode {N:,} photographs, {CORES} cores a GPU": (N / rate / CORES, x),
        "embed them by ViT-L-14": (IMAGE_FLOPS * N / (1e12 * flops), x),
        f"train a coder of {LATENTS:,} latents, {EPOCHS} epochs": (EPOCHS * step, x + 4 * 4 * weights),
        "one pass over its codes": (2 * weights * N / (1e12 * flops) + 3 * z / (1e12 * moved), x),
    }
    return pd.DataFrame(
        {"what": what, "GPUs": gpus, "hours": s / 3600 / gpus, "GB": b / 1e9, "dollars": s / 3600 * price}
        for what, (s, b) in work.items()
        for gpus in (1, 8)
    )


def main() -> int:
    """Returns 0 when memory is flat, time linear (within a third), and every image has its row."""
    parser = argparse.ArgumentParser(prog="prove large", description=__doc__.splitlines()[0])
    parser.add_argument("--passes", nargs="+", default=["200000x512", "200000x768", "1000000x768"])
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--images", type=int, default=120_000)
    args = parser.parse_args()
    table = passes(args.passes, args.latents)
    with tempfile.TemporaryDirectory(prefix="large-") as tmp:
        images, folder = Path(tmp) / "images", Path(tmp)
        write_images(images, args.images)
        found = killed_and_resumed(images, folder / "out", args.images)
        rate = read_rate(folder)
        engines = speed_up(images, folder, min(FILES, args.images))
    columns = {"rows": "rows", "width": "width", "file": "mapped file, MB", "held": "held beyond it, MB"}
    columns |= {"cpu": "CPU s", "wall": "s", "each": "CPU ms a row"}
    spread = table["each"].max() / table["each"].min()
    ok = table["held"].max() <= LIMIT_MB and spread <= 4 / 3 and found["rows"] == args.images and found["off"] < 1e-4
    given = ", ".join(f"{value:.3g} {name}" for name, value in GPU.items())
    lines = ["# Large inputs", "", f"{made_with()}.", "", f"One pass over all rows, {args.latents:,} latents:", ""]
    lines += [markdown_table(table, columns), "", f"CPU time of a row differs by {spread:.2f} times.", ""]
    lines += [
        f"{found['images']:,} images of {SIDE} px, killed at half after {found['first']:.0f} s, the rest in {found['second']:.0f} s, "
    ]
    lines[-1] += (
        f"{found['rows']:,} rows; {found['held']:.0f} MB held; {SOME} rows differ from the encoder's own by at most {found['off']:.1e} of the largest."
    )
    lines += [
        "",
        "The same call by one and two processes, a thread each, on two cores:",
        "",
        markdown_table(engines),
        "",
    ]
    lines += [
        f"Reckoned, not measured ({given}; ViT-L-14 {IMAGE_FLOPS / 1e9:.0f} GFLOP an image; a batch of {ROWS:,} rows), but for the "
    ]
    lines[-1] += (
        f"{rate:.0f} photographs of {PHOTO[0]} x {PHOTO[1]} px that one core here reads, decodes and shrinks a second:"
    )
    lines += ["", markdown_table(reckoned(rate))]
    return conclude("large", "\n".join(lines), ok)


if __name__ == "__main__":
    sys.exit(main())

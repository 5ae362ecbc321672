"""1,000 files with 100 bad ones of every kind: each is accounted for with its reason, and the good rows do not notice.

    ./run_all.sh prove bad_images

Embeds the folder with the bundled encoder; then again with every bad file replaced by a good image, and once more with the
bad files removed. Prints the reasons found beside those expected and the peak memory.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mtlib.embed.embedding import embed_images
from mtlib.embed.encoders import Encoder
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import check_bad_fraction, complete
from mtlib.embed.store import open_array
from proofs import conclude, made_with

N, N_BAD = 1000, 100


def encoded(seed: int, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (64, 64), **options) -> bytes:
    """An image of coarse noise, encoded."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def wrong_checksum(seed: int) -> bytes:
    """A PNG with one bit of its pixels flipped."""
    data = bytearray(encoded(seed))
    data[data.index(b"IDAT") + 20] ^= 1
    return bytes(data)


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; it is refused before any pixel is decoded."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def float_tiff(seed: int) -> bytes:
    """A TIFF of floating-point numbers."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).random((8, 8), dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


# suffix, expected reason, maker of the bytes
KINDS: list[tuple[str, str, Callable[[int], bytes]]] = [
    ("jpg", "empty", lambda i: b""),
    ("jpg", "truncated", lambda i: encoded(i, "JPEG")[:-400]),
    ("jpg", "truncated", lambda i: encoded(i, "JPEG")[:-1]),
    ("png", "truncated", lambda i: encoded(i)[:-30]),
    ("webp", "truncated", lambda i: encoded(i, "WEBP")[:-20]),
    ("png", "corrupt", wrong_checksum),
    ("jpg", "not an image", lambda i: b"<html><body>404 Not Found</body></html>"),
    ("jpg", "not an image", lambda i: bytes(range(256)) * 4),
    ("jpg", "format not allowed", lambda i: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ("jpg", "format not allowed", lambda i: b"\x00\x00\x00\x18ftypheic" + bytes(64)),
    ("png", "format not allowed", lambda i: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ("png", "too large", lambda i: claims(30000, 30000)),
    ("png", "too large", lambda i: claims(13377, 13377)),
    ("png", "aspect ratio", lambda i: encoded(i, size=(1, 2000))),
    ("tif", "mode unsupported", float_tiff),
    ("png", "symlink", lambda i: b""),
    ("png", "special file", lambda i: b""),
]
UNLISTED = ("symlink", "special file")  # seen when the folder is listed, so they take no place in a batch


def write_folder(folder: Path, bad: str) -> pd.Series:
    """N files, every tenth bad: "bad", "good" (a good image in its place) or "none" (nothing in its place).

    Returns: expected status by path.
    """
    folder.mkdir()
    expected = {}
    for i in range(N):
        suffix, reason, make = KINDS[(i // 10) % len(KINDS)] if i % 10 == 3 else ("png", "ok", encoded)
        if reason != "ok" and (bad == "none" or (bad == "good" and reason in UNLISTED)):
            continue
        name = f"{i:04d}.{suffix}".encode() + (b"" if reason != "corrupt" else b"\xff.png")  # some names are not UTF-8
        path = os.path.join(os.fsencode(folder), name)
        if bad == "bad" and reason == "symlink":
            os.symlink(b"0000.png", path)
        elif bad == "bad" and reason == "special file":
            os.mkfifo(path)
        else:
            Path(os.fsdecode(path)).write_bytes(make(i) if bad == "bad" else encoded(i))
        expected[name.decode("utf-8", "backslashreplace")] = reason if bad == "bad" else "ok"
    return pd.Series(expected)


def embed(encoder: Encoder, folder: Path, out: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """(manifest by path, x) of a folder."""
    out.mkdir()
    listing, _ = find_images(folder)
    outcomes = embed_images(encoder, folder, listing, out, out / "shards", 32, 2, shard_files=128)
    manifest = complete(listing, outcomes, (0.6, 0.2, 0.2), 0)
    check_bad_fraction(manifest, 0.2)
    return manifest.set_index("path"), np.asarray(open_array(out / "x.npy", 2))


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """Returns 0 when every file has its reason and the good rows are identical, else 1."""
    encoder = Encoder.load("demo", device="cpu")
    with tempfile.TemporaryDirectory(prefix="bad-") as tmp:
        found, rows, peaks = {}, {}, {}
        for bad in ("none", "good", "bad"):
            folder = Path(tmp) / bad
            expected = write_folder(folder, bad)
            found[bad], rows[bad] = embed(encoder, folder, Path(tmp) / f"out-{bad}")
            peaks[bad] = peak_mb()
            shutil.rmtree(folder)
    manifest = found["bad"]
    status = manifest["status"].reindex(expected.index)
    good = manifest.index[manifest["status"] == "ok"]
    of = {bad: rows[bad][found[bad].loc[good, "row"].to_numpy(int)] for bad in found}
    identical = int((of["bad"] == of["good"]).all(axis=1).sum())
    apart = float(np.abs(of["bad"] - of["none"]).max() / np.abs(of["none"]).max())
    ok = (
        len(manifest) == N and bool((status == expected).all()) and identical == len(good) == N - N_BAD and apart < 1e-5
    )
    lines = [
        "# Bad images",
        "",
        f"{N} files, {N_BAD} of them bad. {made_with()}.",
        "",
    ]
    lines += ["| expected | files | found so |", "|---|---:|---:|"]
    for reason, part in expected.groupby(expected):
        lines.append(f"| {reason} | {len(part)} | {int((status[part.index] == reason).sum())} |")
    lines += ["", f"Lines in the manifest: {len(manifest)}; rows: {len(rows['bad'])}."]
    lines += [f"Good rows with the bytes that they have when good images stand in the bad ones' places: {identical}."]
    lines += [f"Largest difference to the rows of a folder without the bad files: {apart:.1e} of the largest value."]
    lines += [f"Peak memory with the bad files: {max(0, peaks['bad'] - peaks['good']):.0f} MB above that without.", ""]
    if not ok:
        print(pd.DataFrame({"expected": expected, "found": status})[status != expected].to_string())
    return conclude("bad_images", "\n".join(lines), ok)


if __name__ == "__main__":
    sys.exit(main())

"""From files to rows: decoding in threads ahead of the encoder, rows in the order of the files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.data import LISTED
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.names import unescape
from mtlib.embed.shards import OUTCOME, write_embeddings

AHEAD = 2  # batches that are decoded while one is in the encoder


def embed_images(
    encoder: Encoder,
    folder: Path,
    listing: pd.DataFrame,
    out: Path,
    shards: Path,
    batch_size: int = 256,
    workers: int = 2,
    progress=lambda n: None,
) -> pd.DataFrame:
    """Embed the listed files of a folder into out/x.npy; a killed run continues where it stopped.

    Args:
        encoder:    the tower.
        folder:     where the paths of the listing start.
        listing:    of `find_images`; only lines with status LISTED are read.
        out, shards: folder of x.npy; scratch folder.
        batch_size: images per forward pass; a bad file leaves its place in the batch empty, so rows do not depend on it.
        workers:    decoding threads (decoding releases Python's lock); the result does not depend on it.
        progress:   called with the number of files of each finished batch.
    Returns: frame of status, detail and sha256 of the listed files, in order.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size = {batch_size} and workers = {workers} must be at least 1")
    files = listing.loc[listing["status"] == LISTED, ["path", "size", "mtime_ns"]]
    lines = list(files.itertuples(index=False, name=None))
    key = {"encoder": encoder.fingerprint, "batch_size": batch_size, "device": encoder.device.type, "files": lines}
    progressed = 0

    def batches(start: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        nonlocal progressed
        progress(start - progressed)
        for x, outcomes in _batches(encoder, Path(folder), lines[start:], batch_size, workers):
            yield x, outcomes
            progress(len(outcomes))

    return write_embeddings(out, shards, len(lines), batches, key, shard_files=max(1024, batch_size))


def _batches(encoder: Encoder, folder: Path, lines: list[tuple], batch_size: int, workers: int):
    parts = [lines[i : i + batch_size] for i in range(0, len(lines), batch_size)]
    waiting: deque[list[Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in range(len(parts) + AHEAD):
                if i < len(parts):
                    waiting.append([pool.submit(_read, encoder, folder, *line) for line in parts[i]])
                if i >= AHEAD:
                    yield _forward(encoder, [future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(encoder: Encoder, folder: Path, path: str, size: int, mtime_ns: int) -> tuple[torch.Tensor | None, tuple]:
    """(pixels or None, outcome) of one file."""
    try:
        image, info = load_image(folder / unescape(path), (size, mtime_ns))
        return encoder.preprocess(image), ("ok", info["note"], info["sha256"])
    except ImageRefused as e:
        return None, (e.reason, e.detail, "")


def _forward(encoder: Encoder, read: list[tuple[torch.Tensor | None, tuple]]) -> tuple[np.ndarray, pd.DataFrame]:
    outcomes = pd.DataFrame([outcome for _, outcome in read], columns=list(OUTCOME))
    shape = next((pixels.shape for pixels, _ in read if pixels is not None), None)
    if shape is None:
        return np.zeros((0, encoder.d_out), np.float32), outcomes
    batch = torch.zeros((len(read), *shape))
    for place, (pixels, _) in zip(batch, read, strict=True):
        if pixels is not None:
            place.copy_(pixels)
    return encoder.encode_tensors(batch)[(outcomes["status"] == "ok").to_numpy()], outcomes

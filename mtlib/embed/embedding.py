"""From files to rows: decoding in threads ahead of the encoder, rows in the order of the files."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.data import LISTED
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.names import unescape
from mtlib.embed.shards import OUTCOME, Shards

AHEAD = 2  # batches that are decoded while one is in the encoder
SHARD_FILES = 1024  # files per shard, rounded up to whole batches
Batch = tuple[Mapping[str, np.ndarray], pd.DataFrame]  # arrays of the ok files, outcomes of all files


@dataclass(frozen=True)
class Job:
    """What is to be embedded: lines of (path, size, mtime_ns) below a folder, in shards."""

    folder: Path
    lines: list[tuple[str, int, int]]
    batch_size: int
    shards: Shards

    def batches(self, shard: int) -> list[list[tuple[str, int, int]]]:
        """Lines of a shard, batch by batch."""
        lines = [self.lines[i] for i in self.shards.range(shard)]
        return [lines[i : i + self.batch_size] for i in range(0, len(lines), self.batch_size)]


def embed_images(
    encoder: Encoder,
    folder: Path,
    listing: pd.DataFrame,
    out: Path,
    shards: Path,
    batch_size: int = 256,
    workers: int = 2,
    progress: Callable[[int], object] = lambda n: None,
    engine: str = "local",
    shard_files: int = SHARD_FILES,
) -> pd.DataFrame:
    """Embed the listed files of a folder into out/x.npy; a killed run continues where it stopped.

    Args:
        encoder:    the tower; with a layer, x.npy holds the tokens and out/embedding.npy the final embeddings.
        folder:     where the paths of the listing start.
        listing:    of `find_images`; only lines with status LISTED are read.
        out, shards: folder of x.npy; scratch folder.
        batch_size: images per forward pass; a bad file leaves its place in the batch empty, so rows do not depend on it.
        workers:    decoding threads of the local engine (decoding releases Python's lock), else processes.
        progress:   called with the number of files of each finished batch (of each shard, by other engines).
        engine:     one of `engines.ENGINES`; the bytes do not depend on it, nor on `workers`.
        shard_files: files per shard, rounded up to whole batches.
    Returns: frame of status, detail and sha256 of the listed files, in order.
    """
    from mtlib.embed import engines  # which needs the functions of this module

    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size = {batch_size} and workers = {workers} must be at least 1")
    lines = list(
        listing.loc[listing["status"] == LISTED, ["path", "size", "mtime_ns"]].itertuples(index=False, name=None)
    )
    files = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    key = {"encoder": encoder.record, "batch_size": batch_size, "device": encoder.device.type, "files": files}
    size = -(-max(shard_files, batch_size) // batch_size) * batch_size
    job = Job(Path(folder).absolute(), lines, batch_size, Shards(Path(shards).absolute(), len(lines), size, key))
    todo = job.shards.todo()
    progress(len(lines) - sum(len(job.shards.range(i)) for i in todo))
    engines.run(engine, encoder, job, todo, workers, progress)
    return job.shards.join(out)


def embed_shards(
    encoder: Encoder, job: Job, todo: list[int], workers: int, progress: Callable[[int], object] = lambda n: None
) -> None:
    """Embed and write shards in this process, decoding across their borders."""
    parts = [(i, batch) for i in todo for batch in job.batches(i)]
    buffer: list[Batch] = []
    for at, batch in enumerate(forward_batches(encoder, job.folder, (lines for _, lines in parts), workers)):
        shard = parts[at][0]
        buffer.append(batch)
        if at + 1 == len(parts) or parts[at + 1][0] != shard:
            job.shards.write(shard, buffer)
            buffer = []
        progress(len(batch[1]))


def forward_batches(encoder: Encoder, folder: Path, parts: Iterator[list[tuple]], workers: int) -> Iterator[Batch]:
    """The arrays and outcomes of batches of lines, in order; the next AHEAD batches are decoded meanwhile."""
    waiting: deque[list[Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in parts:
                waiting.append([pool.submit(_read, encoder, folder, *line) for line in part])
                if len(waiting) > AHEAD:
                    yield _forward(encoder, [future.result() for future in waiting.popleft()])
            while waiting:
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


def _forward(encoder: Encoder, read: list[tuple[torch.Tensor | None, tuple]]) -> Batch:
    outcomes = pd.DataFrame([outcome for _, outcome in read], columns=list(OUTCOME))
    batch = torch.zeros((len(read), *encoder.shape))
    for place, (pixels, _) in zip(batch, read, strict=True):
        if pixels is not None:
            place.copy_(pixels)
    ok = (outcomes["status"] == "ok").to_numpy()
    return {name: x[ok] for name, x in encoder.encode_arrays(batch).items()}, outcomes

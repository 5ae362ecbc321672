"""From files to rows: decoding in threads ahead of the encoder, in shards, by one process or several; the bytes are the same.

    local      this process; `workers` threads decode
    processes  `workers` processes of this machine, each with the encoder and a share of the threads (how many an encoder has
               may show in the last digits)
    ray        at most `workers` Ray actors (extra `ray`), on this machine or on the cluster that RAY_ADDRESS names, if it sees
               the same folders

A shard is a fixed range of files: <index>.npz holds the arrays of the good ones and the outcome of every one, and counts when
its checksums hold. Workers write whole shards, in any order: no array travels between processes, and a kill loses at most the
shards in work.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.datasets import extra
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.manifest import LISTED, unescape
from mtlib.embed.store import write_rows
from mtlib.run.artifacts import ArtifactError, atomic, write_text

AHEAD = 2  # batches that are decoded while one is in the encoder
SHARD_FILES = 1024  # files per shard, rounded up to whole batches
ENGINES = ("local", "processes", "ray")
OUTCOME = ("status", "detail", "sha256")  # what embedding adds to the line of each file
Batch = tuple[Mapping[str, np.ndarray], pd.DataFrame]  # arrays of the ok files, outcomes of all files


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
        encoder:    with a layer, x.npy holds its tokens and out/embedding.npy the final embeddings.
        folder, listing: of `find_images`; only lines with status LISTED are read.
        shards:     scratch folder.
        batch_size: images per forward pass; a bad file leaves its place in the batch empty, so rows do not depend on it.
        workers:    decoding threads of the local engine (decoding releases Python's lock), else processes.
        progress:   called with the number of files of each finished batch (of each shard, by other engines).
    Returns: frame of status, detail and sha256 of the listed files, in order.
    Raises: ValueError for an unknown engine; InputError naming the extra when Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is not one of {', '.join(ENGINES)}")
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size = {batch_size} and workers = {workers} must be at least 1")
    listed = listing.loc[listing["status"] == LISTED, ["path", "size", "mtime_ns"]]
    lines = list(listed.itertuples(index=False, name=None))
    files = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    key = {"encoder": encoder.record, "batch_size": batch_size, "device": encoder.device.type, "files": files}
    size = -(-max(shard_files, batch_size) // batch_size) * batch_size
    job = Job(Path(folder).absolute(), lines, batch_size, Shards(Path(shards).absolute(), len(lines), size, key))
    todo = job.shards.todo()
    progress(len(lines) - sum(len(job.shards.range(i)) for i in todo))
    if engine == "local" or not todo:
        embed_shards(encoder, job, todo, workers, progress)
    else:
        workers = min(workers, len(todo))
        threads = max(1, torch.get_num_threads() // workers)
        spread = _processes if engine == "processes" else _ray
        for shard in spread(encoder.record, encoder.device.type, job, todo, workers, threads):
            progress(len(job.shards.range(shard)))
    return job.shards.join(out)


@dataclass(frozen=True)
class Job:
    """What is to be embedded: lines of (path, size, mtime_ns) below a folder, in shards and batches."""

    folder: Path
    lines: list[tuple[str, int, int]]
    batch_size: int
    shards: Shards

    def batches(self, shard: int) -> list[list[tuple[str, int, int]]]:
        lines = [self.lines[i] for i in self.shards.range(shard)]
        return [lines[i : i + self.batch_size] for i in range(0, len(lines), self.batch_size)]


def embed_shards(
    encoder: Encoder, job: Job, todo: list[int], workers: int, progress: Callable[[int], object] = lambda n: None
) -> None:
    """Embed and write shards in this process, decoding across their borders."""
    batches = _forward_batches(encoder, job, todo, workers)
    for shard in todo:
        written = []
        for _ in job.batches(shard):
            written.append(next(batches))
            progress(len(written[-1][1]))
        job.shards.write(shard, written)


def _forward_batches(encoder: Encoder, job: Job, todo: list[int], workers: int) -> Iterator[Batch]:
    """The arrays and outcomes of every batch of some shards; the next AHEAD batches are decoded and put together meanwhile."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as together:
        try:
            for lines in (lines for shard in todo for lines in job.batches(shard)):
                read = [pool.submit(_read, encoder, job.folder, *line) for line in lines]
                waiting.append(together.submit(_stacked, encoder, read))
                if len(waiting) > AHEAD:
                    yield _forward(encoder, *waiting.popleft().result())
            while waiting:
                yield _forward(encoder, *waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            together.shutdown(wait=True, cancel_futures=True)


def _read(encoder: Encoder, folder: Path, path: str, size: int, mtime_ns: int) -> tuple[torch.Tensor | None, tuple]:
    try:
        image, info = load_image(folder / unescape(path), (size, mtime_ns))
        return encoder.preprocess(image), ("ok", info["note"], info["sha256"])
    except ImageRefused as e:
        return None, (e.reason, e.detail, "")


def _stacked(encoder: Encoder, read: list[Future]) -> tuple[torch.Tensor, pd.DataFrame]:
    """The images of a batch, in pinned memory for a GPU, and what became of each file."""
    batch, outcomes = torch.zeros((len(read), *encoder.shape), pin_memory=encoder.device.type == "cuda"), []
    for place, future in zip(batch, read, strict=True):
        pixels, outcome = future.result()
        outcomes.append(outcome)
        if pixels is not None:
            place.copy_(pixels)
    return batch, pd.DataFrame(outcomes, columns=list(OUTCOME))


def _forward(encoder: Encoder, batch: torch.Tensor, outcomes: pd.DataFrame) -> Batch:
    ok = (outcomes["status"] == "ok").to_numpy()
    return {name: x[ok] for name, x in encoder.encode_arrays(batch).items()}, outcomes


class Worker:
    """An encoder and the job, in a process of its own."""

    def __init__(self, record: dict, device: str, job: Job, threads: int):
        torch.set_num_threads(threads)
        self.encoder, self.job = Encoder.of({"encoder": record}, device), job

    def embed(self, shard: int) -> int:
        """Embed and write a shard; returns its number."""
        embed_shards(self.encoder, self.job, [shard], workers=1)
        return shard


def _processes(record: dict, device: str, job: Job, todo: list[int], workers: int, threads: int) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that PyTorch's threads hold
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(record, device, job, threads))
    try:
        for future in as_completed([pool.submit(_embed, shard) for shard in todo]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(*arguments) -> None:
    global _worker
    end_with_parent()
    _worker = Worker(*arguments)


def _embed(shard: int) -> int:
    return _worker.embed(shard)


def _ray(record: dict, device: str, job: Job, todo: list[int], workers: int, threads: int) -> Iterator[int]:
    ray = extra("ray", "ray")
    from ray.util.actor_pool import ActorPool

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        needs = {"CPU": threads} | ({"GPU": 1} if device == "cuda" else {})
        there = ray.cluster_resources()  # an actor for which there is no room would be waited for without end
        workers = max(1, min(workers, *(int(there.get(name, 0) // n) for name, n in needs.items())))
        actor = ray.remote(num_cpus=threads, num_gpus=needs.get("GPU", 0))(Worker)
        shared = ray.put(job)
        pool = ActorPool([actor.remote(record, device, shared, threads) for _ in range(workers)])
        yield from pool.map_unordered(lambda worker, shard: worker.embed.remote(shard), todo)
    finally:
        if started:
            ray.shutdown()


def end_with_parent() -> None:
    """In a process that `multiprocessing` started: a thread waits for the parent's end, also by a kill, and then ends this one."""
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


class Shards:
    """The shards of `n_files` files, `size` each, in a scratch folder.

    Those of an earlier run with the same `key` (JSON values: encoder, files, batch size) are kept, others removed.
    """

    def __init__(self, folder: Path, n_files: int, size: int, key: dict):
        self.folder, self.n_files, self.size = Path(folder), n_files, size
        self.indices = range(-(-n_files // size))
        own = self.folder / "key.json"
        key = json.dumps(key | {"n_files": n_files, "size": size}, sort_keys=True)
        if not own.is_file() or own.read_text(encoding="utf-8") != key:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_text(own, key)

    def range(self, index: int) -> range:
        return range(index * self.size, min((index + 1) * self.size, self.n_files))

    def todo(self) -> list[int]:
        """Shards that are missing or damaged, ascending."""
        return [i for i in self.indices if not self._whole(i)]

    def write(self, index: int, batches: Sequence[Batch]) -> None:
        """Write one shard from its batches, in order. Raises: ArtifactError when they do not add up to its range."""
        outcomes = pd.concat([o for _, o in batches])[list(OUTCOME)]
        if len(outcomes) != len(self.range(index)):
            raise ArtifactError(f"shard {index}: {len(outcomes)} files embedded, expected {len(self.range(index))}")
        x = {name: np.concatenate([arrays[name] for arrays, _ in batches]).astype("<f4") for name in batches[0][0]}
        n_ok = int((outcomes["status"] == "ok").sum())
        if wrong := [len(rows) for rows in x.values() if len(rows) != n_ok]:
            raise ArtifactError(f"shard {index}: {wrong[0]} embeddings for {n_ok} ok files")
        text = json.dumps(outcomes.to_numpy().tolist()).encode()
        with atomic(self._path(index)) as tmp, open(tmp, "wb") as f:
            np.savez(f, **x, outcomes=np.frombuffer(text, np.uint8))

    def join(self, folder: Path) -> pd.DataFrame:
        """Concatenate the shards into folder/<name>.npy (float32; tokens of an image become rows), one in memory at a time.

        Returns: frame of n_files lines with the columns OUTCOME.
        Raises: ArtifactError when a shard is missing or damaged, or no file was embedded.
        """
        if missing := self.todo():
            raise ArtifactError(
                f"{self._path(missing[0])}: missing or damaged; run the stage again, it is embedded anew"
            )
        lines = [line for i in self.indices for line in json.loads(self._load(i, "outcomes").tobytes())]
        outcomes = pd.DataFrame(lines, columns=list(OUTCOME))
        n_ok = int((outcomes["status"] == "ok").sum())
        if not n_ok:
            why = outcomes[["status", "detail"]].value_counts().head(3).items()
            text = ", ".join(f"{n} {status}" + (f" ({detail})" if detail else "") for (status, detail), n in why)
            raise ArtifactError(f"no file could be embedded: {text}")
        with np.load(self._path(0)) as first:
            shapes = {name: first[name].shape[1:] for name in first.files if name != "outcomes"}
        for name, (*tokens, width) in shapes.items():
            shape = n_ok * math.prod(tokens), width
            write_rows(Path(folder) / f"{name}.npy", shape, (self._load(i, name) for i in self.indices))
        return outcomes

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npz"

    def _load(self, index: int, name: str) -> np.ndarray:
        with np.load(self._path(index)) as arrays:
            return arrays[name]

    def _whole(self, index: int) -> bool:
        try:
            with zipfile.ZipFile(self._path(index)) as file:
                return file.testzip() is None
        except Exception:  # of a damaged file zipfile raises almost anything
            return False

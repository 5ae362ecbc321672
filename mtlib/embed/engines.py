"""Where shards are embedded: in this process, in several processes, or on a Ray cluster; the bytes are the same.

    local      this process; `workers` threads decode
    processes  `workers` processes of this machine, each with the encoder and a share of the threads
    ray        `workers` Ray actors (extra `ray`), or as many as there is room for, here or on machines that see the same
               folders; the cluster is the one that RAY_ADDRESS names, else one is started here

Each worker writes whole shards, so no array travels between processes and a kill loses at most the shards in work.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from mtlib.embed.data import InputError
from mtlib.embed.embedding import Job, embed_shards
from mtlib.embed.encoders import Encoder
from mtlib.embed.orphans import end_with_parent

ENGINES = ("local", "processes", "ray")


def run(
    engine: str, encoder: Encoder, job: Job, todo: list[int], workers: int, progress: Callable[[int], object]
) -> None:
    """Embed the shards `todo` of a job.

    Raises: ValueError for an unknown engine; InputError naming the extra when Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is not one of {', '.join(ENGINES)}")
    if engine == "local" or not todo:
        embed_shards(encoder, job, todo, workers, progress)
        return
    workers = min(workers, len(todo))
    threads = max(1, torch.get_num_threads() // workers)
    spread = _processes if engine == "processes" else _ray
    for shard in spread(encoder.record, encoder.device.type, job, todo, workers, threads):
        progress(len(job.shards.range(shard)))


class Worker:
    """An encoder of its own and the job; one shard per call."""

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
    """Make this process's worker."""
    global _worker
    end_with_parent()
    _worker = Worker(*arguments)


def _embed(shard: int) -> int:
    return _worker.embed(shard)


def _ray(record: dict, device: str, job: Job, todo: list[int], workers: int, threads: int) -> Iterator[int]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as e:
        raise InputError("engine = 'ray' needs the extra `ray`: pip install -e '.[ray]'") from e
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

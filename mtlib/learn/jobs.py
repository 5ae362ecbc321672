"""Fits in processes of their own: several at a time, and each by several processes when asked to.

Each fit resumes and verifies as `train.fit` does. Fits that run at a time share the threads of this process (more would
wait for each other); how many threads a fit has may show in its last digits, and nothing else of how it was started does.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from sklearn.utils.parallel import Parallel, delayed

from mtlib.learn.parallel import Group
from mtlib.learn.train import fit


class JobFailed(RuntimeError):
    """A fit's process ended with an error."""


def run_all(fits: Sequence[dict], fits_at_once: int = 1, processes: int = 1) -> None:
    """Run every fit; its results lie in its folder.

    Args:
        fits: keyword arguments of `train.fit`, with a label. Processes map large arrays instead of copying them.
        fits_at_once: fits at a time, each in its own process; 1 with processes = 1 runs them here, one after another.
        processes: processes that share each fit: gloo on CPUs, nccl on GPUs.
    Raises: ValueError for a count < 1 or a batch smaller than `processes`; JobFailed naming the fit and its error.
    """
    if fits_at_once < 1 or processes < 1:
        raise ValueError(f"fits_at_once = {fits_at_once}, processes = {processes}: both must be >= 1")
    for job in fits:
        label, batch = job["label"], job["train_config"].batch
        if min(batch, len(job["rows_train"])) < processes:
            raise ValueError(f"{label}: a batch of {batch} cannot be shared by {processes} processes")
    if fits_at_once == processes == 1:
        for job in fits:
            fit(**job)
        return
    threads = max(1, torch.get_num_threads() // fits_at_once)
    with tempfile.TemporaryDirectory() as meeting:
        places = [(i, rank) for i in range(len(fits)) for rank in range(processes)]
        # Started in this order, so that the oldest fit always has all its processes: none waits for ever. An error or an
        # interrupt ends what is still running; a later call resumes it.
        how = dict(return_as="generator", pre_dispatch="all", batch_size=1, idle_worker_timeout=2)
        run = delayed(_run)
        done = Parallel(fits_at_once * processes, "loky", **how)(
            run(fits[i], rank, processes, f"{meeting}/{i}", threads, os.getpid()) for i, rank in places
        )
        for (i, rank), _ in zip(places, done, strict=True):
            if rank == processes - 1:
                print(f"{fits[i]['label']}: trained", flush=True)


def _run(job: dict, rank: int, processes: int, meeting: str, threads: int, parent: int) -> None:
    """One process of a fit; those of one fit meet at the file `meeting`."""
    _end_with(parent)
    torch.set_num_threads(threads)
    try:
        if processes == 1:
            fit(**job)
            return
        gpus = torch.cuda.device_count() if job["train_config"].device != "cpu" else 0
        if gpus:
            torch.cuda.set_device(rank % gpus)
        dist.init_process_group("nccl" if gpus else "gloo", f"file://{meeting}", rank=rank, world_size=processes)
        fit(**job, group=Group())
        gc.collect()  # tensors that outlive their group can abort the process as it ends
        dist.barrier()
        dist.destroy_process_group()
    except Exception as e:
        raise JobFailed(f"{job['label']}: {type(e).__name__}: {e}") from e


def _end_with(parent: int) -> None:
    """End this process when the one that asked for it is gone, so that nothing trains on unseen."""

    def watch():
        while True:
            try:
                os.kill(parent, 0)
            except OSError:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1.0)

    threading.Thread(target=watch, daemon=True).start()

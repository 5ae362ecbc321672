"""Fits in processes of their own: several at a time, and each by several processes when asked to.

Each fit resumes and verifies as `train.fit` does. Fits that run at a time share the threads of this process (more would
wait for each other); how many threads a fit has may show in its last digits, and nothing else of how it was started does.

    python -m mtlib.learn.jobs <folder of jobs.json> <slot> <slots> <rank> <processes> <threads>
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from mtlib.coders.config import SparseCoderConfig
from mtlib.learn.config import TrainConfig
from mtlib.learn.parallel import Group
from mtlib.learn.train import fit
from mtlib.run.forge import asking

ARRAYS, MODELS = ("x", "t", "rows_train", "rows_val", "y_scale"), ("config", "train_config")  # of a fit's arguments


class JobFailed(RuntimeError):
    """A fit's process ended with an error."""


def run_all(fits: Sequence[dict], fits_at_once: int = 1, processes: int = 1) -> None:
    """Run every fit; its results lie in its folder.

    Args:
        fits: keyword arguments of `train.fit`, with a label. Processes map arrays, and copy none.
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
    slots, started = min(fits_at_once, len(fits)), []
    threads = max(1, torch.get_num_threads() // fits_at_once)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "jobs.json").write_text(json.dumps([_as_json(job, folder) for job in fits]), encoding="utf-8")
        try:
            for slot, rank in ((slot, rank) for slot in range(slots) for rank in range(processes)):
                given = map(str, (folder, slot, slots, rank, processes, threads))
                started.append(subprocess.Popen([*asking(), sys.executable, "-m", __name__, *given]))
            while any(p.poll() is None for p in started) and not any(p.poll() for p in started):
                time.sleep(0.05)
        finally:  # an error or an interrupt ends what is still running; a later call resumes it
            for process in started:
                process.kill()
                process.wait()
        if any(p.returncode for p in started):
            said = [error.read_text(encoding="utf-8") for error in sorted(Path(folder).glob("*.error"))]
            raise JobFailed("; ".join(said) or "a training process was killed; what it said stands in the log")


def _as_json(job: dict, folder: str) -> dict:
    """The arguments of a fit as JSON values: arrays as their `_place`, settings as what they hold."""
    job = job | {name: job[name].model_dump() for name in MODELS} | {"folder": str(job["folder"])}
    return job | {name: _place(job[name], folder) for name in ARRAYS if job.get(name) is not None}


def _place(array: np.ndarray, folder: str) -> list:
    """[file, type, shape, offset in bytes] of an array; one that is no whole map of a file is written to `folder`, once."""
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.flags.c_contiguous):
        path = Path(folder, f"{id(array)}.npy")
        if not path.exists():
            np.save(path, array)
        array = np.load(path, mmap_mode="r")
    return [str(array.filename), array.dtype.str, array.shape, array.offset]


def _from_json(job: dict) -> dict:
    """The inverse of `_as_json`. The target of an autoencoder is its x itself."""
    models = {"config": SparseCoderConfig(**job["config"]), "train_config": TrainConfig(**job["train_config"])}
    arrays = {}
    for name in (name for name in ARRAYS if job.get(name) is not None):
        file, dtype, shape, offset = job[name]
        same = name == "t" and job["t"] == job["x"]
        arrays[name] = arrays["x"] if same else np.memmap(file, dtype, "r", offset, tuple(shape))
    return job | models | arrays


def _run(folder: str, slot: int, slots: int, rank: int, processes: int, threads: int) -> None:
    """One process of every `slots`-th fit, from `slot` on."""
    _end_with(os.getppid())
    torch.set_num_threads(threads)
    jobs = json.loads(Path(folder, "jobs.json").read_text(encoding="utf-8"))
    for i in range(slot, len(jobs), slots):
        try:
            _run_one(_from_json(jobs[i]), rank, processes, Path(folder, f"{i}.meeting"))
        except Exception as e:
            said = f"{jobs[i]['label']}: {type(e).__name__}: {e}"
            Path(folder, f"{i}-{rank}.error").write_text(said, encoding="utf-8")
            raise
        if rank == 0:
            print(f"{jobs[i]['label']}: trained", flush=True)


def _run_one(job: dict, rank: int, processes: int, meeting: Path) -> None:
    """This process' part of a fit; those of one fit meet at the file `meeting`."""
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


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, so that nothing trains on unseen."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _run(sys.argv[1], *map(int, sys.argv[2:]))

"""Fits in processes of their own: several at a time, and each by several processes (torchrun) when asked to.

    python -m mtlib.learn.jobs FOLDER                            one fit, described by FOLDER/job.json
    python -m torch.distributed.run ... -m mtlib.learn.jobs ...  the same fit by several processes

A job is data on disk: settings as JSON, arrays as .npy files that every process maps. Each fit resumes and verifies as
`train.fit` does. Fits that run at a time share the threads of this process (more would wait for each other); how many
threads a fit has may show in its last digits, and nothing else of how it was started does.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from mtlib.coders.config import SparseCoderConfig
from mtlib.learn.config import TrainConfig
from mtlib.learn.parallel import Group
from mtlib.learn.train import fit
from mtlib.run.artifacts import write_json

WORK = ".jobs"  # beside the fits while they run; removed afterwards


@dataclass(frozen=True)
class Fit:
    """Arguments of train.fit."""

    config: SparseCoderConfig
    train_config: TrainConfig
    x: np.ndarray
    t: np.ndarray
    rows_train: np.ndarray
    rows_val: np.ndarray
    folder: Path
    y_scale: np.ndarray | None
    label: str


class JobFailed(RuntimeError):
    """A fit's process ended with an error; the message holds the end of what it said."""


def run_all(fits: Sequence[Fit], fits_at_once: int = 1, processes: int = 1) -> None:
    """Run every fit; its results lie in its folder.

    Args:
        fits_at_once: fits at a time, each in its own process; 1 with processes = 1 runs them here, one after another.
        processes: processes that share each fit, by torchrun: gloo on CPUs, nccl on GPUs.
    Raises: ValueError for a count < 1 or a batch smaller than `processes`; JobFailed naming the fit and its log.
    """
    if fits_at_once < 1 or processes < 1:
        raise ValueError(f"fits_at_once = {fits_at_once}, processes = {processes}: both must be >= 1")
    for job in fits:
        if min(job.train_config.batch, len(job.rows_train)) < processes:
            raise ValueError(
                f"{job.label}: a batch of {job.train_config.batch} cannot be shared by {processes} processes"
            )
    if fits_at_once == processes == 1:
        for job in fits:
            fit(**vars(job))
        return
    folders = {job.folder.parent / WORK for job in fits}
    running: list[subprocess.Popen] = []
    try:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        paths: dict[int, str] = {}
        threads = max(1, torch.get_num_threads() // fits_at_once)
        written = [_write(job, paths, threads) for job in fits]
        with ThreadPoolExecutor(fits_at_once) as pool:
            try:
                for label, log in pool.map(lambda folder: _run(folder, processes, running), written):
                    print(f"{label}: trained" + (f" ({log})" if log else ""), flush=True)
            finally:  # an error or an interrupt ends what is still running; a later call resumes it
                pool.shutdown(wait=False, cancel_futures=True)
                for process in running:
                    if process.poll() is None:
                        process.terminate()
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _array(values: np.ndarray, folder: Path, paths: dict[int, str]) -> str:
    """Path of a .npy file that holds `values`: its own if it is a whole memory map, else a copy, one per array."""
    if id(values) not in paths:
        name = getattr(values, "filename", None)
        if not (name and str(name).endswith(".npy") and _same(np.load(name, mmap_mode="r"), values)):
            name = folder / f"array{len(paths)}.npy"
            np.save(name, values)
        paths[id(values)] = str(Path(name).resolve())
    return paths[id(values)]


def _same(whole: np.ndarray, values: np.ndarray) -> bool:
    return (whole.shape, whole.dtype, whole.strides) == (values.shape, values.dtype, values.strides)


def _write(job: Fit, paths: dict[int, str], threads: int) -> Path:
    folder = job.folder.parent / WORK / job.folder.name
    folder.mkdir()
    arrays = {name: _array(getattr(job, name), folder, paths) for name in ("x", "t")}
    arrays |= {name: _array(getattr(job, name), folder, paths) for name in ("rows_train", "rows_val")}
    if job.y_scale is not None:
        arrays["y_scale"] = _array(job.y_scale, folder, paths)
    settings = {"config": job.config.model_dump(), "train_config": job.train_config.model_dump(), "label": job.label}
    settings |= {"folder": str(job.folder.resolve()), "threads": threads, "parent": os.getpid()}
    write_json(folder / "job.json", settings | {"arrays": arrays})
    return folder


def _run(folder: Path, processes: int, running: list[subprocess.Popen]) -> tuple[str, str]:
    """Run one job to its end. Returns its label and the last line it said."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    log = folder / "log.txt"
    with open(log, "wb") as out:
        process = subprocess.Popen([*command, "mtlib.learn.jobs", str(folder)], stdout=out, stderr=subprocess.STDOUT)
        running.append(process)
        code = process.wait()
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip()
    if code:
        raise JobFailed(f"{folder.name}: its process ended with code {code}:\n{text[-2000:]}")
    return folder.name, text.splitlines()[-1].strip() if text else ""


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


def main(folder: Path) -> None:
    """Run the fit of a job folder, together with the other processes of torchrun if there are any."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _end_with(job["parent"])
    torch.set_num_threads(job["threads"])
    arrays = {name: np.load(path, mmap_mode="r") for name, path in job["arrays"].items()}
    arguments = dict(config=SparseCoderConfig(**job["config"]), train_config=TrainConfig(**job["train_config"]))
    arguments |= dict(arrays, folder=job["folder"], label=job["label"])
    group = None
    if "RANK" in os.environ:
        gpus = job["train_config"]["device"] != "cpu" and torch.cuda.is_available()
        dist.init_process_group("nccl" if gpus else "gloo")
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        group = Group()
    coder = fit(**arguments, group=group)
    if group is not None:  # tensors that outlive their group can abort the process as it ends
        del coder
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

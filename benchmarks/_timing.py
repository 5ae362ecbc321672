"""Interleaved CPU-time measurements and the rows of results-<processor>.json; times on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from mtlib.learn.optimiser import AdamW

Step = Callable[[], None]


def training_step(loss: Callable[[], torch.Tensor], named_parameters, lr: float = 1e-4) -> Step:
    """Loss, gradients and the fused AdamW that every method gets; no clipping and no normalisation for anyone."""
    optimiser = AdamW([(n, p) for n, p in named_parameters if p.requires_grad])

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step(lr)

    return step


def own_step(loss: Callable[[], torch.Tensor], parameters) -> Step:
    """The same with torch's default Adam, which the peers' own training loops use."""
    optimiser = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    return step


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, np.ndarray]:
    """CPU seconds of every method in every round, each round running all of them in turn. Returns: name -> (rounds,).

    In its turn a method takes two steps, and the second is timed: as in a training, its memory is its own again.
    """
    for step in steps.values():
        step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def on_device(step: Step, seconds: float, most: int = 20, warm: int = 3) -> np.ndarray:
    """Milliseconds of up to `most` calls by the device's own events, for about as many seconds; on a CPU by the clock."""
    gpu, found = torch.cuda.is_available(), []
    for _ in range(warm):
        step()
    until = time.perf_counter() + seconds
    while len(found) < most and (not found or time.perf_counter() < until):
        if gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end))
        else:
            start = time.perf_counter()
            step()
            found.append(1000 * (time.perf_counter() - start))
    return np.array(found)


def rows(what: str, shape: str, samples: int, seconds: dict[str, np.ndarray], ours: str = "ours") -> list[dict]:
    """One row per method: median samples per CPU second with quartiles, and the ratio ours / theirs."""
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    return [
        {
            "what": what,
            "shape": shape,
            "method": name,
            "samples_per_second": round(samples / median[name], 1),
            "quartiles": [round(samples / float(np.quantile(s, q)), 1) for q in (0.75, 0.25)],
            "ratio_of_ours": round(median[name] / median[ours], 3),
        }
        for name, s in seconds.items()
    ]

"""The same reconstruction under the conventions found in published code, so that papers can be compared.

Only the first line of the card is used in this repo; the others show what a paper would have printed. Each convention is a
function of its own, to be read; the card takes the same numbers from sums over blocks of rows, which need little memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd


def fvu_per_batch(y: np.ndarray, y_hat: np.ndarray, batch: int) -> float:
    """Mean over batches of each batch's FVU around its own mean (the last, smaller batch counts as much as the others)."""
    parts = _blocks(y, y_hat, batch)
    return float(np.mean([((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum() for a, b in parts if len(a) > 1]))


def fvu_about_zero(y: np.ndarray, y_hat: np.ndarray) -> float:
    """Squared error over sum(y^2): a target far from 0 makes any constant look good."""
    return float(((y - y_hat) ** 2).sum() / (y**2).sum())


def evr_shift_blind(y: np.ndarray, y_hat: np.ndarray) -> float:
    """1 - var(y - y_hat) / var(y): a constant shift of y_hat is not seen."""
    return float(1 - (y - y_hat).var(0).sum() / y.var(0).sum())


def r2_per_dimension(y: np.ndarray, y_hat: np.ndarray) -> float:
    """Mean over units of each unit's R2: units that hardly vary count as much as the others (constant ones left out)."""
    ok = y.var(0) > 0
    return float((1 - ((y - y_hat) ** 2).sum(0)[ok] / ((y - y.mean(0)) ** 2).sum(0)[ok]).mean())


def definition_card(y: np.ndarray, y_hat: np.ndarray, batches: tuple[int, ...] = (32, 256)) -> pd.DataFrame:
    """Our FVU and explained variance beside the peers' conventions on y_hat, y_hat + 1 sd, and the mean predictor.

    Args:
        y, y_hat: (N, O) float.
        batches:  batch sizes for the per-batch mean.
    Returns: frame with convention, quantity (fvu | explained_variance), reconstruction, shifted, mean_predictor. The
        shift is one root mean square standard deviation of the units, added to every unit.
    """
    mean = np.mean(y, axis=0, dtype=np.float64)
    shift = float(np.sqrt(sum(((a - mean) ** 2).sum() for a, _ in _blocks(y, y)) / y.size))
    candidates = {  # made one at a time
        "reconstruction": lambda: y_hat,
        "shifted": lambda: np.add(y_hat, shift, dtype=np.float64),
        "mean_predictor": lambda: np.broadcast_to(mean, y.shape),
    }
    per_batch = [(f"mean over batches of {b}", b) for b in batches]
    table: dict[str, list] = {"convention": [], "quantity": []}
    for name, make in candidates.items():
        candidate = make()
        ours, zero, blind, r2 = _whole(y, candidate, mean)
        lines = [("exact over the split (this repo)", "fvu", ours)]
        lines += [(said, "fvu", fvu_per_batch(y, candidate, b)) for said, b in per_batch]
        lines += [("variance about zero", "fvu", zero)]
        lines += [("exact over the split (this repo)", "explained_variance", 1 - ours)]
        lines += [("shift-blind", "explained_variance", blind), ("mean of R2 per dimension", "explained_variance", r2)]
        table |= {"convention": [line[0] for line in lines], "quantity": [line[1] for line in lines]}
        table[name] = [round(float(value), 12) + 0.0 for _, _, value in lines]  # no -1e-16 for 0
    return pd.DataFrame(table)


def _blocks(y: np.ndarray, y_hat: np.ndarray, size: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows of both in float64, `size` at a time."""
    for i in range(0, len(y), size):
        yield np.asarray(y[i : i + size], np.float64), np.asarray(y_hat[i : i + size], np.float64)


def _whole(y: np.ndarray, y_hat: np.ndarray, mean: np.ndarray) -> tuple[float, float, float, float]:
    """`fvu`, `fvu_about_zero`, `evr_shift_blind`, `r2_per_dimension` from one pass over blocks of rows."""
    error, spread, squares = np.zeros(y.shape[1]), np.zeros(y.shape[1]), 0.0
    off = sum((a - b).sum(0) for a, b in _blocks(y, y_hat)) / len(y)  # (O,) by how much each unit is too small
    apart = np.zeros(y.shape[1])
    for a, b in _blocks(y, y_hat):
        error += ((a - b) ** 2).sum(0)
        apart += ((a - b - off) ** 2).sum(0)
        spread += ((a - mean) ** 2).sum(0)
        squares += (a**2).sum()
    ok = spread > 0
    whole = error.sum() / spread.sum()
    return whole, error.sum() / squares, 1 - apart.sum() / spread.sum(), (1 - error[ok] / spread[ok]).mean()

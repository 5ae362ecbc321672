"""The same reconstruction under the conventions found in published code, so that papers can be compared.

Only the first line of the card is used in this repo; the others show what a paper would have printed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.measure.reconstruction import fvu


def fvu_per_batch(y: np.ndarray, y_hat: np.ndarray, batch: int) -> float:
    """Mean over batches of each batch's FVU around its own mean (the last, smaller batch counts as much as the others)."""
    parts = [(y[i : i + batch], y_hat[i : i + batch]) for i in range(0, len(y), batch)]
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
    y, y_hat = np.asarray(y, np.float64), np.asarray(y_hat, np.float64)
    shift = float(np.sqrt(y.var(0).mean()))
    candidates = {  # made one at a time
        "reconstruction": lambda: y_hat,
        "shifted": lambda: y_hat + shift,
        "mean_predictor": lambda: np.broadcast_to(y.mean(0), y.shape),
    }
    lines = [("exact over the split (this repo)", "fvu", fvu)]
    lines += [(f"mean over batches of {b}", "fvu", lambda a, c, b=b: fvu_per_batch(a, c, b)) for b in batches]
    lines += [("variance about zero", "fvu", fvu_about_zero)]
    lines += [("exact over the split (this repo)", "explained_variance", lambda a, c: 1 - fvu(a, c))]
    lines += [("shift-blind", "explained_variance", evr_shift_blind)]
    lines += [("mean of R2 per dimension", "explained_variance", r2_per_dimension)]
    table = {"convention": [line[0] for line in lines], "quantity": [line[1] for line in lines]}
    for name, make in candidates.items():
        candidate = make()
        table[name] = [round(formula(y, candidate), 12) + 0.0 for _, _, formula in lines]  # no -1e-16 for 0
    return pd.DataFrame(table)

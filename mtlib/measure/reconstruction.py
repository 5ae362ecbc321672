"""How well y_hat reconstructs y: streaming sums in float64 over a whole split, never averages of batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TINY = 1e-12  # a target unit whose variance over the split is at most this is counted as constant


def target_mean(target: np.ndarray, rows: np.ndarray, batch: int = 8192) -> np.ndarray:
    """(O,) float64 mean of target (N, O) over rows."""
    rows = np.asarray(rows)
    total = np.zeros(target.shape[1])
    for start in range(0, len(rows), batch):
        total += np.asarray(target[rows[start : start + batch]], dtype=np.float64).sum(0)
    return total / len(rows)


class Reconstruction:
    """Accumulates batches of (y, y_hat); `result` gives the numbers of the whole split.

    Args:
        mean: (O,) mean of y over the split (`target_mean`), known before the first batch.
    """

    def __init__(self, mean: np.ndarray):
        self.mean = torch.as_tensor(np.asarray(mean, np.float64))
        zero = torch.zeros_like(self.mean)
        self.n = self.n_cos = 0
        self.sse, self.sst, self.residual, self.square = zero.clone(), zero.clone(), zero.clone(), zero.clone()  # (O,)
        self.sae = self.sat = self.cos = 0.0

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: y (B, O), y_hat (B, O).

        Raises: ValueError if the shapes differ.
        """
        if y.shape != y_hat.shape or y.shape[1:] != self.mean.shape:
            raise ValueError(f"y {tuple(y.shape)} and y_hat {tuple(y_hat.shape)}, expected (B, {len(self.mean)}) twice")
        y, y_hat = y.detach().cpu().double(), y_hat.detach().cpu().double()
        error, centred = y - y_hat, y - self.mean  # (B, O)
        self.n += len(y)
        self.sse += error.square().sum(0)
        self.sst += centred.square().sum(0)
        self.residual += error.sum(0)
        self.square += y.square().sum(0)
        self.sae += float(error.abs().sum())
        self.sat += float(centred.abs().sum())
        norms = y.norm(dim=1) * y_hat.norm(dim=1)  # (B,)
        ok = norms > 0
        self.n_cos += int(ok.sum())
        self.cos += float(((y * y_hat).sum(1)[ok] / norms[ok]).sum())

    @property
    def fvu(self) -> float:
        """sum((y - y_hat)^2) / sum((y - mean(y))^2) over all rows and units."""
        self._check()
        return float(self.sse.sum() / self.sst.sum())

    def _check(self) -> None:
        if self.n < 2 or float(self.sst.sum()) <= TINY * self.n:
            raise ValueError(f"fvu needs at least 2 rows of a target that varies, got {self.n} rows")

    def result(self) -> dict:
        """fvu, explained_variance, mse, nmae, cosine; how many rows had no direction and how many units are constant."""
        fvu = self.fvu
        return {
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "mse": float(self.sse.sum()) / (self.n * len(self.mean)),
            "nmae": self.sae / self.sat,
            "cosine": self.cos / self.n_cos if self.n_cos else float("nan"),
            "n_rows": self.n,
            "n_zero_norm": self.n - self.n_cos,
            "n_constant_units": int((self.sst <= TINY * self.n).sum()),
        }


def reconstruction(y: np.ndarray, y_hat: np.ndarray) -> dict:
    """`Reconstruction.result` of two whole arrays (N, O)."""
    y, y_hat = np.array(y), np.array(y_hat)
    sums = Reconstruction(np.asarray(y, np.float64).mean(0))
    sums.update(torch.from_numpy(y), torch.from_numpy(y_hat))
    return sums.result()


def fvu(y: np.ndarray, y_hat: np.ndarray) -> float:
    """Fraction of variance unexplained over a whole split.

    fvu = sum((y - y_hat)^2) / sum((y - mean(y))^2)

    Args:
        y:     (N, O) float, target activations.
        y_hat: (N, O) float, reconstruction.
    Returns: () float64, no unit; 0 is perfect, 1 is the mean predictor.
    Raises: ValueError if shapes differ, N < 2, or y is constant.
    Source: Gao et al. 2024, arXiv 2406.04093, eq. 2 (here: exact over the split).
    """
    return reconstruction(y, y_hat)["fvu"]

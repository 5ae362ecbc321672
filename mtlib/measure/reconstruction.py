"""How well y_hat reconstructs y: streaming sums in float64 over a whole split, never averages of batches.

Of the whole code, of every level of a Matryoshka coder, and of the k largest codes of each row. The definition card at the end
has the same reconstructions under the conventions found in published code; only its first line of each kind is used here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.embed.store import Data
from mtlib.measure.codes import Subject, first_seeds, iter_codes, keep_largest, target_of

TINY = 1e-12  # a target unit whose variance over the split is at most this is counted as constant
FIRST_KEPT = 16


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


class Curve:
    """Reconstruction and L0 of several versions of the codes at once (levels, or the k largest)."""

    def __init__(self, keys: list[int], mean: np.ndarray):
        self.keys = keys
        self.sums = [Reconstruction(mean) for _ in keys]
        self.fired = np.zeros(len(keys), np.int64)

    def add(self, i: int, y: Tensor, y_hat: Tensor, n_fired: int) -> None:
        """Add a batch of version i: target, reconstruction, how many codes were not 0 in all."""
        self.sums[i].update(y, y_hat)
        self.fired[i] += n_fired

    def frame(self, name: str) -> pd.DataFrame:
        """One line per version: its key under `name`, fvu, l0."""
        fvu = [s.fvu for s in self.sums]
        return pd.DataFrame({name: self.keys, "fvu": fvu, "l0": self.fired / self.sums[0].n})


class Levels(Curve):
    """A curve over the levels of a coder: level `i` decodes its first m_i latents, or its k_i largest codes (nested TopK)."""

    def __init__(self, coder, mean: np.ndarray):
        super().__init__(list(range(len(coder.config.levels))), mean)
        self.coder = coder

    def update(self, x: Tensor, z: Tensor, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: x (B, D), z (B, S), y and the last level's y_hat (B, O)."""
        for i in self.keys:
            out = y_hat if i == self.keys[-1] else self.coder.decode(z, i, x)
            self.add(i, y, out, int((level_codes(self.coder.config, z, i) != 0).sum()))

    def result(self) -> pd.DataFrame:
        """Frame of level, n_latents, fvu, l0."""
        frame = self.frame("level")
        frame.insert(1, "n_latents", list(self.coder.config.levels))
        return frame


def level_codes(config, z: Tensor, level: int) -> Tensor:
    """The codes (B, m) that level `level` decodes: the first m_l latents, or the k_l largest for nested TopK."""
    if getattr(config, "selection", "") == "nested_topk":
        return keep_largest(z, config.ks[level])
    return z[:, : config.levels[level]]


class Progressive(Curve):
    """A curve over the number of codes that are kept of each row, the largest first: 16, 32, 64 ... all."""

    def __init__(self, coder, mean: np.ndarray):
        super().__init__(kept_sizes(len(coder.W_dec)), mean)
        self.coder = coder

    def update(self, x: Tensor, z: Tensor, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch, as `Levels.update` does."""
        fired = (z != 0).sum(1)  # (B,)
        most = int(fired.max())
        for i, k in enumerate(self.keys):  # keeping as many as ever fire changes nothing: no second decode
            out = y_hat if k >= most else self.coder.decode(keep_largest(z, k), -1, x)
            self.add(i, y, out, int(fired.clamp(max=k).sum()))

    def result(self) -> pd.DataFrame:
        """Frame of kept, fvu, l0."""
        return self.frame("kept")


def kept_sizes(n_latents: int, first: int = FIRST_KEPT) -> list[int]:
    """16, 32, 64, ... n_latents."""
    sizes = []
    while first < n_latents:
        sizes.append(first)
        first *= 2
    return [*sizes, n_latents]


# --- the definition card -----------------------------------------------------------------------------------------


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


def definitions(data: Data, subjects: list[Subject]) -> pd.DataFrame:
    """The definition card of each method's first seed on the test rows: method and target before its columns."""
    rows, out = data.rows("test"), []
    for s in first_seeds(subjects):
        with torch.no_grad():
            codes = iter_codes(s.coder, data.x, rows)
            y_hat = np.concatenate([s.coder.decode(z, -1, x).cpu().numpy() for _, x, z in codes])
        card = definition_card(np.asarray(target_of(data, s)[rows]), y_hat)
        card.insert(0, "target", s.target)
        card.insert(0, "method", s.method)
        out.append(card)
    return pd.concat(out, ignore_index=True) if out else pd.DataFrame(columns=["method", "target", "convention"])

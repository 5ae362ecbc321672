"""Do the images of one latent look alike (MonoScore), do they belong to one class (purity)? One pass each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mtlib.measure.codes import MIN_ACTIVE, matrix

TINY = 1e-12
LATENTS = {"mono_score": "MonoScore", "purity": "purity (class)"}  # measures of every latent -> label
NULL_CELLS = 2e7  # bound on permutations * latents * classes kept at once


class MonoScore:
    """Streaming MonoScore of every latent: mean cosine of image pairs, weighted by the product of their activations.

    With a = z scaled to 0..1 by the split's minimum and maximum and e = x / ||x||:

        score = sum_{i != j} a_i a_j e_i . e_j / sum_{i != j} a_i a_j
              = (||sum a e||^2 - sum a^2) / ((sum a)^2 - sum a^2)

    The sums are kept of z itself, so that minimum and maximum need no pass of their own. Rows of x of norm 0 are left out.

    Source: MonoLoss, arXiv 2602.12403.
    """

    def __init__(self, n_latents: int, d_in: int):
        self.n = 0
        self.ze = np.zeros((n_latents, d_in))  # (S, D) sum of z e
        self.z, self.zz = np.zeros(n_latents), np.zeros(n_latents)  # (S,)
        self.low, self.high = np.full(n_latents, np.inf), np.full(n_latents, -np.inf)
        self.e = np.zeros(d_in)

    def update(self, x: Tensor, z: Tensor) -> None:
        """Add a batch: x (B, D) embeddings, z (B, S) codes."""
        x, z = x.detach().cpu().double(), z.detach().cpu()
        norm = x.norm(dim=1, keepdim=True)
        if not bool((ok := norm[:, 0] > 0).all()):
            x, z, norm = x[ok], z[ok], norm[ok]
        if len(x) == 0:
            return
        e, m = (x / norm).numpy(), matrix(z)
        self.n += len(e)
        self.ze += m.T @ e
        self.z += _by_column(m, np.add)
        self.zz += _by_column(m * m, np.add)
        self.low = np.minimum(self.low, _by_column(m, np.minimum))
        self.high = np.maximum(self.high, _by_column(m, np.maximum))
        self.e += e.sum(0)

    def scores(self) -> np.ndarray:
        """(S,) float64; NaN where the range of z or the denominator is at most 1e-12 (dead, constant, one image)."""
        span = self.high - self.low
        ok = span > TINY
        span, low = np.where(ok, span, 1.0), np.where(np.isfinite(self.low), self.low, 0.0)
        total = (self.z - self.n * low) / span
        square = (self.zz - 2 * low * self.z + self.n * low**2) / span**2
        length = np.einsum("sd,sd->s", self.ze, self.ze)  # (S,) ||sum z e||^2, the common case low = 0
        shifted = np.flatnonzero(low)
        vector = self.ze[shifted] - low[shifted, None] * self.e
        length[shifted] = np.einsum("sd,sd->s", vector, vector)
        below = total**2 - square
        ok &= below > TINY
        above = length / span**2 - square
        return np.where(ok, above / np.where(ok, below, 1.0), np.nan)

    def summary(self) -> dict:
        """mono_score (mean over latents), mono_score_median, _p90, _undefined (latents without one), and mean_cosine: of all
        pairs of distinct rows of the split, what a latent that says nothing scores."""
        score = pd.Series(self.scores())
        return {
            "mono_score": float(score.mean()),
            "mono_score_median": float(score.median()),
            "mono_score_p90": float(score.quantile(0.9)),
            "mono_score_undefined": int(score.isna().sum()),
            "mean_cosine": float((self.e @ self.e - self.n) / (self.n * (self.n - 1))) if self.n > 1 else float("nan"),
        }

    def published(self) -> dict:
        """As MonoLoss's authors report it: a latent without a score counts as 0."""
        score = np.nan_to_num(self.scores())
        found = {"mean": score.mean(), "median": np.median(score), "p90": np.percentile(score, 90)}
        return {f"monosemanticity_{name}": float(value) for name, value in found.items()}


def _by_column(m: sparse.csc_array | np.ndarray, ufunc: np.ufunc) -> np.ndarray:
    """(S,) sum, minimum or maximum of each column of (B, S); the zeros that a sparse matrix leaves out count."""
    if not sparse.issparse(m):
        return ufunc.reduce(m, axis=0)
    out, stored = np.zeros(m.shape[1]), np.diff(m.indptr)
    some = np.flatnonzero(stored)
    if len(some):
        out[some] = ufunc.reduceat(m.data, m.indptr[some])
    gaps = stored < m.shape[0]
    out[gaps] = ufunc(out[gaps], 0.0)
    return out


class Purity:
    """Share of a latent's activating images that lie in its dominant class, by count and weighted by |activation|.

    The null permutes the classes of the images: with few images per latent the largest share is high by chance. It has
    fewer permutations when latents * classes is large.

    Args: classes: (N,) integer class of every row of x, -1 where unknown (left out). rows: (n,) those that will be seen.
    """

    def __init__(self, classes: np.ndarray, rows: np.ndarray, n_latents: int, n_permutations: int = 20, seed: int = 0):
        self.n_classes = int(classes.max()) + 1
        cells = max(n_latents * self.n_classes, 1)
        self.n_permutations = int(max(1, min(n_permutations, NULL_CELLS // cells)))
        rng = np.random.default_rng(seed)
        known = np.asarray(rows)[np.asarray(classes)[rows] >= 0]
        self.classes = np.full((1 + self.n_permutations, len(classes)), -1, np.min_scalar_type(-1 - self.n_classes))
        self.classes[0, known] = classes[known]
        for p in range(self.n_permutations):
            self.classes[1 + p, known] = rng.permutation(classes[known])
        shape = (1 + self.n_permutations, n_latents, self.n_classes)
        self.count, self.weight = np.zeros(shape), np.zeros(shape)

    def update(self, rows: np.ndarray, z: Tensor) -> None:
        """Add a batch: rows (B,) of x and their codes z (B, S)."""
        known = self.classes[0, rows] >= 0
        m = abs(matrix(z[torch.from_numpy(known)]))
        fired = (m != 0).astype(np.float64)
        one_hot = np.eye(self.n_classes)[self.classes[:, np.asarray(rows)[known]]]  # (P, B, C)
        one_hot = one_hot.transpose(1, 0, 2).reshape(m.shape[0], -1)  # (B, P * C)
        for table, weights in ((self.count, fired), (self.weight, m)):
            table += (weights.T @ one_hot).reshape(-1, *table.shape[::2]).transpose(1, 0, 2)

    def result(self) -> dict[str, np.ndarray]:
        """(S,) purity, weighted_purity, their nulls, dominant_class (-1 without support) and support."""
        support = self.count[0].sum(1)
        ok = support >= MIN_ACTIVE

        def share(table: np.ndarray) -> np.ndarray:  # (P, S, C) -> (P, S)
            total = table.sum(2)
            return np.where(ok, table.max(2) / np.where(total > 0, total, 1.0), np.nan)

        purity, weighted = share(self.count), share(self.weight)
        return {
            "support": support.astype(np.int64),
            "purity": purity[0],
            "weighted_purity": weighted[0],
            "purity_null": purity[1:].mean(0),
            "weighted_purity_null": weighted[1:].mean(0),
            "dominant_class": np.where(ok, self.count[0].argmax(1), -1),
        }


def quantiles(latents: pd.DataFrame, steps: int = 100) -> pd.DataFrame:
    """Distribution of the measures of LATENTS by method: quantile 0 .. 1 in `steps` steps over all its seeds' latents."""
    columns, frames = [c for c in LATENTS if c in latents], []
    for method, own in latents.groupby("method", sort=False):
        found = own[columns].quantile(np.linspace(0, 1, steps + 1)).rename_axis("quantile").reset_index()
        head = {"method": method, "target": own["target"].iloc[0], "l0_target": own["l0_target"].iloc[0]}
        frames.append(found.assign(**head)[[*head, *found]])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["method", "target", "quantile"])


def chance(metrics: pd.DataFrame) -> dict[str, float]:
    """What a latent that says nothing has of the measures of LATENTS, on average."""
    null = {"mono_score": "mean_cosine", "purity": "purity_null"}
    return {name: float(metrics[column].mean()) for name, column in null.items() if column in metrics}

"""One pass over the data for all latents at once: top images, counts, sums and histograms of the activations.

With T tokens per image a feature's activation on an image is its largest over the tokens, and everything is counted by
image. Nothing of size N x S is kept. A running top list per feature is merged with each batch's, so memory is
O(S * top_n) beside one batch of codes, and the result does not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.measure.codes import per_image

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
Observer = Callable[[str, np.ndarray, Tensor, Tensor], None]  # (split, rows (B,), x (B, D), z (B, S))


class TopK:
    """The `top_n` largest activations of every feature, with their rows. Equal activations: the smaller row wins.

    Activation and row are packed into one integer, (bits of the float32, ROW_MASK - row). Positive floats sort like
    their bits, so every key is distinct and the order is exact whatever the order or size of the batches.
    """

    def __init__(self, n_latents: int, top_n: int):
        if top_n < 1:
            raise ValueError(f"top_n = {top_n} must be at least 1")
        self.keys = torch.zeros(n_latents, top_n, dtype=torch.int64)  # 0 marks an empty place
        self.top_n = top_n

    def update(self, z: Tensor, rows: np.ndarray) -> None:
        """Merge a batch of codes z (B, S), float32, with the row number of each of its B rows."""
        z, row_keys = z.T.contiguous(), torch.from_numpy(ROW_MASK - np.asarray(rows, dtype=np.int64))
        floor = (self.keys[:, -1] >> ROW_BITS).to(torch.int32).view(torch.float32)  # a value that could still enter
        busy = ((z > 0) & (z >= floor[:, None])).any(dim=1).nonzero()[:, 0]
        if len(busy) == 0:
            return
        values = z[busy].float().clamp_min(0).view(torch.int32).to(torch.int64)  # (busy, B)
        keys = torch.where(values > 0, (values << ROW_BITS) | row_keys, 0)
        if keys.shape[1] > self.top_n:
            keys = keys.topk(self.top_n, dim=1).values
        self.keys[busy] = torch.cat([self.keys[busy], keys], dim=1).sort(dim=1, descending=True).values[:, : self.top_n]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (S, top_n) int64 with -1 for empty places, and activations (S, top_n) float32 with 0 there."""
        rows = torch.where(self.keys > 0, ROW_MASK - (self.keys & ROW_MASK), -1)
        return rows.numpy(), (self.keys >> ROW_BITS).to(torch.int32).view(torch.float32).numpy()


class Histogram:
    """Counts of each feature's positive activations in equal bins from 0 to a power of two above its maximum.

    When a larger value arrives, the range doubles and neighbouring bins are merged, which is exact; so one pass is
    enough, and the result is that of a second pass that knew the maximum.
    """

    def __init__(self, n_latents: int, bins: int):
        if bins < 2 or bins % 2:
            raise ValueError(f"bins = {bins} must be an even number of at least 2")
        self.counts = torch.zeros(n_latents, bins, dtype=torch.int64)
        self.exponent = torch.full((n_latents,), -149, dtype=torch.int32)  # upper edge is 2 ** exponent
        self.bins = bins

    def update(self, z: Tensor) -> None:
        """Add a batch of codes z (B, S)."""
        largest = z.max(dim=0).values
        needed = torch.where(largest > 0, torch.frexp(largest).exponent, -149)  # value < 2 ** needed
        needed = torch.maximum(needed.to(torch.int32), self.exponent)
        while (grow := (needed > self.exponent) & (self.counts.sum(dim=1) > 0)).any():
            pairs = self.counts[grow].view(-1, self.bins // 2, 2).sum(dim=2)
            self.counts[grow] = torch.cat([pairs, torch.zeros_like(pairs)], dim=1)
            self.exponent[grow] += 1
        self.exponent = needed
        row, latent = (z > 0).nonzero(as_tuple=True)
        place = torch.ldexp(z[row, latent].double(), -self.exponent[latent]) * self.bins
        flat = latent * self.bins + place.long()
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def edges(self) -> np.ndarray:
        """(S, bins + 1) float64 bin edges; all zero for a feature that never fired."""
        top = np.ldexp(1.0, self.exponent.numpy()) * (self.counts.sum(dim=1).numpy() > 0)
        return top[:, None] * np.linspace(0, 1, self.bins + 1)


@dataclass
class FeatureScan:
    """What one pass found on one split. S latents, C classes (0 when no classes were given).

    n_rows () rows seen; n_active (S,) rows on which a feature fires (activation > 0); n_active_class (S, C) the same by
    class; sum_activation (S,) and sum_activation_class (S, C) float64; max_activation (S,); rows and activations
    (S, top_n) of the strongest rows, -1 and 0 in empty places; edges (S, bins + 1) and counts (S, bins);
    both_active (S, S) rows on which two features fire together, or None.
    """

    n_rows: int
    n_active: np.ndarray
    n_active_class: np.ndarray
    sum_activation: np.ndarray
    sum_activation_class: np.ndarray
    max_activation: np.ndarray
    rows: np.ndarray
    activations: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    both_active: np.ndarray | None

    @property
    def density(self) -> np.ndarray:
        """(S,) share of the split's rows on which each feature fires."""
        return self.n_active / max(self.n_rows, 1)

    @property
    def mean_activation(self) -> np.ndarray:
        """(S,) mean activation over the rows on which the feature fires; 0 where it never does."""
        return self.sum_activation / np.maximum(self.n_active, 1)


@torch.no_grad()
def scan(
    coder,
    x: np.ndarray,
    rows: Mapping[str, np.ndarray],
    *,
    top_n: int = 20,
    classes: np.ndarray | None = None,
    bins: int = 32,
    batch: int = 1024,
    both_active: bool = False,
    observers: Sequence[Observer] = (),
    tokens: int = 1,
) -> dict[str, FeatureScan]:
    """Everything 05 needs about every feature, in one pass over the rows of every split.

    Args:
        coder:       has `.encode(x (B, D) tensor) -> z (B, S)`, where no row depends on another.
        x:           (N, D) float32, memory-mapped or not.
        rows:        split name -> row numbers, e.g. {"val": data.rows("val", unique=True), ...}.
        top_n:       length of the top lists.
        classes:     (N,) integers 0 .. C-1, or -1 for unknown (counted in no class); None for no classes.
        bins:        bins of the histograms.
        both_active: also count the pairs of features that fire together, (S, S).
        observers:   called with each batch (split, rows, x, z) of rows, for measures that want the same pass.
        tokens:      T rows of x per image; the rows of a split hold whole images. The first row stands for the image.
    Returns: split name -> FeatureScan.
    Raises: ValueError when codes are not finite or shapes do not fit.
    """
    n_classes = 0 if classes is None else int(np.max(classes, initial=-1)) + 1
    if classes is not None and len(classes) != len(x):
        raise ValueError(f"classes has {len(classes)} entries for {len(x)} rows of x")
    return {
        split: _scan_split(
            coder, x, np.asarray(r), split, top_n, classes, n_classes, bins, batch, both_active, observers, tokens
        )
        for split, r in rows.items()
    }


def _scan_split(
    coder, x, rows, split, top_n, classes, n_classes, bins, batch, both_active, observers, tokens
) -> FeatureScan:
    n_latents = coder.encode(torch.zeros(1, x.shape[1])).shape[1]
    top, histogram = TopK(n_latents, top_n), Histogram(n_latents, bins)
    n_active, by_class = torch.zeros(n_latents, dtype=torch.int64), torch.zeros(n_latents, n_classes, dtype=torch.int64)
    total, total_class = torch.zeros(n_latents).double(), torch.zeros(n_latents, n_classes).double()
    together = torch.zeros(n_latents, n_latents, dtype=torch.int64) if both_active else None
    batch = max(1, batch // tokens) * tokens
    for start in range(0, len(rows), batch):
        r = rows[start : start + batch]
        x_batch = torch.from_numpy(np.asarray(x[r], dtype=np.float32))  # (B, D)
        z = coder.encode(x_batch).detach().float().cpu()  # (B, S)
        if not torch.isfinite(z).all():
            raise ValueError(f"codes of {split} rows {r[0]}..{r[-1]} hold NaN or infinite values")
        for observe in observers:
            observe(split, r, x_batch, z)
        r, z = r[::tokens], per_image(z, tokens)
        active = z > 0
        top.update(z, r)
        histogram.update(z)
        n_active += active.sum(dim=0)
        total += z.clamp_min(0).double().sum(dim=0)
        if n_classes:
            one_hot = torch.from_numpy((classes[r][:, None] == np.arange(n_classes)).astype(np.float32))  # (B, C)
            by_class += (active.float().T @ one_hot).round().long()  # exact: counts stay far below 2 ** 24
            total_class += z.clamp_min(0).double().T @ one_hot.double()
        if together is not None:
            together += (active.float().T @ active.float()).round().long()
    best_rows, best = top.result()
    return FeatureScan(
        n_rows=len(rows) // tokens,
        n_active=n_active.numpy(),
        n_active_class=by_class.numpy(),
        sum_activation=total.numpy(),
        sum_activation_class=total_class.numpy(),
        max_activation=best[:, 0],
        rows=best_rows,
        activations=best,
        edges=histogram.edges(),
        counts=histogram.counts.numpy(),
        both_active=None if together is None else together.numpy(),
    )


def top_images_table(scans: Mapping[str, FeatureScan], manifest: pd.DataFrame, max_rank: int = 0) -> pd.DataFrame:
    """The top lists as one table: feature, rank (0 first), row, path, activation, label, split.

    Args:
        scans:    split name -> FeatureScan, as `scan` returns them.
        manifest: rows of the data, indexed by row, with path and label.
    """
    parts = []
    for split, found in scans.items():
        feature, rank = np.nonzero(found.rows >= 0)
        row = found.rows[feature, rank]
        part = {"feature": feature, "rank": rank, "row": row, "activation": found.activations[feature, rank]}
        part["path"] = manifest["path"].reindex(row).to_numpy()
        part["label"] = pd.array(manifest["label"].reindex(row), dtype="Int64")
        parts.append(pd.DataFrame(part).assign(split=split))
    frame = pd.concat(parts, ignore_index=True)
    frame = frame if max_rank <= 0 else frame[frame["rank"] < max_rank]
    return frame[["feature", "rank", "row", "path", "activation", "label", "split"]]

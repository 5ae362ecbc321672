"""How unlike the images of a run another image is: the distance of its embedding to the nearest of theirs.

The distance to the 5th nearest of the run's train images, between unit rows: deep nearest neighbours (Sun et al. 2022, arXiv
2204.06507). A classifier and sparse features answer for every picture; of one that is unlike all that they have seen, their
answers mean nothing. Mahalanobis distance was tried: it tells photographs from scenes less well, and takes noise for a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.neighbors import NearestNeighbors

from mtlib.embed.store import Data, unit_rows
from mtlib.run.artifacts import atomic

FALSE_ALARMS = 0.02  # share of the val images that the limit leaves out
NEAREST, MIN_IMAGES, MAX_IMAGES = 5, 50, 4000  # fewer images tell nothing of what is usual; of more these are drawn
FILE = "familiar.safetensors"


@dataclass(frozen=True)
class Familiar:
    """seen: (M, D) float16 unit rows of train images; limit: (), the distance that all but FALSE_ALARMS of the val images keep."""

    seen: np.ndarray
    limit: np.ndarray

    @classmethod
    def fit(cls, train: np.ndarray, val: np.ndarray) -> Familiar | None:
        """Of embeddings of train and val images, (n, D) each; None where either has fewer than MIN_IMAGES."""
        if min(len(train), len(val)) < MIN_IMAGES:
            return None
        seen = cls(unit_rows(train).astype(np.float16), np.ones(()))
        return cls(seen.seen, np.quantile(seen.distance(val), 1 - FALSE_ALARMS).clip(1e-6))

    @cached_property
    def _index(self) -> NearestNeighbors:
        return NearestNeighbors(n_neighbors=NEAREST).fit(self.seen.astype(np.float32))

    def distance(self, x: np.ndarray) -> np.ndarray:
        """(n,) of embeddings (n, D), in units of the limit: above 1 an image is unlike those of the run."""
        return self._index.kneighbors(unit_rows(x, np.float32))[0][:, -1] / self.limit

    def save(self, folder: Path) -> None:
        with atomic(folder / FILE) as tmp:
            save_file({"seen": self.seen, "limit": np.asarray(self.limit, np.float64)}, tmp)

    @classmethod
    def load(cls, folder: Path) -> Familiar | None:
        """What `save` wrote into a folder; None where nothing was."""
        return cls(**load_file(folder / FILE)) if (folder / FILE).is_file() else None


def of_images(data: Data, folder: Path) -> str:
    """Fit it on a run's train and val images (x, the mean over tokens) and save it; a sentence on its false alarms, "" where there are too
    few images."""
    train, val, test = (_some(data, split) for split in ("train", "val", "test"))
    usual = Familiar.fit(train, val)
    if usual is None:
        return ""
    usual.save(folder)
    outside = f"{(usual.distance(test) > 1).mean():.1%}" if len(test) else "an unknown share"
    return (
        f"Of {len(test):,} held-out images {outside} count as unlike the run's own; of such images labels say nothing."
    )


def _some(data: Data, split: str) -> np.ndarray:
    """(n, D) x of at most MAX_IMAGES images of a split, drawn by a seed."""
    first = data.rows(split)[:: data.tokens]
    first = np.sort(np.random.default_rng(0).permutation(first)[:MAX_IMAGES])
    return np.asarray(data.x[first[:, None] + np.arange(data.tokens)], np.float32).mean(axis=1)

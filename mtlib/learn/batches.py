"""Which rows a training step sees, and how they reach the device: a pure function of seed and step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RESIDENT_BYTES = 2 << 30  # arrays up to this size are copied to the device once; larger ones are gathered per batch


def device_for(name: str, group=None) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`; several processes take the machine's GPUs in turn."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and group is not None:
        name = f"cuda:{group.rank % torch.cuda.device_count()}"
    return torch.device(name)


def fits(array, rows: np.ndarray, device: torch.device) -> bool:
    """Whether the rows of `array` are small enough to stay on the device (half its free memory on a GPU)."""
    needed = len(rows) * array.shape[1] * 4
    if device.type == "cuda":
        return needed < torch.cuda.mem_get_info(device)[0] // 2
    return needed < RESIDENT_BYTES


class Rows:
    """Rows of a (N, D) array, in memory when they fit, otherwise read from the memory map batch by batch.

    Args:
        array:    (N, D) float, an array or a memory map; never changed.
        rows:     (n,) int, the rows to use; position p means array[rows[p]].
        resident: True or False to decide instead of asking `fits`.
    """

    def __init__(self, array, rows: np.ndarray, device: torch.device, resident: bool | None = None):
        self.array, self.rows, self.device = array, np.asarray(rows), device
        if resident is None:
            resident = fits(array, self.rows, device)
        self.tensor = self._read(self.rows) if resident else None

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, rows: np.ndarray) -> Tensor:
        values = np.array(self.array[rows], dtype=np.float32)
        return torch.from_numpy(values).to(self.device)

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(len(positions), D) float32 on the device."""
        if self.tensor is None:
            return self._read(self.rows[positions])
        return self.tensor[torch.from_numpy(positions).to(self.device)]

    def chunks(self, size: int, limit: int | None = None):
        """Blocks of at most `size` rows, in order: of all, or of `limit` rows that lie evenly over all of them."""
        n = len(self) if limit is None else min(limit, len(self))
        for start in range(0, n, size):
            yield self[np.arange(start, min(start + size, n)) * len(self) // n]


class Sampler:
    """Positions of each step's batch: every epoch a fresh permutation, drawn from (seed, epoch) alone.

    Because step s decides its batch by itself, a resumed run needs nothing but s. The rows left over at the end of an
    epoch are dropped; with fewer rows than `batch`, a batch is all of them.
    """

    def __init__(self, n: int, batch: int, seed: int):
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.per_epoch = n // self.batch
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self._epoch = epoch
        return self._order[place * self.batch : (place + 1) * self.batch]


def moments(data: Rows, size: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square deviation of every column, streamed in float64.

    Returns: mean (D,), variance (D,), both float64.
    """
    total = square = 0.0
    shift = None
    for block in data.chunks(size):
        block = block.double()
        shift = block.mean(0) if shift is None else shift  # keeps the difference of squares accurate
        total = total + (block - shift).sum(0)
        square = square + (block - shift).square().sum(0)
    mean = total / len(data)
    return (mean + shift).cpu().numpy(), (square / len(data) - mean.square()).clamp_min(0).cpu().numpy()

"""Which rows a training step sees, a pure function of seed and step; how they reach the device; their statistics, by which
a coder centres and scales input and target; and targets that are means over neighbours."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mtlib.coders.scaling import row_moments
from mtlib.coders.sparse_coder import SparseCoder

REFERENCES = 20_000  # rows of one label among which neighbours are looked for, at most


def device_for(name: str, group=None) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`; several processes take the machine's GPUs in turn."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and group is not None:
        name = f"cuda:{group.rank % torch.cuda.device_count()}"
    return torch.device(name)


def fits(array, rows: np.ndarray, device: torch.device) -> bool:
    """Whether the rows of `array` fit into half the free memory of a GPU; a CPU has them in the array already."""
    return device.type == "cuda" and len(rows) * array.shape[1] * 4 < torch.cuda.mem_get_info(device)[0] // 2


class Rows:
    """Rows of a (N, D) array, on a GPU when they fit, otherwise read from the array batch by batch: no copy of them all.

    What goes to a GPU goes through pinned memory, so that the host need not wait for it.

    Args:
        array:    (N, D) float, an array or a memory map; never changed.
        rows:     (n,) int, the rows to use; position p means array[rows[p]].
        resident: True or False to decide instead of asking `fits`.
    """

    def __init__(self, array, rows: np.ndarray, device: torch.device, resident: bool | None = None):
        self.array, self.rows, self.device = array, np.asarray(rows), device
        if resident is None:
            resident = fits(array, self.rows, device)
        self.tensor = torch.from_numpy(self._read(self.rows)).to(device) if resident else None
        self._pool: ThreadPoolExecutor | None = None
        self._coming: tuple[np.ndarray | None, Future | None] = None, None

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.array[rows], dtype=np.float32)  # a copy already, of chosen rows

    def _staged(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).pin_memory() if self.device.type == "cuda" else torch.from_numpy(values)

    def ahead(self, positions: np.ndarray) -> None:
        """Begin to read what will be asked for next, where that is done batch by batch for a GPU."""
        if self.tensor is None and self.device.type == "cuda":
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._coming = positions, self._pool.submit(lambda: self._staged(self._read(self.rows[positions])))

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(len(positions), D) float32 on the device."""
        known, coming = self._coming
        if self.tensor is not None:
            return self.tensor[self._staged(positions).to(self.device, non_blocking=True)]
        found = coming.result() if np.array_equal(known, positions) else self._staged(self._read(self.rows[positions]))
        return found.to(self.device, non_blocking=True)

    def chunks(self, size: int, limit: int | None = None):
        """Blocks of at most `size` rows, in order: of all, or of `limit` rows that lie evenly over all of them."""
        n = len(self) if limit is None else min(limit, len(self))
        for start in range(0, n, size):
            yield self[np.arange(start, min(start + size, n)) * len(self) // n]


class Sampler:
    """Positions of each step's batch: every epoch a fresh permutation, drawn from (seed, epoch) alone.

    Because step s decides its batch by itself, a resumed run needs nothing but s. The rows left over at the end of an
    epoch are dropped, or are a smaller batch; with fewer rows than `batch`, a batch is all of them.

    Args: n: rows. tokens: rows that lie together and are drawn together (an image's); `batch` then counts these.
    """

    def __init__(self, n: int, batch: int, seed: int, drop_last: bool = True, tokens: int = 1):
        self.n, self.tokens, self.seed = n // tokens, tokens, seed
        self.size = min(batch, self.n)
        self.batch = self.size * tokens  # rows
        self.per_epoch = self.n // self.size if drop_last else -(-self.n // self.size)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self._epoch = epoch
        drawn = self._order[place * self.size : (place + 1) * self.size]
        return drawn if self.tokens == 1 else (drawn[:, None] * self.tokens + np.arange(self.tokens)).ravel()


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


def set_statistics(coder: SparseCoder, x: Rows, y: Rows, y_scale: np.ndarray | None = None) -> None:
    """Centring and scaling of input and target from the train rows, into the coder's buffers.

    Raises: ValueError if target_scale is "logit" and y_scale is missing, not positive or of another shape.
    """
    c = coder.config
    if (c.target_scale == "logit") != (y_scale is not None):
        raise ValueError(f"y_scale goes with target_scale = 'logit'; it is {c.target_scale!r}")
    for kind, data, centre, scale in (("x", x, c.centre, c.scale), ("y", y, c.target_centre, c.target_scale)):
        mean, variance = moments(data)
        if centre == "none":
            variance, mean = variance + mean**2, np.zeros_like(mean)
        value = np.ones_like(mean)
        if c.unit_rows or scale == "rows":  # of an average row, for readers of W_enc and for decode without x
            offset, spread = _average_row(data, mean, c)
            mean, value = mean + offset, np.full_like(mean, spread)
        elif scale == "rms":
            value = np.full_like(mean, math.sqrt(variance.mean()))
        elif scale == "std":
            value = np.sqrt(variance)
        elif scale == "logit":
            value = np.asarray(y_scale, dtype=np.float64)
            if value.shape != mean.shape or not (value > 0).all():
                raise ValueError(f"y_scale must be {mean.shape} positive numbers, got shape {value.shape}")
        value = np.where(value > 1e-8, value, 1.0)  # a constant unit stays as it is
        getattr(coder, f"{kind}_mean").copy_(torch.from_numpy(mean))
        getattr(coder, f"{kind}_scale").copy_(torch.from_numpy(value))


def _average_row(data: Rows, centre: np.ndarray, config, size: int = 8192) -> tuple[float, float]:
    """Mean offset and root mean square factor of the rows (scaling.row_moments), after `centre` (D,) is taken off."""
    shift, offset, square = torch.from_numpy(centre).to(data.device), 0.0, 0.0
    for block in data.chunks(size):
        mean, spread = row_moments(block.double() - shift, config)
        offset, square = offset + float(mean.sum()), square + float(spread.square().sum())
    return offset / len(data), math.sqrt(square / len(data))


def logit_scale(y: Rows, w_logit: np.ndarray, floor: float = 0.05) -> np.ndarray:
    """Scales that make the squared error of each unit of y count by its squared weight in the logit.

    scale_i = s / max(|w_i|, floor * max |w|), with s so that y / scale has mean square deviation 1.

    Args: y: rows of the hidden layer; w_logit (O,), or (O, C): the norm over classes counts. floor: keeps units that
        the logit hardly uses from being free.
    Returns: (O,) float64 > 0, for `fit(..., y_scale=...)`.
    """
    weight = np.abs(w_logit) if w_logit.ndim == 1 else np.linalg.norm(w_logit, axis=1)
    weight = np.maximum(weight.astype(np.float64), floor * weight.max())
    return math.sqrt(np.mean(moments(y)[1] * weight**2)) / weight


def neighbour_means(x, y, rows: np.ndarray, labels: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """y with each of `rows` replaced by its mean over the k rows of the same label that are nearest by x, itself among them.

    What differs between near images of one label (background, style, place) is averaged away, and what they share stays: the
    kind of scene, and what is wrong with it.

    Args:
        x: (N, D). y: (N, O). rows: (n,), the train rows, all others stay as they are. labels: (N,) int.
        k: at most a tenth of a label's rows, or of REFERENCES of them that the seed draws.
    Returns: (N, O) float32.
    """
    y, rng = np.asarray(y, dtype=np.float32), np.random.default_rng(seed)
    out = y.copy()
    for label in np.unique(labels[rows]):
        own = rows[labels[rows] == label]
        among = np.sort(rng.permutation(own)[:REFERENCES])
        near = NearestNeighbors(n_neighbors=min(k, max(1, len(among) // 10)), algorithm="brute").fit(x[among])
        for some in np.array_split(own, 1 + len(own) // 1024):
            out[some] = y[among[near.kneighbors(x[some], return_distance=False)]].mean(1)
    return out

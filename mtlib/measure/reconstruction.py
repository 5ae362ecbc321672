"""How well y_hat reconstructs y: streaming sums in float64 over a whole split, never averages of batches.

Of the whole code, of every level of a Matryoshka coder, and of the k largest codes of each row. The definition card at the end
has the same reconstructions under the conventions found in published code; only its first line of each kind is used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.embed.store import Data
from mtlib.measure.codes import Subject, first_seeds, iter_codes, keep_largest, target_of

TINY = 1e-12  # a target unit whose variance over the split is at most this is counted as constant
FIRST_KEPT = 16
BLOCK, BATCHES = 4096, (32, 256)  # rows of the definition card at a time; the sizes of others' batches
SHOWN = ("reconstruction", "shifted", "mean_predictor")  # columns of the definition card


def target_mean(target: np.ndarray, rows: np.ndarray, batch: int = 8192) -> np.ndarray:
    """(O,) float64 mean of target (N, O) over rows."""
    rows = np.asarray(rows)
    total = np.zeros(target.shape[1])
    for start in range(0, len(rows), batch):
        total += np.asarray(target[rows[start : start + batch]], dtype=np.float64).sum(0)
    return total / len(rows)


class Reconstruction:
    """Accumulates batches of (y, y_hat); `result` gives the numbers of the whole split.

    fvu = sum((y - y_hat)^2) / sum((y - mean(y))^2): 0 is perfect, 1 is the mean predictor.

    Args: mean: (O,) mean of y over the split (`target_mean`), known before the first batch.
    Source: Gao et al. 2024, arXiv 2406.04093, eq. 2 (here: exact over the split).
    """

    def __init__(self, mean: np.ndarray):
        self.mean = torch.as_tensor(np.asarray(mean, np.float64))
        self.n = self.n_cos = 0
        self.sse, self.sst = torch.zeros_like(self.mean), torch.zeros_like(self.mean)  # (O,)
        self.sae = self.sat = self.cos = self.relative = 0.0
        self.off = torch.zeros_like(self.mean)  # (O,) sum of y - mean, 0 where mean is the split's

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: y, y_hat (B, O). Raises: ValueError if the shapes differ."""
        if y.shape != y_hat.shape or y.shape[1:] != self.mean.shape:
            raise ValueError(f"y {tuple(y.shape)} and y_hat {tuple(y_hat.shape)}, expected (B, {len(self.mean)}) twice")
        y, y_hat = y.detach().cpu().double(), y_hat.detach().cpu().double()
        error, centred = y - y_hat, y - self.mean  # (B, O)
        self.n += len(y)
        self.sse += error.square().sum(0)
        self.sst += centred.square().sum(0)
        self.off += centred.sum(0)
        self.sae += float(error.abs().sum())
        self.sat += float(centred.abs().sum())
        norms = y.norm(dim=1) * y_hat.norm(dim=1)  # (B,)
        ok = norms > 0
        self.n_cos += int(ok.sum())
        self.cos += float(((y * y_hat).sum(1)[ok] / norms[ok]).sum())
        self.relative += float((error.square().sum(1) / y.square().sum(1).clamp_min(TINY)).sum())

    def result(self) -> dict:
        """fvu, explained_variance, mse, nmae, cosine; how many rows had no direction and how many units are constant.

        Raises: ValueError with fewer than 2 rows, or if y is constant.
        """
        if self.n < 2 or float(self.sst.sum()) <= TINY * self.n:
            raise ValueError(f"fvu needs at least 2 rows of a target that varies, got {self.n} rows")
        fvu = float(self.sse.sum() / self.sst.sum())
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

    def published(self) -> dict:
        """The same as MonoLoss's authors report it: nmse (mean over rows of sum((y - y_hat)^2) / sum(y^2)), l2 (per element), r2
        (mean over the units that vary, around the mean of the rows seen)."""
        spread = self.sst - self.off.square() / self.n
        r2 = (1 - self.sse / (spread + TINY))[spread > TINY]
        l2 = float(self.sse.sum()) / (self.n * len(self.mean))
        return {"nmse": self.relative / self.n, "l2": l2, "r2": float(r2.mean())}


class Curve:
    """FVU and L0 of `n` versions of the codes at once: of every level, or of the k largest. mean: as for `Reconstruction`."""

    def __init__(self, n: int, mean: np.ndarray):
        self.mean, self.n = torch.as_tensor(np.asarray(mean, np.float64)), 0
        self.sse, self.sst = torch.zeros(n, len(mean)).double(), torch.zeros(len(mean)).double()
        self.fired = np.zeros(n, np.int64)

    def update(self, y: Tensor, versions: Iterable[tuple[Tensor, int]]) -> None:
        """Add a batch: y (B, O), and of each version its reconstruction (B, O) and how many codes were not 0 in all."""
        y = y.detach().cpu().double()
        self.n += len(y)
        self.sst += (y - self.mean).square().sum(0)
        for i, (y_hat, n_fired) in enumerate(versions):
            self.sse[i] += (y - y_hat.detach().cpu().double()).square().sum(0)
            self.fired[i] += n_fired

    def result(self, **keys) -> pd.DataFrame:
        """One line per version: what names it, fvu, l0."""
        fvu = [float(sse.sum() / self.sst.sum()) for sse in self.sse]
        return pd.DataFrame(keys | {"fvu": fvu, "l0": self.fired / self.n})


def levels(coder, x: Tensor, z: Tensor, y_hat: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The versions of codes z (B, S) at every level of a coder, for `Curve`. Args: y_hat (B, O): that of the last level."""
    last = len(coder.config.levels) - 1
    for i in range(last + 1):
        fired = int((level_codes(coder.config, z, i) != 0).sum())
        yield y_hat if i == last else coder.decode(z, i, x), fired


def level_codes(config, z: Tensor, level: int) -> Tensor:
    """The codes (B, m) that level `level` decodes: the first m_l latents, or the k_l largest for nested TopK."""
    if getattr(config, "selection", "") == "nested_topk":
        return keep_largest(z, config.ks[level])
    return z[:, : config.levels[level]]


def largest(coder, x: Tensor, z: Tensor, y_hat: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The versions of codes z (B, S) with only the `kept_sizes` largest of each row, for `Curve`.

    Where a coder has a `trained_k`, of all codes before its selection (`encode_all`), as MSAE's authors do: so more than k can
    be kept.
    """
    if trained_k(coder):
        z = coder.encode_all(x)
        y_hat = coder.decode(z, -1, x)
    fired = (z != 0).sum(1)  # (B,)
    most = int(fired.max())
    for k in kept_sizes(z.shape[1]):  # keeping as many as ever fire changes nothing: no second decode
        out = y_hat if k >= most else coder.decode(keep_largest(z, k), -1, x)
        yield out, int(fired.clamp(max=k).sum())


def trained_k(coder) -> int | None:
    """How many codes of a row a coder keeps that selects among all its latents (of nested ones the most); None for others."""
    config = coder.config
    among_all = getattr(config, "selection", "") in ("topk", "batch_topk", "nested_topk")
    return config.l0 if among_all and len(set(config.blocks)) == 1 else None


def kept_sizes(n_latents: int) -> list[int]:
    """16, 32, 64, ... n_latents."""
    sizes = [FIRST_KEPT]
    while sizes[-1] < n_latents:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], n_latents]


# --- the definition card -----------------------------------------------------------------------------------------


def definition_card(y: np.ndarray, y_hat: np.ndarray, batches: tuple[int, ...] = BATCHES) -> pd.DataFrame:
    """Our FVU and explained variance beside the peers' conventions on y_hat, y_hat + 1 sd, and the mean predictor.

    The published conventions: the mean over batches of each batch's FVU around its own mean; squared error over sum(y^2)
    (a target far from 0 makes any constant look good); 1 - var(y - y_hat) / var(y) (a constant shift is not seen); and the
    mean over units of their R2 (units that hardly vary count as much as the others; constant ones are left out). Mean squared error
    over one variance of all numbers (AlexNet-Transformer), in which how far units lie apart counts as spread; and the mean over rows of
    var(y - y_hat) / var(y) across a row's units (MSAE), blind to a shift of a row.

    Args: y, y_hat: (N, O) float. batches: their sizes, for the per-batch mean.
    Returns: frame with convention, quantity (fvu | explained_variance), reconstruction, shifted, mean_predictor. The
        shift is one root mean square standard deviation of the units, added to every unit.
    """
    pairs = ((y[i : i + BLOCK], y_hat[i : i + BLOCK]) for i in range(0, len(y), BLOCK))
    return _card(pairs, len(y), _spread(y, np.arange(len(y))), batches)


def _spread(target: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit of a target (N, O) its mean over rows and the sum of squares around it: (O,), (O,) float64."""
    mean = target_mean(target, rows)
    blocks = (np.asarray(target[rows[i : i + BLOCK]], np.float64) for i in range(0, len(rows), BLOCK))
    return mean, sum(((block - mean) ** 2).sum(0) for block in blocks)


def _card(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], n: int, of_y: tuple, batches: tuple[int, ...]
) -> pd.DataFrame:
    """`definition_card` from one pass over blocks (y, y_hat) of n rows, each of whole batches but the last. of_y: `_spread`."""
    mean, spread = of_y
    size, ok = n * len(mean), spread > 0
    shift, apart = np.sqrt(spread.sum() / size), spread.sum() + n * ((mean - mean.mean()) ** 2).sum()
    sums = {name: dict.fromkeys(("error", "off", "rows", *batches), 0.0) for name in SHOWN}
    squares, counted = 0.0, dict.fromkeys(batches, 0)
    for block in pairs:
        y, y_hat = (np.asarray(part, np.float64) for part in block)
        squares += (y**2).sum()
        starts = {b: range(0, len(y) - 1, b) for b in batches}  # of each batch; a row alone has no spread
        own = {b: [((y[i : i + b] - y[i : i + b].mean(0)) ** 2).sum() for i in starts[b]] for b in batches}
        for found, shown in zip(sums.values(), (y_hat, y_hat + shift, mean), strict=True):
            error = y - shown
            found["off"] += error.sum(0)  # (O,) by how much each unit is too small
            found["error"] += (error**2).sum(0)
            found["rows"] += (error.var(1) / y.var(1)).sum()
            for b in batches:  # the last, smaller batch counts as much as the others
                found[b] += sum((error[i : i + b] ** 2).sum() / s for i, s in zip(starts[b], own[b], strict=True))
        counted = {b: counted[b] + len(starts[b]) for b in batches}
    ours = "exact over the split (this repo)"
    lines = [(ours, "fvu"), *((f"mean over batches of {b}", "fvu") for b in batches), ("variance about zero", "fvu")]
    lines += [("one variance of all numbers", "fvu"), ("mean over rows, across their units", "fvu")]
    lines += [(ours, "explained_variance"), ("shift-blind", "explained_variance")]
    lines += [("mean of R2 per dimension", "explained_variance")]
    table = pd.DataFrame(lines, columns=["convention", "quantity"])
    for name, found in sums.items():
        error, total = found["error"], found["error"].sum()
        whole, blind = total / spread.sum(), 1 - (total - (found["off"] ** 2).sum() / n) / spread.sum()
        values = [whole, *(found[b] / counted[b] for b in batches), total / squares]
        values += [total / apart / size * (size - 1), found["rows"] / n]
        values += [1 - whole, blind, (1 - error[ok] / spread[ok]).mean()]
        table[name] = [round(float(value), 12) + 0.0 for value in values]  # no -1e-16 for 0
    return table


def definitions(data: Data, subjects: list[Subject]) -> pd.DataFrame:
    """The definition card of each method's first seed on the test rows: method and target before its columns."""
    rows, out, spreads = data.rows("test"), [], {}
    for s in first_seeds(subjects):
        target = target_of(data, s)
        if s.target not in spreads:
            spreads[s.target] = _spread(target, rows)
        with torch.no_grad():
            codes = iter_codes(s.coder, data.x, rows)
            pairs = ((target[some], s.coder.decode(z, -1, x).cpu().numpy()) for some, x, z in codes)
            card = _card(pairs, len(rows), spreads[s.target], BATCHES)
        out.append(card.assign(method=s.method, target=s.target)[["method", "target", *card]])
    return pd.concat(out, ignore_index=True) if out else pd.DataFrame(columns=["method", "target", "convention"])

"""Which latents of each row are active, as (row, latent) pairs: exact, and without sorting what cannot win.

A lower bound for the k-th largest value, cheap to find, leaves a handful of candidates; the exact choice is made among
those. Of equal values at the border the first are taken; torch.topk takes any.
Ranks are those of the pre-activations: relu and the fixed jump keep their order, and drop what is not positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlib.coders import sparsity
from mtlib.coders.fast.pairs import MANY, kernels

GROUP = 16  # values that share a maximum in the bound of `row_bound`
SAMPLE_ROWS, SURPLUS = 32, 1.5  # rows and safety of the bound in `sampled_bound`


def true_places(mask: Tensor) -> Tensor:
    """Flat places where mask (B, S) is true, growing. On a CPU by numpy, five times as fast."""
    if sparsity.on_cpu(mask):
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def places_above(z: Tensor, bound: Tensor | float, equal: bool = False) -> Tensor:
    """Flat places where z (B, S), on the host, is above `bound` (which broadcasts), or at it; growing. By numpy, twice as fast.

    NaN counts as large, as in torch.topk.
    """
    low = (np.less if equal else np.less_equal)(z.numpy(), torch.as_tensor(bound).numpy())
    return torch.from_numpy(np.flatnonzero(np.logical_not(low, out=low)))


def kth_largest(z: Tensor, k: int) -> Tensor:
    """(B,): the k-th largest value of each row of z (B, n)."""
    if sparsity.on_cpu(z):
        n = z.shape[1]
        return torch.from_numpy(np.partition(z.numpy(), n - k, axis=1)[:, n - k].copy())
    return z.topk(k, dim=1).values[:, -1]


def row_bound(z: Tensor, k: int) -> Tensor | None:
    """(B,) numbers with at least k values of each row of z (B, S) at or above them; None when S is too small for it.

    The k-th largest of the maxima of disjoint groups: k groups hold a value as large.
    """
    B, S = z.shape
    groups = S // GROUP
    if groups < 2 * k:
        return None
    maxima = z[:, : groups * GROUP].view(B, GROUP, groups).amax(1)  # (B, groups)
    return kth_largest(maxima, k)


def one_pass(z: Tensor, numbers: int, sizes: Sequence[int], ks: Sequence[int]):
    """numba's kernels where they pay on a CPU, else None: for the k largest of every block of rows.

    Args: z: any tensor of their type and device; numbers: values in all; sizes, ks: of the blocks of a row.
    """
    suited = all(n // GROUP >= 2 * k for n, k in zip(sizes, ks, strict=True))
    return kernels(z, 2 * numbers) if suited and sparsity.on_cpu(z) else None  # torch reads each at least twice


def top_rows(z: Tensor, k: int, bias: Tensor | None = None) -> Tensor:
    """The k largest of each row of z (B, S) + bias (S,), k <= S; on a CPU a bias only where `one_pass` says so.

    Returns: latents (B, k), growing in each row.
    """
    own = None if z.dtype == torch.float64 else kernels(z)
    if sparsity.on_cpu(z):  # with a bias the caller has asked already
        own = one_pass(z, z.numel() if bias is None else MANY, z.shape[1:], [k])
    if own and k <= own.LARGEST:
        found = own.top_rows(z, z.new_zeros(z.shape[1]) if bias is None else bias, k)
        if found is not None:
            return found
    z = z if bias is None else z + bias
    bound = row_bound(z, k) if sparsity.on_cpu(z) else None
    if bound is None:
        return z.topk(k, dim=1, sorted=False).indices.sort(1).values
    B, S = z.shape
    places = places_above(z, bound[:, None], equal=True)
    row = places // S
    counts = torch.bincount(row, minlength=B)
    width, first = int(counts.max()), counts.cumsum(0) - counts
    if width > k:  # the candidates as a narrow table (B, width), its empty places below all
        table = z.new_full((B * width,), -torch.inf)
        column = torch.arange(len(places)) + (torch.arange(B) * width - first).index_select(0, row)
        table.scatter_(0, column, z.flatten().index_select(0, places))
        best = table.view(B, width).topk(k, dim=1, sorted=False).indices.sort(1).values
        places = places.index_select(0, (best + first[:, None]).flatten())
    return (places % S).view(B, k)


def sampled_bound(z: Tensor, blocks: Sequence[tuple[int, int]], ks: Sequence[int]) -> Tensor:
    """(S,) bounds, one per block, that a batch's k * B largest of each block will most likely lie above; >= 0.

    From a few rows of z (b, S), and lower than they say; whether it holds is seen by counting.
    """
    rows = z[:: -(-len(z) // SAMPLE_ROWS)]
    bound = z.new_zeros(z.shape[1])
    for (a, b), k in zip(blocks, ks, strict=True):
        sample = rows[:, a:b].reshape(1, -1)
        rank = min(round(SURPLUS * k * len(rows)) + 1, sample.shape[1])
        bound[a:b] = kth_largest(sample, rank).clamp_min(0)
    return bound


def top_batch(values: Tensor, wanted: int, complete: bool) -> Tensor | None:
    """Which of the candidates are the `wanted` largest, the first ones among equals.

    Args: values (n,); complete: no positive value is missing. Returns: (n,) bool; None when candidates are too few.
    """
    if len(values) <= wanted:
        return torch.ones_like(values, dtype=torch.bool) if complete or len(values) == wanted else None
    smallest = kth_largest(values[None], wanted)
    kept = (values <= smallest).logical_not_()
    kept[true_places(values == smallest)[: wanted - int(kept.sum())]] = True
    return kept

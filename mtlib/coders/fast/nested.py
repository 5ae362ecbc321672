"""The nested ranks of MSAE: one dictionary, level l decoding the k_l largest latents of each row.

Ranks are sorted once. A level adds the latents of the ranks that the one before it leaves out, so each latent is decoded
once instead of once in every level, and the gradients of the levels are suffix sums. Gathers carry few ranks; the
gradient of a wide segment of ranks comes from one dense product.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mtlib.coders import sparsity
from mtlib.coders.fast import select
from mtlib.coders.fast.pairs import Pairs, SumBags, dense_from, pair_dots

WIDE = 0.15  # share of the latents from which on a segment's gradient is a dense product (measured: 0.13)


def ranked(z: Tensor, k: int) -> Tensor:
    """Latents (B, k) of the k largest of each row of z (B, S), the largest first."""
    if 4 * k <= z.shape[1]:
        latents = select.top_rows(z, k)
        return latents.gather(1, z.gather(1, latents).sort(dim=1, descending=True, stable=True).indices)
    if sparsity.on_cpu(z):  # twice as fast as torch.sort
        return torch.from_numpy(np.argsort(-z.numpy(), axis=1)[:, :k].copy())
    return z.sort(dim=1, descending=True, stable=True).indices[:, :k]


def ranked_pairs(z_pre: Tensor, k: int, rounding: torch.dtype | None = None) -> Pairs | None:
    """Pairs of the k largest of each row by rank; on a CPU of those that are positive in any row, None for numbers that are
    not finite.

    Args: z_pre (B, S). Returns: the same number of pairs in every row.
    """
    B, S = z_pre.shape
    if sparsity.on_cpu(z_pre):
        if not torch.isfinite(z_pre.sum()):
            return None
        k = min(k, max(1, int((z_pre > 0).sum(1).max())))
    row = torch.arange(B, device=z_pre.device)[:, None].expand(B, k)
    return Pairs(row.flatten(), ranked(z_pre, k).flatten(), B, S, rounding)


def level_sums(pairs: Pairs, weight: Tensor, table: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """What each level decodes: the sum of weight * table[item] over the first k_l pairs of each row.

    Args: pairs, weight (n,): by rank, as of `ranked_pairs`; table (S, O); ks: growing. Returns: L of (B, O).
    """
    B, L = pairs.n_bags, len(ks)
    width, host = len(pairs.item) // B, sparsity.on_cpu(table)
    bounds = tuple(min(k, width) for k in (0, *ks))
    wide = [not host and b - a > dense_from(pairs.rounding) * pairs.n_items for a, b in pairwise(bounds)]
    starts = [n for n in range(L) if not n or wide[n] or wide[n - 1]]  # a wide level is decoded alone
    dots = partial(rank_dots, bounds=bounds) if host else pair_dots
    row, levels = torch.arange(B, device=table.device)[:, None], []
    for first, end in pairwise([*starts, L]):
        a, b, n = bounds[first], bounds[end], end - first
        rank = torch.arange(a, b, device=table.device)
        segment = sum(((rank >= bound).long() for bound in bounds[first + 1 : end]), torch.zeros_like(rank))
        item, own = (t.view(B, width)[:, a:b].flatten() for t in (pairs.item, weight))
        some = Pairs((row * n + segment).flatten(), item, B * n, pairs.n_items, pairs.rounding)
        for y in SumBags.apply(own, table, some, dots).view(B, n, -1).unbind(1):
            levels.append(y + levels[-1] if levels else y)
    return levels


def rank_dots(pairs: Pairs, g: Tensor, table: Tensor, bounds: tuple[int, ...]) -> Tensor:
    """`pairs.pair_dots` for segments of ranks: runs of narrow segments by gathers, a wide one by a dense product.

    Args: g (B * L, O); table (S, O). Returns: (n,).
    """
    L, width = len(bounds) - 1, bounds[-1]
    bag, item = pairs.bag.view(-1, width), pairs.item.view(-1, width)
    parts, first = [], 0
    wide = [b - a > WIDE * pairs.n_items for a, b in pairwise(bounds)]

    def gathered(a: int, b: int) -> None:
        if b > a:
            run = Pairs(bag[:, a:b].flatten(), item[:, a:b].flatten(), pairs.n_bags, pairs.n_items)
            parts.append(pair_dots(run, g, table).view(-1, b - a))

    for level, (a, b) in enumerate(pairwise(bounds)):
        if wide[level]:
            gathered(first, a)
            parts.append((g.view(-1, L, g.shape[1])[:, level] @ table.T).gather(1, item[:, a:b]))
            first = b
    gathered(first, width)
    return torch.cat(parts, 1).flatten()

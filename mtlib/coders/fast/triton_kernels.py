"""Triton kernels of a training step on a GPU: an exact top k of every row, and the sums over pairs of pairs.py.

No call asks the device for a number: shapes follow from the settings alone. Sums are taken in a fixed order, so they repeat
exactly. Every number is the one that select.py and pairs.py give without Triton, up to the order of sums.
`TRITON_INTERPRET=1` runs the kernels on a CPU (slowly), as the tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 4096  # k up to which `top_rows` is made for
GROUPS = 1024  # values of a row that are looked at together, at least
ROOM = 256  # candidates of a row that are kept, at least
PAIRS, WIDTH = 16, 256  # pairs and columns of a table that one program adds at a time
LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _key(z, bias, at, ok):
    """Values at some places of a row as integers of the same order, NaN above all, -0 as 0; LOWEST where there is none."""
    v = tl.load(z + at, mask=ok, other=0.0).to(tl.float32) + tl.load(bias + at, mask=ok, other=0.0).to(tl.float32)
    bits = v.to(tl.int32, bitcast=True)
    key = tl.where(v == v, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)
    return tl.where(ok, tl.where(v == 0.0, 0, key), LOWEST)


@triton.jit
def _candidates(z, bias, scratch, counts, S, stride, k, N_GROUPS: tl.constexpr, ROOM: tl.constexpr):
    """Latents at or above a bound that at least k values of the row reach: the k-th largest of the maxima of disjoint groups.

    scratch (B, ROOM) gets the first of them, growing; counts (B,) how many there are, ROOM + 1 when they are more.
    """
    row = tl.program_id(0).to(tl.int64)
    z += row * stride
    lane = tl.arange(0, N_GROUPS)
    highest = tl.full((N_GROUPS,), LOWEST, tl.int32)
    for first in range(0, S, N_GROUPS):
        highest = tl.maximum(highest, _key(z, bias, first + lane, first + lane < S))
    bound = tl.where(tl.sum((highest >= 0).to(tl.int32)) >= k, 0, LOWEST)
    for i in range(31):
        higher = bound + (1 << (30 - i))
        bound = tl.where(tl.sum((highest >= higher).to(tl.int32)) >= k, higher, bound)
    n = 0
    for first in range(0, S, N_GROUPS):
        at = first + lane
        hit = (_key(z, bias, at, at < S) >= bound) & (at < S)
        place = n + tl.cumsum(hit.to(tl.int32)) - 1
        tl.store(scratch + row * ROOM + place, at, mask=hit & (place < ROOM))
        n += tl.sum(hit.to(tl.int32))
    tl.store(counts + row, tl.minimum(n, ROOM + 1))


@triton.jit
def _latents(scratch, at, whole, ok):
    """The candidates at some places; whole: the scratch was too small, and every latent of the row is one."""
    return tl.where(whole, at, tl.load(scratch + at, mask=ok & (not whole), other=0))


@triton.jit
def _reach(z, bias, scratch, n, whole, least, ROOM: tl.constexpr):
    """How many candidates are at or above `least`."""
    reach = 0
    for first in range(0, n, ROOM):
        at = first + tl.arange(0, ROOM)
        key = _key(z, bias, _latents(scratch, at, whole, at < n), at < n)
        reach += tl.sum(((key >= least) & (at < n)).to(tl.int32))
    return reach


@triton.jit
def _largest(z, bias, scratch, counts, out, S, stride, out_stride, k, ROOM: tl.constexpr):
    """The k largest among the candidates of a row, growing by latent; of equal values at the border the first."""
    row = tl.program_id(0).to(tl.int64)
    z += row * stride
    scratch += row * ROOM
    n = tl.load(counts + row)
    whole = n > ROOM
    n = tl.where(whole, S, n)
    lane = tl.arange(0, ROOM)
    least = tl.where(_reach(z, bias, scratch, n, whole, 0, ROOM) >= k, 0, LOWEST)
    for i in range(31):
        higher = least + (1 << (30 - i))
        least = tl.where(_reach(z, bias, scratch, n, whole, higher, ROOM) >= k, higher, least)
    spare = k  # how many of those equal to the least are taken; none is above the highest key
    if least < 0x7FFFFFFF:
        spare = k - _reach(z, bias, scratch, n, whole, least + 1, ROOM)
    done, equal = 0, 0
    for first in range(0, n, ROOM):
        ok = first + lane < n
        latent = _latents(scratch, first + lane, whole, ok)
        key = _key(z, bias, latent, ok)
        tie = (key == least) & ok
        hit = (key > least) | (tie & (equal + tl.cumsum(tie.to(tl.int32)) <= spare))
        place = done + tl.cumsum(hit.to(tl.int32)) - 1
        tl.store(out + row * out_stride + place, latent.to(tl.int64), mask=hit)
        done += tl.sum(hit.to(tl.int32))
        equal += tl.sum(tie.to(tl.int32))


def top_rows(z: Tensor, bias: Tensor, k: int) -> Tensor:
    """The k largest of each row of z + bias: latents (B, k) int64, growing in each row.

    z is read twice, the second time mostly from the cache; what it is compared by is the float32 sum, exactly.

    Args: z (B, S) float32 or bfloat16, rows contiguous; bias (S,); 1 <= k <= min(S, LARGEST), which the caller sees to.
    """
    B, S = z.shape
    groups = max(GROUPS, triton.next_power_of_2(2 * k))
    room = max(ROOM, triton.next_power_of_2(4 * k))
    scratch = torch.empty(B, room, dtype=torch.int32, device=z.device)
    counts = torch.empty(B, dtype=torch.int32, device=z.device)
    out = torch.empty(B, k, dtype=torch.int64, device=z.device)
    bias = bias.contiguous()
    with torch.cuda.device_of(z):
        warps = max(4, groups // 512)
        _candidates[(B,)](z, bias, scratch, counts, S, z.stride(0), k, N_GROUPS=groups, ROOM=room, num_warps=warps)
        warps = min(8, max(1, room // 128))
        _largest[(B,)](z, bias, scratch, counts, out, S, z.stride(0), k, k, ROOM=room, num_warps=warps)
    return out


@triton.jit
def _bag_sums(start, item, weight, table, out, n_bags, n, D, N_PAIRS: tl.constexpr, N_WIDTH: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * N_WIDTH + tl.arange(0, N_WIDTH)
    inside = column < D
    first = tl.load(start + bag)
    end = tl.load(start + bag + 1, mask=bag + 1 < n_bags, other=n)
    total = tl.zeros((N_PAIRS, N_WIDTH), table.dtype.element_ty)
    for pair in range(first, end, N_PAIRS):
        at = pair + tl.arange(0, N_PAIRS)
        ok = at < end
        i = tl.load(item + at, mask=ok, other=0)
        w = tl.load(weight + at, mask=ok, other=0.0)
        rows = tl.load(table + i[:, None] * D + column[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
        total += w[:, None] * rows
    tl.store(out + bag * D + column, tl.sum(total, 0), mask=inside)


def bag_sums(pairs, weight: Tensor, table: Tensor) -> Tensor:
    """`pairs.bag_sums`. Args: weight (n,); table (n_items, O). Returns: (n_bags, O)."""
    table, D = table.contiguous(), table.shape[1]
    out = table.new_empty(pairs.n_bags, D)
    width = min(WIDTH, triton.next_power_of_2(D))
    with torch.cuda.device_of(table):
        _bag_sums[(pairs.n_bags, triton.cdiv(D, width))](
            pairs.start, pairs.item, weight.contiguous(), table, out, pairs.n_bags, len(pairs.item), D, PAIRS, width
        )
    return out


@triton.jit
def _pair_dots(start, item, left, table, out, n_bags, n, D, N_PAIRS: tl.constexpr, N_WIDTH: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    first = tl.load(start + bag)
    end = tl.load(start + bag + 1, mask=bag + 1 < n_bags, other=n)
    for pair in range(first, end, N_PAIRS):
        at = pair + tl.arange(0, N_PAIRS)
        ok = at < end
        i = tl.load(item + at, mask=ok, other=0)
        total = tl.zeros((N_PAIRS, N_WIDTH), table.dtype.element_ty)
        for block in range(0, D, N_WIDTH):
            column = block + tl.arange(0, N_WIDTH)
            inside = column < D
            g = tl.load(left + bag * D + column, mask=inside, other=0.0)
            rows = tl.load(table + i[:, None] * D + column[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            total += rows * g[None, :]
        tl.store(out + at, tl.sum(total, 1), mask=ok)


def pair_dots(pairs, left: Tensor, table: Tensor) -> Tensor:
    """`pairs.pair_dots`. Args: left (n_bags, O); table (n_items, O). Returns: (n,)."""
    table, D = table.contiguous(), table.shape[1]
    out = table.new_empty(len(pairs.item))
    width = min(WIDTH, triton.next_power_of_2(D))
    with torch.cuda.device_of(table):
        _pair_dots[(pairs.n_bags,)](
            pairs.start, pairs.item, left.contiguous(), table, out, pairs.n_bags, len(out), D, PAIRS, width
        )
    return out

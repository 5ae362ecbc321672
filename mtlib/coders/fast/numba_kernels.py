"""Kernels of a training step on a CPU, by numba: the k largest of every row, and the sums over the pairs of pairs.py.

A row stays in the cache while its largest are found; torch and numpy (select.py) read all rows anew for every step of the search.
It finds the latents that torch finds, of equal values the first. Sums read four rows of a table at a time and add them in the
order of the pairs: they are torch's to the last bit.
Compiling takes about two seconds, once a process, and leaves no file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import torch
from torch import Tensor

from mtlib.coders.fast.select import GROUP

LARGEST = 4096  # k up to which `top_rows` is made for
FEW = 128  # candidates that are brought into order by insertion
LOWEST, SIZE = np.int32(-(2**31)), np.int32(2**31 - 1)
compiled = numba.njit(nogil=True, error_model="numpy")
summing = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # a product and its sum are rounded once


@compiled
def _bound(values, keys, n, k):
    """A number that k of the first n values reach, n >= k >= 1: the k-th largest, or one below it that no other value reaches.

    Found bit by bit, in keys (int32) of the same order as the values.
    """
    bits, count = values.view(np.int32), 0
    for i in range(n):
        keys[i] = bits[i] if bits[i] >= 0 else bits[i] ^ SIZE
        count += bits[i] >= 0
    found = np.int32(0) if count >= k else LOWEST
    for bit in range(30, -1, -1):
        higher = np.int32(found + np.int32(1 << bit))
        count = 0
        for i in range(n):
            count += keys[i] >= higher
        if count >= k:
            found = higher
        if count == k:
            break
    keys[0] = found if found >= 0 else found ^ SIZE
    return keys.view(np.float32)[0]


@compiled
def _top_rows(values, stride, bias, k, first, out):
    """out (rows, k): what `top_rows` gives for rows first, first + 1, ..., which stand `stride` apart in values.

    Returns: False where some sum may not be finite; then `out` is not to be used.
    """
    n = len(bias)
    groups = n // GROUP
    row, maxima, sums = np.empty(n, np.float32), np.empty(groups, np.float32), np.empty(groups, np.float32)
    near, keys, places = np.empty(n, np.float32), np.empty(n, np.int32), np.empty(n, np.int64)
    for r in range(len(out)):
        start = (first + r) * stride
        given = values[start : start + n]
        for i in range(n):
            row[i] = (given[i] + bias[i]) + np.float32(0)  # -0 becomes 0
        maxima[:], sums[:] = row[:groups], row[:groups]
        for j in range(1, GROUP):
            some = row[j * groups : (j + 1) * groups]
            for g in range(groups):
                maxima[g] = max(maxima[g], some[g])
                sums[g] += some[g]
        finite = True
        for g in range(groups):
            finite &= abs(sums[g]) < np.inf
        for i in range(GROUP * groups, n):
            finite &= abs(row[i]) < np.inf
        if not finite:
            return False
        bound, m = _bound(maxima, keys, groups, k), 0  # k groups hold a value as large
        for g in range(groups):
            if maxima[g] >= bound:
                for i in range(g, GROUP * groups, groups):
                    places[m] = i
                    m += row[i] >= bound
        if m <= FEW:
            for i in range(1, m):
                place, at = places[i], i
                while at and places[at - 1] > place:
                    places[at] = places[at - 1]
                    at -= 1
                places[at] = place
        else:
            m = 0
            for i in range(GROUP * groups):
                places[m] = i
                m += row[i] >= bound
        for i in range(GROUP * groups, n):
            places[m] = i
            m += row[i] >= bound
        for i in range(m):
            near[i] = row[places[i]]
        least, spare, done = _bound(near, keys, m, k), k, 0
        for i in range(m):
            spare -= near[i] > least
        for i in range(m):
            tie = near[i] == least and spare > 0
            if near[i] > least or tie:
                out[r, done] = places[i]
                done += 1
                spare -= tie
    return True


def top_rows(z: Tensor, bias: Tensor, k: int) -> Tensor | None:
    """The k largest of each row of z + bias: latents (B, k) int64, growing in each row; of equal values at the border the first.

    Args: z (B, S) float32 on the host, the values of a row side by side; bias (S,); k <= S // GROUP, which the caller sees to.
    Returns: None where some sum is not finite.
    """
    (B, S), stride = z.shape, z.stride(0)
    values = z.as_strided(((B - 1) * stride + S,), (1,)).numpy()
    out, bias = np.empty((B, k), np.int64), bias.numpy()
    done = _by_threads(lambda a, b: _top_rows(values, stride, bias, k, a, out[a:b]), B)
    return torch.from_numpy(out) if all(done) else None


def _by_threads(work, n: int) -> list:
    """What `work` gives for the shares (first, end) of n rows that torch's threads take."""
    threads = max(1, min(torch.get_num_threads(), n))
    shares = list(pairwise(n * i // threads for i in range(threads + 1)))
    if threads == 1:
        return [work(*shares[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, *zip(*shares, strict=True)))


@summing
def _bag_sums(start, item, weight, table, first, out):
    """out (bags, O): what `bag_sums` gives for bags first, first + 1, ..."""
    for r in range(len(out)):
        bag, row = first + r, out[r]
        end = start[bag + 1] if bag + 1 < len(start) else len(item)
        spare = end - (end - start[bag]) % 4
        row[:] = 0
        for p in range(start[bag], spare, 4):
            a, b, c, d = table[item[p]], table[item[p + 1]], table[item[p + 2]], table[item[p + 3]]
            u, v, w, x = weight[p], weight[p + 1], weight[p + 2], weight[p + 3]
            for o in range(len(row)):
                row[o] = (((row[o] + u * a[o]) + v * b[o]) + w * c[o]) + x * d[o]
        for p in range(spare, end):
            a, u = table[item[p]], weight[p]
            for o in range(len(row)):
                row[o] += u * a[o]


def bag_sums(pairs, weight: Tensor, table: Tensor) -> Tensor:
    """`pairs.bag_sums`. Args: weight (n,); table (n_items, O), float32. Returns: (n_bags, O)."""
    out = np.empty((pairs.n_bags, table.shape[1]), np.float32)
    given = pairs.start.numpy(), pairs.item.numpy(), weight.contiguous().numpy(), table.contiguous().numpy()
    _by_threads(lambda a, b: _bag_sums(*given, a, out[a:b]), pairs.n_bags)
    return torch.from_numpy(out)

"""Sums over (bag, item) pairs: a sparse matrix times a table, as torch's embedding bag, with gradients by hand.

With w the weight of each pair, M the sparse matrix of w (n_bags, n_items), and T a table (n_items, O):

    sum_bags          M @ T                           one gather per pair
    d w               dot(d out[bag], T[item])        one gather per pair
    d T               M.T @ d out                     sum_bags of the transposed pairs, sorted once

On a GPU each is a kernel over the pairs (triton_kernels.py), or from a share of pairs on a product with M written out, where the
products run in `rounding`. Both take their sums in a fixed order. On a CPU numba takes the sums of many (numba_kernels.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from mtlib.coders import sparsity

# Share of pairs from which products are quicker on a GPU: per pair a gather moves 4 O bytes, at about 4 TB/s, and a product
# takes 2 O flops for every place of M, at about 50, 350 and 700 TFLOP/s. Reckoned, not measured.
DENSE_FROM = {"float32": 1 / 25, "tf32": 1 / 175, "bf16": 1 / 350}


MANY = 1 << 23  # numbers read, from which on numba's kernels repay their compiling


@dataclass(eq=False)
class Pairs:
    """n pairs in the order of their bags, no two alike: bag (n,) int64 growing, item (n,) int64; no weights."""

    bag: Tensor
    item: Tensor
    n_bags: int
    n_items: int
    rounding: torch.dtype | None = None  # of both factors of a dense product; None: that of the table

    def __post_init__(self):
        self.bag, self.item = self.bag.contiguous(), self.item.contiguous()  # the kernels read them without strides

    @cached_property
    def start(self) -> Tensor:
        """(n_bags,): place of the first pair of every bag."""
        bags = torch.arange(self.n_bags, device=self.bag.device)
        return torch.searchsorted(self.bag, bags)

    @cached_property
    def order(self) -> Tensor:
        """(n,): places of the pairs sorted by item; pairs of one item keep their order, so sums repeat exactly."""
        return torch.sort(self.item.int(), stable=True).indices

    @cached_property
    def transposed(self) -> Pairs:
        """Items as bags; its pair i is this one's pair order[i]."""
        item, bag = (t.index_select(0, self.order) for t in (self.item, self.bag))
        return Pairs(item, bag, self.n_items, self.n_bags, self.rounding)

    def dense(self, weight: Tensor) -> Tensor:
        """(n_bags, n_items), in `rounding`: the weights (n,) of the pairs, and zeros."""
        weight = weight.detach().to(self.rounding or weight.dtype)
        matrix = weight.new_zeros(self.n_bags * self.n_items)
        return matrix.scatter_(0, self.bag * self.n_items + self.item, weight).view(self.n_bags, -1)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b without a gradient, factors in `rounding`, in the type of b."""
        return (a.to(self.rounding or b.dtype) @ b.detach().to(self.rounding or b.dtype)).to(b.dtype)


def dense_from(rounding: torch.dtype | None) -> float:
    """The share of pairs from which a GPU takes products."""
    kind = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "float32"
    return DENSE_FROM["bf16" if rounding == torch.bfloat16 else kind]


def dense_pays(pairs: Pairs, table: Tensor) -> bool:
    wanted = dense_from(pairs.rounding) * pairs.n_bags * pairs.n_items
    return not sparsity.on_cpu(table) and len(pairs.item) > wanted


@cache
def _module(library: str):
    """The kernels written with triton or numba, or None without it."""
    try:
        return import_module(f"mtlib.coders.fast.{library}_kernels") if find_spec(library) else None
    except ImportError as e:  # numba refuses releases of numpy that are newer than it
        warnings.warn(f"{library} cannot be imported, torch's own kernels are taken: {e}", stacklevel=2)
        return None


def kernels(t: Tensor, numbers: int = 0):
    """The module of kernels for work that reads so many numbers like those of t; None: torch's own do.

    Triton's on a GPU; numba's on a CPU, for float32 and from MANY on.
    """
    if not sparsity.on_cpu(t):
        return _module("triton")
    return _module("numba") if t.dtype == torch.float32 and numbers >= MANY else None


def bag_sums(pairs: Pairs, weight: Tensor, table: Tensor) -> Tensor:
    """sum over each bag of weight * table[item], without a gradient.

    Args: weight (n,); table (n_items, O). Returns: (n_bags, O).
    """
    if not len(weight):
        return table.new_zeros(pairs.n_bags, table.shape[1])
    if dense_pays(pairs, table):
        return pairs.product(pairs.dense(weight), table)
    if own := kernels(table, len(weight) * table.shape[1]):
        return own.bag_sums(pairs, weight.detach(), table.detach())
    bag_of = torch.ops.aten._embedding_bag_forward_only
    return bag_of(table.detach(), pairs.item, pairs.start, False, 0, False, weight.detach())[0]


def pair_dots(pairs: Pairs, left: Tensor, table: Tensor) -> Tensor:
    """dot(left[bag], table[item]) of every pair, without a gradient.

    Args: left (n_bags, O); table (n_items, O). Returns: (n,).
    """
    if not len(pairs.item):
        return table.new_zeros(0)
    if dense_pays(pairs, table):
        return pairs.product(left, table.T).flatten().index_select(0, pairs.bag * pairs.n_items + pairs.item)
    if own := kernels(table):
        return own.pair_dots(pairs, left, table.detach())
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dots(left.contiguous(), table.detach(), pairs.item, pairs.start, pairs.bag, 0)


def item_sums(pairs: Pairs, weight: Tensor, left: Tensor) -> Tensor:
    """sum over each item of weight * left[bag]: the transposed product. left (n_bags, O). Returns: (n_items, O)."""
    if dense_pays(pairs, left):
        return pairs.product(pairs.dense(weight).T, left)
    return bag_sums(pairs.transposed, weight.index_select(0, pairs.order), left)


def weight_sums(item: Tensor, weight: Tensor, n_items: int) -> Tensor:
    """(n_items,): sum of the weights of each item; weight (n,)."""
    return weight.new_zeros(n_items).index_add_(0, item, weight)


def item_totals(pairs: Pairs, weight: Tensor) -> Tensor:
    """`weight_sums` of the pairs without a gradient; on a GPU index_add_ would take its sums in any order."""
    if sparsity.on_cpu(weight):
        return weight_sums(pairs.item, weight, pairs.n_items)
    if dense_pays(pairs, weight):
        return pairs.dense(weight).sum(0, dtype=weight.dtype)
    return item_sums(pairs, weight, weight.new_ones(pairs.n_bags, 1))[:, 0]


class SumBags(torch.autograd.Function):
    """`bag_sums` with gradients of weight and table: SumBags.apply(weight, table, pairs) -> (n_bags, O).

    dots: `pair_dots`, or a quicker way to the same numbers.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, table: Tensor, pairs: Pairs, dots=pair_dots) -> Tensor:
        ctx.save_for_backward(weight, table)
        ctx.pairs, ctx.dots = pairs, dots
        return bag_sums(pairs, weight, table)

    @staticmethod
    def backward(ctx, g: Tensor):
        weight, table = ctx.saved_tensors
        g = g.contiguous()
        d_weight = ctx.dots(ctx.pairs, g, table) if ctx.needs_input_grad[0] else None
        d_table = item_sums(ctx.pairs, weight, g) if ctx.needs_input_grad[1] else None
        return d_weight, d_table, None, None


class SquaredNorms(torch.autograd.Function):
    """|sum over an item's pairs of weight * table[bag]|^2: SquaredNorms.apply(weight, table (n_bags, D), pairs) -> (n_items,)

    With v the sum of an item, |v|^2 is the sum of weight * dot(v, table[bag]), and twice those dots are its gradient.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, table: Tensor, pairs: Pairs) -> Tensor:
        turned, order = pairs.transposed, pairs.order
        sums = bag_sums(turned, weight.index_select(0, order), table)  # (n_items, D)
        dots = torch.empty_like(weight)
        dots.index_copy_(0, order, pair_dots(turned, sums, table))
        ctx.save_for_backward(dots)
        ctx.item = pairs.item
        return weight_sums(pairs.item, weight * dots, pairs.n_items)

    @staticmethod
    def backward(ctx, g: Tensor):
        (dots,) = ctx.saved_tensors
        return 2 * dots * g.index_select(0, ctx.item), None, None


class EncodePairs(torch.autograd.Function):
    """Gives pre-activations that are already computed their gradient, in the pairs alone.

    EncodePairs.apply(enc (D, S), enc_bias (S,), pre_bias (D,) or None, values (n,), x (B, D), pairs) -> values. x is the
    encoder's input, pre_bias already subtracted. The gradient of pre_bias is enc @ d enc_bias: it needs no (B, D) product.
    """

    @staticmethod
    def forward(ctx, enc, enc_bias, pre_bias, values: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(enc, x)
        ctx.pairs = pairs
        return values.clone()

    @staticmethod
    def backward(ctx, g: Tensor):
        enc, x = ctx.saved_tensors
        d_enc = item_sums(ctx.pairs, g, x).T  # (D, S)
        d_bias = item_totals(ctx.pairs, g)
        d_pre = -(enc @ d_bias) if ctx.needs_input_grad[2] else None
        return d_enc, d_bias, d_pre, None, None, None

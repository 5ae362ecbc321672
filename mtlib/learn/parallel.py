"""One training step of one coder by several processes: each has a share of the batch, together they are one process.

Every process holds the same weights and computes the loss of its own rows, divided by the rows of the whole batch;
gradients are summed. What compares rows of a batch is made over all of them: the threshold of BatchTopK from the
largest values of every process, the scale of AuxK and the dead counters from sums, MonoLoss from the gathered codes.
The result is that of one process, up to the order in which floats are added.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mtlib.coders import losses
from mtlib.coders.sparse_coder import SparseCoder


class _Gather(torch.autograd.Function):
    """Rows of every process, in order; the gradient of this process' rows comes back to it."""

    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))  # gloo gathers equal shapes only
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.split(ctx.counts)[ctx.rank], None, None


class Group:
    """This process among those that train one coder (torch.distributed is initialised)."""

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, positions: np.ndarray) -> np.ndarray:
        """This process' slice of a batch's positions; slices differ by at most one row."""
        return np.array_split(positions, self.size)[self.rank]

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes, without gradient."""
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """(n, ...) rows of all processes from this one's share of them, with gradient."""
        counts = [len(part) for part in np.array_split(np.empty(n), self.size)]
        return _Gather.apply(rows, counts, self.rank)

    def sum_gradients(self, module: torch.nn.Module) -> None:
        """Replace every gradient by its sum over processes, in one exchange."""
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        flat = self.sum(torch.cat([g.flatten() for g in grads]))
        for grad, value in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(value.view_as(grad))

    def from_first(self, value: Tensor) -> None:
        """Overwrite `value` by that of the first process."""
        dist.broadcast(value, src=0)


def batch_topk(z: Tensor, k: int, n: int, group: Group) -> tuple[Tensor, Tensor]:
    """This process' rows of `sparsity.batch_topk` over the whole batch of n rows: same arguments and result."""
    wanted = min(k * n, n * z.shape[1])
    flat = z.detach().flatten()
    largest = flat.new_zeros(wanted)  # z >= 0, so a process with fewer values adds zeros
    own = flat.topk(min(wanted, flat.numel()), sorted=False).values
    largest[: len(own)] = own
    everywhere = group.gather(largest[None], group.size)
    smallest = everywhere.flatten().topk(wanted, sorted=False).values.min()
    return z * (z >= smallest).to(z.dtype), smallest


def _select(coder: SparseCoder, z: Tensor, n: int, group: Group) -> Tensor:
    c = coder.config
    if c.selection != "batch_topk":
        return coder._select(z, batchwise=True)
    kept = [batch_topk(z[:, a:b], k, n, group) for k, (a, b) in zip(c.ks, c.blocks, strict=True)]
    coder._follow([smallest for _, smallest in kept])
    return torch.cat([part for part, _ in kept], -1)


def _aux(coder: SparseCoder, z_pre: Tensor, error: Tensor, n: int, group: Group) -> Tensor:
    """losses.aux with the scale of the whole batch, times this process' share of its rows."""
    dead, error = coder.dead, error.detach()
    codes = losses.aux_codes(z_pre, dead, coder.aux_k)
    mean = group.sum(error.sum(0)) / n
    scale = group.sum((error - mean).square().sum()) / (n * error.shape[1])
    value = (
        (error - coder._product(codes, coder._decoder(-1))).square().sum()
        / (n * error.shape[1])
        / scale.clamp_min(1e-12)
    )
    return torch.where(dead.any(), value, torch.zeros_like(value)).nan_to_num(0.0)


def loss(
    coder: SparseCoder, x: Tensor, y: Tensor, penalty_scale: Tensor | float, n: int, group: Group
) -> tuple[Tensor, dict[str, Tensor]]:
    """What SparseCoder.loss is for one process.

    Args: x (b, D), y (b, O): this process' share of a batch of n rows; penalty_scale as in SparseCoder.loss.
    Returns: () whose gradient, summed over processes, is that of the batch; parts, the same in every process.
    """
    c, share = coder.config, len(x) / n
    z_pre = coder._pre(x)
    z = _select(coder, coder._activate(z_pre), n, group)
    y_hats = coder._decode_levels(z)
    y = coder._targets(y)
    own = {"reconstruction": share * losses.reconstruction(y, y_hats, c.level_weights)}
    if c.penalty != "none":
        own["penalty"] = share * penalty_scale * c.penalty_weight * coder._penalty(z_pre, z)
    if c.mono_weight:  # every process has the loss of the whole batch and the gradient of its own rows
        whole = coder._mono_weight(penalty_scale) * losses.mono_loss(
            coder._compared(group.gather(x, n)), group.gather(z, n)
        )
        own["mono"] = whole - whole.detach() * (1 - 1 / group.size)
    if c.aux_weight:
        own["aux"] = c.aux_weight * _aux(coder, z_pre, y - y_hats[-1], n, group)
    fired = z.detach() != 0
    counts = {"l0": fired.sum() / n, "error": (y - y_hats[-1]).square().sum()}
    names = [*own, *counts]
    everywhere = group.sum(torch.stack([own[k] if k in own else counts[k] for k in names]))
    any_fired = group.sum(fired.any(0).to(z.dtype)) > 0
    if coder.training:
        since = coder.rows_since_fired + n
        coder.rows_since_fired.copy_(torch.where(any_fired, torch.zeros_like(since), since))
    return torch.stack(tuple(own.values())).sum(), dict(zip(names, everywhere, strict=True))

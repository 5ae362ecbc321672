"""One training step of one coder by several processes: each has a share of the batch, together they are one process.

Every process holds the same weights and computes SparseCoder.loss of its own rows, divided by the rows of the whole
batch; gradients are summed. What compares rows of a batch is made over all of them: the threshold of BatchTopK from the
largest values of every process, the scale of AuxK and the dead counters from sums, MonoLoss from the gathered codes.
The result is that of one process, up to the order in which floats are added.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mtlib.coders import losses


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


class Group(losses.Batch):
    """This process among those that train one coder (torch.distributed is initialised), and its share of a batch."""

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.counts: list[int] = []  # rows of each process

    def share(self, positions: np.ndarray) -> np.ndarray:
        """This process' slice of a batch's positions; slices differ by at most one row."""
        parts = np.array_split(positions, self.size)
        self.counts = [len(part) for part in parts]
        return parts[self.rank]

    def rows(self, own: int) -> int:
        return sum(self.counts)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes, without gradient; of bools: whether it is true in any."""
        total = value.detach().clone() if value.dtype != torch.bool else value.to(torch.float32)
        dist.all_reduce(total)
        return total if value.dtype != torch.bool else total > 0

    def gather(self, rows: Tensor) -> Tensor:
        return _Gather.apply(rows, self.counts, self.rank)

    def batch_topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        wanted = sum(self.counts) * min(k, z.shape[1])
        flat = z.detach().flatten()
        largest = flat.new_zeros(wanted)  # z >= 0, so a process with fewer values adds zeros
        own = flat.topk(min(wanted, flat.numel()), sorted=False).values
        largest[: len(own)] = own
        everywhere = _Gather.apply(largest[None], [1] * self.size, self.rank)
        smallest = everywhere.flatten().topk(wanted, sorted=False).values.min()
        return z * (z >= smallest).to(z.dtype), smallest

    def sum_gradients(self, module: torch.nn.Module) -> None:
        """Replace every gradient by its sum over processes, in one exchange."""
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        flat = self.sum(torch.cat([g.flatten() for g in grads]))
        for grad, value in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(value.view_as(grad))

    def from_first(self, value: Tensor) -> None:
        """Overwrite `value` by that of the first process."""
        dist.broadcast(value, src=0)

"""Terms of the training loss: each a plain function of tensors and a mean over the rows of the batch, and their sum.

loss = sum_l w_l * reconstruction(y_l, y) + penalty + mono_weight * (1 - MonoScore) + aux_weight * AuxK
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtlib.coders import sparsity


class Batch:
    """The rows of one training step, here all in one process; learn/parallel.py shares them among several.

    Whatever compares rows of a batch asks it, so that a loss has one definition.
    """

    size = 1  # processes

    def rows(self, own: int) -> int:
        """Rows of the whole batch, of which this process has `own`."""
        return own

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a value over processes, without gradient."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes in order, with gradient."""
        return rows

    def batch_topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """This process' rows of `sparsity.batch_topk` over the whole batch."""
        return sparsity.batch_topk(z, k)


WHOLE = Batch()


def reconstruction(y: Tensor, y_hats: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_l w_l * mean squared error per element of level l.

    Args:
        y: (B, O) target. y_hats: L reconstructions (B, O). weights: L numbers.
    Returns: ().
    Raises: ValueError if a shape differs.
    """
    total = y.new_zeros(())
    for y_hat, weight in zip(y_hats, weights, strict=True):
        if y_hat.shape != y.shape:
            raise ValueError(f"reconstruction: y_hat has shape {tuple(y_hat.shape)}, target {tuple(y.shape)}")
        total = total + weight * (y - y_hat).square().mean()
    return total


def l1_mean(z: Tensor) -> Tensor:
    """mean |z| over rows and latents (Matryoshka Transcoders)."""
    return z.abs().mean()


def l1_sum(z: Tensor) -> Tensor:
    """sum of |z| over latents, mean over rows (MSAE, MonoLoss)."""
    return z.abs().sum(-1).mean()


def l0_sigmoid(z_pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """Smooth count of active latents: sum of sigmoid((z_pre - theta) / bandwidth), mean over rows (AlexNet-Transformer).

    Args: z_pre (B, S), theta (S,), bandwidth > 0. Returns: ().
    """
    return torch.sigmoid((z_pre - theta) / bandwidth).sum(-1).mean()


def l0_rectangle(z_pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """Exact count of active latents, mean over rows, with the straight-through gradient of theta (sparsity.step)."""
    return sparsity.step(z_pre, theta, bandwidth).sum(-1).mean()


def mono_scores(x: Tensor, z: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """MonoScore of every latent over a batch, in one pass; exactly the pairwise definition.

    a = min-max scaled activations, e = unit rows of x; score = (|sum a e|^2 - sum a^2) / ((sum a)^2 - sum a^2)
      = mean cosine between images, each pair weighted by the product of its activations.

    Args:
        x:   (B, D) inputs whose cosines count. z: (B, S) codes.
        eps: ranges and denominators at or below it leave a latent out.
    Returns: scores (S,), 0 where undefined; valid (S,) bool.
    Source: MonoLoss, arXiv 2602.12403.
    """
    e = torch.nn.functional.normalize(x, dim=-1)
    low, high = z.amin(0), z.amax(0)
    low = torch.where(low > 0, low, low.detach())  # the 0 of a latent that does not fire is a constant
    spread = high - low
    a = (z - low) / spread.clamp_min(eps)  # (B, S)
    total, squares = a.sum(0), a.square().sum(0)
    denominator = total.square() - squares
    valid = (spread > eps) & (denominator > eps)
    score = ((a.T @ e).square().sum(-1) - squares) / denominator.clamp_min(eps)
    return torch.where(valid, score, torch.zeros_like(score)), valid


def mono_loss(x: Tensor, z: Tensor) -> Tensor:
    """1 - mean MonoScore over the latents that vary in the batch; 0 when none does. Shapes as in `mono_scores`."""
    scores, valid = mono_scores(x, z)
    count = valid.sum()
    return torch.where(count > 0, 1 - scores.sum() / count.clamp_min(1), scores.sum() * 0)


def aux_codes(z_pre: Tensor, dead: Tensor, k: int) -> Tensor:
    """The k largest positive pre-activations among dead latents, zero elsewhere.

    Args: z_pre (B, S); dead (S,) bool; k >= 1. Returns: (B, S).
    """
    return sparsity.topk(z_pre.relu() * dead.to(z_pre.dtype), k)


def aux(error: Tensor, error_hat: Tensor, dead: Tensor, batch: Batch = WHOLE) -> Tensor:
    """AuxK: how badly the dead latents explain what the live ones left over; exactly 0 when nothing is dead.

    |error - error_hat|^2 / |error - mean(error)|^2

    Args:
        error: (B, O) target minus reconstruction (no gradient flows into it). error_hat: (B, O) decoded `aux_codes`.
        dead:  (S,) bool. batch: whose rows these are.
    Returns: (); of a shared batch this process' part of it.
    Source: Gao et al. 2024, arXiv 2406.04093, appendix A.2.
    """
    error, rows = error.detach(), batch.rows(len(error))
    mean = batch.sum(error.sum(0)) / rows
    scale = batch.sum((error - mean).square().sum()) / (rows * error.shape[1])
    value = (error - error_hat).square().sum() / (rows * error.shape[1]) / scale.clamp_min(1e-12)
    return torch.where(dead.any(), value, torch.zeros_like(value)).nan_to_num(0.0)


class Terms(NamedTuple):
    """What the loss of a batch needs beside its buffers."""

    parts: dict[str, Tensor]  # (), with gradient: reconstruction, penalty, mono, aux
    error: Tensor  # (B, O) y minus the last level's reconstruction
    fired: Tensor  # (S,) bool
    n_fired: Tensor  # ()


def terms(coder, x: Tensor, y: Tensor, penalty_scale: Tensor | float, z_pre=None, z=None, y_hats=None) -> Terms:
    """The readable definition of a SparseCoder's loss, which the fast path must equal.

    Args: x (B, D); y (B, O) in the coder's units; z_pre (B, S), z (B, S) and y_hats (L of (B, O)) where they are known.
    """
    c, batch = coder.config, coder.batch
    share = len(y) / batch.rows(len(y))
    if z is None:
        z_pre = coder._pre(x) if z_pre is None else z_pre
        z = coder._select(coder._activate(z_pre), batchwise=True)
    y_hats = coder._decode_levels(z) if y_hats is None else y_hats
    error = y - y_hats[-1]
    parts = {"reconstruction": share * reconstruction(y, y_hats, c.level_weights)}
    if c.penalty != "none":
        parts["penalty"] = share * penalty_scale * c.penalty_weight * _penalty(coder, z_pre, z)
    if c.mono_weight:  # of the whole batch; its gradient is that of this process' rows
        mono = mono_loss(coder._compared(batch.gather(x)), batch.gather(z))
        mono = mono_weight(coder, penalty_scale) * mono
        parts["mono"] = mono - mono.detach() * (1 - 1 / batch.size)
    if c.aux_weight:
        parts["aux"] = c.aux_weight * _aux(coder, z_pre, error)
    count = (z.detach() != 0).to(z.dtype).sum(0)  # numbers add up several times as fast as bools
    return Terms(parts, error, count > 0, count.long().sum())


def mono_weight(coder, penalty_scale: Tensor | float) -> Tensor | float:
    """With a selection, the L0 is steered by MonoLoss; without one, by the penalty."""
    return coder.config.mono_weight * (1.0 if coder.config.selection == "none" else penalty_scale)


def _penalty(coder, z_pre: Tensor, z: Tensor) -> Tensor:
    c = coder.config
    of = {"l1_mean": l1_mean, "l1_sum": l1_sum, "l0_sigmoid": l0_sigmoid, "l0_rectangle": l0_rectangle}[c.penalty]
    return of(z) if c.penalty.startswith("l1") else of(z_pre, coder.theta, c.bandwidth)


def _aux(coder, z_pre: Tensor, error: Tensor) -> Tensor:
    dead = coder.dead
    if dead.device.type == "cpu" and not dead.any():  # on a device the answer would cost a synchronisation
        return error.new_zeros(())
    codes = aux_codes(z_pre, dead, coder.aux_k)
    return aux(error, coder._product(codes, coder._decoder(-1)), dead, coder.batch)

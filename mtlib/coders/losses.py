"""Terms of the training loss: each a plain function of tensors and a mean over the rows of the batch, and their sum.

loss = sum_l w_l * error(y_l, y) + penalty + mono_weight * (1 - MonoScore) + aux_weight * AuxK
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlib.coders import sparsity
from mtlib.coders.scaling import Frame


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
EPS = 1e-8  # of MonoScore, and of the norms that something is divided by


def over_own_size(squared: Tensor, y: Tensor) -> Tensor:
    """NMSE's rows: squared errors (B, O) over the mean square of each row of y (B, O); 0 for a row of zeros."""
    size = y.square().mean(-1, keepdim=True)
    return torch.where(size > 0, squared / torch.where(size > 0, size, 1), 0)


def reconstruction(y: Tensor, y_hats: Sequence[Tensor], weights: Sequence[float], error: str = "mse") -> Tensor:
    """sum_l w_l * mean squared error per element of level l.

    Args:
        y: (B, O) target. y_hats: L reconstructions (B, O). weights: L numbers.
        error: mse; or nmse: each row over its own mean square (MSAE, MonoLoss).
    Returns: (), in units of y squared; of nmse without unit.
    Raises: ValueError if a shape differs.
    """
    total = y.new_zeros(())
    for y_hat, weight in zip(y_hats, weights, strict=True):
        if y_hat.shape != y.shape:
            raise ValueError(f"reconstruction: y_hat has shape {tuple(y_hat.shape)}, target {tuple(y.shape)}")
        squared = (y - y_hat).square()
        total = total + weight * (squared if error == "mse" else over_own_size(squared, y)).mean()
    return total


def penalised(
    kind: str, z_pre: Tensor | None, z: Tensor, theta: Tensor | None, bandwidth: float, size: Tensor | None = None
) -> Tensor:
    """What each code contributes to the penalty: summed over latents and averaged over rows (l1_mean: over both).

        l1_mean       |z|                                  (Matryoshka Transcoders)
        l1_sum        |z|                                  (MonoLoss)
        l1_relative   |z| / size, the norm of the row's input       (MSAE)
        l0_sigmoid    sigmoid((z_pre - theta) / bandwidth), a smooth count (AlexNet-Transformer)
        l0_rectangle  [z_pre > theta], with the straight-through gradient of theta (sparsity.step)
        l0_rectangle_after  the same of z in place of z_pre: what lies just below theta is not seen (MonoLoss)

    Args: z_pre, z (..., S) with theta (S,) and size (..., 1), of l1_relative alone; or (n,) each, values with the theta of
        their latents and the size of their rows.
    """
    if kind == "l1_relative":
        return z.abs() / size.clamp_min(EPS)
    if kind.startswith("l1"):
        return z.abs()
    if kind == "l0_sigmoid":
        return torch.sigmoid((z_pre - theta) / bandwidth)
    return sparsity.step(z if kind == "l0_rectangle_after" else z_pre, theta, bandwidth)


def mono_scores(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """MonoScore of every latent over a batch, in one pass; exactly the pairwise definition.

    a = min-max scaled activations, e = unit rows of x; score = (|sum a e|^2 - sum a^2) / ((sum a)^2 - sum a^2)
      = mean cosine between images, each pair weighted by the product of its activations. EPS is added to the range and
    to half the denominator, as published.

    Args: x (B, D) inputs whose cosines count; z (B, S) codes.
    Returns: scores (S,), 0 where undefined; valid (S,) bool: half the denominator is above EPS.
    Source: MonoLoss, arXiv 2602.12403.
    """
    e = torch.nn.functional.normalize(x, dim=-1, eps=EPS)
    low, high = z.amin(0), z.amax(0)
    low = torch.where(low > 0, low, low.detach())  # the 0 of a latent that does not fire is a constant
    a = (z - low) / (high - low + EPS)  # (B, S)
    total, squares = a.sum(0), a.square().sum(0)
    return score_of_sums((a.T @ e).square().sum(-1), total, squares)


def score_of_sums(length: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """`mono_scores` from |sum a e|^2, sum a and sum a^2, (S,) each."""
    below = 0.5 * (total.square() - squares)
    valid = below > EPS
    score = 0.5 * (length - squares) / torch.where(valid, below + EPS, 1)
    return torch.where(valid, score, 0), valid


def mono_loss(scores: Tensor, valid: Tensor) -> Tensor:
    """1 - mean of `mono_scores` over the latents that vary in the batch; 0 when none does."""
    count = valid.sum()
    return torch.where(count > 0, 1 - scores.sum() / count.clamp_min(1), scores.sum() * 0)


def aux_codes(z_pre: Tensor, dead: Tensor, k: int) -> Tensor:
    """The k largest positive of z_pre (B, S) among latents that are dead (S,), zero elsewhere."""
    return sparsity.topk(z_pre.relu() * dead.to(z_pre.dtype), k)


def aux(error: Tensor, error_hat: Tensor, dead: Tensor | None, batch: Batch = WHOLE, kind: str = "variance") -> Tensor:
    """AuxK: how badly the dead latents explain what the live ones left over; exactly 0 when nothing is dead.

        variance  |error - error_hat|^2 / |error - mean(error)|^2                      (Gao et al.)
        nmse      the same, each row over the size of its error                        (MonoLoss, top-k)
        mse       mean square of error - error_hat; live latents get its gradient too  (MonoLoss, batch top-k)

    Args:
        error: (B, O) target minus reconstruction; constant but for mse. error_hat: (B, O) decoded `aux_codes`.
        dead:  (S,) bool; None: counts although nothing may be dead. batch: whose rows these are. kind: as above.
    Returns: (); of a shared batch this process' part of it.
    Source: Gao et al. 2024, arXiv 2406.04093, appendix A.2; MonoLoss, arXiv 2602.12403.
    """
    rows = batch.rows(len(error))
    error = error if kind == "mse" else error.detach()
    squared = (error - error_hat).square()
    value = (over_own_size(squared, error) if kind == "nmse" else squared).sum() / (rows * error.shape[1])
    if kind == "variance":
        mean = batch.sum(error.sum(0)) / rows
        scale = batch.sum((error - mean).square().sum()) / (rows * error.shape[1])
        value = (value / scale.clamp_min(1e-12)).nan_to_num(0.0)
    return value if dead is None else torch.where(dead.any(), value, 0)


class DenseCodes:
    """The codes of a batch and what a loss needs of them: the readable definition, which fast.terms.PairCodes equals.

    Args: x (B, D); z_pre (B, S), z (B, S) and y_hats (L of (B, O)) where they are known.
    """

    def __init__(self, coder, x: Tensor, z_pre=None, z=None, y_hats=None):
        self.coder, self.x = coder, x
        self.z_pre = coder._pre(x) if z is None and z_pre is None else z_pre
        self.z = coder._select(coder._activate(self.z_pre), batchwise=True) if z is None else z
        self.y_hats = coder._decode_levels(self.z) if y_hats is None else y_hats

    def penalty(self) -> Tensor:
        c = self.coder.config
        size = self.coder._inputs(self.x).norm(dim=-1, keepdim=True) if c.penalty == "l1_relative" else None
        values = penalised(c.penalty, self.z_pre, self.z, self.coder.thresholds, c.bandwidth, size)
        return values.mean() if c.penalty == "l1_mean" else values.sum(-1).mean()

    def mono(self) -> Tensor:
        """Of the whole batch; its gradient is that of this process' rows."""
        batch = self.coder.batch
        value = mono_loss(*mono_scores(self.coder._compared(batch.gather(self.x)), batch.gather(self.z)))
        return value - value.detach() * (1 - 1 / batch.size)

    def aux(self, error: Tensor, dead: Tensor, frame: Frame) -> Tensor:
        c = self.coder.config
        if sparsity.on_cpu(dead) and not c.aux_biased and not dead.any():
            return error.new_zeros(())
        codes = aux_codes(self.z_pre, dead, self.coder.aux_k)
        error_hat = self.coder._product(codes, self.coder._decoder(-1))
        if c.aux_biased:
            bias = self.coder._bias(-1)
            return aux(error + bias.detach(), frame.brought(error_hat + bias), None, self.coder.batch, c.aux_error)
        return aux(error, error_hat * frame.gain, dead, self.coder.batch, c.aux_error)

    def fired(self) -> tuple[Tensor, Tensor]:
        """(S,) bool: which latents fired; (): how often all of them did."""
        count = (self.z.detach() != 0).to(self.z.dtype).sum(0)  # numbers add up several times as fast as bools
        return count > 0, count.long().sum()


def terms(coder, frame: Frame, codes, dead: Tensor, penalty_scale: Tensor | float) -> dict[str, Tensor]:
    """The terms of the loss, each () with gradient; of a shared batch this process' part.

    Args: dead (S,) bool: the latents that AuxK may use.

    With a selection, the L0 is steered by MonoLoss; without one, by the penalty.
    """
    c, y, y_hats = coder.config, frame.target, [frame.brought(y_hat) for y_hat in codes.y_hats]
    share = len(y) / coder.batch.rows(len(y))
    parts = {"reconstruction": share * reconstruction(y, y_hats, c.level_weights, c.error)}
    if c.penalty != "none":
        parts["penalty"] = share * penalty_scale * c.penalty_weight * codes.penalty()
    if c.mono_weight:
        parts["mono"] = c.mono_weight * (1.0 if c.selection == "none" else penalty_scale) * codes.mono()
    if c.aux_weight:
        parts["aux"] = c.aux_weight * codes.aux(y - y_hats[-1], dead, frame)
    return parts

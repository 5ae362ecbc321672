"""Terms of the training loss, each a plain function of tensors and a mean over the rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlib.coders import sparsity


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


def aux(error: Tensor, error_hat: Tensor, dead: Tensor) -> Tensor:
    """AuxK: how badly the dead latents explain what the live ones left over; exactly 0 when nothing is dead.

    |error - error_hat|^2 / |error - mean(error)|^2

    Args:
        error: (B, O) target minus reconstruction (no gradient flows into it). error_hat: (B, O) decoded `aux_codes`.
        dead:  (S,) bool.
    Returns: ().
    Source: Gao et al. 2024, arXiv 2406.04093, appendix A.2.
    """
    error = error.detach()
    scale = (error - error.mean(0)).square().mean().clamp_min(1e-12)
    value = (error - error_hat).square().mean() / scale
    return torch.where(dead.any(), value, torch.zeros_like(value)).nan_to_num(0.0)

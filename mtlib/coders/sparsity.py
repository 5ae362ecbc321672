"""How a coder turns pre-activations into sparse codes: pure functions, the readable definition of each sparsity.

An activation acts on each value alone; a selection keeps some of the activations. Selections that compare images of a
batch (`batch_topk`) exist for training only: at inference a frozen threshold takes their place, so that the code of
an image never depends on its batch-mates.

    activation  relu              max(z_pre, 0)
                jumprelu_fixed    max(z_pre, 0) + beta * [z_pre > gamma]                 (Matryoshka Transcoders)
                jumprelu          z_pre * [z_pre > theta], theta learned per latent      (AlexNet-Transformer, MonoLoss)
    selection   none              z * [z > threshold], threshold 0 unless calibrated
                topk              the k largest of each row
                block_topk        the k_l largest inside each block m_{l-1}:m_l of each row
                batch_topk        the k * B largest of the batch (of each block, when several k are given)
                nested_topk       the largest k; level l decodes the k_l largest of them  (MSAE)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_cpu(t: Tensor) -> bool:
    """Whether the host holds the numbers of t. It must not ask a device for one: it would wait for all work given so far."""
    return t.device.type == "cpu"


def jumprelu_fixed(z_pre: Tensor, gamma: float, beta: float) -> Tensor:
    """max(z_pre, 0) + beta where z_pre > gamma.

    Args:
        z_pre: (..., S) float.
        gamma: place of the jump, >= 0.
        beta:  height of the jump, in units of z_pre.
    Returns: (..., S). The jump has no gradient.
    Source: Matryoshka Transcoders, arXiv 2511.10094 (gamma = beta = 1).
    """
    return z_pre.relu() + beta * (z_pre > gamma).to(z_pre.dtype)


def _through_window(z_pre: Tensor, theta: Tensor, bandwidth: float, slope: Tensor | float) -> Tensor:
    """Exactly 0, with d / d theta = slope / bandwidth where |z_pre - theta| < bandwidth / 2, else 0."""
    inside = (z_pre.detach() - theta.detach()).abs() < bandwidth / 2
    return (theta - theta.detach()) * (slope * (inside.to(z_pre.dtype) / bandwidth))


def jumprelu(z_pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """z_pre where z_pre > theta, else 0; theta gets the straight-through rectangle gradient.

    d z / d theta = -(theta / bandwidth) * [|z_pre - theta| < bandwidth / 2]

    Args:
        z_pre: (..., S) float. theta: (S,) float, >= 0. bandwidth: width of the rectangle, > 0.
    Returns: (..., S).
    Source: Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 11.
    """
    z = z_pre * (z_pre > theta).to(z_pre.dtype)
    return z + _through_window(z_pre, theta, bandwidth, -theta.detach())


def step(z_pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """1 where z_pre > theta, else 0; summed over latents it is L0. Same estimator and source as `jumprelu`, eq. 12."""
    return (z_pre > theta).to(z_pre.dtype) + _through_window(z_pre, theta, bandwidth, -1.0)


def soft_cap(z: Tensor, cap: float) -> Tensor:
    """cap * tanh(z / cap): nearly z where it is small, never above cap; cap 0: z."""
    return cap * torch.tanh(z / cap) if cap else z


def topk(z: Tensor, k: int) -> Tensor:
    """Keep the k largest of each row of z (..., S) >= 0, zero elsewhere; fewer when fewer are positive."""
    if k >= z.shape[-1]:
        return z
    values, indices = z.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(z).scatter(-1, indices, values)


def block_topk(z: Tensor, levels: Sequence[int], ks: Sequence[int]) -> Tensor:
    """Keep the k_l largest inside each new block m_{l-1}:m_l of z (..., S), S = levels[-1]."""
    starts = [0, *levels[:-1]]
    blocks = [topk(z[..., a:b], k) for a, b, k in zip(starts, levels, ks, strict=True)]
    return torch.cat(blocks, dim=-1)


# selections that look at one row alone, with the settings that they read: a new one is a line here, and its name in config.py
ROW_WISE = {
    "topk": lambda z, config: topk(z, config.ks[-1]),
    "nested_topk": lambda z, config: topk(z, config.ks[-1]),
    "block_topk": lambda z, config: block_topk(z, config.levels, config.ks),
}


def batch_topk(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k * B largest of the whole batch.

    Args:
        z: (B, S) float >= 0. k: mean number kept per row, 1 <= k <= S.
    Returns: (B, S) codes; () the smallest value kept, detached (the running threshold for inference follows it).
    Source: Bussmann et al. 2024, arXiv 2412.06410.
    """
    flat = z.flatten()
    values, indices = flat.topk(min(k * z.shape[0], flat.numel()), sorted=False)
    kept = torch.zeros_like(flat).scatter(0, indices, values)
    return kept.view_as(z), values.detach().min()


def above(z: Tensor, threshold: Tensor) -> Tensor:
    """z where z > threshold (S,), else 0: the frozen, batch-independent selection."""
    return z * (z > threshold).to(z.dtype)


def threshold_for_l0(z: Tensor, l0: float) -> Tensor:
    """The threshold t >= 0 for which `above(z, t)` keeps l0 values per row on average.

    Args:
        z: (N, S) float >= 0. l0: target number per row, 0 < l0 <= S.
    Returns: () same dtype, the largest value to drop; 0 when z is sparser than l0.
    """
    keep = round(l0 * z.shape[0])
    positive = z[z > 0]
    if keep >= positive.numel():
        return z.new_zeros(())
    return positive.kthvalue(positive.numel() - keep).values  # `above` is strict: exactly `keep` stay, up to ties

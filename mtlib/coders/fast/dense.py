"""Steps in which a quarter of the latents is active: dense products, but no more passes over (B, S) than they need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlib.coders.fast.select import kth_largest


class EncodeDense(torch.autograd.Function):
    """Gives codes or pre-activations that are already computed their gradient.

    EncodeDense.apply(enc (D, S), enc_bias (S,), pre_bias (D,) or None, z (B, S), x (B, D), slope (B, S) or None) -> z.
    x is the encoder's input, pre_bias already subtracted; slope: 1 where z follows the pre-activation, 0 elsewhere; None: all 1.
    """

    @staticmethod
    def forward(ctx, enc, enc_bias, pre_bias, z: Tensor, x: Tensor, slope: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(enc, x, slope)
        return z.view_as(z)

    @staticmethod
    def backward(ctx, g: Tensor):
        enc, x, slope = ctx.saved_tensors
        g = g if slope is None else g * slope
        d_bias = g.sum(0)
        d_pre = -(enc @ d_bias) if ctx.needs_input_grad[2] else None
        return (g.T @ x).T, d_bias, d_pre, None, None, None


class DecodePrefixes(torch.autograd.Function):
    """Level l decodes the first m_l codes with a decoder of its own: DecodePrefixes.apply(z (B, S), *decoders (m_l, O))."""

    @staticmethod
    def forward(ctx, z: Tensor, *decoders: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(z, *decoders)
        return tuple(z[:, : len(w)] @ w for w in decoders)

    @staticmethod
    def backward(ctx, *gs: Tensor):
        z, *decoders = ctx.saved_tensors
        d_z = gs[-1] @ decoders[-1].T  # the last level's prefix is all of z
        for g, w in zip(gs[:-1], decoders[:-1], strict=True):
            d_z[:, : len(w)].addmm_(g, w.T)
        return d_z, *(z[:, : len(w)].T @ g for g, w in zip(gs, decoders, strict=True))


def top_codes(z: Tensor, blocks: Sequence[tuple[int, int]], ks: Sequence[int]) -> Tensor | None:
    """Set z (B, S) >= 0 to 0 but for the k largest of each block of a row, in place.

    Returns: (B, S), 1 where z > 0 and 0 elsewhere; None when equal values leave more than k.
    """
    mask = torch.empty_like(z)  # a mask of numbers: comparisons and products of one type are several times as fast
    for (a, b), k in zip(blocks, ks, strict=True):
        torch.ge(z[:, a:b], kth_largest(z[:, a:b], k)[:, None], out=mask[:, a:b])
    z.mul_(mask)
    torch.gt(z, 0, out=mask)
    few = [bool((mask[:, a:b].sum(1) <= k).all()) for (a, b), k in zip(blocks, ks, strict=True)]
    return mask if all(few) else None

"""A coder inside a model's forward pass: put its reconstruction in place of an activation, or scale one of its features.

The same code serves the final embedding and the tokens of an inner layer; what differs is the module that is hooked:

    with spliced(encoder.model.visual, replacement(coder)):                   # x itself: the visual tower's output
        x_hat = encoder.encode_images(images)
    with spliced(block, replacement(coder, tokens="class")):                  # a transformer block's output (B, T, D)
        x = encoder.encode_images(images)

A transcoder predicts another layer than the one it reads, so it cannot be spliced; its features are steered in y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOKENS = ("all", "class")


@contextmanager
def spliced(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block lasts, the module's output is `replace(output)`; afterwards it is what it was.

    Raises: TypeError when the output is not one tensor; ValueError when `replace` changes its shape.
    """

    def hook(_, __, out):
        if not isinstance(out, Tensor):
            raise TypeError(f"{type(module).__name__} returns {type(out).__name__}, expected one tensor to replace")
        new = replace(out)
        if new.shape != out.shape:
            raise ValueError(f"the replacement has shape {tuple(new.shape)}, the activation {tuple(out.shape)}")
        return new.to(out.dtype)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def replacement(
    coder, tokens: str = "all", change: Callable[[Tensor], Tensor] | None = None, keep_error: bool = False
) -> Callable[[Tensor], Tensor]:
    """What `spliced` puts in an activation's place: encode -> (change) -> decode.

    Args:
        coder:      an autoencoder (d_in = d_out) of the activation's width.
        tokens:     for (B, T, D): "all" tokens, or the "class" token (the first) only. (B, D) has no tokens.
        change:     codes (n, S) -> codes; None leaves them.
        keep_error: add what the coder does not explain, activation - reconstruction, so that only `change` changes it.
    Returns: activation (B, D) or (B, T, D) -> the same shape.
    Raises: ValueError when the coder does not rebuild what it reads, or for another `tokens`.
    """
    if coder.config.d_in != coder.config.d_out or coder.config.target != "x":
        raise ValueError(f"only an autoencoder can be spliced, this coder maps {coder.config.d_in} to a target y")
    if tokens not in TOKENS:
        raise ValueError(f"tokens = {tokens!r} must be one of {TOKENS}")

    @torch.no_grad()
    def one(x: Tensor) -> Tensor:  # (n, D)
        x = x.float()
        z = coder.encode(x)
        out = coder.decode(z if change is None else change(z), -1, x)
        return out + x - coder.decode(z, -1, x) if keep_error else out

    def replace(activation: Tensor) -> Tensor:
        if activation.ndim == 2:
            return one(activation).to(activation.dtype)
        if tokens == "all":
            return one(activation.flatten(0, -2)).reshape(activation.shape).to(activation.dtype)
        new = activation.clone()
        new[:, 0] = one(activation[:, 0]).to(activation.dtype)
        return new

    return replace


def scaled_feature(feature: int, scale: float) -> Callable[[Tensor], Tensor]:
    """A `change` that multiplies one feature's codes by `scale`: 0 removes it, 1 leaves it."""

    def change(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, feature] *= scale
        return z

    return change


@torch.no_grad()
def steer(
    coder,
    x: Tensor,
    h: Tensor,
    feature: int,
    scales: Sequence[float],
    readout: Callable,
    direction: Tensor | None = None,
) -> Tensor:
    """What a readout says when one feature is scaled and all else, the coder's error included, stays as it is.

        h' = h + (scale - 1) * z_j * W_dec_j

    Args:
        coder:     any coder; its last level's W_dec is used.
        x:         (B, D) what the coder reads.
        h:         (B, O) what it reconstructs: x for an autoencoder, y for a transcoder.
        feature:   j.
        scales:    0 removes the feature, 1 changes nothing.
        readout:   (B, O) -> logits or probabilities (B,) or (B, C).
        direction: (O,) to use in place of W_dec_j, at its norm: the control.
    Returns: (len(scales), B) or (len(scales), B, C).
    """
    w = coder.W_dec[feature]  # (O,)
    if direction is not None:
        w = direction * (w.norm() / direction.norm().clamp_min(1e-12))
    step = coder.encode(x)[:, feature, None] * w  # (B, O)
    return torch.stack([readout(h + (scale - 1) * step) for scale in scales])

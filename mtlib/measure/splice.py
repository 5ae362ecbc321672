"""A coder inside a model's forward pass: its reconstruction in place of an activation, or one of its features scaled.

Where it goes is a `Layer` of mtlib/embed/tokens.py, an inner one or the tower's own output:

    with encoder.place.replaced(replacement(coder)):
        x = encoder.encode_images(images)

A transcoder predicts another layer than the one it reads, so it cannot be spliced; its features are steered in y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlib.coders.rows import step_gain


def replacement(
    coder, change: Callable[[Tensor], Tensor] | None = None, keep_error: bool = False
) -> Callable[[Tensor], Tensor]:
    """What goes in an activation's place: encode -> (change) -> decode.

    Args:
        coder:      an autoencoder (d_in = d_out) of the activation's width.
        change:     codes (n, S) -> codes; None leaves them.
        keep_error: add what the coder does not explain, activation - reconstruction, so that only `change` changes it.
    Returns: activation (..., D) -> the same shape and type, on its device.
    Raises: ValueError when the coder does not rebuild what it reads.
    """
    if coder.config.d_in != coder.config.d_out or coder.config.target != "x":
        raise ValueError(f"only an autoencoder can be spliced, this coder maps {coder.config.d_in} to a target y")

    @torch.no_grad()
    def replace(activation: Tensor) -> Tensor:
        x = activation.flatten(0, -2).to(coder.W_dec.device, torch.float32)  # (n, D)
        z = coder.encode(x)
        out = coder.decode(z if change is None else change(z), -1, x)
        if keep_error:
            out = out + x - coder.decode(z, -1, x)
        return out.reshape(activation.shape).to(activation)

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
    step = coder.encode(x)[:, feature, None] * step_gain(coder, x) * w  # (B, O)
    return torch.stack([readout(h + (scale - 1) * step) for scale in scales])

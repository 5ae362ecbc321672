"""Rows standardised each by itself (scale = rows), as MonoLoss's `--normalize` and MSAE's `normalize` do."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5  # added to the spread, as published


def own_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread (standard deviation, n - 1) of every row of x (B, D), D > 1. Returns: (B, 1) twice."""
    spread, mean = torch.std_mean(x, dim=-1, keepdim=True)
    return mean, spread


def scaled(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """x (B, D) / scale (D,); with kind "rows" (x - mean) / (spread + 1e-5) of every row by itself."""
    if kind != "rows":
        return x / scale
    mean, spread = own_moments(x)
    return (x - mean) / (spread + EPS)


def step_gain(coder, x: Tensor) -> Tensor | float:
    """How much longer a latent's step z_j W_dec_j is in each row of x (B, D) than W_dec, an average row's, says.

    Returns: (B, 1); 1 unless the coder scales every row by itself.
    """
    if getattr(getattr(coder, "config", None), "target_scale", "") != "rows":
        return 1.0
    return own_moments(x - coder.y_mean)[1] / coder.y_scale[:1]

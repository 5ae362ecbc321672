"""Rows standardised each by itself: unit_rows divides a row by its norm, as MonoLoss's data set does; scale = rows by its
own mean and spread, as MonoLoss's `--normalize` and MSAE's `normalize` do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5  # added to the spread, as published
NORM_EPS = 1e-8  # added to the norm, likewise


class Frame(NamedTuple):
    """The units in which errors are measured: the target in them, and what brings a reconstruction of the coder there."""

    target: Tensor  # (B, O)
    gain: Tensor | float = 1.0
    shift: Tensor | float = 0.0

    def brought(self, y_hat: Tensor) -> Tensor:
        return y_hat if isinstance(self.gain, float) else y_hat * self.gain + self.shift


def row_norms(x: Tensor) -> Tensor:
    """(B, 1): what unit_rows divides each row of x (B, D) by."""
    return x.norm(dim=-1, keepdim=True) + NORM_EPS


def row_moments(x: Tensor, config) -> tuple[Tensor, Tensor]:
    """Offset and factor of every row of x (B, D), D > 1, in units of x. Returns: (B, 1) twice.

    scale = rows: mean and standard deviation (n - 1); unit_rows alone: 0 and the norm.
    """
    if config.target_scale != "rows":
        norms = row_norms(x)
        return torch.zeros_like(norms), norms
    spread, mean = torch.std_mean(x, dim=-1, keepdim=True)
    return mean, spread


def scaled(x: Tensor, mean: Tensor, scale: Tensor, kind: str, unit_rows: bool = False) -> Tensor:
    """x (B, D) in a coder's units: (x - mean) / scale, mean and scale (D,); with kind "rows" (x - mean) / (spread + 1e-5) of
    every row by itself; with unit_rows of rows of norm 1, in place of mean and scale."""
    x = x / row_norms(x) if unit_rows else x - mean
    if kind == "rows":
        spread, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return (x - mean) / (spread + EPS)
    return x if unit_rows else x.div_(scale)  # x is new


def gain_and_shift(coder, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """What brings a reconstruction in the coder's units to those of y (B, O); without y to those of an average row."""
    if y is None or not coder.config.by_row:
        return coder.y_scale, coder.y_mean
    shift, gain = row_moments(y - coder.y_mean, coder.config)
    return gain, shift + coder.y_mean


def error_frame(coder, y: Tensor) -> Frame:
    """The frame of a coder's errors for targets y (B, O): its own units, or with unit_rows those of the rows of norm 1."""
    c = coder.config
    if not c.unit_rows:
        return Frame(scaled(y, coder.y_mean, coder.y_scale, c.target_scale))
    norms = row_norms(y)
    gain, shift = gain_and_shift(coder, y)
    return Frame(y / norms, gain / norms, shift / norms)


def step_gain(coder, x: Tensor) -> Tensor | float:
    """How much longer a latent's step z_j W_dec_j is in each row of x (B, D) than W_dec, an average row's, says.

    Returns: (B, 1); 1 unless the coder scales every row by itself.
    """
    config = getattr(coder, "config", None)
    if not getattr(config, "by_row", False):
        return 1.0
    return row_moments(x - coder.y_mean, config)[1] / coder.y_scale[:1]

"""Centring and scaling of input and target: statistics of the train rows that a coder keeps with its weights."""

from __future__ import annotations

import math

import numpy as np
import torch

from mtlib.coders.rows import own_moments
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.learn.batches import Rows, moments


def set_statistics(coder: SparseCoder, x: Rows, y: Rows, y_scale: np.ndarray | None = None) -> None:
    """Centring and scaling of input and target from the train rows, into the coder's buffers.

    Raises: ValueError if target_scale is "logit" and y_scale is missing, not positive or of another shape.
    """
    c = coder.config
    if (c.target_scale == "logit") != (y_scale is not None):
        raise ValueError(f"y_scale goes with target_scale = 'logit'; it is {c.target_scale!r}")
    for kind, data, centre, scale in (("x", x, c.centre, c.scale), ("y", y, c.target_centre, c.target_scale)):
        mean, variance = moments(data)
        if centre == "none":
            variance, mean = variance + mean**2, np.zeros_like(mean)
        value = np.ones_like(mean)
        if scale == "rows":  # of an average row, for readers of W_enc and for decode without x
            offset, spread = _average_row(data, mean)
            mean, value = mean + offset, np.full_like(mean, spread)
        elif scale == "rms":
            value = np.full_like(mean, math.sqrt(variance.mean()))
        elif scale == "std":
            value = np.sqrt(variance)
        elif scale == "logit":
            value = np.asarray(y_scale, dtype=np.float64)
            if value.shape != mean.shape or not (value > 0).all():
                raise ValueError(f"y_scale must be {mean.shape} positive numbers, got shape {value.shape}")
        value = np.where(value > 1e-8, value, 1.0)  # a constant unit stays as it is
        getattr(coder, f"{kind}_mean").copy_(torch.from_numpy(mean))
        getattr(coder, f"{kind}_scale").copy_(torch.from_numpy(value))


def _average_row(data: Rows, centre: np.ndarray, size: int = 8192) -> tuple[float, float]:
    """Mean over rows of each row's own mean, and root mean square of its own spread, after `centre` (D,) is taken off."""
    shift, offset, square = torch.from_numpy(centre).to(data.device), 0.0, 0.0
    for block in data.chunks(size):
        mean, spread = own_moments(block.double() - shift)
        offset, square = offset + float(mean.sum()), square + float(spread.square().sum())
    return offset / len(data), math.sqrt(square / len(data))


def logit_scale(y: Rows, w_logit: np.ndarray, floor: float = 0.05) -> np.ndarray:
    """Scales that make the squared error of each unit of y count by its squared weight in the logit.

    scale_i = s / max(|w_i|, floor * max |w|), with s so that y / scale has mean square deviation 1.

    Args: y: rows of the hidden layer; w_logit (O,), or (O, C): the norm over classes counts. floor: keeps units that
        the logit hardly uses from being free.
    Returns: (O,) float64 > 0, for `fit(..., y_scale=...)`.
    """
    weight = np.abs(w_logit) if w_logit.ndim == 1 else np.linalg.norm(w_logit, axis=1)
    weight = np.maximum(weight.astype(np.float64), floor * weight.max())
    return math.sqrt(np.mean(moments(y)[1] * weight**2)) / weight

"""What is done to a coder's weights around an optimiser's step, beside the step itself: the norms of the decoder's rows (one per
latent), gradients at a right angle to them, and dead latents that start anew.

The usual order is backward, `before_step`, clip, step, `after_step`. A row that is shortened can hand its length to the encoder, so
that the reconstruction stays (unit_norm_rescales); published code does it before the step, with gradients of the weights
as they were (unit_norm_when = before), and then the rows after the step are not quite unit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mtlib.coders.scaling import NORM_EPS

REVIVED = 0.1  # norm of a latent drawn anew


@torch.no_grad()
def before_step(coder) -> None:
    """What stands between the gradients of a batch and the optimiser's step."""
    c = coder.config
    if c.unit_norm_decoder and c.unit_norm_when == "before":
        _unit_norms(coder)
    for w, grad in _decoders(coder) if c.project_gradient else ():
        if grad is not None:  # a frozen decoder has none
            unit = normalize(w, dim=-1)
            grad.sub_((grad * unit).sum(-1, keepdim=True) * unit)


@torch.no_grad()
def after_step(coder) -> None:
    """What follows the step: the norms, and thresholds >= 0."""
    if coder.config.unit_norm_decoder and coder.config.unit_norm_when == "after":
        _unit_norms(coder)
    if coder.theta is not None and not coder.config.theta_log:
        coder.theta.clamp_(min=0)


@torch.no_grad()
def revive(coder, rows: Tensor) -> None:
    """Give every dead latent the direction of one of `rows` (n_dead, D), short, without bias, and count it as alive.

    The optimiser's moments stay, as published (MonoLoss).
    """
    dead, rows = coder.dead.nonzero()[:, 0], REVIVED * normalize(rows, dim=-1)
    coder.enc[:, dead] = rows.T
    coder.enc_bias[dead] = 0
    for w in coder.dec if coder.config.target == "x" else ():  # a transcoder's decoder keeps its directions of y
        here = dead < len(w)
        w[dead[here]] = rows[here]
    coder.rows_since_fired[dead] = 0


def _unit_norms(coder) -> None:
    """Divide every decoder by the norms of its rows, or of its columns."""
    c = coder.config
    for w, _ in _decoders(coder):
        norm = w.norm(dim=0 if c.unit_norm_along == "columns" else -1, keepdim=True)
        norm = norm + NORM_EPS if c.tied else norm.clamp_min(1e-12)  # as published (MonoLoss)
        w.div_(norm)
        if c.unit_norm_rescales:
            coder.enc.mul_(norm.T)
            for of_latents in (coder.enc_bias, coder.theta):
                if of_latents is not None:
                    of_latents.mul_(norm[:, 0])


def _decoders(coder) -> list[tuple[Tensor, Tensor | None]]:
    """Every decoder (m, O) with its gradient, to be changed in place."""
    if not coder.config.tied:
        return [(w.data, w.grad) for w in coder.dec]
    return [(coder.enc.data.T, None if coder.enc.grad is None else coder.enc.grad.T)]

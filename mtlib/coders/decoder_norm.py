"""What holds the decoder's rows (one per latent) at norm 1 around an optimiser's step, and their gradients at a right angle to them.

The usual order is backward, `before_step`, clip, step, `after_step`. A row that is shortened can hand its length to the encoder, so
that the reconstruction stays (unit_norm_rescales); published code does it before the step, with gradients of the weights
as they were (unit_norm_when = before), and then the rows after the step are not quite unit.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from mtlib.coders.scaling import NORM_EPS

TINY = 1e-12


def before_step(coder) -> None:
    """What stands between the gradients of a batch and the optimiser's step."""
    c = coder.config
    if c.unit_norm_decoder and c.unit_norm_when == "before":
        normalise(coder)
    if c.frozen_decoder:
        for w in coder.dec:
            w.grad = None
    elif c.project_gradient:
        for w, grad in _decoders(coder):
            unit = unit_rows(w, dim=-1)
            grad.sub_((grad * unit).sum(-1, keepdim=True) * unit)


def after_step(coder) -> None:
    """What follows the step: the norms, and thresholds >= 0."""
    if coder.config.unit_norm_decoder and coder.config.unit_norm_when == "after":
        normalise(coder)
    if coder.theta is not None and not coder.config.theta_log:
        coder.theta.clamp_(min=0)


def normalise(coder) -> None:
    """Divide every decoder by the norms of its rows, or of its columns."""
    c = coder.config
    for w, _ in _decoders(coder):
        norm = w.norm(dim=0 if c.unit_norm_along == "columns" else -1, keepdim=True)
        norm = norm + NORM_EPS if c.tied else norm.clamp_min(TINY)  # as published (MonoLoss)
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

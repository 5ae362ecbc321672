"""Dead latents that start anew at rows of the data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

REVIVED = 0.1  # norm of a latent drawn anew


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

"""What training measures on the validation rows, and the frozen threshold it calibrates there."""

from __future__ import annotations

import math

import torch

from mtlib.coders import losses, sparsity
from mtlib.coders.scaling import error_frame
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.learn.batches import Rows

MAX_VALUES = 1 << 25  # codes held at once while a threshold is calibrated
L0_TOLERANCE = 0.05
CHUNK = 4096  # rows at a time


@torch.no_grad()
def calibrate(coder: SparseCoder, x: Rows, l0_target: int = 0) -> None:
    """Set the frozen inference threshold so that the codes of the rows x have the wanted L0; in place.

    batch_topk: each block keeps its k per row on average. none: with `l0_target`, one threshold on top of the
    activation; it can only make codes sparser. Other selections need none and stay as they are. At most
    MAX_VALUES / S rows are used, evenly over all, because rows may lie in the order of their classes.
    """
    c = coder.config
    if c.selection == "batch_topk":
        wanted = list(zip(c.blocks, c.ks, strict=True))
    elif c.selection == "none" and l0_target:
        wanted = [((0, c.n_latents), l0_target)]
    else:
        return
    limit = max(1, MAX_VALUES // c.n_latents)
    z = torch.cat([coder._activate(coder._pre(block)) for block in x.chunks(CHUNK, limit)])
    for (a, b), k in wanted:
        coder.threshold[a:b] = sparsity.threshold_for_l0(z[:, a:b], k)


@torch.no_grad()
def validate(coder: SparseCoder, x: Rows, y: Rows) -> dict[str, float]:
    """Exact measures over all rows: streamed in float64, independent of the block size.

    Returns: loss (level-weighted error per element, as trained), fvu (last level, units of y; NaN where y does not vary, as in
        one row), l0 (measured), dead (share of latents dead in training).
    """
    was_training = coder.training
    coder.eval()
    c = coder.config
    zero = torch.zeros((), dtype=torch.float64, device=coder.threshold.device)
    loss, error, total, square, fired = zero, zero, 0.0, zero, zero
    for xb, yb in zip(x.chunks(CHUNK), y.chunks(CHUNK), strict=True):
        z = coder.encode(xb)
        frame = error_frame(coder, yb)
        y_hats = coder._decode_levels(z)
        squared = [(frame.target - frame.brought(y_hat)).double().square() for y_hat in y_hats]
        error = error + (coder._to_y(y_hats[-1], yb) - yb).double().square().sum()
        squared = squared if c.error == "mse" else [losses.over_own_size(s, frame.target.double()) for s in squared]
        loss = loss + sum(w * s.sum() for w, s in zip(c.level_weights, squared, strict=True))
        shifted = (yb - coder.y_mean).double()
        total = total + shifted.sum(0)
        square = square + shifted.square().sum()
        fired = fired + (z != 0).sum()
    variance = square - (total.square() / len(x)).sum()
    coder.train(was_training)
    return {
        "loss": float(loss) / (len(x) * c.d_out),
        "fvu": float(error / variance) if float(variance) > 0 else float("nan"),
        "l0": float(fired) / len(x),
        "dead": float(coder.dead.double().mean()),
    }


def as_json(result: dict) -> dict:
    """The same with None for NaN, which JSON does not have."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in result.items()}


def matched(l0: float, target: int) -> bool:
    """Whether a measured L0 is within 5% of its target; True without one (0)."""
    return not target or abs(l0 / target - 1) <= L0_TOLERANCE

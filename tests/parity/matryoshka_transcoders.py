"""Matryoshka Transcoders (arXiv 2511.10094): a JumpReLU with a fixed jump, top-k inside each new block."""

import numpy as np

from tests.parity.pieces import mse, preset_items, relu, top
from tests.parity.steps import gradient_items, step_items

LEVELS = (4, 8, 16, 32, 64)
KS = (2, 3, 4, 6, 9)  # inside each new block
SETTINGS = {name: dict(ks=KS) for name in ("matryoshka_transcoder", "matryoshka_sae")}
SETTINGS |= {name: dict(k=12) for name in ("transcoder", "sae")}


def _jump(v: np.ndarray) -> np.ndarray:
    """relu(v) + beta * (v > gamma), gamma = beta = 1."""
    return relu(v) + 1.0 * (v > 1.0)


def _nested(w, x, y):
    active = _jump(x @ w["enc"] + w["enc_bias"])
    z = np.concatenate([top(active[:, a:b], k) for a, b, k in zip((0, *LEVELS), LEVELS, KS, strict=False)], 1)
    outs = [z[:, :m] @ w[f"dec.{i}"] + w[f"dec_bias.{i}"] for i, m in enumerate(LEVELS)]
    loss = sum(a * mse(y, out) for a, out in zip((0.1, 0.15, 0.2, 0.25, 0.3), outs, strict=True))
    return z, outs, loss + 0.01 * np.abs(z).mean()


def _flat(w, x, y):
    z = top(_jump(x @ w["enc"] + w["enc_bias"]), 12)
    out = z @ w["dec.0"] + w["dec_bias.0"]
    return z, [out], mse(y, out) + 0.01 * np.abs(z).mean()


def gradients(w, x, y, flat):
    """Of the loss with the target y, for every weight: the jump has none."""
    z_pre = x @ w["enc"] + w["enc_bias"]
    ends, ks, shares = ((64,), (12,), (1.0,)) if flat else (LEVELS, KS, (0.1, 0.15, 0.2, 0.25, 0.3))
    starts = (0, *ends[:-1])
    z = np.concatenate([top(_jump(z_pre)[:, a:b], k) for a, b, k in zip(starts, ends, ks, strict=True)], 1)
    grads, d_z = {}, 0.01 * np.sign(z) / z.size
    for i, (m, share) in enumerate(zip(ends, shares, strict=True)):
        d_out = share * 2 * (z[:, :m] @ w[f"dec.{i}"] + w[f"dec_bias.{i}"] - y) / y.size
        grads |= {f"dec.{i}": z[:, :m].T @ d_out, f"dec_bias.{i}": d_out.sum(0)}
        d_z[:, :m] += d_out @ w[f"dec.{i}"].T
    d_pre = d_z * (z > 0)
    return grads | {"enc": x.T @ d_pre, "enc_bias": d_pre.sum(0)}


def rate(epoch, epochs):
    """Full for the first tenth of the epochs, at most 5, then cosine to a hundredth."""
    warm = min(5, epochs // 10)
    done = max(0, epoch - warm) / (epochs - warm)
    return 0.01 + 0.99 * (1 + np.cos(np.pi * done)) / 2


FORMULAS = {"matryoshka_transcoder": _nested, "matryoshka_sae": _nested, "transcoder": _flat, "sae": _flat}
ITEMS = {k: v for name, f in FORMULAS.items() for k, v in preset_items(name, f, **SETTINGS[name]).items()}
AS_PUBLISHED = dict(clip=1.0, decay=1e-5, rate=rate)
for name, formula in FORMULAS.items():
    own = lambda w, x, y=None, flat=formula is _flat: gradients(w, x, x if y is None else y, flat)  # noqa: E731
    ITEMS |= gradient_items(name, own, **SETTINGS[name])
    published = dict(as_published=True, decay_start=0.1) | SETTINGS[name]  # 1 of 10 epochs
    ITEMS |= step_items(name, own, published, AS_PUBLISHED)

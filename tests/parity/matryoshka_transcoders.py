"""Matryoshka Transcoders (arXiv 2511.10094): a JumpReLU with a fixed jump, top-k inside each new block."""

import numpy as np

from tests.parity.pieces import mse, preset_items, relu, top

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


FORMULAS = {"matryoshka_transcoder": _nested, "matryoshka_sae": _nested, "transcoder": _flat, "sae": _flat}
ITEMS = {k: v for name, f in FORMULAS.items() for k, v in preset_items(name, f, **SETTINGS[name]).items()}

"""MSAE (arXiv 2502.20578): top-k autoencoders, and nested k on one dictionary."""

import numpy as np

from tests.parity.pieces import mse, preset_items, relu, top, top_of_batch

NESTED_KS = (4, 8, 16, 64)
SETTINGS = {"relu": {}, "topk": dict(k=5), "batch_topk": dict(k=5)}
SETTINGS |= {name: dict(ks=NESTED_KS) for name in ("msae_uw", "msae_rw")}


def _pre(w, x):
    return relu((x - w["dec_bias.0"]) @ w["enc"] + w["enc_bias"])


def _one(select, penalty=0.0):
    def formula(w, x, y):
        z = select(_pre(w, x))
        out = z @ w["dec.0"] + w["dec_bias.0"]
        return z, [out], mse(y, out) + penalty * np.abs(z).sum(1).mean()

    return formula


def _nested(shares):
    def formula(w, x, y):
        z = _pre(w, x)
        outs = [top(z, k) @ w["dec.0"] + w["dec_bias.0"] for k in NESTED_KS]
        return z, outs, sum(a * mse(y, out) for a, out in zip(shares, outs, strict=True))

    return formula


FORMULAS = {
    "relu": _one(lambda z: z, penalty=0.003),
    "topk": _one(lambda z: top(z, 5)),
    "batch_topk": _one(lambda z: top_of_batch(z, 5)),
    "msae_uw": _nested([0.25] * 4),
    "msae_rw": _nested([0.4, 0.3, 0.2, 0.1]),
}
ITEMS = {k: v for name, f in FORMULAS.items() for k, v in preset_items(name, f, **SETTINGS[name]).items()}

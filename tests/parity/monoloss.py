"""MonoLoss (arXiv 2602.12403): four autoencoders whose latents are to fire on images that are alike."""

import numpy as np

from tests.parity.pieces import mono, mse, preset_items, relu, top, top_of_batch

SETTINGS = {"monoloss_topk": dict(k=5), "monoloss_batch_topk": dict(k=5), "monoloss_relu": {}}
SETTINGS |= {"monoloss_jumprelu": dict(theta_init=0.2)}


def _centred(select, weight, penalty=0.0):
    def formula(w, x, y):
        z = select(relu((x - w["dec_bias.0"]) @ w["enc"] + w["enc_bias"]))
        out = z @ w["dec.0"] + w["dec_bias.0"]
        return z, [out], mse(y, out) + penalty * np.abs(z).sum(1).mean() + weight * mono(x, z)

    return formula


def _jumprelu(w, given, y):
    mean, spread = given.mean(1, keepdims=True), given.std(1, ddof=1, keepdims=True)
    x = (given - mean) / (spread + 1e-5)
    z_pre = x @ w["enc"] + w["enc_bias"]
    z = z_pre * (z_pre > w["theta"])
    out = z @ w["dec.0"] + w["dec_bias.0"]
    loss = mse(x, out) + 1e-3 * (z_pre > w["theta"]).sum(1).mean() + 5e-4 * mono(x, z)
    return z, [out * spread + mean], loss


FORMULAS = {
    "monoloss_topk": _centred(lambda z: top(z, 5), 0.09),
    "monoloss_batch_topk": _centred(lambda z: top_of_batch(z, 5), 3e-4),
    "monoloss_relu": _centred(lambda z: z, 1e-4, penalty=1e-4),
    "monoloss_jumprelu": _jumprelu,
}
ITEMS = {k: v for name, f in FORMULAS.items() for k, v in preset_items(name, f, **SETTINGS[name]).items()}

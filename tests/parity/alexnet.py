"""AlexNet-Transformer: a JumpReLU autoencoder with learned thresholds and a smooth count of active latents."""

import numpy as np

from tests.parity.pieces import mse, preset_items

SETTINGS = {"alexnet": dict(theta_init=0.2)}


def _learned(w, x, y):
    z_pre = x @ w["enc"] + w["enc_bias"]
    z = z_pre * (z_pre > w["theta"])
    out = z @ w["dec.0"] + w["dec_bias.0"]
    count = 1 / (1 + np.exp(-np.clip((z_pre - w["theta"]) / 1e-3, -500, 500)))
    return z, [out], mse(y, out) + 1e-3 * count.sum(1).mean()


FORMULAS = {"alexnet": _learned}
ITEMS = preset_items("alexnet", _learned, **SETTINGS["alexnet"])

"""SAE-for-CLIP: a wide top-k autoencoder of an inner layer, without a bias in its decoder."""

import numpy as np

from tests.parity.pieces import mse, preset_items, relu, top
from tests.parity.steps import gradient_items, step_items

SETTINGS = {"sae_for_clip": dict(k=9)}


def _clip_layer(w, x, y):
    z = top(relu(x @ w["enc"] + w["enc_bias"]), 9)
    return z, [z @ w["dec.0"]], mse(y, z @ w["dec.0"])


def gradients(w, x):
    z = top(relu(x @ w["enc"] + w["enc_bias"]), 9)
    d_out = 2 * (z @ w["dec.0"] - x) / x.size
    d_pre = (d_out @ w["dec.0"].T) * (z > 0)
    return {"enc": x.T @ d_pre, "enc_bias": d_pre.sum(0), "dec.0": z.T @ d_out}


def _unit(w):
    w["dec.0"] /= np.linalg.norm(w["dec.0"], axis=1, keepdims=True) + 1e-8


FORMULAS = {"sae_for_clip": _clip_layer}
ITEMS = preset_items("sae_for_clip", _clip_layer, **SETTINGS["sae_for_clip"])
ITEMS |= gradient_items("sae_for_clip", gradients, k=9)
ITEMS |= step_items("sae_for_clip", gradients, dict(as_published=True, k=9), dict(after=_unit, fixed=["dec.0"]))
ITEMS |= step_items("sae_for_clip", gradients, dict(k=9), dict(after=_unit))

"""AlexNet-Transformer: a JumpReLU autoencoder with learned thresholds and a smooth count of active latents."""

import numpy as np

from tests.parity.pieces import data, mse, preset_items
from tests.parity.steps import gradient_items, step_items

SETTINGS = {"alexnet": dict(theta_init=0.2)}
EPSILON = 1e-3


def _learned(w, x, y):
    z_pre = x @ w["enc"] + w["enc_bias"]
    z = z_pre * (z_pre > w["theta"])
    out = z @ w["dec.0"] + w["dec_bias.0"]
    return z, [out], mse(y, out) + 1e-3 * _gate(z_pre, w).sum(1).mean()


def _gate(z_pre, w, epsilon=EPSILON):
    return 1 / (1 + np.exp(-np.clip((z_pre - w["theta"]) / epsilon, -500, 500)))


def gradients(w, x, epsilon=EPSILON):
    """Of the loss, for every weight: thresholds get theirs from the count alone."""
    z_pre = x @ w["enc"] + w["enc_bias"]
    active = z_pre > w["theta"]
    out = (z_pre * active) @ w["dec.0"] + w["dec_bias.0"]
    d_out = 2 * (out - x) / x.size
    gate = _gate(z_pre, w, epsilon)
    d_gate = 1e-3 / len(x) * gate * (1 - gate) / epsilon
    d_pre = (d_out @ w["dec.0"].T) * active + d_gate
    grads = {"enc": x.T @ d_pre, "enc_bias": d_pre.sum(0), "theta": -d_gate.sum(0)}
    return grads | {"dec.0": (z_pre * active).T @ d_out, "dec_bias.0": d_out.sum(0)}


def _columns(w):
    w["dec.0"] /= np.linalg.norm(w["dec.0"], axis=0)


def _fvu():
    """Squared error over one variance of all numbers (n - 1), as the definition card has it."""
    from mtlib.measure.reconstruction import definition_card

    y, _ = data(10)
    y_hat = y + np.random.default_rng(1).normal(size=y.shape)
    card = definition_card(y, y_hat).set_index(["convention", "quantity"])["reconstruction"]
    published = ((y - y_hat) ** 2).mean() / y.var(ddof=1)
    return np.array(card["one variance of all numbers", "fvu"]), np.array(published)


IMAGES = dict(tokens=4, batch=6, decay=0.01, after=_columns)  # 6 images of 4 rows
FORMULAS = {"alexnet": _learned}
ITEMS = preset_items("alexnet", _learned, **SETTINGS["alexnet"])
ITEMS |= gradient_items("alexnet", gradients)
wide = dict(theta_init=0.2, bandwidth=0.1)  # in float32 the published window of 1e-3 magnifies rounding a thousandfold
ITEMS |= step_items("alexnet", lambda w, x: gradients(w, x, 0.1), dict(as_published=True) | wide, IMAGES)
ITEMS |= {"fvu": _fvu}

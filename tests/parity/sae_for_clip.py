"""SAE-for-CLIP: a wide top-k autoencoder of an inner layer, without a bias in its decoder."""

from tests.parity.pieces import mse, preset_items, relu, top

SETTINGS = {"sae_for_clip": dict(k=9)}


def _clip_layer(w, x, y):
    z = top(relu(x @ w["enc"] + w["enc_bias"]), 9)
    return z, [z @ w["dec.0"]], mse(y, z @ w["dec.0"])


FORMULAS = {"sae_for_clip": _clip_layer}
ITEMS = preset_items("sae_for_clip", _clip_layer, **SETTINGS["sae_for_clip"])

"""Every preset, by the plain and the fast path, against the formulas of tests/parity: codes, every level and loss.

Weights are drawn, not trained; sizes are small, proportions the published ones.
"""

import numpy as np
import pytest
import torch

from mtlib.coders.presets import PRESETS
from mtlib.coders.sparse_coder import SparseCoderConfig
from tests.parity import alexnet, matryoshka_transcoders, monoloss, msae, sae_for_clip
from tests.parity.pieces import B, D, O, S, data, drawn_coder, mse, relu, top_of_batch, weights

OURS = {"matryoshka_transcoder_shared": dict(k=6)}
SYSTEMS = (matryoshka_transcoders, msae, monoloss, sae_for_clip, alexnet)
THEIRS = {"neighbour_transcoder": "matryoshka_transcoder"}  # ours, of another target
SETTINGS = OURS | {name: given for system in SYSTEMS for name, given in system.SETTINGS.items()}


def _shared(w, x, y):
    z = top_of_batch(relu(x @ w["enc"] + w["enc_bias"]), 6)
    levels = matryoshka_transcoders.LEVELS
    outs = [z[:, :m] @ w["dec.0"][:m] + w["dec_bias.0"] for m in levels]
    c = SparseCoderConfig.preset("matryoshka_transcoder_shared", D, O, n_latents=S, k=6)
    loss = sum(a * mse(y, out) for a, out in zip(c.level_weights, outs, strict=True))
    return z, outs, loss + c.mono_weight * monoloss.mono(x, z)[0]


FORMULAS = {name: formula for system in SYSTEMS for name, formula in system.FORMULAS.items()}
FORMULAS |= {"matryoshka_transcoder_shared": _shared}
FORMULAS |= {name: FORMULAS[other] for name, other in THEIRS.items()}
SETTINGS |= {name: SETTINGS[other] for name, other in THEIRS.items()}


@pytest.mark.parametrize("fast", ["off", "auto"])
@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_its_published_formula(name, fast):
    coder = drawn_coder(name, **SETTINGS[name])
    coder.fast = fast
    given, y = data(coder.config.d_out)
    y = given if coder.config.target == "x" else y
    unit = np.linalg.norm(given, axis=1, keepdims=True) + 1e-8 if coder.config.unit_rows else 1.0  # of the error
    z, outs, loss = FORMULAS[name](weights(coder), given, y)
    assert 0 < np.count_nonzero(z) < z.size
    found, parts = coder.loss(torch.from_numpy(given), torch.from_numpy(y))
    assert float(found.detach()) == pytest.approx(loss, rel=1e-9)
    assert float(parts["l0"]) == pytest.approx(np.count_nonzero(z) / B)
    assert float(parts["error"]) == pytest.approx((((y - outs[-1]) / unit) ** 2).sum(), rel=1e-9)
    if coder.config.selection == "batch_topk":  # at inference a frozen threshold: here the one of this very batch
        coder.threshold.zero_()
        every = coder.eval().encode(torch.from_numpy(given)).detach().numpy()
        dropped, kept = every[z == 0].max(), z[z > 0].min()
        assert kept - dropped > 1e-4  # so that the last digit of a product decides nothing
        coder.threshold.fill_((dropped + kept) / 2)
    again = coder.eval()(torch.from_numpy(given))
    np.testing.assert_allclose(again.z.detach().numpy(), z, rtol=1e-9, atol=1e-12)
    assert len(again.y_hats) == len(outs)
    for y_hat, out in zip(again.y_hats, outs, strict=True):
        np.testing.assert_allclose(y_hat.detach().numpy(), out, rtol=1e-9, atol=1e-12)


def test_every_preset_has_a_formula():
    assert set(FORMULAS) == set(PRESETS)

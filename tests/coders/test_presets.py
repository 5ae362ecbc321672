"""Every preset against its published formula: codes, reconstructions of every level and loss, in plain NumPy.

Weights are drawn, not trained; sizes are small, proportions the published ones. Each formula below is written from the
paper or README of its system, with loops and sorts, without anything of mtlib.learn but the weights.
"""

import numpy as np
import pytest
import torch

from mtlib.coders.presets import PRESETS
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig

B, D, O, S = 24, 10, 7, 64  # noqa: E741
LEVELS = (4, 8, 16, 32, 64)
MT_KS = (2, 3, 4, 6, 9)  # k inside each new block
NESTED_KS = (4, 8, 16, 64)
SETTINGS = {  # what is small here and large there
    "matryoshka_transcoder": dict(ks=MT_KS),
    "matryoshka_sae": dict(ks=MT_KS),
    "transcoder": dict(k=12),
    "sae": dict(k=12),
    "matryoshka_transcoder_shared": dict(k=6),
    "topk": dict(k=5),
    "batch_topk": dict(k=5),
    "msae_uw": dict(ks=NESTED_KS),
    "msae_rw": dict(ks=NESTED_KS),
    "monoloss_topk": dict(k=5),
    "monoloss_batch_topk": dict(k=5),
    "sae_for_clip": dict(k=9),
    "alexnet": dict(theta_init=0.2),
    "monoloss_jumprelu": dict(theta_init=0.2),
}


def _coder(name: str) -> SparseCoder:
    config = SparseCoderConfig.preset(name, D, O, n_latents=S, **SETTINGS.get(name, {}))
    coder = SparseCoder(config).double()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in coder.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        if coder.theta is not None:
            coder.theta.copy_(0.1 + 0.3 * torch.rand(S, generator=g, dtype=torch.float64))
    return coder


def _data(d_out: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(B, D)) + 0.2, rng.normal(size=(B, d_out))


def _weights(coder: SparseCoder) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in coder.named_parameters()}


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, the rest 0."""
    out = np.zeros_like(values)
    for row, kept in enumerate(np.argsort(-values, axis=1)[:, :k]):
        out[row, kept] = values[row, kept]
    return out


def _top_of_batch(values: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros_like(values)
    for place in np.argsort(-values, axis=None)[: k * len(values)]:
        out.flat[place] = values.flat[place]
    return out


def _relu(v: np.ndarray) -> np.ndarray:
    return np.maximum(v, 0)


def _jump(v: np.ndarray) -> np.ndarray:
    """JumpReLU of Matryoshka Transcoders: relu(v) + beta * (v > gamma), gamma = beta = 1."""
    return _relu(v) + 1.0 * (v > 1.0)


def _mse(y: np.ndarray, y_hat: np.ndarray) -> float:
    return float(np.mean((y - y_hat) ** 2))


def _mono(x: np.ndarray, z: np.ndarray) -> float:
    """1 - mean over latents of the activation-weighted mean cosine between images, over pairs."""
    e = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = []
    for latent in z.T:
        if latent.max() - latent.min() > 1e-8:
            a = (latent - latent.min()) / (latent.max() - latent.min())
            above = below = 0.0
            for i in range(len(x)):
                for j in range(i):
                    above += a[i] * a[j] * float(e[i] @ e[j])
                    below += a[i] * a[j]
            if below > 1e-8:
                scores.append(above / below)
    return 1 - float(np.mean(scores))


# ---- the published methods: (weights, x, y) -> codes in training, every level's output, loss -----------------------


def _matryoshka(w, x, y):
    z_pre = x @ w["enc"] + w["enc_bias"]
    active = _jump(z_pre)
    z = np.concatenate([_top(active[:, a:b], k) for a, b, k in zip((0, *LEVELS), LEVELS, MT_KS, strict=False)], 1)
    outs = [z[:, :m] @ w[f"dec.{i}"] + w[f"dec_bias.{i}"] for i, m in enumerate(LEVELS)]
    loss = sum(a * _mse(y, out) for a, out in zip((0.1, 0.15, 0.2, 0.25, 0.3), outs, strict=True))
    return z, outs, loss + 0.01 * np.abs(z).mean()


def _flat(w, x, y):
    z = _top(_jump(x @ w["enc"] + w["enc_bias"]), 12)
    out = z @ w["dec.0"] + w["dec_bias.0"]
    return z, [out], _mse(y, out) + 0.01 * np.abs(z).mean()


def _shared(w, x, y):
    z = _top_of_batch(_relu(x @ w["enc"] + w["enc_bias"]), 6)
    outs = [z[:, :m] @ w["dec.0"][:m] + w["dec_bias.0"] for m in LEVELS]
    c = SparseCoderConfig.preset("matryoshka_transcoder_shared", D, O, n_latents=S, k=6)
    loss = sum(a * _mse(y, out) for a, out in zip(c.level_weights, outs, strict=True))
    return z, outs, loss + (c.mono_weight * _mono(x, z) if c.mono_weight else 0)


def _subtracted(w, x):
    return (x - w["dec_bias.0"]) @ w["enc"] + w["enc_bias"]


def _autoencoder(select, penalty=0.0, mono=0.0):
    def formula(w, x, y):
        z = select(_relu(_subtracted(w, x)))
        out = z @ w["dec.0"] + w["dec_bias.0"]
        loss = _mse(y, out) + penalty * np.abs(z).sum(1).mean()
        return z, [out], loss + (mono * _mono(x, z) if mono else 0.0)

    return formula


def _msae(weights):
    def formula(w, x, y):
        z = _relu(_subtracted(w, x))
        outs = [_top(z, k) @ w["dec.0"] + w["dec_bias.0"] for k in NESTED_KS]
        return z, outs, sum(a * _mse(y, out) for a, out in zip(weights, outs, strict=True))

    return formula


def _clip_layer(w, x, y):
    z = _top(_relu(x @ w["enc"] + w["enc_bias"]), 9)
    return z, [z @ w["dec.0"]], _mse(y, z @ w["dec.0"])


def _learned(l0, mono=0.0):
    def formula(w, x, y):
        z_pre = x @ w["enc"] + w["enc_bias"]
        z = z_pre * (z_pre > w["theta"])
        out = z @ w["dec.0"] + w["dec_bias.0"]
        return z, [out], _mse(y, out) + 1e-3 * l0(z_pre, w["theta"]) + (mono * _mono(x, z) if mono else 0.0)

    return formula


def _sigmoid_l0(z_pre, theta):
    return (1 / (1 + np.exp(-np.clip((z_pre - theta) / 1e-3, -500, 500)))).sum(1).mean()


FORMULAS = {
    "matryoshka_transcoder": _matryoshka,
    "matryoshka_sae": _matryoshka,
    "transcoder": _flat,
    "sae": _flat,
    "matryoshka_transcoder_shared": _shared,
    "relu": _autoencoder(lambda z: z, penalty=0.003),
    "topk": _autoencoder(lambda z: _top(z, 5)),
    "batch_topk": _autoencoder(lambda z: _top_of_batch(z, 5)),
    "msae_uw": _msae([0.25] * 4),
    "msae_rw": _msae([0.4, 0.3, 0.2, 0.1]),
    "monoloss_topk": _autoencoder(lambda z: _top(z, 5), mono=0.09),
    "monoloss_batch_topk": _autoencoder(lambda z: _top_of_batch(z, 5), mono=3e-4),
    "monoloss_relu": _autoencoder(lambda z: z, penalty=1e-4, mono=1e-4),
    "monoloss_jumprelu": _learned(lambda z_pre, theta: (z_pre > theta).sum(1).mean(), mono=5e-4),
    "sae_for_clip": _clip_layer,
    "alexnet": _learned(_sigmoid_l0),
}


@pytest.mark.parametrize("fast", ["off", "auto"])
@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_its_published_formula(name, fast):
    coder = _coder(name)
    coder.fast = fast
    given, y = _data(coder.config.d_out)
    x, mean, spread = given, 0.0, 1.0
    if coder.config.scale == "rows":  # by each row's mean and standard deviation, which the reconstruction gets back
        mean, spread = given.mean(1, keepdims=True), given.std(1, ddof=1, keepdims=True)
        x = (given - mean) / (spread + 1e-5)
    y = x if coder.config.target == "x" else y
    z, outs, loss = FORMULAS[name](_weights(coder), x, y)
    assert 0 < np.count_nonzero(z) < z.size
    target = given if coder.config.target == "x" else y
    found, parts = coder.loss(torch.from_numpy(given), torch.from_numpy(target))
    assert float(found.detach()) == pytest.approx(loss, rel=1e-9)
    assert float(parts["l0"]) == pytest.approx(np.count_nonzero(z) / B)
    assert float(parts["error"]) == pytest.approx(((y - outs[-1]) ** 2).sum(), rel=1e-9)
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
        np.testing.assert_allclose(y_hat.detach().numpy(), out * spread + mean, rtol=1e-9, atol=1e-12)


def test_every_preset_has_a_formula():
    assert set(FORMULAS) == set(PRESETS)


@pytest.mark.parametrize("name", ["topk", "msae_rw", "monoloss_relu"])
def test_gradient_of_the_subtracted_bias_is_that_of_the_formula(name):
    coder = _coder(name)
    x, _ = _data(D)
    coder.loss(torch.from_numpy(x), torch.from_numpy(x))[0].backward()
    for i in (0, D - 1):
        slopes = []
        for step in (1e-6, -1e-6):
            w = {k: v.copy() for k, v in _weights(coder).items()}
            w["dec_bias.0"][i] += step
            slopes.append(FORMULAS[name](w, x, x)[2])
        assert coder.dec_bias[0].grad[i].item() == pytest.approx((slopes[0] - slopes[1]) / 2e-6, rel=1e-4, abs=1e-8)

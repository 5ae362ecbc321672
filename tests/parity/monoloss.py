"""MonoLoss (arXiv 2602.12403): four autoencoders whose latents are to fire on images that are alike.

Rows have norm 1 in every loss. Of the items "as published" some are mistakes of the published code, which the default leaves out.
"""

from types import SimpleNamespace

import numpy as np
import torch

from mtlib.coders import upkeep
from mtlib.coders.presets import PRESETS
from mtlib.learn.config import TrainConfig
from mtlib.learn.optimiser import AdamW
from mtlib.measure.monosemanticity import MonoScore
from mtlib.measure.reconstruction import definition_card
from tests.parity.pieces import (
    B,
    D,
    S,
    array,
    data,
    drawn_coder,
    preset_items,
    relu,
    tensor,
    top,
    top_of_batch,
    weights,
)
from tests.parity.steps import flat, trained

K, AUX_K, DEAD_STEPS, STEPS, REVIVE_AT, EPS, BANDWIDTH = 2, 4, 10, 20, 10, 1e-8, 0.1
_AUX = dict(k=K, aux_k=AUX_K, dead_after=DEAD_STEPS * B)
SETTINGS = {"monoloss_topk": _AUX, "monoloss_batch_topk": _AUX, "monoloss_relu": {}}
SETTINGS |= {"monoloss_jumprelu": dict(bandwidth=BANDWIDTH)}
MONO = {"monoloss_topk": 0.09, "monoloss_batch_topk": 3e-4, "monoloss_relu": 1e-4, "monoloss_jumprelu": 5e-4}


def mono(rows: np.ndarray, z: np.ndarray) -> tuple[float, np.ndarray]:
    """1 - mean MonoScore, and its gradient of z."""
    e = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPS)
    low, high = z.min(0), z.max(0)
    a = (z - low) / (high - low + EPS)
    w, u, v = e.T @ a, a.sum(0), (a**2).sum(0)
    num, den = 0.5 * ((w**2).sum(0) - v), 0.5 * (u**2 - v)
    ok = den > EPS
    below = np.where(ok, den, 1.0) + EPS
    d_a = np.where(ok, (e @ w - a) / below - num * (u - a) / below**2, 0.0) / -ok.sum()
    d_z = d_a / (high - low + EPS)
    columns = np.arange(z.shape[1])
    d_high, d_low = -(d_z * a).sum(0), (d_z * (a - 1)).sum(0)
    d_z[z.argmax(0), columns] += d_high
    d_z[z.argmin(0), columns] += np.where(low > 0, d_low, 0.0)  # the 0 of a latent that does not fire is constant
    return 1 - (num / below)[ok].mean(), d_z


def _auxk(name, w, p, out, target, dead, biased, f):
    """AuxK with the gradients of codes, decoder, bias and output."""
    codes = top(relu(p) * dead, AUX_K)
    dec = w["enc"].T if name == "monoloss_topk" else w["dec.0"]
    if name == "monoloss_batch_topk":
        off = codes @ dec - (target - out)
        d = 2 / 32 * off / off.size
        return np.mean(off**2) / 32, d @ dec.T * (codes > 0), codes.T @ d, 0.0, d
    bias = w["dec_bias.0"] if biased else 0.0
    found, error = (codes @ dec + bias) * f.spread + biased * f.mean, target - out + bias
    size = (error**2).mean(1, keepdims=True)
    d = 2 / 32 * (found - error) / (size * error.size) * f.spread
    value = np.mean((found - error) ** 2 / size) / 32
    return value, d @ dec.T * (codes > 0), codes.T @ d, biased * d.sum(0), 0.0


def published(name, w, given, since, as_published=False):
    """Codes, output in the units of `given`, terms of the loss, gradients, and each latent's steps without firing."""
    tied, jump, batch = (name == f"monoloss_{kind}" for kind in ("topk", "jumprelu", "batch_topk"))
    norm = np.linalg.norm(given, axis=1, keepdims=True) + 1e-8
    u = given / norm
    f = SimpleNamespace(mean=0.0, spread=1.0)
    if tied or jump:
        f = SimpleNamespace(mean=u.mean(1, keepdims=True), spread=u.std(1, ddof=1, keepdims=True))
    x = (u - f.mean) / (f.spread + 1e-5) if tied or jump else u
    shifted = x if jump else x - w["dec_bias.0"]
    p = shifted @ w["enc"] + (0.0 if batch else w["enc_bias"])
    terms, d_theta, d_z = {}, 0.0, np.zeros_like(p)
    if jump:
        theta = np.exp(w["theta"]) if as_published else w["theta"]
        z = relu(p) * (p > theta)
        terms["penalty"] = 1e-3 * (z > 0).sum(1).mean()
        seen = z if as_published else relu(p)
        d_theta = -1e-3 / BANDWIDTH * (np.abs(seen - theta) < BANDWIDTH / 2).sum(0) / len(x)
    else:
        z = top(relu(p), K) if tied else top_of_batch(relu(p), K) if batch else relu(p)
    if name == "monoloss_relu":
        terms["penalty"], d_z = 1e-4 * z.sum(1).mean(), d_z + 1e-4 / len(x)
    dec = w["enc"].T if tied else w["dec.0"]
    out = (z @ dec + w["dec_bias.0"]) * f.spread + f.mean
    size = (u**2).mean(1, keepdims=True) if tied else 1.0
    terms["reconstruction"] = np.mean((out - u) ** 2 / size)
    d_out = 2 * (out - u) / (size * u.size)
    value, d_mono = mono(u if tied else x, z)
    terms["mono"], d_z = MONO[name] * value, d_z + MONO[name] * d_mono
    since, d_p, d_dec, d_bias = np.where((z > 0).any(0), 0, since + 1), 0.0, 0.0, 0.0
    if tied or batch:
        dead, biased = since >= DEAD_STEPS, float(as_published and tied)
        if dead.any() or biased:
            terms["aux"], d_p, d_dec, d_bias, more = _auxk(name, w, p, out, u, dead, biased, f)
            d_out = d_out + more
    d_out = d_out * f.spread
    d_z = d_z + d_out @ dec.T
    if jump:
        d_theta = d_theta - theta / BANDWIDTH * ((np.abs(relu(p) - theta) < BANDWIDTH / 2) * d_z).sum(0)
    d_p, d_dec, d_bias = d_p + d_z * (z > 0), d_dec + z.T @ d_out, d_bias + d_out.sum(0)
    grads = {"enc": shifted.T @ d_p, "enc_bias": d_p.sum(0)}
    grads["dec_bias.0"] = d_bias if jump else d_bias - (d_p @ w["enc"].T).sum(0)
    grads |= {"theta": d_theta} if jump else {}
    if tied:
        grads["enc"] = grads["enc"] + d_dec.T
    else:
        grads["dec.0"] = d_dec
    if batch:
        del grads["enc_bias"]
    return z, out * norm, terms, grads, since


def _formula(name, as_published=False):
    def formula(w, x, y):
        z, out, terms, _, _ = published(name, w, x, np.zeros(S, int), as_published)
        return z, [out], sum(terms.values())

    return formula


def _settings(name, as_published):
    own = PRESETS[name].get("as_published", {}) if as_published else {}
    return {k: v for k, v in own.items() if k not in TrainConfig.model_fields} | SETTINGS[name]


def _coder(name, as_published):
    """In training, with latents that are about to count as dead unless they fire."""
    coder = drawn_coder(name, **_settings(name, as_published)).train()
    coder.rows_since_fired.fill_((DEAD_STEPS - 1) * B)
    return coder, np.full(S, DEAD_STEPS - 1)


def _gradients(name, as_published, fast):
    def compare():
        coder, since = _coder(name, as_published)
        coder.fast = fast
        x = data(D)[0]
        coder.loss(tensor(x), tensor(x))[0].backward()
        grads = published(name, weights(coder), x, since, as_published)[3]
        found = {k: array(p.grad) for k, p in coder.named_parameters() if p.grad is not None}
        assert set(found) == set(grads)
        return tuple(flat({k: of[k] / np.abs(g).max() for k, g in grads.items()}) for of in (found, grads))

    return compare


def _terms(name, as_published):
    def compare():
        coder, since = _coder(name, as_published)
        x = data(D)[0]
        parts = coder.loss(tensor(x), tensor(x))[1]
        terms = published(name, weights(coder), x, since, as_published)[2]
        return np.array([parts[k] / v for k, v in terms.items()]), np.ones(len(terms))

    return compare


def _batches() -> list[np.ndarray]:
    return list(np.random.default_rng(11).normal(size=(STEPS, B, D)) + 0.2)


def _published_steps(name, w, since, as_published):
    """Published order: gradients, clip, unit rows and projection, Adam; once, dead latents anew."""
    tied, jump, step = name == "monoloss_topk", name == "monoloss_jumprelu", -1

    def gradients(w, x):
        nonlocal since, step
        grads, since = published(name, w, x, since, as_published)[3:]
        step += 1
        return grads

    def unit(w, grads):
        if tied:
            w["enc"] /= np.linalg.norm(w["enc"], axis=0) + 1e-8
            return
        w["dec.0"] /= np.linalg.norm(w["dec.0"], axis=1, keepdims=True)
        grads["dec.0"] = grads["dec.0"] - (grads["dec.0"] * w["dec.0"]).sum(1, keepdims=True) * w["dec.0"]

    def after(w):
        if jump and not as_published:
            w["theta"] = relu(w["theta"])
        if tied and step == REVIVE_AT:
            dead = np.flatnonzero(since >= DEAD_STEPS)
            assert 0 < len(dead) <= B
            rows = _batches()[0][: len(dead)]
            w["enc"][:, dead] = 0.1 * (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
            w["enc_bias"][dead], since[dead] = 0.0, 0

    how = dict(clip=0.0 if tied else 1.0, clipped=unit, after=after, eps=6.25e-10)
    how |= {} if as_published else dict(multiples={"theta": 10.0})  # ours: the rate for theta itself
    return trained(w, [[x] for x in _batches()], gradients, [1e-4] * STEPS, how)


def _steps(name, as_published, dtype=torch.float64):
    def compare():
        coder, since = _coder(name, as_published)
        expected = _published_steps(name, {k: v.copy() for k, v in weights(coder).items()}, since, as_published)
        coder = coder.to(dtype)
        own = PRESETS[name].get("as_published", {}) if as_published else {}
        c = TrainConfig.preset(name, **{k: v for k, v in own.items() if k in TrainConfig.model_fields})
        optimiser = AdamW(coder.named_parameters(), eps=c.eps, groups={"theta": c.theta_lr})
        for step, x in enumerate(map(tensor, _batches())):
            optimiser.zero_grad()
            coder.loss(x.to(dtype), x.to(dtype))[0].backward()
            if c.grad_clip:
                torch.nn.utils.clip_grad_norm_(coder.parameters(), c.grad_clip)
            upkeep.before_step(coder)
            optimiser.step(c.lr)
            upkeep.after_step(coder)
            if c.revive_every and step == REVIVE_AT:
                upkeep.revive(coder, tensor(_batches()[0]).to(dtype)[: int(coder.dead.sum())])
        return flat(weights(coder)), flat(expected)

    return compare


def _scores():
    x = np.random.default_rng(2).normal(size=(200, D)) + 0.5
    return x, drawn_coder("monoloss_topk", **SETTINGS["monoloss_topk"]).eval().encode(tensor(x))


def _mono_score():
    """Over a split: latents that have none score 0 there, and are left out here."""
    x, codes = _scores()
    measure = MonoScore(S, D)
    for rows, z in zip(np.array_split(x, 3), codes.tensor_split([67, 134]), strict=True):
        measure.update(tensor(rows), z)
    z, e = array(codes), x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
    a = (z - z.min(0)) / (z.max(0) - z.min(0) + 1e-8)
    num = 0.5 * (((e.T @ a) ** 2).sum(0) - (a**2).sum(0))
    den = 0.5 * (a.sum(0) ** 2 - (a**2).sum(0))
    return np.nan_to_num(measure.scores()), np.where(den > 1e-8, num / (den + 1e-12), 0.0)


def _r2():
    x, codes = _scores()
    coder = drawn_coder("monoloss_topk", **SETTINGS["monoloss_topk"]).eval()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = array(coder.decode(codes, x=tensor(unit)))
    card = definition_card(unit, out).set_index("convention")["reconstruction"]
    rest, whole = ((unit - out) ** 2).sum(0), (unit**2).sum(0) - unit.sum(0) ** 2 / len(unit)
    return np.array([card["mean of R2 per dimension"]]), np.array([np.mean(1 - rest / (whole + 1e-12))])


FORMULAS = {name: _formula(name) for name in SETTINGS}
ITEMS = {"MonoScore over a split": _mono_score, "R2 over a split": _r2}
for name in SETTINGS:
    for mistakes in (False, True)[: 1 + ("as_published" in PRESETS[name])]:
        label = f"{name}, as published" if mistakes else name
        given = preset_items(name, _formula(name, mistakes), **_settings(name, mistakes))
        ITEMS |= {key.replace(name, label): item for key, item in given.items()}
        ITEMS[f"{label}: terms of the loss"] = _terms(name, mistakes)
        ITEMS[f"{label}: gradients"] = _gradients(name, mistakes, "off")
        ITEMS[f"{label}: gradients, fast path"] = _gradients(name, mistakes, "auto")
        ITEMS[f"{label}: weights after 20 steps"] = _steps(name, mistakes)
        ITEMS[f"{label}: weights after 20 steps, float32"] = _steps(name, mistakes, torch.float32)

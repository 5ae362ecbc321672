"""Gradients of a preset's loss, and whole trainings of 20 steps, beside plain NumPy."""

import tempfile

import numpy as np

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.learn.batches import Sampler
from mtlib.learn.config import Method
from mtlib.learn.train import fit
from tests.parity.pieces import B, D, O, S, array, data, drawn_coder, tensor, weights

N, STEPS, LR = 40, 20, 0.01  # rows: a batch of 24 and one of 16 in each of 10 epochs


def gradient_items(name: str, gradients, label: str = "", **settings) -> dict:
    """gradients(weights, x), of a transcoder gradients(weights, x, y) -> the gradient of every weight; weights are drawn."""

    def compare():
        coder = drawn_coder(name, **settings).train()
        x, y = data(coder.config.d_out)
        given = (x, y) if coder.config.target == "y" else (x,)
        coder.loss(tensor(x), tensor(given[-1]))[0].backward()
        found = {n: array(p.grad) for n, p in coder.named_parameters() if p.grad is not None}
        return flat(found), flat(gradients(weights(coder), *given))

    return {f"{label or name}: gradients": compare}


def step_items(name: str, gradients, settings: dict, how: dict, label: str = "") -> dict:
    """Weights after 20 steps of `fit`, in float32, beside `trained` in float64 from the same first weights and batches.

    Args: settings: of a Method, as in a params file; a batch of 24, Adam at LR, so that each step shows. how: of `trained`,
        and rate(epoch, epochs): the share of LR; tokens of an image, and images in a batch of them.
    """
    said = f"{label or name}{', as published' if settings.get('as_published') else ''}"

    def compare():
        method = Method(name="one", preset=name, n_latents=S, batch=how.get("batch", B), lr=LR, steps=STEPS, **settings)
        config, training = method.configs(D, O, {}, dict(val_every=STEPS, device="cpu"))
        rng = np.random.default_rng(5)
        x, y = rng.normal(size=(N + 20, D)).astype(np.float32) + 0.3, rng.normal(size=(N + 20, O)).astype(np.float32)
        tokens = how.get("tokens", 1)
        with tempfile.TemporaryDirectory() as folder:
            rows = np.arange(N), np.arange(N, N + 20)
            coder = fit(config, x, y if config.target == "y" else None, *rows, training, folder, tokens=tokens)
        ours = {n: array(p) for n, p in coder.named_parameters()}
        w = {n: p.astype(np.float64) for n, p in weights(SparseCoder(config, seed=training.seed)).items()}
        x = x[:N].astype(np.float64)
        if config.centre == "mean":
            x = x - x.mean(0)
        if config.scale == "rms":
            x = x * np.sqrt(D / (x**2).sum(1).mean())  # a mean squared norm of D
        unit = tokens if training.batch_images else 1
        sampler = Sampler(N, training.batch, training.seed, drop_last=False, tokens=unit)
        shares = [1.0] * STEPS
        if rate := how.get("rate"):
            shares = [rate(t // sampler.per_epoch, STEPS // sampler.per_epoch) for t in range(STEPS)]
        given = (x, y[:N].astype(np.float64)) if config.target == "y" else (x,)
        batches = [[part[sampler(t)] for part in given] for t in range(STEPS)]
        return flat(ours), flat(trained(w, batches, gradients, [training.lr * share for share in shares], how))

    return {f"{said}: {STEPS} steps, float32": compare}


def trained(w: dict, batches: list[list[np.ndarray]], gradients, lrs: list[float], how: dict) -> dict:
    """A step of Adam for each batch (x, or x and y) and learning rate.

    Args: how: before(w, grads), clip and then clipped(w, grads) ahead of each step, after(w) behind it, all in place; eps,
        decay; multiples: of the learning rate, by weight; fixed: weights that are not learned.
    """
    mean, square = ({n: np.zeros_like(p) for n, p in w.items()} for _ in range(2))
    nothing = lambda *_: None  # noqa: E731
    for t, (batch, lr) in enumerate(zip(batches, lrs, strict=True)):
        grads = gradients(w, *batch)
        how.get("before", nothing)(w, grads)
        if clip := how.get("clip"):
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            grads = {n: g * min(1.0, clip / (norm + 1e-6)) for n, g in grads.items()}
        how.get("clipped", nothing)(w, grads)
        for n, g in grads.items():
            if n in how.get("fixed", ()):
                continue
            mean[n] = 0.9 * mean[n] + 0.1 * g
            square[n] = 0.999 * square[n] + 0.001 * g**2
            rate = lr * how.get("multiples", {}).get(n, 1.0)
            w[n] *= 1 - rate * how.get("decay", 0.0)
            size = np.sqrt(square[n] / (1 - 0.999 ** (t + 1))) + how.get("eps", 1e-8)
            w[n] -= rate * mean[n] / (1 - 0.9 ** (t + 1)) / size
        how.get("after", nothing)(w)
    return w


def flat(values: dict) -> np.ndarray:
    return np.concatenate([np.ravel(values[n]) for n in sorted(values)])

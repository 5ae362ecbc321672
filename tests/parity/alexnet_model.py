"""AlexNet-Transformer, the vision model: AlexNet's convolutions, 36 tokens, transformer blocks, in evaluation."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from mtlib.embed.vision import MEAN, STD, load_alexnet

CONVOLUTIONS = ((0, 3, 96, 11, 4, 2, 1), (4, 96, 256, 5, 1, 2, 2), (8, 256, 384, 3, 1, 1, 1))
CONVOLUTIONS += (
    (10, 384, 384, 3, 1, 1, 2),
    (12, 384, 256, 3, 1, 1, 2),
)  # place, in, out, size, stride, padding, groups
NORMS, POOLED = {0: 2, 4: 6}, (0, 4, 12)  # of the convolution at a place: its BatchNorm's; those before a max pooling
BLOCKS, HEADS, CLASSES, AT = 3, 16, 10, 1


def state(seed: int = 0) -> dict[str, np.ndarray]:
    """A published state dict of three blocks with random numbers, float32."""
    rng, w = np.random.default_rng(seed), {}

    def layer(name: str, *shape: int, bias: bool = True, size: float = 0.0):
        w[f"{name}.weight"] = rng.normal(0, size or np.prod(shape[1:]) ** -0.5, shape)
        if bias:
            w[f"{name}.bias"] = rng.normal(0, 0.1, shape[0])

    def norm(name: str, width: int):
        w[f"{name}.weight"], w[f"{name}.bias"] = rng.normal(1, 0.1, width), rng.normal(0, 0.1, width)

    for place, n_in, n_out, size, _, _, groups in CONVOLUTIONS:
        layer(f"features.{place}", n_out, n_in // groups, size, size)
        if place in NORMS:
            norm(name := f"features.{NORMS[place]}", n_out)
            w[f"{name}.running_mean"], w[f"{name}.running_var"] = rng.normal(0, 0.1, n_out), rng.uniform(0.5, 2, n_out)
            w[f"{name}.num_batches_tracked"] = np.array(7)
    for i in range(BLOCKS):
        block = f"transformer.blocks.{i}"
        for h in range(HEADS):
            for of in ("key", "query", "value"):
                layer(f"{block}.sa.heads.{h}.{of}", 16, 256, bias=False)
        layer(f"{block}.sa.proj", 256, 256)
        layer(f"{block}.ffwd.net.0", 1024, 256)
        layer(f"{block}.ffwd.net.2", 256, 1024)
        norm(f"{block}.ln1", 256)
        norm(f"{block}.ln2", 256)
    norm("transformer.ln_f", 256)
    layer("transformer.lm_head", CLASSES, 36 * 256)
    return {name: value.astype(np.int64 if value.ndim == 0 else np.float32) for name, value in w.items()}


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(B, C, H, W) to (B, C, h, w, size, size)."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def _convolutions(w: dict, x: np.ndarray) -> np.ndarray:
    for place, _, _, size, stride, padding, groups in CONVOLUTIONS:
        x = _windows(np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding))), size, stride)
        parts = zip(np.split(x, groups, 1), np.split(w[f"features.{place}.weight"], groups), strict=True)
        x = np.concatenate([np.einsum("bchwij,ocij->bohw", a, b, optimize=True) for a, b in parts], 1)
        x = np.maximum(x + w[f"features.{place}.bias"][:, None, None], 0)
        if place in NORMS:
            scale, shift, mean, var = (
                w[f"features.{NORMS[place]}.{of}"][:, None, None]
                for of in ("weight", "bias", "running_mean", "running_var")
            )
            x = (x - mean) / np.sqrt(var + 1e-5) * scale + shift
        if place in POOLED:
            x = _windows(x, 3, 2).max((4, 5))
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)  # (B, 36, 256)


def _norm(w: dict, name: str, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(w: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def _head(w: dict, name: str, x: np.ndarray, causal: bool) -> np.ndarray:
    key, query, value = (_linear(w, f"{name}.{of}", x) for of in ("key", "query", "value"))
    scores = query @ key.transpose(0, 2, 1) / 4
    if causal:
        scores = np.where(np.tri(scores.shape[1]) == 0, -np.inf, scores)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ value


def _block(w: dict, name: str, x: np.ndarray, causal: bool) -> np.ndarray:
    normed = _norm(w, f"{name}.ln1", x)
    heads = [_head(w, f"{name}.sa.heads.{h}", normed, causal) for h in range(HEADS)]
    x = x + _linear(w, f"{name}.sa.proj", np.concatenate(heads, -1))
    inner = np.maximum(_linear(w, f"{name}.ffwd.net.0", _norm(w, f"{name}.ln2", x)), 0)
    return x + _linear(w, f"{name}.ffwd.net.2", inner)


def published(pixels: np.ndarray, causal: bool = False) -> dict[str, np.ndarray]:
    """Tokens, the residual stream after block AT, and logits, float64."""
    w = {name: value.astype(np.float64) for name, value in state().items()}
    mean, std = (np.float32(v)[:, None, None] for v in (MEAN, STD))
    stream = _convolutions(w, ((pixels.astype(np.float32) / np.float32(255) - mean) / std).astype(np.float64))
    found = {"tokens": stream}
    for i in range(BLOCKS):
        stream = _block(w, f"transformer.blocks.{i}", stream, causal)
        if i == AT:
            found["stream"] = stream
    flat = _norm(w, "transformer.ln_f", stream).reshape(len(pixels), -1)
    return found | {"logits": _linear(w, "transformer.lm_head", flat)}


def write(path, causal: bool = False, **others) -> None:
    """The state in a file, as the authors' training writes it: beside it the optimiser's state, epoch, loss and history."""
    w = {name: torch.from_numpy(value) for name, value in state().items()}
    if causal:
        mask = torch.ones(256, 256).tril()
        w |= {f"transformer.blocks.{i}.sa.heads.{h}.tril": mask for i in range(BLOCKS) for h in range(HEADS)}
    history = {name: [1.5, 1.25] for name in ("train_loss", "train_acc", "val_loss", "val_acc")}
    beside = dict(epoch=1, optimizer_state_dict={"state": {}, "param_groups": []}, loss=1.25, history=history)
    torch.save({"model_state_dict": w} | beside | others, path)


@functools.cache
def _both(causal: bool) -> tuple[dict, dict]:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 224, 224), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write(path := Path(folder) / "alexnet_imagenette.pth", causal)
        model = load_alexnet(path).eval()
    for module in (model.features, model.blocks, model.norm, model.head):
        module.double()  # colours are normalised in float32, as published
    model.config = model.config.with_(layer=AT)
    with torch.inference_mode(), model.layer().recorded() as seen:
        ours = {"tokens": model.tokens(torch.from_numpy(pixels)), "logits": model(torch.from_numpy(pixels))}
    ours["stream"] = seen[0]
    return {name: value.numpy() for name, value in ours.items()}, published(pixels, causal)


def _item(name: str, causal: bool = False):
    return lambda: tuple(found[name] for found in _both(causal))


ITEMS = {
    "alexnet vision model, tokens of the convolutions": _item("tokens"),
    f"alexnet vision model, residual stream after block {AT}": _item("stream"),
    "alexnet vision model, logits": _item("logits"),
    "alexnet vision model with a causal mask, logits": _item("logits", causal=True),
}

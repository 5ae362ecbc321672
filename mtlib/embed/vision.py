"""AlexNet-Transformer: a vision model that is trained from scratch, and the residual stream of one of its blocks.

    pixels -> AlexNet features (96, 256, 384, 384, 256 channels, grouped, BatchNorm) -> a 6 x 6 grid: 36 tokens of 256
           -> 16 transformer blocks of 16 heads, dropout 0.5 -> flatten -> classes

Training, and the tokens of a whole run, are learn/vision.py's; here is the model, and how it is given an image.
A trained one is an encoder, too: `encoder = "alexnet:<folder>"` of a model trained here or `"alexnet:<file>"` of a checkpoint
of its authors, with a block number as `layer`, and `tokens = "patches"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mtlib.embed.given.torch_files import load_tensors
from mtlib.embed.layers import Layer
from mtlib.run.artifacts import json_object
from mtlib.run.params import Settings

CHANNELS = (96, 256, 384, 384, 256)  # AlexNet's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as usual
LAYER = 6  # the published choice of a block
THEIRS = {
    "self_attn.out_proj": "sa.proj",
    "linear1": "ffwd.net.0",
    "linear2": "ffwd.net.2",
    "norm1": "ln1",
    "norm2": "ln2",
}
FIELDS = {"epoch", "model_state_dict", "optimizer_state_dict", "loss", "history"}  # of a published checkpoint


class VisionConfig(Settings):
    """Sizes of the model; the defaults are the published ones. Raises ValueError naming the field, its value and its range."""

    n_classes: int = Field(ge=2)
    name: Literal["alexnet"] = "alexnet"
    # "positions": ours, with learned positions, a BatchNorm before every ReLU of the convolutions, GELU, biases in attention
    variant: Literal["published", "positions"] = "published"
    causal: bool = False  # a token attends to none after it, as in older published files
    blocks: int = Field(16, ge=1)
    heads: int = Field(16, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)  # on attention weights, on what each block adds, and inside its two layers
    layer: int = Field(LAYER, ge=0)  # the block after which the residual stream is read; 0 is the first
    side: int = Field(224, ge=63)  # pixels; 224 gives the 6 x 6 grid

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        if CHANNELS[-1] % self.heads:
            raise ValueError(f"heads = {self.heads}: must be a divisor of {CHANNELS[-1]}")
        if self.layer >= self.blocks:
            raise ValueError(f"layer = {self.layer}: must be below blocks = {self.blocks}; 0 is the first")
        return self

    @property
    def shorter(self) -> int:
        """Pixels to which an image's shorter side is scaled before its centre is cropped; 0: what makes the crop largest."""
        return round(self.side * 256 / 224) if self.variant == "published" else 0

    @property
    def grid(self) -> int:
        """Tokens along each side of the image."""
        side = (self.side + 4 - 11) // 4 + 1
        for _ in range(3):  # the three poolings
            side = (side - 3) // 2 + 1
        return side

    @property
    def centres(self) -> list[int]:
        """Pixel that each token along a side looks at: 31, 63, 95 ...; strides and paddings put them 32 apart."""
        return [31 + 32 * i for i in range(self.grid)]

    @property
    def n_tokens(self) -> int:
        return self.grid**2


def _convolutions(published: bool) -> Iterator[nn.Module]:
    groups, sizes = (1, 2, 1, 2, 2), (dict(kernel_size=11, stride=4, padding=2), dict(kernel_size=5, padding=2))
    shapes = (*sizes, *[dict(kernel_size=3, padding=1)] * 3)
    for i, (n_in, n_out) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False)):
        # a BatchNorm takes the mean away, so that a bias before it would do nothing
        yield nn.Conv2d(n_in, n_out, groups=groups[i], bias=published, **shapes[i])
        if not published:
            yield nn.BatchNorm2d(n_out)
        yield nn.ReLU()
        if published and i < 2:
            yield nn.BatchNorm2d(n_out)
        if i in (0, 1, 4):
            yield nn.MaxPool2d(3, 2)


def dropout(x: Tensor, p: float) -> Tensor:
    """Inverted dropout with p rounded to 1 / 256: as nn.functional.dropout, but on a processor each element is decided
    by one random byte and not by a draw of its own, which is five times as fast."""
    if x.is_cuda or not p:
        return F.dropout(x, p) if p else x
    level = round(256 * p)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= level
    return x * kept.to(x.dtype).mul_(256 / (256 - level))


class Block(nn.TransformerEncoderLayer):
    """The parameters of PyTorch's layer, LayerNorm first, and a forward of its own for the dropout above and for what the
    published blocks lack: biases of query, key and value, and dropout between the two layers."""

    def __init__(self, width: int, heads: int, p: float, published: bool = False, causal: bool = False):
        act = "relu" if published else "gelu"
        super().__init__(width, heads, 4 * width, p, act, batch_first=True, norm_first=True)
        self.p, self.p_inner, self.causal = p, 0.0 if published else p, causal
        if published:
            self.self_attn.register_parameter("in_proj_bias", None)

    def forward(self, src: Tensor) -> Tensor:
        """The residual stream, (B, T, width) to (B, T, width)."""
        p, p_inner = (self.p, self.p_inner) if self.training else (0.0, 0.0)
        x = src + dropout(self._attend(self.norm1(src), p), p)
        inner = dropout(self.activation(self.linear1(self.norm2(x))), p_inner)
        return x + dropout(self.linear2(inner), p)

    def _attend(self, x: Tensor, p: float) -> Tensor:
        own = self.self_attn
        qkv = F.linear(x, own.in_proj_weight, own.in_proj_bias)  # (B, T, 3 * width)
        q, k, v = qkv.unflatten(2, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5  # (B, heads, T, T)
        if self.causal:
            scores = scores + torch.full(scores.shape[2:], -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        return own.out_proj((dropout(scores.softmax(dim=3), p) @ v).transpose(1, 2).flatten(2))


class AlexNetTransformer(nn.Module):
    """The published vision model, or `config.variant` of it: LayerNorm before attention and before the two layers (width
    4 x 256), no causal mask unless the configuration says so, since an image has no order."""

    def __init__(self, config: VisionConfig, seed: int = 0):
        super().__init__()
        self.config, width, published = config, CHANNELS[-1], config.variant == "published"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(*_convolutions(published))
            self.positions = None if published else nn.Parameter(0.02 * torch.randn(config.n_tokens, width))
            block = (width, config.heads, config.dropout, published, config.causal)
            self.blocks = nn.Sequential(*(Block(*block) for _ in range(config.blocks)))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(config.n_tokens * width, config.n_classes)
            if published:
                self._start_small()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def _start_small(self) -> None:
        for name, p in [*self.blocks.named_parameters(), *self.head.named_parameters()]:
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def tokens(self, pixels: Tensor) -> Tensor:
        """What enters the first block. Args: pixels (B, 3, side, side) uint8. Returns: (B, T, 256).

        Raises: ValueError giving both shapes.
        """
        expected = (3, self.config.side, self.config.side)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"vision: pixels {tuple(pixels.shape)} {pixels.dtype}, expected (B, {expected}) uint8")
        x = ((pixels.float() / 255 - self.mean) / self.std).to(self.head.weight.dtype)
        grid = self.features(x).flatten(2).transpose(1, 2)  # (B, 36, 256)
        return grid if self.positions is None else grid + self.positions

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits. Args: pixels (B, 3, side, side) uint8. Returns: (B, n_classes)."""
        return self.head(self.norm(self.blocks(self.tokens(pixels))).flatten(1))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """The final embedding: the mean token of the last block. Args: pixels (B, 3, side, side), 0 .. 255, of any type."""
        return self.norm(self.blocks(self.tokens(pixels.to(torch.uint8)))).mean(dim=1)  # (B, 256)

    def layer(self) -> Layer:
        """The residual stream after block `config.layer`: a hook that reads it, (B, T, 256), or replaces it."""
        at, grid = self.config.layer, self.config.grid
        name, module, width = f"blocks.{at}", self.blocks[at], CHANNELS[-1]
        return Layer(name, module, "patches", 0, "sequence", 0, (grid, grid), width, self.config.n_tokens)


def load_alexnet(path: Path) -> AlexNetTransformer:
    """A trained model from the weights.safetensors and config.json of a folder, or from a file that its authors' code wrote.

    A causal mask that such a file holds is honoured. Raises: ValueError where weights and sizes do not fit.
    """
    if path.is_file():
        return _read_published(path)
    saved = {"variant": "positions"} | json_object(path / "config.json")  # once the only one
    model = AlexNetTransformer(VisionConfig(**{k: v for k, v in saved.items() if k in VisionConfig.model_fields}))
    try:
        model.load_state_dict(load_file(path / "weights.safetensors"))
    except (RuntimeError, SafetensorError) as e:
        raise ValueError(f"{path}: the weights do not fit config.json ({str(e).splitlines()[0]})") from e
    return model


def _read_published(path: Path) -> AlexNetTransformer:
    """From {"model_state_dict": ...} or a bare state dict: each head has a query, key and value of its own there."""
    saved = load_tensors(path)
    state = dict(saved.get("model_state_dict", saved))
    if "model_state_dict" in saved and saved.keys() - FIELDS:
        raise ValueError(f"{path.name}: field {min(saved.keys() - FIELDS)} is not understood; known: {sorted(FIELDS)}")
    masks = [state.pop(name) for name in sorted(state) if name.endswith(".tril")]
    found = [re.match(r"transformer\.blocks\.(\d+)\.sa\.heads\.(\d+)\.", name) for name in state]
    blocks, heads = (len({m[i] for m in found if m}) for i in (1, 2))
    head = state.get("transformer.lm_head.weight", torch.empty(0, 0))
    if not blocks or (masks and len(masks) != blocks * heads) or not all(torch.equal(m, m.tril()) for m in masks):
        raise ValueError(f"{path.name}: no AlexNet-Transformer; it has {', '.join(sorted(state)[:8])}")
    sizes = dict(n_classes=len(head), blocks=blocks, heads=heads, layer=min(LAYER, blocks - 1))
    model = AlexNetTransformer(VisionConfig(causal=bool(masks), **sizes))
    ours = {}
    for name, value in model.state_dict().items():
        parts = [state.pop(part, None) for part in _their_names(name, heads)]
        shape = (value.shape[0] // len(parts), *value.shape[1:]) if value.ndim else ()
        for part, tensor in zip(_their_names(name, heads), parts, strict=True):
            if tensor is None or tensor.shape != shape:
                has = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}, expected {tuple(shape)}"
                raise ValueError(f"{path.name}: {part} {has}")
        ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    if state:
        raise ValueError(f"{path.name}: {min(state)} is not part of this model")
    model.load_state_dict(ours)
    return model


def _their_names(name: str, heads: int) -> list[str]:
    """The published tensors that one of ours holds, in the order in which they follow each other there."""
    if name.endswith("in_proj_weight"):
        block = name.removesuffix("self_attn.in_proj_weight")
        return [
            f"transformer.{block}sa.heads.{h}.{of}.weight" for of in ("query", "key", "value") for h in range(heads)
        ]
    if name.startswith("features."):
        return [name]
    for own, theirs in THEIRS.items():
        name = name.replace(own, theirs)
    return ["transformer." + re.sub("^head", "lm_head", re.sub("^norm", "ln_f", name))]


def square(image: Image.Image, side: int, shorter: int = 0) -> np.ndarray:
    """(3, side, side) uint8: the middle of an RGB image, whose shorter side is scaled to `shorter` pixels before, bilinear as
    published; 0: the largest square, scaled to `side`."""
    if shorter:
        from torchvision.transforms import functional as transforms  # takes seconds to import

        cut = transforms.center_crop(transforms.resize(image, shorter), side)
    else:
        cut = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(cut).transpose(2, 0, 1)


@torch.inference_mode()
def forward_tokens(model: AlexNetTransformer, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, n_classes) of pixels (B, 3, side, side) uint8, and the residual stream (B, T, 256). Model in eval mode."""
    with model.layer().recorded() as seen:
        logits = model(torch.from_numpy(pixels).to(model.mean.device))
    return logits.cpu().numpy(), seen[0].float().cpu().numpy()


def vision_tokens(model: AlexNetTransformer, images: list[Image.Image]) -> np.ndarray:
    """The residual stream of RGB images as `load_image` gives them: (B, T, 256) float32. Model in eval mode."""
    return forward_tokens(
        model, np.stack([square(image, model.config.side, model.config.shorter) for image in images])
    )[1]

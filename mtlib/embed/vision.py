"""AlexNet-Transformer: a vision model that is trained from scratch, and the residual stream of one of its blocks.

    pixels -> AlexNet features (96, 256, 384, 384, 256 channels, grouped, BatchNorm) -> a 6 x 6 grid: 36 tokens of 256
           -> 16 transformer blocks of 16 heads, dropout 0.5 -> flatten -> classes

The training loop is learn/vision.py; here are the model, the pixels that it is given and the tokens that it gives.
A trained one is an encoder, too: `encoder = "alexnet:<folder>"`, with a block number as `layer`, and `tokens = "patches"`.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
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
from tqdm import tqdm

from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.layers import Layer
from mtlib.embed.store import Data, open_array, write_rows
from mtlib.run.artifacts import ArtifactError, atomic
from mtlib.run.params import Settings

AT_A_TIME, BATCH = 256, 64  # images that are decoded, that the model sees
CHANNELS = (96, 256, 384, 384, 256)  # AlexNet's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as usual


class VisionConfig(Settings):
    """Sizes of the model; the defaults are the published ones. Raises ValueError naming the field, its value and its range."""

    n_classes: int = Field(ge=2)
    name: Literal["alexnet"] = "alexnet"
    blocks: int = Field(16, ge=1)
    heads: int = Field(16, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)  # on attention weights, on what each block adds, and inside its two layers
    layer: int = Field(6, ge=0)  # the block after which the residual stream is read; 0 is the first
    side: int = Field(224, ge=63)  # pixels; 224 gives the 6 x 6 grid

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        if CHANNELS[-1] % self.heads:
            raise ValueError(f"heads = {self.heads}: must be a divisor of {CHANNELS[-1]}")
        if self.layer >= self.blocks:
            raise ValueError(f"layer = {self.layer}: must be below blocks = {self.blocks}; 0 is the first")
        return self

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


def _convolution(n_in: int, n_out: int, size: int, groups: int = 1, **shape) -> list[nn.Module]:
    # BatchNorm takes the mean away, so a bias would do nothing
    return [nn.Conv2d(n_in, n_out, size, groups=groups, bias=False, **shape), nn.BatchNorm2d(n_out), nn.ReLU()]


def dropout(x: Tensor, p: float) -> Tensor:
    """Inverted dropout with p rounded to 1 / 256: as nn.functional.dropout, but on a processor each element is decided
    by one random byte and not by a draw of its own, which is five times as fast."""
    if x.is_cuda:
        return F.dropout(x, p)
    level = round(256 * p)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= level
    return x * kept.to(x.dtype).mul_(256 / (256 - level))


class Block(nn.TransformerEncoderLayer):
    """PyTorch's layer (LayerNorm first, GELU, images first) with the dropout above in training."""

    def __init__(self, width: int, heads: int, p: float):
        super().__init__(width, heads, 4 * width, p, "gelu", batch_first=True, norm_first=True)

    def forward(self, src: Tensor, *args, **kwargs) -> Tensor:
        """The residual stream, (B, T, width) to (B, T, width)."""
        if not self.training:
            return super().forward(src, *args, **kwargs)
        p = self.dropout.p
        x = src + dropout(self._attend(self.norm1(src), p), p)
        inner = dropout(F.gelu(self.linear1(self.norm2(x))), p)
        return x + dropout(self.linear2(inner), p)

    def _attend(self, x: Tensor, p: float) -> Tensor:
        own = self.self_attn
        qkv = F.linear(x, own.in_proj_weight, own.in_proj_bias)  # (B, T, 3 * width)
        q, k, v = qkv.unflatten(2, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3)  # (B, heads, T, T)
        return own.out_proj((dropout(weights, p) @ v).transpose(1, 2).flatten(2))


class AlexNetTransformer(nn.Module):
    """The published vision model. What its description leaves open is chosen here: learned positions, LayerNorm before
    attention and before the two layers (width 4 x 256, GELU), no causal mask, since an image has no order."""

    def __init__(self, config: VisionConfig, seed: int = 0):
        super().__init__()
        self.config, (a, b, c, d, e) = config, CHANNELS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                *_convolution(3, a, 11, stride=4, padding=2),
                nn.MaxPool2d(3, 2),
                *_convolution(a, b, 5, groups=2, padding=2),
                nn.MaxPool2d(3, 2),
                *_convolution(b, c, 3, padding=1),
                *_convolution(c, d, 3, groups=2, padding=1),
                *_convolution(d, e, 3, groups=2, padding=1),
                nn.MaxPool2d(3, 2),
            )
            self.positions = nn.Parameter(0.02 * torch.randn(config.n_tokens, e))
            self.blocks = nn.Sequential(*(Block(e, config.heads, config.dropout) for _ in range(config.blocks)))
            self.norm = nn.LayerNorm(e)
            self.head = nn.Linear(config.n_tokens * e, config.n_classes)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def tokens(self, pixels: Tensor) -> Tensor:
        """What enters the first block. Args: pixels (B, 3, side, side) uint8. Returns: (B, T, 256).

        Raises: ValueError giving both shapes.
        """
        expected = (3, self.config.side, self.config.side)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"vision: pixels {tuple(pixels.shape)} {pixels.dtype}, expected (B, {expected}) uint8")
        x = ((pixels.float() / 255 - self.mean) / self.std).to(self.positions.dtype)
        grid = self.features(x)  # (B, 256, 6, 6)
        return grid.flatten(2).transpose(1, 2) + self.positions

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


def load_alexnet(folder: Path) -> AlexNetTransformer:
    """A trained model from the weights.safetensors and config.json of a folder. Raises: ValueError where these do not fit."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = AlexNetTransformer(VisionConfig(**{k: v for k, v in saved.items() if k in VisionConfig.model_fields}))
    try:
        model.load_state_dict(load_file(folder / "weights.safetensors"))
    except (RuntimeError, SafetensorError) as e:
        raise ValueError(f"{folder}: the weights do not fit config.json ({str(e).splitlines()[0]})") from e
    return model


def _bar(n: int, text: str) -> tqdm:
    return tqdm(total=n, desc=text, unit="images", file=sys.stdout, mininterval=5.0)


def read_pixels(data: Data, path: Path, side: int) -> np.ndarray:
    """Every image scaled and cropped to a square, into one memory-mapped file, by the loader that all stages share.

    Args:
        data:     one row per image, with files.
        path:     the .npy file to write; one of the right shape that is already there is kept.
        side:     pixels.
    Returns: (N, 3, side, side) uint8, read-only.
    Raises: ArtifactError when there are no files, or one is not the one that was embedded.
    """
    if data.image_root is None or data.tokens > 1:
        raise ArtifactError("a vision model needs images with one row each; give images, without a layer")
    hashes, shape = data.manifest["sha256"].to_numpy(str), (len(data.manifest), 3, side, side)

    def load(row: int) -> np.ndarray:
        try:
            return square(load_image(data.images(row), hashes[row])[0], side)
        except ImageRefused as e:
            raise ArtifactError(f"{data.images(row).name}: {e}; run 01_embed again") from e

    if not path.is_file() or open_array(path).shape != shape:
        with atomic(path) as tmp, ThreadPoolExecutor(2) as pool, _bar(shape[0], "pixels") as bar:
            out = np.lib.format.open_memmap(tmp, "w+", np.uint8, shape)
            for start in range(0, shape[0], AT_A_TIME):  # the pool holds no more decoded images than these
                for row, image in enumerate(pool.map(load, range(shape[0])[start : start + AT_A_TIME]), start):
                    out[row] = image
                    bar.update()
            out.flush()
            del out
    return open_array(path, 4)


def square(image: Image.Image, side: int) -> np.ndarray:
    """(3, side, side) uint8: an RGB image, its longer side cropped about the middle."""
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@torch.inference_mode()
def _forward(model: AlexNetTransformer, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with model.layer().recorded() as seen:
        logits = model(torch.from_numpy(pixels).to(model.positions.device))
    return logits.cpu().numpy(), seen[0].float().cpu().numpy()


def vision_tokens(model: AlexNetTransformer, images: list[Image.Image]) -> np.ndarray:
    """The residual stream of RGB images as `load_image` gives them: (B, T, 256) float32. Model in eval mode."""
    return _forward(model, np.stack([square(image, model.config.side) for image in images]))[1]


def write_tokens(model: AlexNetTransformer, pixels: np.ndarray, path: Path) -> tuple[np.ndarray, dict]:
    """The residual stream of every image, row by row into a .npy file: image i has rows i * T .. i * T + T - 1.

    Args: model; pixels (N, 3, side, side) uint8; path of x.npy, (N * T, 256) float32.
    Returns: logits (N, n_classes) float32; the facts of these rows: d_in, n_rows, layer, tokens, tokens_per_image,
        token_grid, first_patch.
    """
    layer, logits = model.eval().layer(), []

    def parts():
        with _bar(len(pixels), "tokens") as bar:
            for start in range(0, len(pixels), BATCH):
                of, tokens = _forward(model, np.array(pixels[start : start + BATCH]))
                logits.append(of)
                bar.update(len(of))
                yield tokens

    shape = (len(pixels) * layer.n_tokens, layer.width)
    write_rows(path, shape, parts())
    return np.concatenate(logits), {"d_in": shape[1], "n_rows": shape[0]} | layer.facts

"""One encoder for images and texts: any open_clip or timm model, and the bundled one through the same call."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mtlib.embed import vision
from mtlib.embed.layers import Layer
from mtlib.embed.store import unit_rows
from mtlib.run.artifacts import ArtifactError
from mtlib.scenes import BUNDLED, clip_path

TIMM, ALEXNET = "timm/", "alexnet:"
ARRAYS = (".npz", ".npy")  # of other libraries
AT_A_TIME, TEXTS = 256, 64  # images, texts
CLEANING = {"clean", "strip_sep_token", "language"}  # what a model's config may tell open_clip's own tokenizer
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


class EncoderError(RuntimeError):
    """An encoder that cannot be loaded; the message says what to change."""


@dataclass(frozen=True)
class Encoder:
    """A frozen image tower, and where there is one the text tower of the same embedding space.

    name, pretrained: as given to `load`; d_out: width of the embeddings; fingerprint: of the weights and the preprocessing;
    preprocess: PIL RGB image -> (3, H, W) float32 tensor (thread-safe); tokenizer: None for a model without a text tower;
    device: torch device of the model; shape: of what preprocess gives; layer: whose activations are x, or None for the final embedding.
    """

    name: str
    pretrained: str
    model: torch.nn.Module
    preprocess: object
    tokenizer: object
    device: torch.device
    d_out: int
    fingerprint: str
    shape: tuple[int, ...] = ()
    precision: str = "float32"
    layer: Layer | None = None
    layer_name: str = ""

    @staticmethod
    def load(
        name: str,
        pretrained: str = "",
        device: str = "auto",
        *,
        precision: str = "float32",
        layer: str = "",
        tokens: str = "cls",
    ) -> Encoder:
        """Load an encoder, ready for inference.

        Args:
            name:       "demo" (bundled), "local-dir:<folder>", "hf-hub:<repository>", any open_clip model name, or, for images
                only, "timm/<name>", or "alexnet:<folder>" of a model that was trained here, "alexnet:<file>" of a published one.
            pretrained: for an open_clip name: one of its tags (downloaded where there is a network), or the path of a
                checkpoint (safetensors, or a torch file, which is read without executing anything in it). For a timm name:
                "" for its published weights, or the path of a checkpoint.
            device:     "auto" takes a GPU when there is one.
            precision:  "float32", or "bf16": the weights are cast, about twice as fast on many processors.
            layer:      "": the final embedding; a block number ("11", "-1") or a module's path: its activations.
            tokens:     of the layer: "cls", "patches", "all" or "mean" (over the patches).
        Raises: EncoderError when the name or tag is unknown or the weights cannot be had; LayerError when there is no such
            layer or token; ValueError for an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision = {precision!r} is not one of {', '.join(PRECISIONS)}")
        where = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        model, preprocess, tokenizer, preprocessing = _load(name, pretrained, where)
        model = model.to(PRECISIONS[precision])
        pixels = preprocess(Image.new("RGB", (8, 8)))[None]
        fingerprint, shape = _fingerprint(model, preprocessing), tuple(pixels.shape[1:])
        whole = Encoder(name, pretrained, model, preprocess, tokenizer, where, 0, fingerprint, shape, precision)
        whole = replace(whole, d_out=whole.encode_tensors(pixels).shape[1])
        if not layer:
            return whole
        return replace(whole, layer=whole.find_layer(layer, tokens), layer_name=layer)

    @staticmethod
    def of(facts: dict, device: str = "auto") -> Encoder:
        """The encoder that made an artifact's embeddings (facts of 01_embed), checked by its fingerprint.

        Raises: ArtifactError when the weights are others; EncoderError when there is none (embeddings given as arrays).
        """
        made_by = facts["encoder"]
        if not made_by["name"]:
            raise EncoderError("the embeddings were given as arrays, so their encoder is not known")
        options = {key: made_by[key] for key in ("precision", "layer", "tokens") if key in made_by}
        encoder = Encoder.load(made_by["name"], made_by["pretrained"], device, **options)
        if encoder.fingerprint != made_by["fingerprint"]:
            raise ArtifactError(
                f"embeddings of another encoder: {made_by['name']!r} has fingerprint {encoder.fingerprint[:12]}, the embeddings "
                f"were made with {made_by['fingerprint'][:12]}; run 01_embed again"
            )
        return encoder

    @property
    def record(self) -> dict:
        """What 01_embed's facts keep of the encoder: all that `load` needs, and the fingerprint."""
        own = {name: getattr(self, name) for name in ("name", "pretrained", "fingerprint", "precision")}
        return own | {"layer": self.layer_name, "tokens": self.layer.tokens if self.layer else "cls"}

    @property
    def tower(self) -> torch.nn.Module:
        """The image tower, in which layers are named."""
        return getattr(self.model, "visual", self.model)

    @property
    def place(self) -> Layer:
        """Where x is read, and where a coder's reconstruction can be put: the layer, else the tower's own output."""
        return self.layer or Layer.output(self.tower, self.d_out)

    def find_layer(self, layer: str, tokens: str) -> Layer:
        """A layer of the image tower. Args and Raises: as `Layer.find`."""
        pixels = torch.zeros(1, *self.shape)
        return Layer.find(self.tower, lambda n: self.encode_tensors(pixels.expand(n, -1, -1, -1)), layer, tokens)

    @property
    def d_in(self) -> int:
        """Width of x: of the layer's activations, else of the embedding."""
        return self.layer.width if self.layer else self.d_out

    def encode_tensors(self, pixels: torch.Tensor) -> np.ndarray:
        """Embeddings of preprocessed images: (B, 3, H, W) float32 -> (B, D) float32, not normalised."""
        embed = getattr(self.model, "encode_image", self.model)
        how = {"dtype": PRECISIONS[self.precision], "memory_format": torch.channels_last}  # quicker to convolve
        with torch.inference_mode():
            return embed(pixels.to(self.device, non_blocking=True, **how)).float().cpu().numpy()

    def encode_arrays(self, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        """What is stored of preprocessed images (B, 3, H, W), float32.

        Returns: {"x": (B, D) embeddings}; with a layer {"x": (B, T, D) its tokens, "embedding": (B, d_out)}, in one pass.
        """
        if self.layer is None:
            return {"x": self.encode_tensors(pixels)}
        with self.layer.recorded() as seen:
            embedding = self.encode_tensors(pixels)
        return {"x": seen[0].float().cpu().numpy(), "embedding": embedding}

    def encode_images(self, images: list[Image.Image]) -> np.ndarray:
        """Embeddings of RGB images as `load_image` gives them: (B, D) float32, not normalised."""
        return np.concatenate([np.zeros((0, self.d_out), np.float32), *map(self.encode_tensors, self._pixels(images))])

    def encode_layer(self, images: list[Image.Image]) -> np.ndarray:
        """Tokens of the layer for RGB images as `load_image` gives them: (B, T, D) float32."""
        return np.concatenate([self.encode_arrays(pixels)["x"] for pixels in self._pixels(images)])

    def _pixels(self, images: list[Image.Image]) -> Iterator[torch.Tensor]:
        for i in range(0, len(images), AT_A_TIME):
            yield torch.stack([self.preprocess(image) for image in images[i : i + AT_A_TIME]])

    def encode_texts(self, texts: list[str], templates: tuple[str, ...] = ("{}",)) -> np.ndarray:
        """Text embeddings, (B, D) float32: the mean over the templates of unit vectors, of norm 1 again.

        Raises: EncoderError when the model has no text tower.
        """
        if self.tokenizer is None:
            raise EncoderError(f"encoder = {self.name!r} sees images only; texts need an open_clip model")
        total = np.zeros((len(texts), self.d_out), np.float32)
        steps = [(template, i) for template in templates for i in range(0, len(texts), TEXTS)]
        with torch.inference_mode():
            for template, i in tqdm(steps, "phrases", delay=5, mininterval=5.0, file=sys.stdout):
                filled = self.tokenizer([template.format(text) for text in texts[i : i + TEXTS]])
                unit = self.model.encode_text(filled.to(self.device), normalize=True)
                total[i : i + TEXTS] += unit.float().cpu().numpy()
        return unit_rows(total, np.float32)


def _fingerprint(model: torch.nn.Module, preprocess: dict) -> str:
    """sha256 over the names and bytes of the weights, and over the preprocessing."""
    digest = hashlib.sha256(json.dumps(preprocess, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _load(name: str, pretrained: str, device: torch.device) -> tuple:
    """(model in float32, frozen, every weight finite; PIL image -> tensor; tokenizer or None; facts of the preprocessing)."""
    read = _load_timm if name.startswith(TIMM) else _load_alexnet if name.startswith(ALEXNET) else _load_open_clip
    try:
        model, *rest = read(name, pretrained)
    except EncoderError:
        raise
    except Exception as e:  # network, file, pickle and shape errors of several libraries; all of them mean: no weights
        said = " ".join(str(e).split())[:300]
        raise EncoderError(
            f"encoder = {name!r}, pretrained = {pretrained!r}: the weights cannot be loaded ({type(e).__name__}: {said}). "
            "Without a network give the path of a local checkpoint as pretrained, or encoder = 'demo'."
        ) from e
    if bad := next((k for k, v in model.state_dict().items() if not torch.isfinite(v).all()), None):
        raise EncoderError(f"encoder = {name!r}: weight {bad} holds NaN or infinity")
    return model.to(device).eval().requires_grad_(False), *rest


def _load_open_clip(name: str, pretrained: str) -> tuple:
    import open_clip

    full, options = _checked_name(open_clip, name, pretrained)
    config = open_clip.get_model_config(full) or {}
    given = set((config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}) - CLEANING
    if given or '"trust_remote_code"' in json.dumps(config):
        said = f"its open_clip_config.json gives other libraries {', '.join(sorted(given)) or 'trust_remote_code'}"
        raise EncoderError(f"encoder = {name!r}: {said}, which could open files and run code; remove that")
    model, _, preprocess = open_clip.create_model_and_transforms(
        full, pretrained=pretrained or None, precision="fp32", require_pretrained=True, **options
    )
    return model, preprocess, open_clip.get_tokenizer(full), open_clip.get_model_preprocess_cfg(model)


def _image_size(open_clip, name: str, file: str) -> dict:
    """The option for the size of images that a vision transformer's checkpoint was made for, where it is not its name's."""
    state, size = open_clip.factory.load_state_dict(file), open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    for places, patch in ("positional_embedding", "conv1"), ("trunk.pos_embed", "trunk.patch_embed.proj"):
        if {f"visual.{places}", f"visual.{patch}.weight"} <= state.keys():
            side = math.isqrt(state[f"visual.{places}"].shape[-2]) * state[f"visual.{patch}.weight"].shape[-1]
            return {} if side == size else {"force_image_size": side}
    return {}


def _load_timm(name: str, pretrained: str) -> tuple:
    """A timm model without its classifier, also of a checkpoint, whose size of images it takes: its pooled features are the embedding."""
    import timm

    short = name.removeprefix(TIMM)
    if not short.startswith("hf-hub:") and not timm.is_model(short):
        near = [TIMM + n for n in difflib.get_close_matches(short, timm.list_models(), n=3, cutoff=0.4)]
        raise EncoderError(f"encoder = {name!r} is no timm model; nearest: {', '.join(near) or 'none'}")
    if pretrained and not Path(pretrained).is_file():
        raise EncoderError(f"pretrained = {pretrained!r} is no file; leave it empty for timm's published weights")
    model, size, state = timm.create_model(short, pretrained=not pretrained), {}, {}
    if pretrained.endswith(ARRAYS):
        timm.models.load_checkpoint(model, pretrained)
    elif pretrained:
        state = timm.models.load_state_dict(pretrained, weights_only=True)
        own, theirs = (part["pos_embed"].shape if "pos_embed" in part else () for part in (model.state_dict(), state))
        if own and theirs and own[1] != theirs[1]:
            size["img_size"] = model.pretrained_cfg["input_size"][-1] * math.isqrt(theirs[1]) // math.isqrt(own[1])
        model = timm.create_model(short, **size) if size else model
    model.reset_classifier(0)
    if state:
        head = model.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head))
        model.load_state_dict({name: value for name, value in state.items() if not name.startswith(heads)})
    config = timm.data.resolve_data_config(size, model=model)
    return model, timm.data.create_transform(**config, is_training=False), None, config


def _load_alexnet(name: str, pretrained: str) -> tuple:
    model = vision.load_alexnet(Path(name.removeprefix(ALEXNET)))
    side, shorter = model.config.side, model.config.shorter
    preprocessing = {"side": side, "mean": vision.MEAN, "std": vision.STD} | ({"shorter": shorter} if shorter else {})
    return model, lambda image: torch.tensor(vision.square(image, side, shorter)).float(), None, preprocessing


def _checked_name(open_clip, name: str, pretrained: str) -> tuple[str, dict]:
    """(name for open_clip, options), after checking what can be checked without a network."""
    if name == BUNDLED:
        return f"local-dir:{clip_path()}", {}
    if name.startswith(("local-dir:", "hf-hub:")):
        return name, {}
    known, cleaned = open_clip.list_models(), name.replace("/", "-")
    if cleaned not in known:
        near = difflib.get_close_matches(cleaned, known, n=3, cutoff=0.4)
        raise EncoderError(f"encoder = {name!r} is no open_clip model; nearest: {', '.join(near) or 'none'}")
    tags = open_clip.list_pretrained_tags_by_model(cleaned)
    if not pretrained:
        raise EncoderError(f"encoder = {name!r} needs pretrained: one of {tags}, or the path of a checkpoint")
    if pretrained not in tags:
        if not Path(pretrained).is_file():
            raise EncoderError(f"pretrained = {pretrained!r} is no file and no tag of {name}; its tags: {tags}")
        if f"{cleaned}-quickgelu" in known:
            quick = f"{name}-quickgelu"
            print(f"{pretrained}: run with GELU, since a file cannot say; weights of OpenAI's need encoder = {quick!r}")
        return name, {} if pretrained.endswith(ARRAYS) else _image_size(open_clip, cleaned, pretrained)
    # some tags (OpenAI's) were trained with another activation than the plain name says; open_clip only warns
    config, tag = open_clip.get_model_config(cleaned), open_clip.get_pretrained_cfg(cleaned, pretrained)
    quick = bool(tag.get("quick_gelu", False))
    if config.get("quick_gelu", False) and not quick:
        plain = name.replace("-quickgelu", "")
        raise EncoderError(f"pretrained = {pretrained!r} was not trained with QuickGELU; use encoder = {plain!r}")
    return name, {"force_quick_gelu": True} if quick else {}

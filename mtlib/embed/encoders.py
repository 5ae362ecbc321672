"""One encoder for images and texts: any open_clip model, and the bundled one through the same call."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from mtlib.run.artifacts import ArtifactError

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image showing {}")


class EncoderError(RuntimeError):
    """An encoder that cannot be loaded; the message says what to change."""


@dataclass(frozen=True)
class Encoder:
    """A frozen image and text tower with one embedding space.

    name, pretrained: as given to `load`; d_out: width of the embeddings; fingerprint: of the weights and the preprocessing;
    preprocess: PIL RGB image -> (3, H, W) float32 tensor (thread-safe); device: torch device of the model.
    """

    name: str
    pretrained: str
    model: torch.nn.Module
    preprocess: object
    tokenizer: object
    device: torch.device
    d_out: int
    fingerprint: str

    @staticmethod
    def load(name: str, pretrained: str = "", device: str = "auto") -> Encoder:
        """Load an encoder in float32, ready for inference.

        Args:
            name:       "demo" (bundled), "local-dir:<folder>", "hf-hub:<repository>" or any open_clip model name.
            pretrained: for an open_clip name: one of its tags (downloaded where there is a network), or the path of a
                checkpoint (safetensors, or a torch file, which is read without executing anything in it).
            device:     "auto" takes a GPU when there is one.
        Raises: EncoderError when the name or tag is unknown or the weights cannot be had.
        """
        where = _device(device)
        full, options = _checked_name(name, pretrained)
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                full, pretrained=pretrained or None, device=where, precision="fp32", require_pretrained=True, **options
            )
            tokenizer = open_clip.get_tokenizer(full)
        except (
            Exception
        ) as e:  # network, file, pickle and shape errors of several libraries; all of them mean: no weights
            first = str(e).strip().splitlines()[0][:300] if str(e).strip() else ""
            raise EncoderError(
                f"encoder = {name!r}, pretrained = {pretrained!r}: the weights cannot be loaded ({type(e).__name__}: {first}). "
                "Without a network give the path of a local checkpoint as pretrained, or encoder = 'demo'."
            ) from e
        model.eval().requires_grad_(False)
        if bad := next((k for k, v in model.state_dict().items() if not torch.isfinite(v).all()), None):
            raise EncoderError(f"encoder = {name!r}: weight {bad} holds NaN or infinity")
        config = open_clip.get_model_preprocess_cfg(model)
        d_out = _text(model, tokenizer, ["x"], where).shape[1]
        return Encoder(name, pretrained, model, preprocess, tokenizer, where, d_out, _fingerprint(model, config))

    @staticmethod
    def of(facts: dict, device: str = "auto") -> Encoder:
        """The encoder that made an artifact's embeddings (facts of 01_embed), checked by its fingerprint.

        Raises: ArtifactError when the weights are others; EncoderError when there is none (embeddings given as arrays).
        """
        made_by = facts["encoder"]
        if not made_by["name"]:
            raise EncoderError("the embeddings were given as arrays, so their encoder is not known")
        encoder = Encoder.load(made_by["name"], made_by["pretrained"], device)
        if encoder.fingerprint != made_by["fingerprint"]:
            raise ArtifactError(
                f"embeddings of another encoder: {made_by['name']!r} has fingerprint {encoder.fingerprint[:12]}, the embeddings "
                f"were made with {made_by['fingerprint'][:12]}; run 01_embed again"
            )
        return encoder

    @property
    def record(self) -> dict:
        """What 01_embed's facts keep of the encoder."""
        return {"name": self.name, "pretrained": self.pretrained, "fingerprint": self.fingerprint}

    def encode_tensors(self, pixels: torch.Tensor) -> np.ndarray:
        """Embeddings of preprocessed images: (B, 3, H, W) float32 -> (B, D) float32, not normalised."""
        with torch.inference_mode():
            return self.model.encode_image(pixels.to(self.device, non_blocking=True)).float().cpu().numpy()

    def encode_images(self, images: list[Image.Image], batch_size: int = 256) -> np.ndarray:
        """Embeddings of RGB images as `load_image` gives them: (B, D) float32, not normalised."""
        parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        found = [self.encode_tensors(torch.stack([self.preprocess(image) for image in part])) for part in parts]
        return np.concatenate(found) if found else np.zeros((0, self.d_out), np.float32)

    def encode_texts(self, texts: list[str], templates: tuple[str, ...] = ("{}",), batch_size: int = 256) -> np.ndarray:
        """Text embeddings, (B, D) float32: the mean over the templates of unit vectors, of norm 1 again."""
        total = np.zeros((len(texts), self.d_out), np.float32)
        for template in templates:
            filled = [template.format(text) for text in texts]
            for i in range(0, len(filled), batch_size):
                total[i : i + batch_size] += _text(self.model, self.tokenizer, filled[i : i + batch_size], self.device)
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _checked_name(name: str, pretrained: str) -> tuple[str, dict]:
    """(name for open_clip, options), after checking what can be checked without a network."""
    if name == "demo":
        from mtlib.scenes import clip_path

        return f"local-dir:{clip_path()}", {}
    if name.startswith(("local-dir:", "hf-hub:")):
        return name, {}
    known = open_clip.list_models()
    cleaned = name.replace("/", "-")
    if cleaned not in known:
        near = difflib.get_close_matches(cleaned, known, n=3, cutoff=0.4)
        raise EncoderError(f"encoder = {name!r} is no open_clip model; nearest: {', '.join(near) or 'none'}")
    tags = open_clip.list_pretrained_tags_by_model(cleaned)
    if not pretrained:
        raise EncoderError(f"encoder = {name!r} needs pretrained: one of {tags}, or the path of a checkpoint")
    if pretrained not in tags:
        if not Path(pretrained).is_file():
            raise EncoderError(f"pretrained = {pretrained!r} is no file and no tag of {name}; its tags: {tags}")
        return name, {}
    # some tags (OpenAI's) were trained with another activation than the plain model name says; open_clip only warns
    config, tag = open_clip.get_model_config(cleaned), open_clip.get_pretrained_cfg(cleaned, pretrained)
    quick = bool(tag.get("quick_gelu", False))
    if config.get("quick_gelu", False) and not quick:
        raise EncoderError(
            f"pretrained = {pretrained!r} was not trained with QuickGELU; use encoder = {name.replace('-quickgelu', '')!r}"
        )
    return name, {"force_quick_gelu": True} if quick else {}


def _text(model: torch.nn.Module, tokenizer, texts: list[str], device: torch.device) -> np.ndarray:
    with torch.inference_mode():
        return model.encode_text(tokenizer(texts).to(device), normalize=True).float().cpu().numpy()


def _fingerprint(model: torch.nn.Module, preprocess: dict) -> str:
    """sha256 over the names and bytes of the weights, and over the preprocessing."""
    digest = hashlib.sha256(json.dumps(preprocess, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

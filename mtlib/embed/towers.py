"""Where the weights come from: open_clip, timm, or the bundled model; checked before they are used."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm
import torch

TIMM = "timm/"


class EncoderError(RuntimeError):
    """An encoder that cannot be loaded; the message says what to change."""


@dataclass(frozen=True)
class Towers:
    """A loaded model: preprocess turns a PIL image into a tensor as `preprocessing` says; tokenizer is None without texts."""

    model: torch.nn.Module
    preprocess: object
    tokenizer: object
    preprocessing: dict


def load(name: str, pretrained: str, device: torch.device) -> Towers:
    """Load a model in float32, frozen, every weight finite. Args and raises: as `Encoder.load`."""
    read = _load_timm if name.startswith(TIMM) else _load_open_clip
    try:
        found = read(name, pretrained, device)
    except EncoderError:
        raise
    except Exception as e:  # network, file, pickle and shape errors of several libraries; all of them mean: no weights
        first = str(e).strip().splitlines()[0][:300] if str(e).strip() else ""
        raise EncoderError(
            f"encoder = {name!r}, pretrained = {pretrained!r}: the weights cannot be loaded ({type(e).__name__}: {first}). "
            "Without a network give the path of a local checkpoint as pretrained, or encoder = 'demo'."
        ) from e
    found.model.eval().requires_grad_(False)
    if bad := next((k for k, v in found.model.state_dict().items() if not torch.isfinite(v).all()), None):
        raise EncoderError(f"encoder = {name!r}: weight {bad} holds NaN or infinity")
    return found


def _load_open_clip(name: str, pretrained: str, device: torch.device) -> Towers:
    full, options = _checked_name(name, pretrained)
    model, _, preprocess = open_clip.create_model_and_transforms(
        full, pretrained=pretrained or None, device=device, precision="fp32", require_pretrained=True, **options
    )
    tokenizer = open_clip.get_tokenizer(full)
    return Towers(model, preprocess, tokenizer, open_clip.get_model_preprocess_cfg(model))


def _load_timm(name: str, pretrained: str, device: torch.device) -> Towers:
    """A timm model without its classifier: its pooled features are the embedding."""
    short = name.removeprefix(TIMM)
    if not short.startswith("hf-hub:") and not timm.is_model(short):
        near = difflib.get_close_matches(short, timm.list_models(), n=3, cutoff=0.4)
        raise EncoderError(
            f"encoder = {name!r} is no timm model; nearest: {', '.join(TIMM + n for n in near) or 'none'}"
        )
    if pretrained and not Path(pretrained).is_file():
        raise EncoderError(f"pretrained = {pretrained!r} is no file; leave it empty for timm's published weights")
    model = timm.create_model(short, pretrained=not pretrained)
    if pretrained:
        timm.models.load_checkpoint(model, pretrained, weights_only=True)
    model.reset_classifier(0)
    config = timm.data.resolve_data_config({}, model=model)
    return Towers(model.to(device), timm.data.create_transform(**config, is_training=False), None, config)


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

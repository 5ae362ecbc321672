"""Weights on disk for this folder's models: weights.safetensors beside config.json, checked when read; never pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mtlib.run.artifacts import atomic, write_json

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors atomically in safetensors format (contiguous copies on the CPU)."""
    with atomic(path) as tmp:  # bytes, because save_file makes files that only their owner can read
        tmp.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def save_model(folder: Path, model: nn.Module, config, **extra) -> None:
    """Write weights.safetensors and config.json (the config's fields; `extra` values stand beside them)."""
    save_tensors(Path(folder) / WEIGHTS, model.state_dict())
    write_json(Path(folder) / CONFIG, asdict(config) | extra)


def read_config(folder: Path, config_class):
    """The config dataclass saved in `folder`; JSON lists become tuples, values beside the fields are ignored."""
    path = Path(folder) / CONFIG
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not valid JSON ({e})") from e
    known = {f.name for f in fields(config_class)}
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in known})


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy weights.safetensors of `folder` into `model`.

    Raises: ValueError naming the file and the tensor when a tensor is missing, unexpected, of another shape (both
        shapes are given) or holds NaN or infinity.
    """
    path = Path(folder) / WEIGHTS
    try:
        saved = load_file(path)
    except SafetensorError as e:
        raise ValueError(f"{path}: not a valid safetensors file ({e})") from e
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ saved.keys()):
        raise ValueError(f"{path}: tensor {name!r} is {'missing' if name in expected else 'not part of this model'}")
    for name, value in saved.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"{path}: {name} has shape {shapes}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values")
    model.load_state_dict(saved)


def local_folder(folder_or_repo: str | Path, revision: str | None = None, **hub) -> Path:
    """The folder itself, or a download of the two files of a Hugging Face hub repository "owner/name".

    Raises: FileNotFoundError when it is neither.
    """
    folder = Path(folder_or_repo)
    if folder.is_dir():
        return folder
    if isinstance(folder_or_repo, Path) or folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] == "..":
        raise FileNotFoundError(f"{folder}: no such folder, and not a hub repository owner/name")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(folder_or_repo), revision=revision, allow_patterns=[WEIGHTS, CONFIG], **hub))

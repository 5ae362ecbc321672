"""A model as two files, weights.safetensors and config.json, in a folder or in a Hugging Face hub repository.

Both are checked when they are read; never pickle.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mtlib.run.artifacts import atomic, json_object, write_json
from mtlib.run.params import Settings

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors atomically in safetensors format (contiguous copies on the CPU)."""
    with atomic(path) as tmp:  # bytes, because save_file makes files that only their owner can read
        tmp.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def tensors_hash(tensors: dict[str, torch.Tensor]) -> str:
    """Hex sha256 of tensors: names, types, shapes and bytes, whatever their order."""
    whole = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()


def save_model(folder: Path, model: nn.Module, config, **extra) -> None:
    """Write weights.safetensors and config.json (the settings' fields; `extra` values stand beside them)."""
    save_tensors(Path(folder) / WEIGHTS, model.state_dict())
    write_json(Path(folder) / CONFIG, config.model_dump() | extra)


def read_config(folder: Path, config_class: type[Settings]) -> Settings:
    """The settings saved in `folder`; values beside the fields are ignored."""
    saved = json_object(Path(folder) / CONFIG)
    return config_class(**{k: v for k, v in saved.items() if k in config_class.model_fields})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What a safetensors file holds. Raises: FileNotFoundError, ValueError naming the file."""
    try:
        return load_file(path)
    except SafetensorError as e:
        raise ValueError(f"{path}: not a valid safetensors file ({e})") from e


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy weights.safetensors of `folder` into `model`. Raises: ValueError as `fill`."""
    path = Path(folder) / WEIGHTS
    fill(model, read_tensors(path), str(path))


def fill(model: nn.Module, tensors: dict[str, torch.Tensor], file: str) -> None:
    """Copy tensors read from `file` into `model`.

    Raises: ValueError naming the file and the tensor when one is missing, unexpected, of another shape (both shapes are
        given) or holds NaN or infinity.
    """
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"{file}: tensor {name!r} is {'missing' if name in expected else 'not part of this model'}")
    for name, value in tensors.items():
        shape = tuple(expected[name].shape)
        if value.shape != shape:
            raise ValueError(f"{file}: {name} has shape {tuple(value.shape)}, expected {shape}")
        if value.layout != torch.strided or value.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{file}: {name} is {value.dtype}, {value.layout}; expected dense {expected[name].dtype}")
        if not torch.isfinite(value.to(expected[name].dtype)).all():  # a large float64 is infinite as float32
            raise ValueError(f"{file}: {name} holds NaN or infinite values")
    model.load_state_dict(tensors)


class HubModel(ModelHubMixin):
    """save_pretrained, from_pretrained and push_to_hub for a module made from `config`, settings of `config_class`.

    The hub library's mixin gives `push_to_hub(repo_id, ...)`; what is written and read, and its checks, are ours.
    """

    config_class: type[Settings]

    def save_pretrained(
        self, folder: str | Path, *, push_to_hub=False, repo_id=None, config=None, model_card_kwargs=None, **extra
    ) -> None:
        """Write weights.safetensors and config.json: the settings, with `extra` JSON values beside them.

        Args: push_to_hub: also push them to `repo_id` ("owner/name"; default: the folder's name). config and
            model_card_kwargs are what the mixin gives when it pushes; the settings are written anyway.
        """
        self.recorded = getattr(self, "recorded", {}) | extra
        save_model(Path(folder), self, self.config, **self.recorded)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(folder).name)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **hub):
        """A model in eval mode from a folder, or from a hub repository "owner/name" with the same two files.

        Args: hub: revision, token, cache_dir, local_files_only or force_download.
        Raises: FileNotFoundError, or ValueError when the weights do not fit the settings or are not finite.
        """
        folder = Path(folder_or_repo)
        if not folder.is_dir():
            if isinstance(folder_or_repo, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", folder_or_repo):
                raise FileNotFoundError(f"{folder}: no such folder, and not a hub repository owner/name")
            folder = Path(snapshot_download(folder_or_repo, allow_patterns=[WEIGHTS, CONFIG], **hub))
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                others = "published.open_coder reads those of other systems and libraries"
                raise FileNotFoundError(
                    f"{folder_or_repo}: no {name}, so no coder that save_pretrained wrote; {others}"
                )
        model = cls(read_config(folder, cls.config_class))
        load_weights(folder, model)
        saved = json_object(folder / CONFIG)
        model.recorded = {k: v for k, v in saved.items() if k not in cls.config_class.model_fields}
        return model.eval()

"""Exact checkpoints of a fit: model, best weights, optimiser, running sums and history in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mtlib.coders.files import save_tensors

NAME = "state.safetensors"


def save(folder: Path, coder, optimiser, sums: dict[str, Tensor], best: dict[str, Tensor] | None, record: dict) -> None:
    """Write checkpoint/state.safetensors atomically.

    Args:
        sums:   running tensors of the loop. best: state dict of the best weights so far.
        record: JSON values (step, fingerprint, history, best validation); floats survive exactly.
    """
    tensors = {f"model.{k}": v for k, v in coder.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    tensors |= {f"sums.{k}": v for k, v in sums.items()}
    tensors |= {f"optimiser.{k}": v for k, v in optimiser.state.items()}
    tensors["rng"] = torch.get_rng_state()
    save_tensors(folder / NAME, tensors, {"record": json.dumps(record)})


def load(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """Tensors by name and the record of a checkpoint, or None when there is none.

    Raises: ValueError naming the file when it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["record"])  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: damaged checkpoint ({e}); delete {folder} and train again") from e


def part(tensors: dict[str, Tensor], name: str, device: torch.device) -> dict[str, Tensor]:
    """The tensors under `name.`, on the device."""
    return {k.removeprefix(name + "."): v.to(device) for k, v in tensors.items() if k.startswith(name + ".")}


def restore(tensors: dict[str, Tensor], coder, optimiser, device: torch.device) -> None:
    """Put model, optimiser and random state back in place."""
    coder.load_state_dict(part(tensors, "model", device))
    optimiser.load(part(tensors, "optimiser", device))
    torch.set_rng_state(tensors["rng"])

"""A list of methods, as a params file gives it, into checked settings. Torch-free, so that a run checks it first.

The pipeline calls `check_parameters` before any notebook starts, because 03_train.py names it at its parameters cell.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields

from mtlib.coders.checked import SettingError
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.presets import PRESETS
from mtlib.learn.train_config import TrainConfig

_CODER = {f.name: f.type for f in fields(SparseCoderConfig) if f.name not in ("d_in", "d_out")} | {"k": "int"}
_TRAIN_NAMES = ("lr", "steps", "batch", "weight_decay", "schedule", "warmup")
_TRAIN = {f.name: f.type for f in fields(TrainConfig) if f.name in _TRAIN_NAMES} | {"l0": "int"}
_KINDS = {"int": (int, "a whole number"), "float": ((int, float), "a number"), "str": (str, "text")}
_KINDS |= {"bool": (bool, "true or false")}
TRAIN_KEYS = ("steps", "batch", "lr", "val_every", "precision")  # parameters for every method, of training
COMMON_KEYS = ("n_latents", "centre", "scale", "target_centre", "target_scale")  # and of the coder


def check_methods(methods: Sequence[dict], seeds: Sequence[int]) -> None:
    """Check the names and types of the parameters `methods` and `seeds`.

    A method has `name` (its own), `preset`, and any setting of SparseCoderConfig, `k`, or lr, steps, batch,
    weight_decay, schedule, warmup and l0 (latents per image that training aims at).

    Raises: ValueError saying which method and key, and the nearest key that exists.
    """
    known = _CODER | _TRAIN | {"name": "str", "preset": "str"}
    for i, method in enumerate(methods):
        for key in ("name", "preset"):
            if not method.get(key):
                raise ValueError(f"methods[{i}] has no {key!r}: {method}")
        for key, allowed in [("preset", PRESETS)] + [(k, known) for k in method]:
            word = method["preset"] if allowed is PRESETS else key
            if word not in allowed:
                near = difflib.get_close_matches(str(word), allowed, 1)
                raise ValueError(f"methods[{i}].{word}: unknown" + (f"; did you mean {near[0]!r}?" if near else ""))
        for key, value in method.items():
            kind, expected = _KINDS.get(known[key], (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool and kind is not object):
                raise ValueError(f"methods[{i}].{key} = {value!r}: must be {expected}")
    names = [method["name"] for method in methods]
    if len(set(names)) < len(names) or not all(n.replace("-", "").replace("_", "").isalnum() for n in names):
        raise ValueError(f"methods: names must differ and hold only letters, digits, - and _: {names}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds = {list(seeds)}: give at least one whole number >= 0, each once")


def settings(
    method: dict, d_in: int, d_out: int, train: dict, common: dict | None = None
) -> tuple[SparseCoderConfig, TrainConfig]:
    """Coder and training settings of a method.

    Args:
        method: as in `check_methods`. d_in, d_out: widths of x and y.
        train:  TrainConfig fields for every method; 0 or "" leaves the preset's. common: coder settings for every
            method (a method's own stand above them).
    Raises: ValueError naming the method and what is wrong with its settings.
    """
    try:
        return _settings(method, d_in, d_out, train, common or {})
    except (ValueError, TypeError) as e:
        raise ValueError(f"method {method['name']!r}: {e}") from e


def _settings(method: dict, d_in: int, d_out: int, train: dict, common: dict) -> tuple[SparseCoderConfig, TrainConfig]:
    own = {k: v for k, v in method.items() if k in _CODER}
    shared = {k: v for k, v in common.items() if v not in ("", 0)}
    config = SparseCoderConfig.preset(method["preset"], d_in, d_out, **(shared | own))
    chosen = {k: v for k, v in train.items() if v not in ("", 0)}
    chosen |= {k: v for k, v in method.items() if k in _TRAIN and k != "l0"}
    train_config = TrainConfig.preset(method["preset"], **chosen, l0_target=method.get("l0", 0))
    return (config.with_l0(method["l0"]) if method.get("l0") else config), train_config


def check_parameters(values: dict) -> None:
    """Check what can be known of notebook 03's parameters before there are embeddings (their width is not needed).

    Args: values: the notebook's parameters.
    Raises: ValueError in the words of a params file: `methods[2].k = 5000 is larger than n_latents = 2048`.
    """
    check_methods(values["methods"], values["seeds"])
    for name in ("fits_at_once", "processes"):
        if values.get(name, 1) < 1:
            raise ValueError(f"{name} = {values[name]}: must be >= 1")
    train = {k: values[k] for k in TRAIN_KEYS if k in values}
    common = {k: values[k] for k in COMMON_KEYS if k in values}
    for key in ("steps", "batch", "n_latents", "lr", "val_every"):
        if values.get(key, 0) < 0:
            raise ValueError(f"{key} = {values[key]}: must be > 0, or 0 for the published value")
    for i, method in enumerate(values["methods"]):
        for key in ("n_latents", "k", "l0"):
            given = method.get(key, 0)
            if isinstance(given, (int, float)) and given < 0:
                raise ValueError(f"methods[{i}].{key} = {given}: must be > 0")
        width = method.get("n_latents") or common.get("n_latents") or PRESETS[method["preset"]]["coder"]["n_latents"]
        for key in ("k", "l0"):
            if method.get(key, 0) > width:
                raise ValueError(f"methods[{i}].{key} = {method[key]} is larger than n_latents = {width}")
        try:
            _settings(method, 1, 1, train, common)
        except SettingError as e:
            key = {"ks": "k", "l0_target": "l0"}.get(e.field, e.field)
            own, shared = method.get(key, method.get(e.field)), (train | common).get(key)
            where = f"methods[{i}].{key if key in method else e.field} = {e.value if own is None else own!r}"
            if own is None and shared is not None:
                where = f"{key} = {shared!r} (methods[{i}])"
            raise ValueError(f"{where}: must be {e.allowed}") from e
        except (ValueError, TypeError) as e:
            raise ValueError(f"methods[{i}]: {e}") from e

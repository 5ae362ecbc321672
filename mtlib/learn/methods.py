"""A list of methods and seeds, as a params file gives it, into trained coders and the table coders.csv."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.learn.batches import Rows
from mtlib.learn.config import SparseCoderConfig
from mtlib.learn.presets import PRESETS
from mtlib.learn.train import fit, logit_scale, read_history, summary
from mtlib.learn.train_config import TrainConfig

_CODER = {f.name for f in fields(SparseCoderConfig)} - {"d_in", "d_out"} | {"k"}
_TRAIN = {"lr", "steps", "batch", "weight_decay", "schedule", "warmup", "l0"}
COLUMNS = ["method", "seed", "preset", "target", "status", "reason", "folder", "n_latents", "l0_target", "l0_val"]
COLUMNS += ["matched", "fvu_val", "dead", "best_step"]


def check_methods(methods: Sequence[dict], seeds: Sequence[int]) -> None:
    """Check the parameters `methods` and `seeds`.

    A method has `name` (its own), `preset`, and any setting of SparseCoderConfig, `k`, or lr, steps, batch,
    weight_decay, schedule, warmup and l0 (latents per image that training aims at).

    Raises: ValueError saying which method and key, and the nearest key that exists.
    """
    for i, method in enumerate(methods):
        for key in ("name", "preset"):
            if not method.get(key):
                raise ValueError(f"methods[{i}] has no {key!r}: {method}")
        for key, allowed in [("preset", set(PRESETS))] + [(k, _CODER | _TRAIN | {"name", "preset"}) for k in method]:
            word = method["preset"] if key == "preset" and allowed == set(PRESETS) else key
            if word not in allowed:
                near = difflib.get_close_matches(word, allowed, 1)
                raise ValueError(f"methods[{i}].{word}: unknown" + (f"; did you mean {near[0]!r}?" if near else ""))
    names = [method["name"] for method in methods]
    if len(set(names)) < len(names) or not all(n.replace("-", "").replace("_", "").isalnum() for n in names):
        raise ValueError(f"methods: names must differ and hold only letters, digits, - and _: {names}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds = {list(seeds)}: give at least one, each once")


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
    own = {k: v for k, v in method.items() if k in _CODER}
    shared = {k: v for k, v in (common or {}).items() if v not in ("", 0)}
    try:
        config = SparseCoderConfig.preset(method["preset"], d_in, d_out, **(shared | own))
        chosen = {k: v for k, v in train.items() if v not in ("", 0)}
        chosen |= {k: v for k, v in method.items() if k in _TRAIN and k != "l0"}
        train_config = TrainConfig.preset(method["preset"], **chosen, l0_target=method.get("l0", 0))
        return (config.with_l0(method["l0"]) if method.get("l0") else config), train_config
    except (ValueError, TypeError) as e:
        raise ValueError(f"method {method['name']!r}: {e}") from e


def _y_scale(config: SparseCoderConfig, data, rows: np.ndarray, w_logit: np.ndarray | None) -> np.ndarray | None:
    if config.target_scale != "logit":
        return None
    if w_logit is None:
        raise ValueError("target_scale = 'logit' needs the classifier's w_logit")
    return logit_scale(Rows(data.y, rows, torch.device("cpu")), w_logit)


def train_methods(
    data,
    methods: Sequence[dict],
    seeds: Sequence[int],
    folder: Path,
    train: dict,
    common: dict | None = None,
    w_logit: np.ndarray | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every method with every seed into folder/<method>-s<seed>; finished ones are loaded, not repeated.

    Methods whose target is y become rows with status "skipped" and the reason when there is no y.

    Args: data: store.Data. methods, seeds, train, common: as in `check_methods` and `settings`. w_logit: (O,) of the
        classifier, needed by methods with target_scale "logit".
    Returns: coders (columns COLUMNS, one row per method and seed); history of all fits with method, seed, target.
    """
    check_methods(methods, seeds)
    rows, histories = [], []
    train_rows, val_rows = data.rows("train"), data.rows("val")
    d_out = data.y.shape[1] if data.y is not None else 1
    plans = [(method, *settings(method, data.x.shape[1], d_out, train, common)) for method in methods]
    for method, config, train_config in plans:
        for seed in seeds:
            name = f"{method['name']}-s{seed}"
            row = {"method": method["name"], "seed": seed, "preset": method["preset"], "target": config.target}
            row |= {"n_latents": config.n_latents, "l0_target": train_config.l0_target or config.l0}
            if config.target == "y" and data.y is None:
                reason = "its target is the classifier's hidden layer, and no classifier was trained"
                rows.append(row | {"status": "skipped", "reason": reason, "folder": ""})
                continue
            target = data.y if config.target == "y" else data.x
            seeded = replace(train_config, seed=seed)
            y_scale = _y_scale(config, data, train_rows, w_logit)
            fit(config, data.x, target, train_rows, val_rows, seeded, folder / name, y_scale, label=name)
            done = summary(folder / name)
            row |= {"status": "ok", "reason": "", "folder": f"{folder.name}/{name}", "matched": done["matched"]}
            row |= {"l0_val": done["l0"], "fvu_val": done["fvu"], "dead": done["dead"], "best_step": done["step"]}
            rows.append(row)
            histories.append(read_history(folder / name).assign(method=method["name"], seed=seed, target=config.target))
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()
    coders = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for column in ("l0_target", "best_step"):
        coders[column] = coders[column].astype(np.float64).astype("Int64")
    return coders, history

"""A list of methods and seeds, as a params file gives it, into trained coders and the table coders.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.coders.config import SparseCoderConfig
from mtlib.learn.batches import Rows
from mtlib.learn.jobs import Fit, run_all
from mtlib.learn.plan import check_methods, settings
from mtlib.learn.scaling import logit_scale
from mtlib.learn.train import read_history, summary

COLUMNS = ["method", "seed", "preset", "target", "status", "reason", "folder", "n_latents", "l0_target", "l0_val"]
COLUMNS += ["matched", "fvu_val", "dead", "best_step"]


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
    fits_at_once: int = 1,
    processes: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every method with every seed into folder/<method>-s<seed>; finished ones are loaded, not repeated.

    Methods whose target is y become rows with status "skipped" and the reason when there is no y.

    Args: data: store.Data. methods, seeds, train, common: as in `check_methods` and `settings`. w_logit: (O,) of the
        classifier, needed by methods with target_scale "logit". fits_at_once, processes: as in `jobs.run_all`.
    Returns: coders (columns COLUMNS, one row per method and seed); history of all fits with method, seed, target.
    """
    check_methods(methods, seeds)
    train_rows, val_rows = data.rows("train"), data.rows("val")
    d_out = data.y.shape[1] if data.y is not None else 1
    plans = [(method, *settings(method, data.x.shape[1], d_out, train, common)) for method in methods]
    fits: dict[tuple[str, int], Fit] = {}
    for method, config, train_config in plans:
        if config.target == "y" and data.y is None:
            continue
        target = data.y if config.target == "y" else data.x
        y_scale = _y_scale(config, data, train_rows, w_logit)
        for seed in seeds:
            name, seeded = f"{method['name']}-s{seed}", replace(train_config, seed=seed)
            job = Fit(config, seeded, data.x, target, train_rows, val_rows, folder / name, y_scale, label=name)
            fits[method["name"], seed] = job
    run_all(list(fits.values()), fits_at_once, processes)
    return _tables(plans, seeds, fits)


def _tables(plans, seeds: Sequence[int], fits: dict[tuple[str, int], Fit]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coders and history, from what the finished fits wrote."""
    rows, histories = [], []
    for method, config, train_config in plans:
        for seed in seeds:
            row = {"method": method["name"], "seed": seed, "preset": method["preset"], "target": config.target}
            row |= {"n_latents": config.n_latents, "l0_target": train_config.l0_target or np.nan}
            job = fits.get((method["name"], seed))
            if job is None:
                reason = "its target is the classifier's hidden layer, and no classifier was trained"
                rows.append(row | {"status": "skipped", "reason": reason, "folder": ""})
                continue
            done, where = summary(job.folder), f"{job.folder.parent.name}/{job.folder.name}"
            row |= {"status": "ok", "reason": "", "folder": where, "matched": done["matched"]}
            row |= {"l0_val": done["l0"], "fvu_val": done["fvu"], "dead": done["dead"], "best_step": done["step"]}
            rows.append(row)
            history = read_history(job.folder)
            passes = history["step"] * train_config.batch / len(job.rows_train)
            histories.append(history.assign(method=method["name"], seed=seed, target=config.target, epoch=passes))
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()
    coders = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for column in ("l0_target", "best_step"):
        coders[column] = coders[column].astype(np.float64).astype("Int64")
    return coders, history


def epochs(history: pd.DataFrame) -> pd.DataFrame:
    """A line per epoch and fit: the training loss over it, and what the last validation within it measured.

    Args: history: of `train_methods`; epoch: passes over the train rows so far.
    Returns: frame of method, seed, target, epoch (1 the first), step, loss (mean over the epoch's steps), reconstruction
        (the loss's first term, likewise), fvu, evr (explained variance, 1 - fvu), l0, dead (share) on validation rows.
        Epochs in which nothing was validated are left out.
    """
    by = ["method", "seed", "target", "epoch"]
    frame = history.assign(epoch=np.ceil(history["epoch"] - 1e-9).astype(int))
    train = frame[frame["split"] == "train"].groupby(by, sort=False)[["loss", "reconstruction"]].mean()
    val = frame[frame["split"] == "val"].groupby(by, sort=False)[["step", "fvu", "l0", "dead"]].last()
    table = val.join(train).reset_index()
    table.insert(table.columns.get_loc("fvu") + 1, "evr", 1 - table["fvu"])
    return table[[*by, "step", "loss", "reconstruction", "fvu", "evr", "l0", "dead"]]


def at_their_last_step(coders: pd.DataFrame, history: pd.DataFrame) -> int:
    """How many trained coders had their best validation loss at their last one. Args: what `train_methods` returned."""
    last = history[history["split"] == "val"].groupby(["method", "seed"])["step"].max().rename("last_step")
    done = coders[coders["status"] == "ok"].join(last, on=["method", "seed"])
    return int((done["best_step"] == done["last_step"]).sum())

"""A list of methods and seeds, as a params file gives it, into trained coders and the table coders.csv."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.published import open_coder
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.sources import varies
from mtlib.learn.batches import Rows, device_for, logit_scale, neighbour_means
from mtlib.learn.classifier import labelled
from mtlib.learn.config import Method, MethodsConfig, TrainConfig
from mtlib.learn.jobs import run_all
from mtlib.learn.loop import HISTORY
from mtlib.learn.train import PARTS, read_history, summary
from mtlib.learn.validation import CHUNK, as_json, calibrate, validate
from mtlib.plots import legend, log_ticks, method_styles
from mtlib.run.artifacts import atomic
from mtlib.run.stage import write_csv

COLUMNS = ["method", "seed", "preset", "target", "status", "reason", "folder", "n_latents", "l0_target", "l0_val"]
COLUMNS += ["matched", "fvu_val", "dead", "best_step"]
FIT_COLUMNS = ["step", "split", "loss", "fvu", "l0", "dead", *PARTS, "lr"]  # of a history
HISTORY_COLUMNS = [*FIT_COLUMNS, "method", "seed", "target", "epoch"]


def coder_configs(data, config: MethodsConfig) -> dict[str, SparseCoderConfig]:
    """Settings of every method's coder at the widths of `data`, a store.Data."""
    return {
        method.name: open_given(data, method).config if method.checkpoint else _configs(data, config, method)[0]
        for method in config.methods
    }


def _configs(data, config: MethodsConfig, method: Method) -> tuple[SparseCoderConfig, TrainConfig]:
    return config.configs(method, data.x.shape[1], data.y.shape[1] if data.y is not None else 1)


def open_given(data, method: Method) -> SparseCoder:
    """The coder of a method with a checkpoint.

    Raises: ValueError giving both widths when it does not fit the data, with the encoder or classifier that does; and as
        `published.open_coder`.
    """
    coder = open_coder(method.checkpoint, method.k or 0)
    c, reads = coder.config, coder.recorded.get("checkpoint", {}).get("reads", "")
    if c.d_in != data.x.shape[1]:
        mend = f"; it was trained on {reads}" if reads else ""
        raise ValueError(
            f"{method.name}: {method.checkpoint} reads x of width {c.d_in}, here it is {data.x.shape[1]}{mend}"
        )
    if c.target == "y" and data.y is not None and c.d_out != data.y.shape[1]:
        raise ValueError(
            f"{method.name}: {method.checkpoint} predicts a hidden layer of width {c.d_out}, this run's classifier has "
            f"{data.y.shape[1]}; give the classifier that it was trained with, -p classifier=FILE"
        )
    return coder


def save_given(data, coder: SparseCoder, folder: Path) -> dict:
    """Write a coder that was trained elsewhere as `train.fit` writes one: measured on the validation rows, no steps.

    A BatchTopK coder whose authors let the rows of a batch compete gets a threshold of the same L0 there in its place, so that
    the code of an image never depends on its batch-mates.

    Returns: as `train.summary`, where dead and step are unknown.
    """
    device = device_for("auto")
    x, y = (Rows(a, data.rows("val"), device) for a in (data.x, data.y if coder.config.target == "y" else data.x))
    if not len(x):
        raise ValueError("a checkpoint is measured on the validation rows, and there are none")
    coder = coder.to(device)
    if coder.config.inference == "batch":
        coder.config = coder.config.with_(inference="frozen")
        calibrate(coder, x)
    result = as_json(validate(coder, x, y)) | {"step": None, "dead": None, "matched": True}
    coder.cpu().save_pretrained(folder, result=result)
    with atomic(folder / HISTORY) as tmp:
        pd.DataFrame(columns=FIT_COLUMNS, dtype=float).to_parquet(tmp)
    return result


def train_methods(
    data, config: MethodsConfig, folder: Path, w_logit: np.ndarray | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every method with every seed into folder/<method>-s<seed>; finished ones are loaded, not repeated.

    A method with a checkpoint is not trained: one row with seed 0, and no history.

    Methods whose target is y become rows with status "skipped" and the reason when there is no y, or it does not vary.

    Args: data: store.Data. w_logit: (O,) of the classifier, needed by methods with target_scale "logit".
    Returns: coders (columns COLUMNS, one row per method and seed); history of all fits with method, seed, target.
    """
    rows = {"rows_train": data.rows("train"), "rows_val": data.rows("val")}
    table, fits = [], []
    smooth = functools.cache(lambda k: neighbour_means(data.x, data.y, rows["rows_train"], labelled(data)[0], k))
    for method in config.methods:
        given = open_given(data, method) if method.checkpoint else None
        coder, train = (given.config, None) if given else _configs(data, config, method)
        for seed in [0] if given else config.seeds:
            row = {"method": method.name, "seed": seed, "preset": method.preset, "target": coder.target}
            row |= {"n_latents": coder.n_latents, "l0_target": (train and train.l0_target) or np.nan}
            if reason := _untrainable(data, coder.target, rows["rows_train"]):
                table.append(row | {"status": "skipped", "reason": reason, "folder": ""})
                continue
            job = rows | dict(config=coder, train_config=train, label=f"{method.name}-s{seed}", tokens=data.tokens)
            job |= dict(x=data.x, t=data.y if coder.target == "y" else data.x, folder=folder / job["label"])
            if train and train.target_neighbours and coder.target == "y":
                job["t"] = smooth(train.target_neighbours)
            table.append(row | {"status": "ok", "reason": "", "folder": f"{folder.name}/{job['label']}"})
            if given:
                table[-1] |= _measured(save_given(data, given, job["folder"]))
                table[-1]["reason"] = given.recorded.get("checkpoint", {}).get("assumed", "")
                continue
            job["train_config"] = train.with_(seed=seed)
            if coder.target_scale == "logit":
                if w_logit is None:
                    raise ValueError("target_scale = 'logit' needs the classifier's w_logit")
                job["y_scale"] = logit_scale(Rows(data.y, rows["rows_train"], torch.device("cpu")), w_logit)
            fits.append((table[-1], job))
    run_all([job for _, job in fits], config.fits_at_once, config.processes)
    histories = [pd.DataFrame(columns=HISTORY_COLUMNS)] * (not fits)
    for row, job in fits:
        history = read_history(job["folder"])
        row |= _measured(summary(job["folder"]))
        passes = history["step"] * _rows_per_step(job) / len(job["rows_train"])
        histories.append(history.assign(**{k: row[k] for k in ("method", "seed", "target")}, epoch=passes))
    coders = pd.DataFrame(table).reindex(columns=COLUMNS)
    for column in ("l0_target", "best_step"):
        coders[column] = coders[column].astype(np.float64).astype("Int64")
    return coders, pd.concat(histories, ignore_index=True)


def _untrainable(data, target: str, train: np.ndarray) -> str:
    """Why a coder of y cannot be trained; "" when it can."""
    if target == "y" and data.y is None:
        return "its target is the classifier's hidden layer, and no classifier was trained"
    same = target == "y" and len(train) <= CHUNK and (data.y[train] == data.y[train[0]]).all()
    return "its target, the classifier's hidden layer, is the same for every train image" if same else ""


def provided(coders: pd.DataFrame, data) -> list[str]:
    """What a run has with these coders (what `train_methods` returned), for later stages and sections; see mtlib/run/needs.py.

    Nothing where no test image can tell how good they are.
    """
    done = coders[coders["status"] == "ok"]
    if not varies(data, "test"):
        return []
    autoencoders = done[done["target"] == "x"]
    n_given = int(autoencoders["best_step"].isna().sum())  # two autoencoders of elsewhere compare like seeds
    with_mono = {m.replace("_mono", "", 1) for m in done["method"] if "_mono" in m}
    known = {
        "coders": len(done) > 0,
        "trained": done["best_step"].notna().any(),
        "autoencoders": len(autoencoders) > 0,
        "seeds": done.duplicated("method").any() or n_given > 1,
        "monoloss": bool(with_mono & set(done["method"])),
    }
    return [name for name, there in known.items() if there]


def _rows_per_step(job: dict) -> float:
    """How many rows a step learns from, on average over an epoch that is not cut short."""
    how, n = job["train_config"], len(job["rows_train"])
    batch = how.batch * (job["tokens"] if how.batch_images else 1)
    return batch if how.drop_last else n / math.ceil(n / batch)


def _measured(done: dict) -> dict:
    """Columns of coders.csv from a coder's summary."""
    found = {"l0_val": done["l0"], "matched": done["matched"], "fvu_val": done["fvu"], "dead": done["dead"]}
    return found | {"best_step": done["step"]}


def log_events(history: pd.DataFrame, folder: str | Path) -> None:
    """Write the history of every fit as TensorBoard's event files, folder/<method>-s<seed>/; "" as folder: nothing.

    Args: history: of `train_methods`. Tags are <split>/<column>, as train/loss and val/fvu.
    """
    for (method, seed), part in history.groupby(["method", "seed"], sort=False) if folder else ():
        from torch.utils.tensorboard import SummaryWriter  # of an optional package

        long = part.melt(["split", "step"], [c for c in FIT_COLUMNS if c not in ("step", "split")]).dropna()
        with SummaryWriter(str(Path(folder) / f"{method}-s{seed}")) as writer:
            for line in long.itertuples():
                writer.add_scalar(f"{line.split}/{line.variable}", line.value, line.step)


def save_coders(folder: Path, coders: pd.DataFrame) -> None:
    """Write coders.csv, by which later stages find the coders."""
    write_csv(folder / "coders.csv", coders)


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


def late_gains(history: pd.DataFrame) -> pd.Series:
    """By how much of itself every coder's validation FVU still fell in the last tenth of its steps: how its training ended.

    Args: history: of `train_methods`. Returns: (method, seed) -> share; coders validated only once are left out.
    """
    val, fit = history[history["split"] == "val"], ["method", "seed"]
    early = val[val["step"] <= 0.9 * val.groupby(fit)["step"].transform("max")]
    at_end, before = (part.groupby(fit, sort=False)["fvu"].last().astype(float) for part in (val, early))
    return (1 - at_end / before).dropna()


def training_curves(history: pd.DataFrame, styles: dict[str, dict] | None = None) -> tuple[Figure | None, pd.DataFrame]:
    """Validation FVU (a panel per target), L0 and dead share against steps: a line per method, the band its seeds.

    Args: history: frame with method, seed, target, step, split, fvu, l0, dead. styles: of the run's methods.
    """
    frame = history[history["split"] == "val"][["method", "seed", "target", "step", "fvu", "l0", "dead"]]
    if frame.empty:
        return None, frame
    panels = [("fvu", f"FVU of {target}", frame[frame["target"] == target]) for target in sorted(set(frame["target"]))]
    panels += [("l0", "latents per image", frame), ("dead", "dead share of latents", frame)]
    styles = styles or method_styles(frame["method"])
    columns = 2 if len(panels) == 4 else len(panels)
    fig, axes = plt.subplots(len(panels) // columns, columns, figsize=(4.4 * columns, 3.1 * (len(panels) // columns)))
    for ax, (column, label, part) in zip(axes.flat, panels, strict=True):
        for method, one in part.groupby("method", sort=False):
            seeds = one.groupby("step")[column]
            ax.plot(seeds.mean(), label=method, markevery=max(1, seeds.ngroups // 6), ms=5, **styles[method])
            ax.fill_between(
                seeds.mean().index, seeds.min(), seeds.max(), alpha=0.2, color=styles[method]["color"], lw=0
            )
        ax.set(xlabel="step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        if column != "dead" and (part[column] > 0).any():
            ax.set_yscale("log")
            low, high = part.loc[part[column] > 0, column].agg(["min", "max"])
            if high < 2 * low:  # what hardly changes is not blown up
                ax.set_ylim(low / 1.5, high * 1.5)
            log_ticks(ax.yaxis)
    legend(fig)
    return fig, frame.reset_index(drop=True)

"""Figures of the learning stages; each returns the figure and the frame of the numbers that it shows."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from mtlib.learn.classifier_scores import reliability
from mtlib.plots import legend, log_ticks, method_styles


def roc(labels: np.ndarray, logits: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """ROC curve of the plausibility logit. Args: labels (n,) 0 / 1, logits (n,)."""
    false, true, _ = roc_curve(labels, logits)
    frame = pd.DataFrame({"false_positive_rate": false, "true_positive_rate": true})
    fig, ax = plt.subplots(figsize=(4.2, 4.2))
    ax.plot(false, true, drawstyle="steps-post")
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    return fig, frame


def confusion(labels: np.ndarray, logits: np.ndarray, names: list[str]) -> tuple[Figure, pd.DataFrame]:
    """Share of each true class that is called each class. Args: labels (n,), logits (n, C), names of the C classes."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (labels, logits.argmax(1)), 1)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    true, called = np.indices(share.shape).reshape(2, -1)
    frame = pd.DataFrame({"true": np.array(names)[true], "called": np.array(names)[called], "share": share.ravel()})
    fig, ax = plt.subplots(figsize=(1.5 + 0.45 * len(names), 1 + 0.45 * len(names)))
    shown = ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set(xlabel="called", ylabel="true")
    ax.grid(False)
    fig.colorbar(shown, label="share of the true class")
    return fig, frame


def calibration(labels: np.ndarray, logits: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Reliability curve with Wilson 95% intervals. Args: labels (n,), logits (n,) or (n, C)."""
    frame = reliability(labels, logits)
    fig, ax = plt.subplots(figsize=(4.2, 4.2))
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    errors = [frame["observed"] - frame["low"], frame["high"] - frame["observed"]]
    ax.errorbar(frame["predicted"], frame["observed"], np.clip(errors, 0, None), marker="o", capsize=2)
    ax.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return fig, frame


def logit_histogram(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Logits of plausible and implausible images, a panel per group. Args: labels, logits, groups, each (n,)."""
    edges = np.histogram_bin_edges(np.clip(logits, -12, 12), 30)
    names = sorted(set(groups))
    fig, axes = plt.subplots(
        -(-len(names) // 4), min(4, len(names)), squeeze=False, sharex=True, figsize=(10, 2.2 * -(-len(names) // 4))
    )
    for ax in axes.flat[max(len(names) - 4, 0) : len(names)]:  # the lowest of each column shows its numbers
        ax.tick_params(labelbottom=True)
    rows = []
    for ax, name in zip(axes.flat, names, strict=False):
        for label, word in ((0, "plausible"), (1, "implausible")):
            counts, _ = np.histogram(np.clip(logits[(groups == name) & (labels == label)], -12, 12), edges)
            ax.stairs(counts, edges, fill=True, alpha=0.5, label=word)
            rows += [(name, word, a, b, n) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
        ax.set_title(name, parse_math=False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    fig.supxlabel("logit (positive: implausible)")
    fig.supylabel("images")
    legend(fig)
    return fig, pd.DataFrame(rows, columns=["group", "label", "low", "high", "n"])


def loss(history: pd.DataFrame) -> Figure:
    """Cross entropy of the train and the validation images after each epoch. Args: history: epoch, train_loss, val_loss."""
    fig, ax = plt.subplots(figsize=(5, 3.2))
    for column, label, marker in (("train_loss", "train", "o"), ("val_loss", "validation", "s")):
        ax.plot(history["epoch"], history[column], marker=marker, ms=4, label=label)
    ax.set(xlabel="epoch", ylabel="cross entropy (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return fig


def training_curves(history: pd.DataFrame, styles: dict[str, dict] | None = None) -> tuple[Figure, pd.DataFrame]:
    """Validation FVU (a panel per target), L0 and dead share against steps: a line per method, the band its seeds.

    Args: history: frame with method, seed, target, step, split, fvu, l0, dead. styles: of the run's methods.
    """
    frame = history[history["split"] == "val"][["method", "seed", "target", "step", "fvu", "l0", "dead"]]
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
        if column != "dead":
            ax.set_yscale("log")
            low, high = part.loc[part[column] > 0, column].agg(["min", "max"])
            if high < 2 * low:  # what hardly changes is not blown up
                ax.set_ylim(low / 1.5, high * 1.5)
            log_ticks(ax.yaxis)
    legend(fig)
    return fig, frame.reset_index(drop=True)

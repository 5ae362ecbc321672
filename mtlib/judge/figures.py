"""Figures of 06: judges against the truth, and how far explanations hold on images that nobody has seen."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlib.judge.verdicts import RULED
from mtlib.plots import PALETTE, legend


def confusion(
    verdicts: dict[str, pd.DataFrame], features: dict[str, pd.DataFrame], judge: str
) -> tuple[Figure, pd.DataFrame]:
    """How many features a judge and the truth call an error, per method; one 2 x 2 square each."""
    rows = -(-len(verdicts) // 5)
    columns = -(-len(verdicts) // rows)
    fig, axes = plt.subplots(rows, columns, figsize=(2.5 * columns + 0.5, 2.6 * rows), squeeze=False)
    lines = []
    for ax in axes.flat[len(verdicts) :]:
        ax.set_axis_off()
    for ax, (method, frame) in zip(axes.flat, verdicts.items(), strict=False):
        truth = features[method].set_index("feature")["is_error"]
        decided = frame[(frame["judge"] == judge) & frame["verdict"].isin(RULED)]
        said, real = decided["verdict"] == "error", truth.loc[decided["feature"]].to_numpy(bool)
        square = np.array([[(~said & ~real).sum(), (said & ~real).sum()], [(~said & real).sum(), (said & real).sum()]])
        share = square / np.maximum(square.sum(axis=1, keepdims=True), 1)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1.2)
        for i, j in np.ndindex(2, 2):
            ink = "white" if share[i, j] > 0.7 else "0.1"
            ax.text(j, i, f"{square[i, j]}", ha="center", va="center", fontsize=12, color=ink)
        ax.set_xticks([0, 1], ["no error", "error"], fontsize=8)
        ax.set_yticks([0, 1], ["no error", "error"], fontsize=8, rotation=90, va="center")
        ax.set_title(method)
        ax.grid(False)
        names = ("true_negative", "false_positive", "false_negative", "true_positive")
        lines.append({"method": method, "judge": judge} | dict(zip(names, square.ravel().tolist(), strict=True)))
    fig.supxlabel(f"the {judge} judge says")
    fig.supylabel("the truth is")
    return fig, pd.DataFrame(lines)


def explanation_scores(tried: pd.DataFrame) -> Figure | None:
    """Accuracy of the judge on held-out images, per method: with the explanation, with another one, and of intruders.

    None where no explanation was tried.

    Args: tried: what `scoring.summary` returned.
    """
    if tried.empty:
        return None
    methods, kinds = list(dict.fromkeys(tried["method"])), list(dict.fromkeys(tried["kind"]))
    names = {"detection": "its own explanation", "shuffled": "another feature's", "intruder": "find the intruder"}
    fig, ax = plt.subplots(figsize=(6.5, 1.0 + 0.4 * len(methods)))
    for k, kind in enumerate(kinds):
        own = tried[tried["kind"] == kind]
        place = own["method"].map(methods.index).to_numpy() + 0.2 * (k - (len(kinds) - 1) / 2)
        low, high = (own[side].fillna(own["accuracy"]) for side in ("low", "high"))
        bars = [own["accuracy"] - low, high - own["accuracy"]]
        style = dict(fmt="os^"[k % 3], color=PALETTE[k], capsize=3, ms=5, label=names.get(kind, kind))
        ax.errorbar(own["accuracy"], place, xerr=bars, **style)
        ax.axvline(own["chance"].iloc[0], color=PALETTE[k], lw=1, ls=":")
    _method_rows(ax, methods)
    ax.set_xlabel("accuracy on held-out images (dotted: chance)")
    legend(fig)
    return fig


def scores(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Precision, recall and F1 of each judge on each method; captioned and uncaptioned causes apart."""
    frame = table[table["judge"] != ""].melt(["method", "judge", "captioned"], ["precision", "recall", "f1"], "score")
    judges, methods = list(dict.fromkeys(frame["judge"])), list(dict.fromkeys(frame["method"]))
    size = (3.6 * len(judges) + 2.4, 1.0 + 0.42 * len(methods))
    fig, axes = plt.subplots(1, len(judges), figsize=size, sharey=True, squeeze=False)
    marks = {"all": "o", "captioned": "^", "uncaptioned": "v"}
    for ax, judge in zip(axes.flat, judges, strict=True):
        for k, score in enumerate(("precision", "recall", "f1")):
            for part, mark in marks.items():
                some = frame[(frame["judge"] == judge) & (frame["score"] == score) & (frame["captioned"] == part)]
                place = [methods.index(m) + 0.24 * (k - 1) for m in some["method"]]
                ax.scatter(some["value"], place, marker=mark, s=34 if part == "all" else 18, color=PALETTE[k], zorder=3)
        _method_rows(ax, methods)
        ax.axvline(0.8, color="0.5", lw=1, ls=":")
        ax.set(title=f"{judge} judge", xlabel="score (dotted: 0.8)")
    names = ("precision", "recall", "F1")
    handles = [plt.Line2D([], [], marker="o", ls="", color=PALETTE[k], label=s) for k, s in enumerate(names)]
    handles += [plt.Line2D([], [], marker=m, ls="", color="0.4", label=f"{p} causes") for p, m in marks.items()]
    legend(fig, handles=handles)
    return fig, frame


def _method_rows(ax: Axes, methods: list[str]) -> None:
    """A share from 0 to 1 across, a row per method down, every second one shaded."""
    for i in range(0, len(methods), 2):
        ax.axhspan(i - 0.5, i + 0.5, color="0.96", lw=0, zorder=0)
    ax.set_yticks(range(len(methods)), methods)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(methods) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)

"""Notebook 07's figures. Each takes the frame that is saved beside it; names from the data are shown literally."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtlib.plots import PALETTE, legend
from mtlib.report.text import escape_figure, shorten

TITLES = {
    "relevance_threshold": "error ratio ≥ 0.95",
    "relevance_enriched": "enriched, BH q ≤ 0.05",
    "relevance_enriched_by": "enriched, BY q ≤ 0.05",
}


def relevance_bars(long: pd.DataFrame) -> Figure:
    """Share of all latents that each score calls an error feature, by method, with 95% intervals.

    Args:
        long: what `results.relevance_long` returned.
    """
    names = [TITLES.get(s) or f"judge: {j}" for s, j in zip(long["score"], long["judge"], strict=True)]
    long = long.assign(name=names)
    methods, scores = list(dict.fromkeys(long["method"])), list(dict.fromkeys(long["name"]))
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    size = (2.4 + 2.9 * columns, rows * (1.0 + 0.26 * len(methods)))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for ax in axes.flat[len(scores) :]:
        ax.set_axis_off()
    at = np.arange(len(methods))
    for ax, score in zip(axes.flat, scores, strict=False):
        own = long[long["name"] == score].set_index("method").reindex(methods)
        error = np.abs(np.stack([own["share"] - own["low"], own["high"] - own["share"]])) * 100
        ax.barh(at, own["share"] * 100, height=0.7, color="0.82")
        ax.errorbar(own["share"] * 100, at, xerr=error, fmt="o", ms=4, capsize=2, color="#333333", elinewidth=1)
        ax.set_title(escape_figure(score))
        ax.set(xlim=(0, None), ylim=(len(methods) - 0.5, -0.5))
        ax.set_yticks(at, [escape_figure(m) for m in methods], fontsize=9)
        ax.grid(axis="y", visible=False)
    fig.supxlabel("share of all latents (%), 95% interval")
    return fig


def generator_rates(frame: pd.DataFrame) -> Figure:
    """Each generator's failure rate: raw, corrected with its 95% interval, and true where it is known."""
    frame = frame.sort_values("corrected_rate", ascending=False, kind="stable")
    at = np.arange(len(frame))
    fig, ax = plt.subplots(figsize=(6.8, 1.0 + 0.4 * len(frame)))
    error = np.abs(np.stack([frame["corrected_rate"] - frame["low"], frame["high"] - frame["corrected_rate"]])) * 100
    style = dict(fmt="o", color=PALETTE[0], capsize=4, markersize=7)
    ax.errorbar(frame["corrected_rate"] * 100, at, xerr=error, label="corrected, 95% interval", **style)
    ax.plot(frame["raw_rate"] * 100, at, "|", color="#777777", markersize=14, label="flagged by the classifier")
    if "true_rate" in frame:
        ax.plot(frame["true_rate"] * 100, at, "D", color=PALETTE[3], markersize=6, label="true rate", zorder=3)
    ax.set_yticks(at, [escape_figure(shorten(g, 30)) for g in frame["generator"]])
    ax.set(xlabel="images with a physical error (%)", xlim=(0, None), ylim=(-0.6, len(frame) - 0.4))
    legend(fig)
    return fig


def generator_heatmap(frame: pd.DataFrame) -> Figure | None:
    """How often each error feature fires on each generator's images, features named; None without error features."""
    if frame.empty:
        return None
    wide = frame.pivot(index="feature", columns="generator", values="rate").loc[list(dict.fromkeys(frame["feature"]))]
    names = frame.drop_duplicates("feature").set_index("feature")["phrase"]
    fig, ax = plt.subplots(figsize=(5.0 + 1.2 * wide.shape[1], 1.2 + 0.36 * len(wide)))
    image = ax.imshow(wide.to_numpy() * 100, aspect="auto", cmap="cividis", vmin=0)
    ax.set_xticks(range(wide.shape[1]), [escape_figure(shorten(g, 16)) for g in wide.columns])
    ax.set_yticks(range(len(wide)), [escape_figure(f"{shorten(names[f], 44)}  #{f}") for f in wide.index])
    ax.grid(visible=False)
    middle = wide.to_numpy().max() * 50
    for (i, j), value in np.ndenumerate(wide.to_numpy() * 100):
        ax.text(
            j, i, f"{value:.0f}", ha="center", va="center", fontsize=9, color="white" if value < middle else "black"
        )
    fig.colorbar(image, label="images on which it fires (%)", shrink=0.9)
    return fig


def labelled_images(shown: list, n: int = 6, n_features: int = 4) -> Figure | None:
    """Some new images beside the explanations of the features that fire on them.

    Args:
        shown: list of (name, known, PIL image, what Labeler.label says), as `new_images.label_table` returns; None if empty.
    """
    if not shown:
        return None
    flagged = [one for one in shown if one[3]["predicted"] == "implausible"][: n - 2]
    quiet = [one for one in shown if one[3]["predicted"] != "implausible"]
    shown = flagged + quiet[:: max(1, len(quiet) // n)][: n - len(flagged)]
    columns = 2 if len(shown) > 1 else 1
    rows = -(-len(shown) // columns)
    fig, axes = plt.subplots(rows, 2 * columns, figsize=(6.2 * columns, 1.9 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, (_, known, image, said) in enumerate(shown):
        picture, text = axes[i // columns, 2 * (i % columns)], axes[i // columns, 2 * (i % columns) + 1]
        picture.imshow(image)
        head = [f"known: {known}"] if known else []
        head += [f"predicted: {100 * said['probability']:.0f}% implausible"] if said["probability"] is not None else []
        picture.set_title(escape_figure("\n".join(head)).replace(r"\n", "\n"), fontsize=9)
        found = said["explanations"]
        if said["predicted"] == "implausible":  # the errors, in the order of the table, each name once
            errors = [d for d in found if d["verdict"] == "error"]
            found = [next(d for d in errors if d["explanation"] == name) for name in dict.fromkeys(d["explanation"] for d in errors)]  # fmt: skip
        words = {"plausible": "no error found", "implausible": "no feature names the error"}
        if said["predicted"] == "plausible" or not found:
            line = words.get(said["predicted"], "no feature fires")
            text.text(-0.25, 0.95, line, fontsize=9, va="top", transform=text.transAxes, color="#555555")
            continue
        for j, d in enumerate(found[:n_features]):
            colour = PALETTE[3] if d.get("verdict") == "error" else "#333333"
            place = dict(va="top", transform=text.transAxes, color=colour)
            text.text(-0.25, 0.95 - 0.22 * j, _explained(d), fontsize=8.5, **place)
    return fig


def _explained(found: dict) -> str:
    mark = "error: " if found.get("verdict") == "error" else ""
    wrong = f"\n{found['wrong_count']} of {found['total_count']} such test images are implausible" if found.get("wrong_count") is not None else ""  # fmt: skip
    return escape_figure(f"{found['activation']:.2g}  {mark}{shorten(found['explanation'] or '(no name)', 52)}") + wrong

"""Notebook 07's figures. Each takes the frame that is saved beside it; names from the data are shown literally."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from mtlib.embed.images import load_image
from mtlib.embed.store import Data
from mtlib.features import where
from mtlib.features.collages import loader
from mtlib.plots import PALETTE, image_grid, legend
from mtlib.report.reader import Reader
from mtlib.report.text import escape_figure, shorten
from mtlib.scenes.dataset import BOX

TITLES = {
    "relevance_threshold": "error ratio ≥ 0.95",
    "relevance_enriched": "enriched, BH q ≤ 0.05",
    "relevance_enriched_by": "enriched, BY q ≤ 0.05",
}
N_STRIP = 8  # images of an error
N_LABELLED, N_EXPLAINED = 6, 4  # images shown with what explains them, and explanations of each


def relevance_bars(long: pd.DataFrame) -> Figure:
    """Share of all latents that each score of `relevance_tables.relevance_long` calls an error feature, by method, with intervals."""
    names = [TITLES.get(s) or f"judge: {j}" for s, j in zip(long["score"], long["judge"], strict=True)]
    methods, scores = list(dict.fromkeys(long["method"])), list(long.groupby(names, sort=False))
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    size = (2.4 + 2.9 * columns, rows * (1.0 + 0.26 * len(methods)))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for ax in axes.flat[len(scores) :]:
        ax.set_axis_off()
    for ax, (score, own) in zip(axes.flat, scores, strict=False):
        own = own.set_index("method").reindex(methods)
        ax.barh(range(len(methods)), own["share"] * 100, height=0.7, color="0.82")
        _intervals(ax, own, "share", ms=4, capsize=2, color="#333333", elinewidth=1)
        ax.set(title=escape_figure(score), xlim=(0, None), ylim=(len(methods) - 0.5, -0.5))
        ax.set_yticks(range(len(methods)), [escape_figure(m) for m in methods], fontsize=9)
        ax.grid(axis="y", visible=False)
    fig.supxlabel("share of all latents (%), 95% interval")
    return fig


def _intervals(ax: Axes, frame: pd.DataFrame, share: str, **style) -> None:
    """A dot and the interval from low to high in percent for each line of a frame, in lines from 0 on."""
    error = np.abs(np.stack([frame[share] - frame["low"], frame["high"] - frame[share]])) * 100  # (2, lines)
    ax.errorbar(frame[share] * 100, range(len(frame)), xerr=error, fmt="o", **style)


def generator_rates(frame: pd.DataFrame) -> Figure:
    """Each generator's failure rate: raw, corrected with its 95% interval, and true where it is known."""
    frame = frame.sort_values("corrected_rate", ascending=False, kind="stable")
    at = range(len(frame))
    fig, ax = plt.subplots(figsize=(6.8, 1.0 + 0.4 * len(frame)))
    _intervals(ax, frame, "corrected_rate", color=PALETTE[0], capsize=4, ms=7, label="corrected, 95% interval")
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
    names = [escape_figure(f"{shorten(p, 44)}  #{f}") for p, f in zip(frame["phrase"], frame["feature"], strict=True)]
    generators = frame["generator"].map(lambda g: escape_figure(shorten(g, 16)))
    wide = frame["rate"].mul(100).groupby([names, generators], sort=False).first().unstack(sort=False)
    fig, ax = plt.subplots(figsize=(5.0 + 1.2 * wide.shape[1], 1.2 + 0.36 * len(wide)))
    look = dict(cmap="cividis", vmin=0, annot=True, fmt=".0f", annot_kws={"fontsize": 9})
    sns.heatmap(wide, ax=ax, cbar_kws={"label": "images on which it fires (%)", "shrink": 0.9}, **look)
    ax.set(xlabel="", ylabel="")
    return fig


def errors_found(frame: pd.DataFrame, reader: Reader, data: Data) -> Figure | None:
    """A line per error of `relevance_tables.errors_found`: its name, and the images on which its feature fires most."""
    if frame.empty or data.image_root is None:
        return None
    top = reader.features(frame["method"].iloc[0], "top_images").query("split == 'test'").sort_values("rank")
    rows = [top.loc[top["feature"] == f, "row"].head(N_STRIP) for f in frame["feature"]]
    load, square = loader(data), ((160, 160), Image.Resampling.LANCZOS, "white")
    lines = [[load(int(row)) for row in own] for own in rows]  # a word where an image cannot be read: an empty place
    lines = [[ImageOps.pad(one, *square) if isinstance(one, Image.Image) else None for one in own] for own in lines]
    return image_grid(lines, names=_names(frame), side=0.95)


def _names(frame: pd.DataFrame) -> list[str]:
    """What stands beside the images of each of `errors_found`."""
    said = zip(frame["phrase"], frame["error"], strict=True)
    return [fill(escape_figure(shorten(p or e.replace("_", " ") or "unnamed", 60)), 24) for p, e in said]


def errors_where(frame: pd.DataFrame, data: Data, shown: pd.DataFrame, maps: np.ndarray) -> Figure | None:
    """The same with a heat map of the feature over each image, and a frame round the error where its place is known.

    Args: shown, maps: of `relevance_tables.errors_heat`. Returns: None without images.
    """
    if frame.empty:
        return None
    square, lines = where.on_grid(data), [shown.index[shown["feature"] == f] for f in frame["feature"]]
    pairs = zip((load_image(data.images(row))[0] for row in shown["row"]), where.levels(maps), strict=True)
    over = [where.overlay(*pair, square) for pair in pairs]
    fig = image_grid([[over[i] for i in own] for own in lines], names=_names(frame), side=1.2)
    places = np.reshape(fig.axes, (len(lines), -1))
    for ax, i in (pair for line, own in zip(places, lines, strict=True) for pair in zip(line, own, strict=False)):
        if data.truth is not None and not square:
            x0, y0, x1, y1 = data.truth[list(BOX)].iloc[shown["row"][i]] - 0.5
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=PALETTE[0], linewidth=1.5))
    return fig


def labelled_images(shown: list) -> Figure | None:
    """Some new images beside the explanations of the features that fire on them; None without images.

    Args: shown: (name, known, PIL image, what Labeler.label says) of each, as `new_images.label_table` returns.
    """
    if not shown:
        return None
    flagged = [one for one in shown if one[3]["predicted"] == "implausible"][: N_LABELLED - 2]
    quiet = [one for one in shown if one[3]["predicted"] != "implausible"]
    shown = flagged + quiet[:: max(1, len(quiet) // N_LABELLED)][: N_LABELLED - len(flagged)]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    fig, axes = plt.subplots(rows, 2 * columns, figsize=(6.2 * columns, 1.9 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for (picture, text), (_, known, image, said) in zip(axes.reshape(-1, 2), shown, strict=False):
        picture.imshow(image)
        head = [escape_figure(f"known: {known}")] if known else []
        head += [f"predicted: {100 * said['probability']:.0f}% implausible"] if said["probability"] is not None else []
        picture.set_title("\n".join(head), fontsize=9)
        for i, (words, colour) in enumerate(_explained(said)):
            look = dict(fontsize=8.5, va="top", transform=text.transAxes, color=colour)
            text.text(-0.25, 0.95 - 0.22 * i, words, **look)
    return fig


def _explained(said: dict) -> list[tuple[str, str]]:
    """Lines beside an image, and their colours: of a flagged one the errors, each name once, in the order of the table."""
    found = said["explanations"]
    if said["predicted"] == "implausible":
        errors = [d for d in found if d["verdict"] == "error"]
        found = [d for i, d in enumerate(errors) if d["explanation"] not in (e["explanation"] for e in errors[:i])]
    if said["predicted"] == "plausible" or not found:
        words = {"plausible": "no error found", "implausible": "no feature names the error"}
        return [(words.get(said["predicted"], "no feature fires"), "#555555")]
    lines = []
    for d in found[:N_EXPLAINED]:
        error, known = d.get("verdict") == "error", d.get("wrong_count") is not None
        name = escape_figure(f"{'error: ' if error else ''}{shorten(d['explanation'] or '(no name)', 52)}")
        wrong = f"\n{d['wrong_count']} of {d['total_count']} such test images are implausible" if known else ""
        wrong = f"\nright on {d['precision']:.0%} of the validation images this strong" if d.get("precision") else wrong
        lines.append((f"{d['activation']:.2g}  {name}{wrong}", PALETTE[3] if error else "#333333"))
    return lines

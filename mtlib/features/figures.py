"""Figures of the notebooks 05, concepts and tokens. Those that choose what they show return the figure and its numbers."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from mtlib.embed.store import Data
from mtlib.features.collages import loader, printable
from mtlib.measure.steering import READINGS, Steering
from mtlib.plots import PALETTE, image_grid, legend, method_styles

BLUE, GREEN, RED = PALETTE[0], PALETTE[2], PALETTE[3]
WORST_FVU = 2.0  # drawn no higher: a coder may do worse than the mean on other data
LOOKS = {"feature": ("C0", "-o"), "control": ("0.6", ":"), "group": ("C1", "-o"), "group control": ("0.3", "--")}
Styles = dict[str, dict] | None  # of the run's methods (`plots.run_styles`); None: of the table's


def _panels(tables: dict[str, pd.DataFrame], height: float = 2.6, sharey: bool = True):
    """One panel per method, at most three in a row: (figure, {method: axis})."""
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    size = (max(3.4 * columns + 0.4, 5.6), height * rows + 0.4)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=sharey)
    for ax in axes.flat[len(tables) :]:
        ax.set_axis_off()
    for ax in axes.flat[max(len(tables) - columns, 0) : len(tables)]:  # the lowest of each column shows its numbers
        ax.tick_params(labelbottom=True)
    panels = dict(zip(tables, axes.flat, strict=False))
    for method, ax in panels.items():
        ax.set_title(method)
    return fig, panels


def _assessed(tables: dict[str, pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    parts = [t.loc[t["assessed"], ["feature", *columns]].assign(method=m) for m, t in tables.items()]
    return pd.concat(parts, ignore_index=True)[["method", "feature", *columns]]


def error_ratios(tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Assessed features in order of error ratio, each with its Wilson interval, against base rate and published 0.95."""
    frame = _assessed(tables, ["error_ratio", "error_low", "error_high", "n_active_test", "q_bh", "base_rate"])
    frame = frame.sort_values(["method", "error_ratio", "feature"], ignore_index=True)
    frame["place"] = frame.groupby("method").cumcount() / frame.groupby("method")["feature"].transform("size")
    fig, panels = _panels(tables)
    for method, ax in panels.items():
        part = frame[frame["method"] == method]
        ax.fill_between(part["place"], part["error_low"], part["error_high"], color=BLUE, alpha=0.25, lw=0)
        enriched = part["q_bh"] <= 0.05
        ax.scatter(part["place"][~enriched], part["error_ratio"][~enriched], s=5, color=BLUE, label="feature")
        ax.scatter(part["place"][enriched], part["error_ratio"][enriched], s=7, color=RED, label="enriched (q ≤ 0.05)")
        ax.axhline(part["base_rate"].iloc[0] if len(part) else np.nan, color="0.2", lw=1, ls="--", label="base rate")
        ax.axhline(0.95, color="0.5", lw=1, ls=":", label="0.95 (published rule)")
        ax.set_ylim(-0.02, 1.02)
    fig.supxlabel("share of assessed features, in order of error ratio")
    fig.supylabel("error ratio on test")
    legend(fig)
    return fig, frame


def enrichment(tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """How much more, or less, often than usual a feature's images are implausible, against how sure that is."""
    frame = _assessed(tables, ["error_ratio", "base_rate", "p_fisher", "q_bh", "n_active_test"])
    frame["difference"] = frame["error_ratio"] - frame["base_rate"]
    frame["minus_log10_p"] = -np.log10(frame["p_fisher"].clip(lower=1e-300))
    fig, panels = _panels(tables)
    for method, ax in panels.items():
        part = frame[frame["method"] == method]
        for enriched, colour, label in ((False, "0.6", "not enriched"), (True, RED, "enriched (q ≤ 0.05)")):
            some = part[(part["q_bh"] <= 0.05) == enriched]
            size = 3 + 2 * np.sqrt(some["n_active_test"])
            ax.scatter(some["difference"], some["minus_log10_p"], s=size, color=colour, alpha=0.6, lw=0, label=label)
        ax.axvline(0, color="0.2", lw=1, ls="--")
        ax.set_yscale("symlog", linthresh=2)
    fig.supxlabel("error ratio − base rate (dot size: activating test images)")
    fig.supylabel("−log₁₀ p, Fisher exact")
    legend(fig)
    return fig, frame


def densities(tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Histogram of how often features fire, on a logarithmic scale; features that never do are counted in the title."""
    edges = np.geomspace(1e-4, 1, 25)
    fig, panels = _panels(tables, height=2.2)
    lines = []
    for method, ax in panels.items():
        density = tables[method]["density"].to_numpy()
        counts, _ = np.histogram(density[density > 0].clip(edges[0], 1), edges)
        ax.stairs(counts, edges, fill=True, color=BLUE, alpha=0.8)
        ax.axvline(np.median(density[density > 0]) if (density > 0).any() else np.nan, color="0.2", lw=1, ls="--")
        ax.set_xscale("log")
        ax.set_title(f"{method}\n{int((density == 0).sum())} of {len(density)} silent on test")
        lines += [
            {"method": method, "from": a, "to": b, "features": int(c)}
            for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
    fig.supxlabel("density: share of test images on which a feature fires (dashed: median)")
    fig.supylabel("features")
    return fig, pd.DataFrame(lines)


def causal(tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Change of the classifier's logit when a feature is removed, against its error ratio; controls as a grey band."""
    names = ["error_ratio", "base_rate", "causal_relevance", "causal_control_latents", "causal_control_random"]
    frame = _assessed(tables, names)
    fig, panels = _panels(tables, sharey=False)
    for method, ax in panels.items():
        part = frame[frame["method"] == method]
        band = part["causal_control_latents"].median()
        ax.axhspan(-band, band, color="0.85", lw=0, label="other latents' directions (median |change|)")
        over = part["causal_relevance"].abs() > part["causal_control_latents"]
        ax.scatter(
            part["error_ratio"][~over], part["causal_relevance"][~over], s=8, color="0.5", label="within its control"
        )
        ax.scatter(
            part["error_ratio"][over], part["causal_relevance"][over], s=8, color=GREEN, label="beyond its control"
        )
        ax.axvline(part["base_rate"].iloc[0] if len(part) else np.nan, color="0.2", lw=1, ls="--", label="base rate")
        ax.axhline(0, color="0.2", lw=0.6)
    fig.supxlabel("error ratio on test")
    fig.supylabel("change of logit when removed")
    legend(fig)
    return fig, frame


def purities(tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Share of a feature's images in its dominant class, beside what permuted classes give."""
    frame = _assessed(tables, ["purity", "purity_null", "dominant_class", "n_active_test"])
    fig, panels = _panels(tables)
    for method, ax in panels.items():
        part = frame[frame["method"] == method].dropna(subset=["purity"])
        ax.hist(part["purity_null"], np.linspace(0, 1, 26), color="0.7", label="permuted classes")
        ax.hist(part["purity"], np.linspace(0, 1, 26), color=BLUE, alpha=0.7, label="purity")
    fig.supxlabel("share of a feature's test images in its dominant class")
    fig.supylabel("features")
    legend(fig)
    return fig, frame


def progressive(frame: pd.DataFrame, styles: Styles = None) -> Figure:
    """FVU against the codes kept per row: a panel per data set, a line per method."""
    sets, methods = (list(dict.fromkeys(frame[c])) for c in ("data", "method"))
    styles, cut = styles or method_styles(methods), frame["fvu"].max() > WORST_FVU
    fig, axes = plt.subplots(1, len(sets), figsize=(3.4 * len(sets) + 0.6, 3.2), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], sets, strict=True):
        for method in methods:
            own = frame[(frame["data"] == name) & (frame["method"] == method)]
            ax.plot(own["kept"], own["fvu"].clip(upper=WORST_FVU), label=method, ms=5, **styles[method])
        ax.axhline(1, color="0.5", ls="--", lw=1)
        ax.set(xlabel="codes kept per row", ylim=(-0.03, min(WORST_FVU, frame["fvu"].max()) * 1.05))
        ax.set_title(name, parse_math=False)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    said = f"\nvalues above {WORST_FVU:g} are drawn at {WORST_FVU:g}" if cut else ""
    axes[0, 0].set_ylabel(f"FVU (dashed: the mean){said}")
    legend(fig)
    return fig


def neighbours(data: Data, shown: pd.DataFrame) -> Figure:
    """Queries with their neighbours by embeddings and by codes, a line each. Args: shown: `concepts.shown_queries`."""
    groups = list(shown.groupby(["query", "by"], sort=False))
    lines = [[data.thumbnail(int(row)) for row in (query, *own["row"])] for (query, _), own in groups]
    return image_grid(lines, names=[by for (_, by), _ in groups], heads=["query", "nearest"], side=1.1)


def alignment(frame: pd.DataFrame) -> Figure:
    """Mean cosine of matched latents of two seeds, decoder and encoder, with chance."""
    mean = frame.groupby("method", sort=False)[["decoder", "encoder", "both_shared", "chance"]].mean()
    fig, ax = plt.subplots(figsize=(6.5, 0.42 * len(mean) + 1.6))
    place = np.arange(len(mean))
    bars = {"decoder": "decoder cosine", "encoder": "encoder cosine", "both_shared": "share of latents in both"}
    for i, (column, label) in enumerate(bars.items()):
        ax.barh(place + (i - 1) * 0.27, mean[column], height=0.25, label=label, color=f"C{i}")
    ax.plot(mean["chance"], place - 0.27, "k|", ms=9, label="decoder, random rows")
    ax.set(yticks=place, yticklabels=mean.index, xlim=(0, 1), xlabel="agreement of two seeds")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    legend(fig)
    return fig


def disparities(frame: pd.DataFrame, n: int = 16) -> Figure:
    """The n largest differences in wrong decisions between images with an attribute's value and without, with intervals."""
    shown = frame.reindex(frame["difference"].abs().sort_values(ascending=False).index).head(n)
    fig, ax = plt.subplots(figsize=(6.5, 0.32 * len(shown) + 1.3))
    place, middle = np.arange(len(shown)), 100 * shown["difference"]
    bars = [middle - 100 * shown["low"], 100 * shown["high"] - middle]
    ax.errorbar(middle, place, xerr=bars, fmt="o", color="C0", ecolor="0.5", capsize=3)
    ax.axvline(0, color="0.4", lw=1)
    names = [printable(f"{r.attribute} = {r.value}".replace("_", " ")) for r in shown.itertuples()]
    ax.set_yticks(place, names, parse_math=False)
    ax.set(xlabel="more wrong decisions with it (percentage points, 95% interval)")
    ax.invert_yaxis()
    return fig


def flips(frame: pd.DataFrame) -> Figure:
    """Share of decisions that turn when an attribute's concept is turned down or up, against a random direction."""
    mean = frame.groupby("scale")[["flipped", "flipped_control"]].mean()
    fig, ax = plt.subplots(figsize=(5, 3.2))
    for i, (column, label) in enumerate({"flipped": "the concept", "flipped_control": "a random direction"}.items()):
        for _, own in frame.groupby(["attribute", "value"]):
            ax.plot(own["scale"], 100 * own[column], color=f"C{i}", lw=0.8, alpha=0.35)
        ax.plot(mean.index, 100 * mean[column], label=label, ms=6, color=f"C{i}", marker="os"[i])
    ax.set(xlabel="scale of the concept (0: removed)", ylabel="decisions that turn (%)")
    legend(fig, "thin: each attribute's value")
    return fig


def curves(histories: dict[str, pd.DataFrame], styles: Styles = None) -> tuple[Figure, pd.DataFrame]:
    """MSE, FVU and L0 per token against training steps, as published for the AlexNet-Transformer: a line per method.

    Lines are means since the last row (train); points are exact (val).

    Args: histories: method -> `train.read_history`.
    Returns: figure; frame of method, step, split, mse (train only, in the coder's units), fvu, l0.
    """
    parts = [h.rename(columns={"reconstruction": "mse"}).assign(method=m) for m, h in histories.items()]
    frame = pd.concat(parts, ignore_index=True)[["method", "step", "split", "mse", "fvu", "l0"]]
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.2))
    styles = styles or method_styles(histories)
    names = {"mse": "MSE", "fvu": "FVU", "l0": "L0 (features per token)"}
    for ax, (name, label) in zip(axes, names.items(), strict=True):
        for method, part in frame.groupby("method", sort=False):
            train, val = part[part["split"] == "train"], part[part["split"] == "val"]
            dots = styles[method] | {"linestyle": ""}
            line = dict(color=styles[method]["color"], linestyle=styles[method]["linestyle"])
            ax.plot(train["step"], train[name], label=method, **line if len(train) > 1 else dots)
            if name != "mse":
                ax.plot(val["step"], val[name], markersize=3, **dots)
        ax.set(xlabel="step", ylabel=label, yscale="log")
    legend(fig)
    return fig, frame


def steering(table: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """A row per reading, a panel per feature: the reading against the factor, alone and with its group; controls grey."""
    shown = [c for c in READINGS if table[c].notna().any()]
    size = (1.2 + 1.7 * len(chosen), 0.9 + 1.7 * len(shown))
    fig, axes = plt.subplots(len(shown), len(chosen), figsize=size, squeeze=False, sharex=True, sharey="row")
    for row, column in zip(axes, shown, strict=True):
        for ax, feature in zip(row, chosen["feature"], strict=True):
            own = table[table["feature"] == feature]
            for direction, (colour, style) in LOOKS.items():
                part = own[own["direction"] == direction]
                if len(part):
                    ax.plot(part["factor"], part[column], style, color=colour, markersize=3, label=direction)
        row[0].set_ylabel(textwrap.fill(READINGS[column], 20), fontsize=9)
    for ax, line in zip(axes[0], chosen.itertuples(), strict=True):
        why = textwrap.fill(line.why.removeprefix("cause ").replace("_", " "), 20, max_lines=2, placeholder=" …")
        ax.set_title(f"{line.feature}\n{why}", fontsize=8, parse_math=False)
    fig.supxlabel("factor (0: removed, 1: as it is)")
    legend(fig)
    return fig


def nearest(steered: Steering, feature: int, row: int, factors: list[float], k: int = 5) -> Figure:
    """An image, and its nearest images with the feature at each factor: a line per factor."""
    load, images = loader(steered.data), np.array([row])
    found = steered.embeddings(images, [feature], factors)
    lines = [[row, *steered.neighbours(e, images, k)[0]] for e in found]
    pictures = [[p if isinstance(p := load(int(at)), Image.Image) else None for at in line] for line in lines]
    return image_grid(pictures, names=[f"factor {f:g}" for f in factors], heads=["image", "nearest"])

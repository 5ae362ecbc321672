"""Figures of the notebook `concepts`, and its section of the report."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtlib.embed.pictures import thumbnail
from mtlib.embed.store import Data
from mtlib.plots import legend, method_styles
from mtlib.report.text import escape_figure, markdown_table, number
from mtlib.report.text import escape_markdown as md

WORST_FVU = 2.0  # drawn no higher: a coder may do worse than the mean elsewhere
Styles = dict[str, dict] | None  # of the run's methods (`plots.run_styles`); None: of the table's


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
        ax.set(
            title=escape_figure(name),
            xlabel="codes kept per row",
            ylim=(-0.03, min(WORST_FVU, frame["fvu"].max()) * 1.05),
        )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel(
        "FVU (dashed: the mean)" + (f"\nvalues above {WORST_FVU:g} are drawn at {WORST_FVU:g}" if cut else "")
    )
    legend(fig)
    return fig


def names(frame: pd.DataFrame, styles: Styles = None) -> Figure:
    """Cosine of every latent to its nearest phrase, share of latents below each value; dashed: what counts as a name."""
    kinds, methods = (list(dict.fromkeys(frame[c])) for c in ("by", "method"))
    styles = styles or method_styles(methods)
    fig, axes = plt.subplots(1, len(kinds), figsize=(4.4 * len(kinds) + 0.4, 3.2), sharey=True, squeeze=False)
    for ax, by in zip(axes[0], kinds, strict=True):
        for method in methods:
            own = frame[(frame["method"] == method) & (frame["by"] == by)]
            ax.plot(
                own["cosine"], own["quantile"], label=method, markevery=max(1, len(own) // 5), ms=5, **styles[method]
            )
            ax.axvline(own["threshold"].iloc[0], color="0.4", ls="--", lw=1)
        ax.set(title=f"named by the {by}", xlabel="cosine to the nearest phrase (dashed: counts as a name)")
    axes[0, 0].set_ylabel("share of latents below")
    legend(fig)
    return fig


def alignment(frame: pd.DataFrame) -> Figure:
    """Mean cosine of matched latents of two seeds, decoder and encoder, with chance."""
    mean = frame.groupby("method", sort=False)[["decoder", "encoder", "both_shared", "chance"]].mean()
    fig, ax = plt.subplots(figsize=(6.5, 0.42 * len(mean) + 1.6))
    place = np.arange(len(mean))
    for i, (column, label) in enumerate({"decoder": "decoder cosine", "encoder": "encoder cosine", "both_shared": "share of latents in both"}.items()):  # fmt: skip
        ax.barh(place + (i - 1) * 0.27, mean[column], height=0.25, label=label, color=f"C{i}")
    ax.plot(mean["chance"], place - 0.27, "k|", ms=9, label="decoder, random rows")
    ax.set(yticks=place, yticklabels=mean.index, xlim=(0, 1), xlabel="agreement of two seeds")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    legend(fig)
    return fig


def neighbours(data: Data, shown: pd.DataFrame) -> Figure:
    """Queries with their neighbours by embeddings (upper line) and by codes (lower line)."""
    lines = list(shown.groupby(["query", "by"], sort=False))
    width = shown["rank"].max() + 1
    fig, axes = plt.subplots(len(lines), width, figsize=(1.1 * width + 1.2, 1.15 * len(lines)), squeeze=False)
    for line, ((query, by), own) in zip(axes, lines, strict=True):
        for ax, row in zip(line, [query, *own["row"]], strict=False):
            ax.imshow(np.asarray(thumbnail(data, int(row))))
        line[0].set_ylabel(by, rotation=0, ha="right", va="center", fontsize=8)
    axes[0, 0].set_title("query", fontsize=9)
    axes[0, 1].set_title("nearest", fontsize=9)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return fig


def disparities(frame: pd.DataFrame, n: int = 16) -> Figure:
    """The n largest differences in wrong decisions between images with an attribute's value and without, with intervals."""
    shown = frame.reindex(frame["difference"].abs().sort_values(ascending=False).index).head(n)
    fig, ax = plt.subplots(figsize=(6.5, 0.32 * len(shown) + 1.3))
    place, middle = np.arange(len(shown)), 100 * shown["difference"]
    bars = [middle - 100 * shown["low"], 100 * shown["high"] - middle]
    ax.errorbar(middle, place, xerr=bars, fmt="o", color="C0", ecolor="0.5", capsize=3)
    ax.axvline(0, color="0.4", lw=1)
    names_ = [
        escape_figure(f"{a} = {v}".replace("_", " ")) for a, v in zip(shown["attribute"], shown["value"], strict=True)
    ]
    ax.set(yticks=place, yticklabels=names_, xlabel="more wrong decisions with it (percentage points, 95% interval)")
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


# ---- the report's section ------------------------------------------------------------------------------------------

HEADS = {
    "data": "data",
    "method": "method",
    "explained_variance": "R²",
    "cosine": "cosine",
    "l0": "L0",
    "cknna": "CKNNA",
}
HEADS |= {
    "mono_score": "MonoScore",
    "purity": "purity",
    "probe_kl": "probe KL (nats)",
    "probe_agreement": "same argmax",
}
NAMES = {"method": "method", "by": "by", "n_latents": "latents", "threshold": "cosine that counts", "n_named": "named"}
NAMES |= {"n_names": "different names", "nearer": "images near the name", "nearer_other": "near another name"}
ALIGNED = {"method": "method", "decoder": "decoder", "encoder": "encoder", "both_shared": "same latent in both"}
ALIGNED |= {"chance": "random rows"}
FOUND = {
    "method": "method",
    "n_queries": "queries",
    "overlap": "same neighbours",
    "same_embedding": "same class, embeddings",
}
FOUND |= {"same_centred": "centred embeddings", "same_codes": "codes", "same_chance": "chance"}


def _part(title: str, text: str, frame: pd.DataFrame, columns: dict, figure: str = "") -> str:
    if not len(frame):
        return f"### {title}\n\n{text}"
    body = markdown_table(frame, {k: v for k, v in columns.items() if k in frame and frame[k].notna().any()})
    shown = f"\n\n![{md(title)}](figures/concepts_{figure}.png)" if figure else ""
    return f"### {title}\n\n{text}\n\n{body}{shown}"


def section(what: dict[str, str], metrics, naming, aligned, found, biased: pd.DataFrame, why: dict[str, str]) -> str:
    """The report's section of this notebook.

    Args: what: data set -> what it is; the tables of the notebook; why: reasons for parts that are left out.
    """
    sets = "; ".join(f"*{md(k)}*: {md(v)}" for k, v in what.items())
    parts = [
        "## Concepts: the coders elsewhere, their names, and what names are good for",
        _part("On other data", f"Nothing is fitted again. {sets}. {why.get('second', '')}".strip(), metrics, HEADS, "progressive"),
        _part("Names", why.get("naming") or "The nearest phrase to each latent's own direction, texts taken about their mean; no image is looked at. It counts from the cosine that 1 in 100 random directions exceeds. The last columns: the mean rank (0.5 is chance) of a latent's strongest test images by nearness to its name, and to another latent's.", naming, NAMES, "naming"),
        _part("Two seeds", why.get("alignment") or "Latents of two seeds matched one to one (Hungarian): mean cosine by what they write and read; the share of latents with cosine of at least 0.7 and the same partner in both.", aligned, ALIGNED, "alignment"),
        _part("Search by concepts", "Neighbours of every test image by codes, beside those by embeddings.", found, FOUND),
        _part("Bias", why.get("bias") or _said(biased), pd.DataFrame(), {}),
    ]  # fmt: skip
    if not why.get("bias") and len(biased):
        parts.append("![Wrong decisions by attribute](figures/concepts_bias.png)")
    return "\n\n".join(parts)


def _said(biased: pd.DataFrame) -> str:
    apart = biased[(biased["low"] > 0) | (biased["high"] < 0)] if len(biased) else biased
    if not len(biased):
        return "No attribute has enough test images on both sides."
    worst = biased.loc[biased["difference"].abs().idxmax()]
    return (
        f"Of {len(biased)} values of attributes that have nothing to do with the labels, {len(apart)} change the share of wrong "
        f"decisions with a 95% interval that leaves out 0; most: {md(worst['attribute'])} = {md(str(worst['value']))}, "
        f"{number(100 * float(worst['difference']))} points."
    )

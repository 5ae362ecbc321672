"""The figures of the notebook `truth`, from the tables of `mtlib.truth.tables`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mtlib.plots import base_names, legend, method_styles, panels
from mtlib.truth.tables import KINDS, by_cause, by_method


def causes_figure(table: pd.DataFrame) -> Figure:
    """Average precision of one feature per cause, method by cause, mean over seeds; below the line the controls, the probe last."""
    shown = by_cause(table).pivot_table(index="who", columns="cause", values="ap", sort=False).sort_index(axis=1)
    shown = shown.rename(columns=lambda cause: str(cause).replace("_", " "))
    shown["mean"] = shown.mean(axis=1)
    fig, ax = plt.subplots(figsize=(4.2 + 0.72 * shown.shape[1], 1.6 + 0.34 * len(shown)))
    look = dict(annot=True, fmt=".2f", annot_kws={"fontsize": 8}, cbar_kws={"pad": 0.02})
    sns.heatmap(shown, vmin=0, vmax=1, cmap="cividis", ax=ax, **look)
    ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=30, ha="right", fontsize=9)
    ax.set_yticks(ax.get_yticks(), shown.index, rotation=0, fontsize=9)
    ax.axvline(shown.shape[1] - 1, color="white", lw=3)
    ax.axhline(table["method"].nunique(), color="white", lw=3)
    seeds = table.groupby("method")["seed"].nunique().max()
    title = "average precision of one feature among all test images"
    ax.set(xlabel="", ylabel="", title=title + (f", mean over {seeds} seeds" if seeds > 1 else ""))
    return fig


def levels_figure(found: pd.DataFrame, table: pd.DataFrame, styles: dict[str, dict]) -> Figure | None:
    """Average precision of one feature per cause against the L0 aimed at, a line per method that has several, its band 95% over causes.

    Args: found: of `causes.standings`. table: 04_causes, whose controls are the dashed lines. Returns: None without such a method.
    """
    found = found.assign(base=base_names(found)).dropna(subset=["l0_target"]).sort_values("l0_target", kind="stable")
    found = found[found["base"].ne(found["method"]) & found.duplicated("base", keep=False)]
    if found.empty:
        return None
    fig, ax = plt.subplots(figsize=(6.4, 4.2))
    for base, own in found.groupby("base", sort=False):
        ax.plot(own["l0_target"], own["ap"], label=base, **styles[base] | {"linestyle": "-"})
        ax.fill_between(own["l0_target"], own["ap_low"], own["ap_high"], color=styles[base]["color"], alpha=0.12, lw=0)
    right = dict(xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    controls = by_method(table).query("control")
    for who, level in zip(controls["who"], controls["mean"], strict=True):
        ax.axhline(level, color="0.4", lw=0.9, ls="--")
        ax.annotate(who, (1, level), **right)
    ticks = sorted(set(found["l0_target"]))
    ax.set(xscale="log", xlabel="features per image (L0)", ylabel="mean average precision", ylim=(0, 1.02))
    ax.set_xticks(ticks, [f"{t:.0f}" for t in ticks])
    ax.minorticks_off()
    legend(fig)
    return fig


def sparse_figure(sparse: pd.DataFrame, styles: dict[str, dict] | None = None) -> Figure:
    """Test AUROC against the number of features a probe may use: mean over causes (line), worst cause (dotted)."""
    keys = [c for c in ("method", "l0_target", "k") if c in sparse]
    by_cause = sparse.groupby([*keys, "cause"], sort=False, dropna=False)["auroc"].mean()
    found = by_cause.groupby(keys, sort=False, dropna=False).agg(["mean", "min"]).reset_index()
    fig = _two_lines(found, "k", "mean", "min", ":", styles, "dotted: worst cause")
    for ax in fig.axes:
        ax.set(xlabel="features used, k", ylabel="test AUROC", xscale="log", xticks=sorted(set(sparse["k"])))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.minorticks_off()
    return fig


def where_figure(table: pd.DataFrame) -> Figure | None:
    """Share of the strongest cells in the error's box, per cause and kind of map, with intervals; upright marks: chance. None without lines.

    Args: table: 04_where.
    """
    if table.empty:
        return None
    causes, kinds = list(dict.fromkeys(table["cause"])), list(table.groupby("map", sort=False))
    fig, ax = plt.subplots(figsize=(6.8, 1.2 + 0.34 * len(causes)))
    for k, (name, own) in enumerate(kinds):
        at = np.array([causes.index(c) for c in own["cause"]]) + 0.3 * (k - (len(kinds) - 1) / 2)
        error = np.abs(own[["share_low", "share_high"]].to_numpy().T - own["share"].to_numpy())
        ax.errorbar(own["share"], at, xerr=error, fmt="os^"[k % 3], capsize=2, ms=5, label=name)
        ax.plot(own["chance"], at, "|", color="0.3", ms=9, label="chance" if k == 0 else None)
    ax.set_yticks(range(len(causes)), [c.replace("_", " ") for c in causes])
    ax.set(xlim=(0, 1), ylim=(len(causes) - 0.5, -0.5), xlabel="share of the strongest cells in the box of the error")
    legend(fig)
    return fig


def steering_figure(frame: pd.DataFrame, styles: dict[str, dict] | None = None) -> Figure:
    """Change of the logit against the factor on a cause's feature, mean over causes; a random direction dashed."""
    fig = _two_lines(frame, "scale", "change", "control", "--", styles, "dashed: random direction")
    for ax in fig.axes:
        ax.axvline(1, color="0.3", lw=0.8)
        ax.set(xlabel="factor on the feature's activation (1: as it is)", ylabel="mean change of the logit")
    return fig


def _two_lines(frame: pd.DataFrame, x: str, y: str, other: str, style: str, styles: dict | None, said: str) -> Figure:
    """Means of two columns against x, the second one thin and in another line style: a panel per L0, a colour per method."""
    styles = styles or method_styles(frame["method"])
    fig, found = panels(frame, [y])
    for ax, l0, _, parts in found:
        for base, part in parts:
            mean = part.groupby(x)[[y, other]].mean()
            ax.plot(mean.index, mean[y], label=base, **styles[base] | {"linestyle": "-"})
            ax.plot(mean.index, mean[other], lw=1, ls=style, color=styles[base]["color"])
        ax.set(title=l0)
    legend(fig, said)
    return fig


def attributes_figure(shares: pd.DataFrame) -> Figure:
    """Stacked bars of `attribute_shares`."""
    fig, ax = plt.subplots(figsize=(7.5, 0.9 + 0.36 * len(shares)))
    colors = ["0.85" if kind == "silent" else f"C{i}" for i, kind in enumerate(KINDS)]
    shares.set_index("method")[KINDS].plot.barh(stacked=True, ax=ax, color=colors, edgecolor="white", legend=False)
    for bars, hatch in zip(ax.containers, ["", "//", "..", "xx", ""], strict=True):
        plt.setp(bars, hatch=hatch)
    ax.set(xlabel="share of latents", ylabel="", xlim=(0, 1), ylim=(len(shares) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    legend(fig)
    return fig

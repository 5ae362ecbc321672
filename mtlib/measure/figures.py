"""Figures of notebook 04: each takes the table it shows and returns the figure. A method has one colour and marker throughout."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KINDS = ["cause", "family", "nuisance", "unexplained", "silent"]
MARKERS = "osD^vP*X"


def _styles(methods: list[str]) -> dict[str, dict]:
    """method -> colour and marker, so that no line is told by its colour alone."""
    return {m: {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)]} for i, m in enumerate(sorted(set(methods)))}


def _panels(targets: list[str], height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """One panel per target, each with its own axis: an FVU of x says nothing about an FVU of y."""
    fig, axes = plt.subplots(1, max(len(targets), 1), figsize=(4.6 * max(len(targets), 1), height), squeeze=False)
    return fig, list(axes[0])


def fvu_against_l0(metrics: pd.DataFrame) -> Figure:
    """FVU against measured L0, one point per method and seed, one panel per target."""
    ok = metrics[metrics["status"] == "ok"]
    styles, targets = _styles(list(ok["method"])), sorted(set(ok["target"]))
    fig, axes = _panels(targets)
    for ax, target in zip(axes, targets, strict=False):
        for method, part in ok[ok["target"] == target].groupby("method", sort=False):
            ax.plot(part["l0"], part["fvu"], ls="", label=method, **styles[method])
        ax.set(xlabel="measured L0 (latents per image)", ylabel=f"FVU of {target}", title=f"target {target}")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.legend()
    return fig


def curves(frame: pd.DataFrame, x: str, label: str, log: bool = True) -> Figure:
    """FVU against a column, mean over seeds with the seeds' range, one panel per target.

    Args:
        frame: method, seed, target, fvu, `x`, and level where points of the seeds belong together by level, not by `x`.
    """
    styles, targets = _styles(list(frame["method"])), sorted(set(frame["target"]))
    key = "level" if "level" in frame else x
    fig, axes = _panels(targets)
    for ax, target in zip(axes, targets, strict=False):
        for method, part in frame[frame["target"] == target].groupby("method", sort=False):
            mean = part.groupby(key).agg(x=(x, "mean"), y=("fvu", "mean"), low=("fvu", "min"), high=("fvu", "max"))
            ax.plot(mean["x"], mean["y"], label=method, ms=5, **styles[method])
            ax.fill_between(mean["x"], mean["low"], mean["high"], alpha=0.2, color=styles[method]["color"], lw=0)
        ax.set(xlabel=label, ylabel=f"FVU of {target}", title=f"target {target}")
        if log:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        ax.legend()
    return fig


def distributions(table: pd.DataFrame, columns: dict[str, str], reference: dict[str, float] | None = None) -> Figure:
    """Quantiles of per-latent measures, one panel per measure: value against the share of latents below it.

    Args:
        table:     method, quantile and the columns. columns: column -> axis label.
        reference: column -> a value to mark, what chance would give.
    """
    fig, axes = _panels(list(columns))
    styles = _styles(list(table["method"]))
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for method, part in table.groupby("method", sort=False):
            ax.plot(part[column], part["quantile"], color=styles[method]["color"], label=method)
        if reference and column in reference:
            ax.axvline(reference[column], color="0.3", ls="--", lw=1, label="chance")
        ax.set(xlabel=label, ylabel="share of latents below", ylim=(0, 1))
        ax.legend()
    return fig


def causes_heatmap(causes: pd.DataFrame) -> Figure:
    """Share of the ceiling that the best single feature of each method reaches, cause by method, mean over seeds."""
    causes = causes.assign(
        control_x=causes["best_x_dim"] / causes["ceiling"], control_y=causes["best_y_dim"] / causes["ceiling"]
    )
    table = causes.pivot_table(index="cause", columns="method", values="share_of_ceiling", sort=False)
    controls = causes.groupby("cause", sort=False)[["control_x", "control_y"]].first()
    table = table.join(controls.rename(columns={"control_x": "best unit of x", "control_y": "best unit of y"}))
    table = table.dropna(axis=1, how="all").sort_index()
    fig, ax = plt.subplots(figsize=(1.5 + 1.1 * table.shape[1], 1.2 + 0.4 * len(table)))
    image = ax.imshow(table, vmin=min(0.5, np.nanmin(table.to_numpy())), vmax=1, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.8 else "white", fontsize=9)
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=30, ha="right")
    ax.set_yticks(range(len(table)), table.index)
    ax.grid(False)
    fig.colorbar(image, ax=ax, label="test AUROC / ceiling")
    return fig


def sparse_probing(sparse: pd.DataFrame) -> Figure:
    """Test AUROC against the number of features a probe may use: mean over causes (line), worst cause (dotted)."""
    fig, (ax,) = _panels(["k"])
    styles = _styles(list(sparse["method"]))
    for method, part in sparse.groupby("method", sort=False):
        by_cause = part.groupby(["k", "cause"])["auroc"].mean().groupby("k").agg(["mean", "min"])
        ax.plot(by_cause.index, by_cause["mean"], label=method, **styles[method])
        ax.plot(by_cause.index, by_cause["min"], ls=":", color=styles[method]["color"])
    ax.set(xlabel="features used, k", ylabel="test AUROC", xscale="log", xticks=sorted(set(sparse["k"])))
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.minorticks_off()
    ax.legend(title="dotted: worst cause")
    return fig


def kinds_table(kinds: pd.DataFrame) -> pd.DataFrame:
    """method x kind: share of latents (mean over seeds), over all latents of the method."""
    counts = kinds.groupby(["method", "kind"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=KINDS, fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0).reset_index()


def kinds_bars(shares: pd.DataFrame) -> Figure:
    """Stacked bars of `kinds_table`."""
    fig, ax = plt.subplots(figsize=(7, 0.9 + 0.45 * len(shares)))
    left, hatches = np.zeros(len(shares)), ["", "//", "..", "xx", ""]
    for i, kind in enumerate(KINDS):
        color = "0.85" if kind == "silent" else f"C{i}"
        ax.barh(shares["method"], shares[kind], left=left, label=kind, color=color, hatch=hatches[i], edgecolor="white")
        left += shares[kind].to_numpy()
    ax.set(xlabel="share of latents", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(ncols=len(KINDS), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return fig

"""Figures of 05: each returns (figure, the numbers it shows)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtlib.plots import PALETTE, legend

BLUE, ORANGE, GREEN, RED = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3]


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

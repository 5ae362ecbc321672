"""Figures of notebook 04: each takes the table it shows and returns the figure.

`styles` are those of the run's methods (`plots.run_styles`), so that a method looks the same in all figures; without them,
of the table's. Where methods were trained at several L0 ("sae_8", "sae_32" ...), a method keeps its style over them, and each
L0 gets a row of panels of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlib.measure.compare import base_name
from mtlib.plots import legend, log_ticks, method_styles

KINDS = ["cause", "family", "nuisance", "unexplained", "silent"]
Styles = dict[str, dict] | None


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `base` (the name in the legend) and `row` (the L0 of its row of panels, "" when there is one row)."""
    l0 = frame["l0_target"] if "l0_target" in frame else pd.Series(np.nan, frame.index)
    base = np.array([base_name(m, t) for m, t in zip(frame["method"], l0, strict=True)], dtype=object)
    sweep = pd.DataFrame({"base": base, "method": frame["method"]}).groupby("base")["method"].nunique().gt(1).any()
    if not sweep:
        return frame.assign(base=frame["method"], row="")
    named = base != frame["method"].to_numpy()  # its name ends in its L0
    rows = [f"L0 {t:.0f}" if n else "other L0" for t, n in zip(l0, named, strict=True)]
    return frame.assign(base=base, row=rows)


def _grid(frame: pd.DataFrame, columns: list[str], height: float = 3.0) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """One panel per row of `_named` and column: an FVU of x says nothing about an FVU of y, nor one L0 about another."""
    places = [(row, column) for row in list(dict.fromkeys(frame["row"])) or [""] for column in columns]
    across = max(len(columns), min(2, len(places)), 1)  # rows of one panel stand two and two
    down = max(-(-len(places) // across), 1)
    fig, axes = plt.subplots(down, across, figsize=(4.6 * across + 0.4, height * down + 0.3), squeeze=False)
    for ax in axes.flat[len(places) :]:
        ax.remove()
    return fig, dict(zip(places, axes.flat, strict=False))


def _by_target(
    frame: pd.DataFrame, draw: Callable[[Axes, str, pd.DataFrame, dict], None], label: str, log: bool, styles: Styles
) -> Figure:
    """Panels by row and target; `draw` adds one method's part to its panel."""
    styles, frame = styles or method_styles(frame["method"]), _named(frame)
    fig, panels = _grid(frame, sorted(set(frame["target"])))
    for (row, target), ax in panels.items():
        here = frame[(frame["row"] == row) & (frame["target"] == target)]
        for base, part in here.groupby("base", sort=False):
            draw(ax, base, part, styles[base])
        ax.set(xlabel=label, ylabel=f"FVU of {target}", title=f"target {target}" + (f", {row}" if row else ""))
        if log:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
    legend(fig)
    return fig


def fvu_against_l0(metrics: pd.DataFrame, styles: Styles = None) -> Figure:
    """FVU against measured L0: a line per method through its L0, a small point per seed, one panel per target."""

    def draw(ax: Axes, base: str, part: pd.DataFrame, style: dict) -> None:
        mean = part.groupby("trained")[["l0", "fvu"]].mean().sort_values("l0")
        ax.plot(mean["l0"], mean["fvu"], label=base, ms=7, **style)
        ax.plot(part["l0"], part["fvu"], ms=3, alpha=0.5, **style | {"linestyle": ""})

    ok = _named(metrics[metrics["status"] == "ok"])
    one_row = ok.assign(trained=ok["method"], method=ok["base"], l0_target=np.nan)  # all L0 of a method share a panel
    fig = _by_target(one_row, draw, "measured L0 (latents per image)", True, styles or method_styles(metrics["method"]))
    for ax in fig.axes:
        low, high = ax.get_xlim()
        ax.set_xlim(low / 1.2, high * 1.2)  # one L0 alone is not blown up
        fvu = np.concatenate([line.get_ydata() for line in ax.lines])
        if fvu.max() > 4 * fvu.min() > 0:
            ax.set_yscale("log")
            log_ticks(ax.yaxis)
    return fig


def curves(frame: pd.DataFrame, x: str, label: str, styles: Styles = None, log: bool = True) -> Figure:
    """FVU against a column, mean over seeds with the seeds' range, one panel per target (and L0).

    Args:
        frame: method, seed, target, fvu, `x`, and level where points of the seeds belong together by level, not by `x`.
    """
    key = "level" if "level" in frame else x

    def draw(ax: Axes, base: str, part: pd.DataFrame, style: dict) -> None:
        mean = part.groupby(key).agg(x=(x, "mean"), y=("fvu", "mean"), low=("fvu", "min"), high=("fvu", "max"))
        ax.plot(mean["x"], mean["y"], label=base, ms=5, **style)
        ax.fill_between(mean["x"], mean["low"], mean["high"], alpha=0.2, color=style["color"], lw=0)

    return _by_target(frame, draw, label, log, styles)


def distributions(
    table: pd.DataFrame, columns: dict[str, str], reference: dict[str, float] | None = None, styles: Styles = None
) -> Figure:
    """Quantiles of per-latent measures, one panel per measure (and L0): value against the share of latents below it.

    Args:
        table:     method, quantile and the columns. columns: column -> axis label.
        reference: column -> a value to mark, what chance would give.
    """
    styles, table = styles or method_styles(table["method"]), _named(table)
    fig, panels = _grid(table, list(columns))
    for (row, column), ax in panels.items():
        for base, part in table[table["row"] == row].groupby("base", sort=False):
            ax.plot(part[column], part["quantile"], label=base, markevery=20, ms=5, **styles[base])
        if reference and column in reference:
            ax.axvline(reference[column], color="0.3", ls="--", lw=1, label="chance")
        ax.set(xlabel=columns[column], ylabel="share of latents below", ylim=(0, 1), title=row)
    legend(fig)
    return fig


def causes_heatmap(causes: pd.DataFrame) -> Figure:
    """Share of the ceiling that the best single feature of each method reaches, method by cause, mean over seeds."""
    table = causes.pivot_table(index="method", columns="cause", values="share_of_ceiling", sort=False)
    first = causes.groupby("cause").first()
    for name, column in (("best unit of x", "best_x_dim"), ("best unit of y", "best_y_dim")):
        if first[column].notna().any():
            table.loc[name] = first[column] / first["ceiling"]
    table = table.sort_index(axis=1)
    table["mean"] = table.mean(axis=1)
    fig, ax = plt.subplots(figsize=(3.2 + 0.72 * table.shape[1], 1.6 + 0.34 * len(table)))
    image = ax.imshow(table, vmin=min(0.9, np.nanmin(table.to_numpy())), vmax=1, cmap="cividis", aspect="auto")
    middle = sum(image.get_clim()) / 2
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        ax.text(
            j, i, f"{value:.3f}", ha="center", va="center", color="black" if value > middle else "white", fontsize=8
        )
    names = [str(cause).replace("_", " ") for cause in table.columns]
    ax.set_xticks(range(table.shape[1]), names, rotation=30, ha="right", fontsize=9)
    ax.set_yticks(range(len(table)), table.index, fontsize=9)
    ax.axvline(table.shape[1] - 1.5, color="white", lw=3)
    ax.grid(False)
    fig.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    seeds = causes.groupby("method")["seed"].nunique().max()
    ax.set_title("test AUROC / ceiling" + (f", mean over {seeds} seeds" if seeds > 1 else ""))
    return fig


def sparse_probing(sparse: pd.DataFrame, styles: Styles = None) -> Figure:
    """Test AUROC against the number of features a probe may use: mean over causes (line), worst cause (dotted)."""
    styles, sparse = styles or method_styles(sparse["method"]), _named(sparse)
    fig, panels = _grid(sparse, ["auroc"])
    for (row, _), ax in panels.items():
        for base, part in sparse[sparse["row"] == row].groupby("base", sort=False):
            by_cause = part.groupby(["k", "cause"])["auroc"].mean().groupby("k").agg(["mean", "min"])
            ax.plot(by_cause.index, by_cause["mean"], label=base, **styles[base] | {"linestyle": "-"})
            ax.plot(by_cause.index, by_cause["min"], ms=3, alpha=0.7, **styles[base] | {"linestyle": ":"})
        ax.set(xlabel="features used, k", ylabel="test AUROC", xscale="log", xticks=sorted(set(sparse["k"])), title=row)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.minorticks_off()
    legend(fig, "dotted: worst cause")
    return fig


def steering(frame: pd.DataFrame, styles: Styles = None) -> Figure:
    """Change of the logit against the factor on a cause's feature, mean over causes; a random direction dashed."""
    styles, frame = styles or method_styles(frame["method"]), _named(frame)
    fig, panels = _grid(frame, ["change"])
    for (row, _), ax in panels.items():
        for base, part in frame[frame["row"] == row].groupby("base", sort=False):
            mean = part.groupby("scale")[["change", "control"]].mean()
            ax.plot(mean.index, mean["change"], label=base, **styles[base] | {"linestyle": "-"})
            ax.plot(mean.index, mean["control"], ls="--", lw=1, color=styles[base]["color"])
        ax.axvline(1, color="0.3", lw=0.8)
        ax.set(xlabel="factor on the feature's activation (1: as it is)", ylabel="mean change of the logit", title=row)
    legend(fig, "dashed: random direction")
    return fig


def mono_pairs(pairs: pd.DataFrame, styles: Styles = None) -> Figure:
    """What MonoLoss buys (MonoScore, purity) and costs (R²): from without it (hollow) to with it, an arrow per method."""
    columns = {"mono_score": "MonoScore", "purity": "purity"}
    shown = {c: label for c, label in columns.items() if f"{c}_off" in pairs and pairs[f"{c}_off"].notna().any()}
    styles = styles or method_styles(pairs["method"])
    fig, axes = plt.subplots(1, max(len(shown), 1), figsize=(4.6 * max(len(shown), 1) + 0.4, 3.6), squeeze=False)
    for ax, (column, label) in zip(axes[0], shown.items(), strict=False):
        for row in pairs.to_dict("records"):
            (x0, y0), (x1, y1) = ((row[f"explained_variance_{e}"], row[f"{column}_{e}"]) for e in ("off", "on"))
            style = styles[row["method"]] | {"linestyle": ""}
            ax.plot([x0, x1], [y0, y1], lw=1, color=style["color"])
            ax.plot(x0, y0, ms=6, mfc="white", **style)
            ax.plot(x1, y1, ms=7, label=row["method"], **style)
        ax.set(xlabel="R² (1 - FVU)", ylabel=label)
    legend(fig, "hollow: without MonoLoss")
    return fig


def kinds_table(kinds: pd.DataFrame) -> pd.DataFrame:
    """method x kind: share of latents (mean over seeds), over all latents of the method."""
    counts = kinds.groupby(["method", "kind"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=KINDS, fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0).reset_index()


def kinds_bars(shares: pd.DataFrame) -> Figure:
    """Stacked bars of `kinds_table`."""
    fig, ax = plt.subplots(figsize=(7.5, 0.9 + 0.36 * len(shares)))
    left, hatches = np.zeros(len(shares)), ["", "//", "..", "xx", ""]
    for i, kind in enumerate(KINDS):
        color = "0.85" if kind == "silent" else f"C{i}"
        ax.barh(shares["method"], shares[kind], left=left, label=kind, color=color, hatch=hatches[i], edgecolor="white")
        left += shares[kind].to_numpy()
    ax.set(xlabel="share of latents", xlim=(0, 1), ylim=(len(shares) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    legend(fig)
    return fig

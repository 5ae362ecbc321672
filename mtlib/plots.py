"""Figures and tables of a stage: one style, one way to save, always with the numbers beside the picture."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

PALETTE = sns.color_palette("colorblind")  # Okabe-Ito like; safe for the common colour deficiencies
MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")

LARGE = 100_000  # bytes


def use_style() -> None:
    """Set the repo's figure style (called once at the top of each notebook)."""
    pd.set_option("display.html.use_mathjax", False)  # a dollar sign in a name is a dollar sign
    look = {"figure.dpi": 110, "savefig.dpi": 130, "figure.constrained_layout.use": True, "svg.hashsalt": "mtlib"}
    look |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "0.88", "grid.linewidth": 0.8}
    look |= dict.fromkeys(("axes.titlesize", "axes.labelsize", "figure.labelsize"), 10)
    look |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 9)
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=look)


def method_styles(methods: Iterable[str]) -> dict[str, dict]:
    """method -> colour, marker and line style, by its place among the run's methods, so the same in all its figures.

    A method at several L0 ("sae_8", "sae_32") keeps one colour, and its plain name ("sae") has a style, too. Colours come
    again after ten methods, with other markers and lines: up to forty can be told apart.
    """
    members: dict[str, list[str]] = {}
    for method in dict.fromkeys(methods):
        members.setdefault(re.sub(r"_\d+$", "", method), []).append(method)
    styles = {}
    for i, (base, own) in enumerate(members.items()):
        for j, name in [(0, base), *enumerate(own)]:
            marker, line = MARKERS[(i + j) % len(MARKERS)], DASHES[(i // 10 + j) % len(DASHES)]
            styles[name] = {"color": PALETTE[i % 10], "marker": marker, "linestyle": line}
    return styles


def run_styles(train: Path) -> dict[str, dict]:
    """`method_styles` of a run. Args: train: its artifact of 03_train."""
    return method_styles(
        pd.read_csv(train / "coders.csv", usecols=["method"], dtype=str, keep_default_na=False)["method"]
    )


def base_name(method: str, l0_target: float | None = None) -> str:
    """A method's name without the L0 that it ends in: "sae_32" is the method "sae" at 32."""
    found = re.fullmatch(r"(.+)_(\d+)", method)
    same = found and (l0_target is None or pd.isna(l0_target) or int(found[2]) == int(l0_target))
    return found[1] if same else method


def base_names(frame: pd.DataFrame) -> pd.Series:
    """`base_name` of every line of a frame with method and maybe l0_target."""
    return pd.Series(list(map(base_name, frame["method"], _l0(frame))), frame.index, dtype=object)


def _l0(frame: pd.DataFrame) -> pd.Series:
    return frame["l0_target"] if "l0_target" in frame else pd.Series(float("nan"), frame.index)


def panels(
    frame: pd.DataFrame, columns: Sequence[str]
) -> tuple[Figure, list[tuple[Axes, str, str, list[tuple[str, pd.DataFrame]]]]]:
    """A panel for each of `columns`; where methods were trained at several L0 ("sae_8", "sae_32"), in a row for each L0.

    Args: frame: lines of methods, with method and maybe l0_target.
    Returns: the figure; for each panel its axes, the L0 of its row ("" when there is one row), its column, and the lines of
        each method in that row under the method's name without the L0.
    """
    l0, names = _l0(frame), pd.DataFrame({"base": base_names(frame), "method": frame["method"]})
    row = pd.Series("", frame.index)
    if names.groupby("base")["method"].nunique().gt(1).any():
        row = ("L0 " + l0.map("{:.0f}".format)).where(names["base"] != names["method"], "other L0")
    else:
        names["base"] = names["method"]
    places = [(r, column) for r in dict.fromkeys(row) or [""] for column in columns]
    across = max(len(columns), min(2, len(places)), 1)  # rows of one panel stand two and two
    down = max(-(-len(places) // across), 1)
    fig, axes = plt.subplots(down, across, figsize=(4.6 * across + 0.4, 3.0 * down + 0.3), squeeze=False)
    for ax in axes.flat[len(places) :]:
        ax.remove()
    parts = {r: list(frame[row == r].groupby(names["base"][row == r], sort=False)) for r, _ in places}
    return fig, [(ax, r, column, parts[r]) for (r, column), ax in zip(places, axes.flat, strict=False)]


def legend(fig: Figure, title: str = "", handles: list | None = None) -> None:
    """One legend for all panels, in as many columns as fit; the figure grows by its height.

    It stands below them, or above where a label for all panels is below. Args: handles: instead of the panels' own.
    """
    found = {h.get_label(): h for h in handles or ()}
    for ax in fig.axes if handles is None else ():
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    where = f"outside {'upper' if fig.get_supxlabel() else 'lower'} center"
    look = dict(title=title or None, loc=where, frameon=False, markerscale=1.1, handlelength=2.6)
    for columns in range(min(6, len(found)), 0, -1):
        even = -(-len(found) // -(-len(found) // columns))  # no last column that is nearly empty
        box = fig.legend(found.values(), found.keys(), ncols=even, **look)
        extent = box.get_window_extent(fig.canvas.get_renderer())
        if extent.width <= fig.bbox.width or columns == 1:
            fig.set_figheight(fig.get_figheight() + extent.height / fig.dpi)
            return
        box.remove()


def log_ticks(axis: Axis) -> None:
    """Numbers such as 0.02, 0.03, 0.05, 0.1 on a logarithmic axis whose data are drawn."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 40 * low else (1, 3)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def scatter(frame: pd.DataFrame, x: str, y: str, hue: str, style: str, seed: int = 0) -> Figure:
    """Points in the plane, coloured by `hue` where it tells 2 to 16 kinds apart, else by `style`, which also marks them."""
    kinds = frame[[hue, style]].nunique()
    style = style if kinds[style] > 1 else None
    hue = hue if 1 < kinds[hue] <= 16 else style
    names = sorted(frame[hue].unique()) if hue else []
    palette = sns.color_palette("colorblind" if len(names) <= 10 else "husl", len(names)) if hue else None
    fig, ax = plt.subplots(figsize=(8, 5.5))
    for column in {hue, style} - {None}:  # matplotlib keeps names that begin with "_" out of legends
        frame = frame.assign(**{column: frame[column].map(_in_legend)})
    mixed = frame.sample(frac=1, random_state=seed)  # no kind lies on top of the others
    look = dict(hue=hue, hue_order=[*map(_in_legend, names)] or None, style=style, palette=palette, s=18, alpha=0.7)
    sns.scatterplot(mixed, x=x, y=y, ax=ax, **look)
    if hue:
        sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), fontsize=8, title=None)
        for text in ax.get_legend().get_texts():
            text.set_parse_math(False)
    return fig


def _in_legend(name: str) -> str:
    return f"\u200a{name}" if name.startswith("_") else name  # a hair space


def facets(plot: Callable, frame: pd.DataFrame, **look) -> sns.FacetGrid:
    """seaborn's `relplot`, `displot` or `catplot` of a frame; empty axes where nothing in it has a value.

    Args: look: as seaborn takes it.
    """
    frame = frame.dropna(subset=[look[axis] for axis in ("x", "y") if axis in look])
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn lays its grids out itself
        if frame.empty:
            grid = sns.FacetGrid(frame)
            grid.ax.text(0.5, 0.5, "no values", ha="center", transform=grid.ax.transAxes)
            return grid.set(xticks=[], yticks=[])
        look |= {"col_wrap": min(3, frame[look["col"]].nunique())} if "col" in look and "row" not in look else {}
        return plot(frame, **look).set_titles("{col_name}", "{row_name}", "{col_name}")


def image_grid(
    lines: Sequence[Sequence[Image.Image | None]],
    *,
    names: Sequence[str] = (),
    heads: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    strips: Sequence[Sequence[object | None]] = (),
    side: float = 1.3,
) -> Figure:
    """Images in lines and columns: the one way in which figures show pictures.

    Args:
        lines:    images of each line, which need not be equally many; None leaves a place empty.
        names:    text left of each line; heads: text above each column.
        captions: text under each image, in lists like those of `lines`.
        strips:   colour of a strip under each image, in lists like those of `lines`; None: no strip.
        side:     inches of a place.
    Returns: the figure; `fig.axes` are the places, line by line, for those who draw on the images.
    """
    columns = max(map(len, lines), default=1)
    size = (side * columns + (1.0 if names else 0.0), (side + 0.2 * bool(captions)) * len(lines))
    fig, axes = plt.subplots(len(lines), columns, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    for i, line in enumerate(lines):
        for j, image in enumerate(line):
            ax = axes[i, j]
            if image is not None:
                ax.imshow(np.asarray(image.convert("RGB")))
            if captions:
                ax.set_xlabel(captions[i][j], fontsize=8, parse_math=False)
            if strips and strips[i][j] is not None:
                ax.spines["bottom"].set(visible=True, color=strips[i][j], linewidth=5)
    for ax, name in zip(axes[:, 0], names, strict=False):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    for ax, head in zip(axes[0], heads, strict=False):
        ax.set_title(head, fontsize=9, parse_math=False)
    return fig


def readable(fig: Figure) -> None:
    """Every text of a figure in fonts of this machine that have its characters, in place; a character that none has as "\\u732b".

    The numbers beside a figure keep the name as it is.
    """
    ticks = [t for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels()]
    if all(map(str.isascii, (t.get_text() for t in (*ticks, *fig.findobj(Text))))):
        return
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            names = [t.get_text() for t in axis.get_ticklabels()]
            if names != (drawn := [_drawn(name)[0] for name in names]):
                axis.set_ticks(axis.get_ticklocs(), drawn, parse_math=False)
    for text in fig.findobj(Text):
        drawn, fonts = _drawn(text.get_text())
        if drawn != text.get_text():
            text.set_text(drawn)
        if fonts:
            text.set_fontfamily([*text.get_fontfamily(), *fonts])


def _drawn(name: str) -> tuple[str, list[str]]:
    """A name as it can be drawn, and the families that it needs beside the plain one."""
    fonts = {c: _font_with(c) for c in set(name) if not c.isascii()}
    drawn = "".join(c if fonts.get(c, "") is not None else c.encode("ascii", "backslashreplace").decode() for c in name)
    return drawn, sorted({font for font in fonts.values() if font})


@functools.cache
def _font_with(character: str) -> str | None:
    """The family of a font that has a character: "" for matplotlib's own, None where there is none."""
    own = font_manager.findfont("DejaVu Sans")
    found = [own, *(font.fname for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name)]
    path = next((path for path in dict.fromkeys(found) if ord(character) in _characters(path)), None)
    return "" if path == own else path and font_manager.get_font(path).family_name


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """What a font can draw; nothing for one of fixed sizes only, as coloured emoji are."""
    font = font_manager.get_font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def png(fig: Figure) -> bytes:
    """PNG bytes of a figure; a large one (it shows photographs or many points) is stored with 256 colours."""
    readable(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.08)
    if buffer.tell() <= LARGE:
        return buffer.getvalue()
    small, image = io.BytesIO(), Image.open(buffer).convert("RGB")
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(small, "PNG", optimize=True)
    return small.getvalue()


def show(fig: Figure, image: bytes, alt: str = "") -> None:
    """Show a figure in a notebook by its PNG bytes, as large as notebooks show figures; the figure itself is closed, undrawn."""
    plt.close(fig)
    saved = plt.rcParams["savefig.dpi"]
    width = Image.open(io.BytesIO(image)).width * (1 if saved == "figure" else fig.dpi / saved)
    IPython.display.display(IPython.display.Image(image, width=round(width), alt=alt))

"""Figures and tables of a stage: one style, one way to save, always with the numbers beside the picture."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from mtlib.run.artifacts import Stage, atomic

PALETTE = sns.color_palette("colorblind")  # Okabe-Ito like; safe for the common colour deficiencies

LARGE = 100_000  # bytes


def use_style() -> None:
    """Set the repo's figure style (called once at the top of each notebook)."""
    pd.set_option("display.html.use_mathjax", False)  # a dollar sign in a name is a dollar sign
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE)
    plt.rcParams.update({"figure.dpi": 110, "savefig.dpi": 130, "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "mtlib"})


def table(stage: Stage, frame: pd.DataFrame, name: str) -> Path:
    """Save `frame` as tables/<NN>_<name>.csv of the stage: six significant digits, no index, "\\n" line ends."""
    path = stage.out / "tables" / f"{stage.number}_{name}.csv"
    with atomic(path) as tmp:
        frame.to_csv(tmp, index=False, float_format="%.6g", lineterminator="\n")
    return path


def save(stage: Stage, fig: Figure, name: str, frame: pd.DataFrame) -> Path:
    """Save a figure as figures/<NN>_<name>.png and the numbers it shows as tables/<NN>_<name>.csv."""
    table(stage, frame, name)
    path = stage.out / "figures" / f"{stage.number}_{name}.png"
    with atomic(path) as tmp:
        tmp.write_bytes(_png(fig))
    return path


def _png(fig: Figure) -> bytes:
    """PNG bytes of a figure; a large one (it shows photographs or many points) is stored with 256 colours."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    if buffer.tell() <= LARGE:
        return buffer.getvalue()
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()

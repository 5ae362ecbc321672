"""Figures of the first notebook: what the images look like, and where their embeddings lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from mtlib.embed.images import load_image
from mtlib.embed.store import Data
from mtlib.plots import image_grid


def scene_pairs(data: Data, n_pairs: int = 3, seed: int = 0) -> tuple[Figure, pd.DataFrame]:
    """Every cause with `n_pairs` twins: the same scene drawn plausibly and with its one error.

    Returns: (figure, frame of family, cause, scene, place of what is shown).
    """
    from mtlib.scenes.dataset import Spec, render

    truth = data.truth[(data.truth["label"] == 1) & (data.truth["generator"] == "")]
    causes = truth[["family", "cause"]].drop_duplicates().sort_values("cause").to_numpy().tolist()
    lines, shown = [], []
    for family, cause in causes:
        scenes = truth.loc[truth["cause"] == cause, "scene"].sort_values()
        chosen = [int(s) for s in scenes.sample(min(n_pairs, len(scenes)), random_state=seed)]
        lines.append([render(Spec(scene, family, error))[0] for scene in chosen for error in (False, True)])
        shown += [{"family": family, "cause": cause, "scene": s, "place": i} for i, s in enumerate(chosen)]
    names = [cause.replace("_", "\n") for _, cause in causes]
    return image_grid(lines, names=names, heads=["plausible", "implausible"] * n_pairs, side=1.5), pd.DataFrame(shown)


def sample_sheet(data: Data, n_lines: int = 8, n_columns: int = 8, seed: int = 0) -> tuple[Figure, pd.DataFrame]:
    """A sample of a user's images: a line per label (or class, or one for all), small, letterboxed.

    Returns: (figure, frame of line, path of what is shown).
    """
    labels = data.manifest["label"].map({0: "plausible", 1: "implausible"}).fillna("unlabelled").to_numpy(dtype=str)
    if data.facts["labels"] == "plausibility":
        lines = np.char.add(np.char.add(labels, "\n"), data.manifest["class_name"].to_numpy(dtype=str))
    else:
        lines = data.manifest["class_name"].to_numpy(dtype=str)
    rng = np.random.default_rng(seed)
    names = sorted(set(lines))
    names = (
        names if len(names) <= 2 * n_lines else [names[i] for i in np.sort(rng.permutation(len(names))[: 2 * n_lines])]
    )
    pictures, shown = [], []
    for name in names:
        rows = rng.permutation(np.flatnonzero(lines == name))[:n_columns]
        pictures.append([thumbnail(data, int(row)) for row in rows])
        shown += [{"line": name.replace("\n", " "), "path": data.manifest["path"].iloc[row]} for row in rows]
    texts = [name.replace("_", " ")[:48] or "images" for name in names]
    return image_grid(pictures, names=texts), pd.DataFrame(shown)


def thumbnail(data: Data, row: int, side: int = 128) -> Image.Image:
    """The image of a row, fitted into a white square. Raises: ImageRefused "changed" when the file is not what was embedded."""
    image, _ = load_image(data.images(row), unchanged=data.manifest["sha256"].iloc[row])
    return ImageOps.pad(image, (side, side), color=(255, 255, 255))


def plane(x: np.ndarray, fit_rows: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components (fitted on fit_rows) of rows of x (N, D).

    Returns: ((n, 2) float64 coordinates, (2,) share of variance); the largest loading of each axis is positive.
    """
    fit = np.asarray(x[fit_rows], np.float64)
    mean = fit.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(fit - mean, rowvar=False))
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return (np.asarray(x[rows], np.float64) - mean) @ axes, values[::-1][:2] / values.sum()


def map_figure(data: Data, n_points: int = 3000, seed: int = 0) -> tuple[Figure, pd.DataFrame]:
    """Embeddings of a sample of rows in the plane of their two largest principal components.

    Returns: (figure, frame of path, pc1, pc2, group, label).
    """
    rng = np.random.default_rng(seed)
    train, every = data.rows("train"), data.rows("all")
    fit = np.sort(rng.permutation(train)[:20_000])
    rows = np.sort(rng.permutation(every)[:n_points])
    points, share = plane(data.x, fit, rows)
    group = (data.truth["family"] if data.truth is not None else data.manifest["class_name"]).to_numpy(dtype=str)[rows]
    label = (
        data.manifest["label"].map({0: "plausible", 1: "implausible"}).fillna("unlabelled").to_numpy(dtype=str)[rows]
    )
    frame = pd.DataFrame({"path": data.manifest["path"].to_numpy()[rows], "pc1": points[:, 0], "pc2": points[:, 1]})
    frame["group"], frame["label"] = group, label
    kind = "class" if data.truth is None else "family"
    shown = frame.rename(columns={"group": kind}).sort_values(kind, kind="stable")
    fig, ax = plt.subplots(figsize=(8, 5.5))
    style = "label" if len(set(label)) > 1 else None
    hue = kind if 1 < len(set(group)) <= 16 else style
    palette = (
        sns.color_palette("colorblind" if shown[hue].nunique() <= 10 else "husl", shown[hue].nunique()) if hue else None
    )
    shown = shown.sample(frac=1, random_state=seed)  # no group lies on top of the others
    order = sorted(set(shown[hue])) if hue else None
    look = dict(hue=hue, hue_order=order, style=style, palette=palette)
    sns.scatterplot(shown, x="pc1", y="pc2", s=18, alpha=0.7, ax=ax, **look)
    ax.set(
        xlabel=f"first component ({share[0]:.0%} of variance)", ylabel=f"second component ({share[1]:.0%} of variance)"
    )
    if hue:
        sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), fontsize=8, title=None)
        for text in ax.get_legend().get_texts():
            text.set_parse_math(False)
    return fig, frame

"""Does a classifier treat images with an attribute differently, and does the concept of that attribute make it do so?

Attributes are what the labels do not speak of: columns of the user's table (CelebA's, say), or the nuisances of rendered
scenes. Concepts are latents of a coder of x: the one that tells an attribute's images best on the validation images, its
rates measured on the test images.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mtlib.embed.manifest import attributes as columns_of
from mtlib.embed.store import Data
from mtlib.features.collages import printable
from mtlib.learn.classifier import Classifier, targets
from mtlib.learn.scores import wilson
from mtlib.measure.codes import sparse_codes
from mtlib.measure.logit import steer
from mtlib.truth.attributes import nuisances
from mtlib.truth.auroc import auroc

MIN_IMAGES = 20  # with the attribute's value and without it, in every split that is used
SCALES = (0.0, 2.0, 4.0)  # a concept removed, doubled, times four
WRONG = ["attribute", "value", "n_with", "n_without", "wrong_with", "wrong_without", "difference", "low", "high"]
EFFECT = ["attribute", "value", "feature", "auroc", "n", "scale", "flipped", "flipped_control"]


def attributes(data: Data) -> pd.DataFrame:
    """The attributes of every row, one column each: of the truth (scenes), else of the user's table; maybe no column."""
    if data.truth is not None:
        return nuisances(data.truth)
    known = [c for c in columns_of(data.manifest) if data.manifest[c].notna().any()]
    return nuisances(data.manifest[known])


def _decisions(logits: np.ndarray) -> np.ndarray:
    return (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)


def disparities(data: Data, table: pd.DataFrame) -> pd.DataFrame:
    """Wrong decisions on test images with each value of each attribute, and on those without it.

    Returns: frame of WRONG (wrong_...: shares; low, high: 95% interval of difference, Newcombe), and where labels are
        plausibility false_alarms_with, false_alarms_without: wrong decisions on plausible images. Values with fewer than
        MIN_IMAGES images on either side are left out.
    """
    label, _ = targets(data.manifest, data.facts["labels"])
    rows = data.rows("test")
    rows = rows[label[rows] >= 0]
    wrong = _decisions(np.asarray(data.logits[rows])) != label[rows]
    lines = []
    for name, value, has in _values(table.iloc[rows]):
        a, b = wrong[has], wrong[~has]
        if min(len(a), len(b)) < MIN_IMAGES:
            continue
        low, high = newcombe(int(a.sum()), len(a), int(b.sum()), len(b))
        line = {"attribute": name, "value": value, "n_with": len(a), "n_without": len(b), "wrong_with": a.mean()}
        line |= {"wrong_without": b.mean(), "difference": a.mean() - b.mean(), "low": low, "high": high}
        if data.facts["labels"] == "plausibility":
            fine = pd.Series(wrong)[label[rows] == 0].groupby(has[label[rows] == 0]).mean()
            line |= {"false_alarms_with": fine.get(True, np.nan), "false_alarms_without": fine.get(False, np.nan)}
        lines.append(line)
    return pd.DataFrame(lines, columns=None if lines else WRONG)


def newcombe(k: int, n: int, k_other: int, n_other: int) -> tuple[float, float]:
    """95% interval of k / n - k_other / n_other, from the two Wilson intervals. Source: Newcombe 1998, method 10."""
    p, q = k / n, k_other / n_other
    low, high = wilson([k, k_other], [n, n_other])
    return p - q - np.hypot(p - low[0], high[1] - q), p - q + np.hypot(high[0] - p, q - low[1])


def _values(table: pd.DataFrame):
    """(attribute, value, (n,) bool) for every value of every column; of two values the second."""
    for name in table:
        text = table[name].astype(str).to_numpy()
        values = sorted(set(text))
        for value in values[1:] if len(values) == 2 else values:
            yield name, value, text == value


def figure(frame: pd.DataFrame, n: int = 16) -> Figure:
    """The n largest `disparities` with their intervals."""
    shown = frame.reindex(frame["difference"].abs().sort_values(ascending=False).index).head(n)
    fig, ax = plt.subplots(figsize=(6.5, 0.32 * len(shown) + 1.3))
    bars = 100 * np.abs(shown[["low", "high"]].sub(shown["difference"], axis=0)).to_numpy(float).T
    ax.errorbar(100 * shown["difference"], range(len(shown)), xerr=bars, fmt="o", color="C0", ecolor="0.5", capsize=3)
    ax.axvline(0, color="0.4", lw=1)
    names = [printable(f"{r.attribute} = {r.value}".replace("_", " ")) for r in shown.itertuples()]
    ax.set_yticks(range(len(shown)), names, parse_math=False)
    ax.set(xlabel="more wrong decisions with it (percentage points, 95% interval)")
    ax.invert_yaxis()
    return fig


@torch.no_grad()
def concept_effects(data: Data, table: pd.DataFrame, coder, classifier: Classifier, seed: int = 0) -> pd.DataFrame:
    """The concept of every attribute's value, and what the classifier decides when it is turned down or up.

    The latent with the highest val AUROC for the value is its concept. On the test images on which it fires, its part of
    the embedding, z_j W_dec_j, is removed, doubled and taken four times; the control puts a random direction of the same
    length in its place.

    Args: coder: of x. classifier: of x.
    Returns: frame of EFFECT (auroc: on test; n: images; flipped: share of decisions that turn), and for one logit change and
        change_control (its mean change).
    """
    rows = {s: data.rows(s) for s in ("val", "test")}
    codes = {s: sparse_codes(coder, data.x, r).tocsc() for s, r in rows.items()}
    has = {s: list(_values(table.iloc[r])) for s, r in rows.items()}
    test = {(name, value): own for name, value, own in has["test"]}
    kept = [(n, v, own, test[n, v]) for n, v, own in has["val"] if (n, v) in test]
    kept = [k for k in kept if all(MIN_IMAGES <= part.sum() <= len(part) - MIN_IMAGES for part in k[2:])]
    if not kept:
        return pd.DataFrame(columns=EFFECT)
    on_val = auroc(codes["val"], np.stack([k[2] for k in kept], 1))  # (S, C)
    on_test = auroc(codes["test"], np.stack([k[3] for k in kept], 1))
    rng, lines = np.random.default_rng(seed), []
    for c, (name, value, _, _) in enumerate(kept):
        j = int(np.argmax(on_val[:, c]))
        fires = rows["test"][np.sort(codes["test"][:, [j]].indices)]
        line = {"attribute": name, "value": value, "feature": j, "auroc": on_test[j, c], "n": len(fires)}
        random = torch.from_numpy(rng.normal(size=coder.W_dec.shape[1]).astype(np.float32))
        if not len(fires):
            continue
        x = torch.from_numpy(np.asarray(data.x[fires], np.float32))
        before, own = classifier(x).numpy(), [line | {"scale": scale} for scale in SCALES]
        for end, direction in (("", None), ("_control", random)):
            for effect, after in zip(own, steer(coder, x, x, j, SCALES, classifier, direction).numpy(), strict=True):
                effect[f"flipped{end}"] = float((_decisions(after) != _decisions(before)).mean())
                effect |= {f"change{end}": float((after - before).mean())} if after.ndim == 1 else {}
        lines += own
    return pd.DataFrame(lines, columns=None if lines else EFFECT)

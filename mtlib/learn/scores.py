"""How good a classifier is, with intervals: tables and figures for plausibility (one logit) and for classes (C logits).

A figure comes with the frame of the numbers that it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import brentq
from scipy.special import expit, softmax
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from sklearn.metrics import confusion_matrix, roc_curve
from sklearn.model_selection import StratifiedGroupKFold

from mtlib.learn.classifier import FOLDS, fit_classifier
from mtlib.learn.config import ClassifierConfig

BINS, HELD_OUT = 10, 0.15
HEADINGS = {"fold": "fold", "group": "images", "n": "n"}  # of `scores` and `folds`
HEADINGS |= {"accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high", "commonest": "one label alone"}
HEADINGS |= {"auroc": "AUROC", "auroc_low": "AUROC low", "auroc_high": "AUROC high", "ece": "calibration error"}


def one_logit(logits: np.ndarray) -> np.ndarray:
    """(n,) of the second of two classes; (n, C) of more as they are."""
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, 2) from (n,) plausibility logits, or (n, C) from class logits."""
    if logits.ndim == 2:
        return softmax(logits.astype(np.float64), axis=1)
    p = expit(logits.astype(np.float64))
    return np.stack([1 - p, p], axis=1)


def auroc_interval(score: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """AUROC with its 95% interval; all NaN without positives or negatives, no interval (NaN) with one of either.

    Args: score (n,), positive (n,) bool. Returns: auroc, low, high.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return (float("nan"),) * 3
    ranks = rankdata(score)
    wins = (ranks[positive] - rankdata(score[positive])) / n  # share of negatives below each positive
    losses = 1 - (ranks[~positive] - rankdata(score[~positive])) / m
    variance = wins.var(ddof=1) / m + losses.var(ddof=1) / n if min(m, n) > 1 else np.nan  # DeLong
    return float(wins.mean()), *auroc_bounds(float(wins.mean()), m, n, variance)


def auroc_bounds(area: float, m: int, n: int, variance: float = 0.0) -> tuple[float, float]:
    """(low, high) of the areas that a 95% test would not reject; never of width 0, NaN with one positive or negative.

    The variance is a function of the area, as Hanley and McNeil give it, with the groups in the worse of both orders, and raised
    by the factor by which DeLong's estimate exceeds it: DeLong's own is far too small with few positives, and 0 without an error.

    Args: area: measured, of m positives and n negatives. variance: by DeLong.
    Source: Hanley and McNeil 1982; Newcombe 2006, Stat. Med. 25, method 5; DeLong et al. 1988. Coverage: proofs/intervals.py.
    """
    if min(m, n) < 2 or np.isnan(area):
        return float("nan"), float("nan")

    def model(a: float) -> float:
        above, below = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
        return (a * (1 - a) + max((m - 1) * above + (n - 1) * below, (n - 1) * above + (m - 1) * below)) / (m * n)

    few = 1 + 1 / (2 * min(m, n))  # by simulation: without it two of a group that scatters widely fall to 89%
    raised = few * norm.ppf(0.975) ** 2 * max(1.0, variance / model((area * m * n + 0.5) / (m * n + 1)))
    edge = 1e-9  # at an area of 0 or 1 the test is met by that area itself, too

    def apart(a: float) -> float:
        return (area - a) ** 2 - raised * model(a)

    low = brentq(apart, 0.0, area - edge) if area > edge else 0.0
    return low, brentq(apart, area + edge, 1.0) if area < 1 - edge else 1.0


def wilson(successes, trials) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) float64 of the 95% Wilson score interval of shares, for arrays of counts (whole or not); 0 and 1 without trials.

    Equal to scipy.stats.binomtest(k, n).proportion_ci(method="wilson"), which takes one share only.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    z = norm.ppf(0.975)
    safe = np.where(n > 0, n, 1.0)
    centre = (k + z**2 / 2) / (safe + z**2)
    half = z / (safe + z**2) * np.sqrt(k * (safe - k) / safe + z**2 / 4)
    low = np.where(k == 0, 0.0, centre - half)
    high = np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def mean_interval(values) -> tuple[float, float, float]:
    """Mean of values (n,), NaN left out, with its 95% interval by Student's t; no interval (NaN) of fewer than two.

    Returns: mean, low, high.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    n, mean = len(values), float(values.mean()) if len(values) else np.nan
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return mean, mean - half, mean + half


def over_folds(values, least: Callable[[float], tuple[float, float]]) -> tuple[float, float, float]:
    """`mean_interval` of a measure between 0 and 1, clipped to that, and never narrower than least(mean), the interval of as many
    images together: folds that agree are no certainty.
    """
    mean, low, high = mean_interval(values)
    least_low, least_high = least(mean)
    return mean, float(np.fmin(least_low, max(0.0, low))), float(np.fmax(least_high, min(1.0, high)))


def reliability(said: np.ndarray, true: np.ndarray) -> pd.DataFrame:
    """Predicted probability (n,) against what came true (n,) bool, in at most BINS equally filled bins.

    Returns: frame: predicted, observed, low, high (Wilson 95%), n.
    """
    bins = np.array_split(np.argsort(said, kind="stable"), min(BINS, len(said)))
    rows = [(said[at].mean(), true[at].mean(), *wilson(true[at].sum(), len(at)), len(at)) for at in bins]
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "n"])


def scores(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None) -> pd.DataFrame:
    """Accuracy (Wilson 95%), AUROC (95%, plausibility only), log loss in nats, calibration error.

    The calibration error is the mean gap between confidence and accuracy over bins of `reliability`, weighted by size.

    Args:
        labels: (n,) int >= 0. logits: (n,) or (n, C). groups: (n,) names (families, classes), or None; a
            single one is no group.
    Returns: frame: group ("all" first), n, accuracy, accuracy_low, accuracy_high, commonest (accuracy of always saying the
        commonest label), auroc, auroc_low, auroc_high, log_loss, ece.
    """
    p = probabilities(logits)
    parts = [("all", np.arange(len(labels)))]
    if groups is not None and len(set(groups)) > 1:
        parts += [(name, np.flatnonzero(groups == name)) for name in sorted(set(groups))]
    rows = []
    for name, at in parts:
        correct = p[at].argmax(1) == labels[at]
        low, high = wilson(correct.sum(), len(at))
        row = {"group": name, "n": len(at), "accuracy": correct.mean(), "accuracy_low": low, "accuracy_high": high}
        row["commonest"] = np.bincount(labels[at]).max() / len(at)
        if logits.ndim == 1:
            row |= zip(("auroc", "auroc_low", "auroc_high"), auroc_interval(logits[at], labels[at] == 1), strict=True)
        bins = reliability(p[at].max(1), correct)
        row["log_loss"] = -np.log(np.clip(p[at, labels[at]], 1e-12, None)).mean()
        row["ece"] = sum((bins["observed"] - bins["predicted"]).abs() * bins["n"]) / len(at)
        rows.append(row)
    return pd.DataFrame(rows)


def folds(x, labels: np.ndarray, groups: np.ndarray, config: ClassifierConfig) -> pd.DataFrame:
    """Cross-validated scores for small data: every labelled row is tested once, groups are never split.

    Args: x (N, D); labels (N,) int, -1 left out; groups (N,) ids of images that belong together.
    Returns: frame: fold (1 .. FOLDS, then "mean"), n, accuracy, auroc, and in the last row their 95% t intervals over
        folds, clipped to 0 .. 1 and never narrower than those of as many images together (accuracy_low ...).
    """
    rows, out = np.flatnonzero(labels >= 0), []
    few = int(np.unique(labels[rows], return_counts=True)[1].min())
    splitter = StratifiedGroupKFold(max(2, min(FOLDS, few)), shuffle=True, random_state=config.seed)
    for i, (rest, test) in enumerate(splitter.split(rows, labels[rows], groups[rows])):
        rest, test, seed = rows[rest], rows[test], config.seed + i
        names = np.unique(groups[rest])
        chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(HELD_OUT * len(names)))]
        val = np.isin(groups[rest], chosen)
        model, _ = fit_classifier(x, labels, rest[~val], rest[val], config.with_(seed=seed), int(labels.max()) + 1)
        one = scores(labels[test], model.predict(x, test)[1]).reindex(columns=["n", "accuracy", "auroc"])
        out.append(one.assign(fold=str(i + 1)))
    frame = pd.concat(out, ignore_index=True).dropna(axis=1, how="all")
    frame = frame[["fold", *frame.columns.drop("fold")]]
    n, sizes = int(frame["n"].sum()), ((labels == 1).sum(), (labels == 0).sum())
    least = {"accuracy": lambda share: wilson(share * n, n), "auroc": lambda area: auroc_bounds(area, *sizes)}
    row = {"fold": "mean", "n": n}
    for name in frame.columns[2:]:
        row |= zip((name, f"{name}_low", f"{name}_high"), over_folds(frame[name], least[name]), strict=True)
    return pd.concat([frame, pd.DataFrame([row])], ignore_index=True)


# ---- figures --------------------------------------------------------------------------------------------------------


def decisions(labels: np.ndarray, logits: np.ndarray, names: list[str]) -> tuple[Figure, pd.DataFrame, str, str]:
    """What the decisions look like: the ROC curve of one logit (n,), the confusion table of several (n, C).

    Returns: figure, frame, name, caption.
    """
    if logits.ndim == 1:
        false, true, _ = roc_curve(labels, logits)
        frame = pd.DataFrame({"false_positive_rate": false, "true_positive_rate": true})
        fig, ax = plt.subplots(figsize=(4.2, 4.2))
        ax.plot(false, true, drawstyle="steps-post")
        ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        return fig, frame, "roc", "ROC curve: every trade between missed errors and false alarms."
    share = confusion_matrix(labels, logits.argmax(1), labels=range(len(names)), normalize="true")
    frame = pd.DataFrame(share, pd.Index(names, name="true"), pd.Index(names, name="called"))
    frame = frame.stack().rename("share").reset_index()
    fig, ax = plt.subplots(figsize=(1.5 + 0.45 * len(names), 1 + 0.45 * len(names)))
    shown = ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set(xlabel="called", ylabel="true")
    ax.grid(False)
    fig.colorbar(shown, label="share of the true class")
    return fig, frame, "confusion", "Share of each true class that is called each class."


def calibration(labels: np.ndarray, logits: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """`reliability` of the positive class's probability, or of the predicted class's. logits (n,) or (n, C)."""
    p = probabilities(logits)
    frame = reliability(p[:, 1], labels == 1) if logits.ndim == 1 else reliability(p.max(1), p.argmax(1) == labels)
    fig, ax = plt.subplots(figsize=(4.2, 4.2))
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    errors = [frame["observed"] - frame["low"], frame["high"] - frame["observed"]]
    ax.errorbar(frame["predicted"], frame["observed"], np.clip(errors, 0, None), marker="o", capsize=2)
    ax.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return fig, frame


def logit_histogram(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Logits of plausible and implausible images, a panel per group. Args: labels, logits, groups, each (n,)."""
    word, names = np.where(labels == 1, "implausible", "plausible"), sorted(set(groups))
    shown = pd.DataFrame({"group": groups, "label": word, "logit": np.clip(logits, -12, 12)})
    edges = np.histogram_bin_edges(shown["logit"], 30)
    look = dict(hue="label", hue_order=["plausible", "implausible"], col="group", col_order=names, col_wrap=4)
    look |= dict(element="step", height=2.2, aspect=1.1, facet_kws={"sharey": False})
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn arranges its panels itself
        grid = sns.displot(shown, x="logit", bins=edges, **look)
    grid.set_axis_labels("logit (positive: implausible)", "images")
    for ax, name in zip(grid.axes, names, strict=True):
        ax.set_title(name, parse_math=False)
    rows = []
    for name, label in product(names, look["hue_order"]):
        counts, _ = np.histogram(shown["logit"][(groups == name) & (word == label)], edges)
        rows += [(name, label, *bar) for bar in zip(edges[:-1], edges[1:], counts, strict=True)]
    return grid.figure, pd.DataFrame(rows, columns=["group", "label", "low", "high", "n"])


def loss(history: pd.DataFrame) -> Figure:
    """Cross entropy of the train and the validation images after each epoch. Args: history: epoch, train_loss, val_loss."""
    frame = history.set_index("epoch")[["train_loss", "val_loss"]].set_axis(["train", "validation"], axis=1)
    ax = frame.plot(style=["o-", "s-"], ms=4, figsize=(5, 3.2), xlabel="epoch", ylabel="cross entropy (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax.figure

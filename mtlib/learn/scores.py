"""How good a classifier is, with intervals: tables and figures for plausibility (one logit) and for classes (C logits).

A figure comes with the frame of the numbers that it shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit, softmax
from scipy.stats import binomtest, norm, rankdata, t
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedGroupKFold

from mtlib.learn.classifier import fit_classifier
from mtlib.learn.config import ClassifierConfig
from mtlib.plots import legend

HEADINGS = {  # of `scores` and `folds`
    "fold": "fold",
    "group": "images",
    "n": "n",
    "accuracy": "accuracy",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "auroc": "AUROC",
    "auroc_low": "AUROC low",
    "auroc_high": "AUROC high",
    "ece": "calibration error",
}


def one_logit(logits: np.ndarray) -> np.ndarray:
    """(n,) of the second of two classes; (n, C) of more as they are."""
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, 2) from (n,) plausibility logits, or (n, C) from class logits."""
    if logits.ndim == 2:
        return softmax(logits.astype(np.float64), axis=1)
    p = expit(logits.astype(np.float64))
    return np.stack([1 - p, p], axis=1)


def auroc_interval(score: np.ndarray, positive: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """AUROC with its DeLong interval, clipped to 0 .. 1; NaN without positives or negatives.

    Args: score (n,), positive (n,) bool. Returns: auroc, low, high.
    Source: DeLong et al. 1988, Biometrics 44(3).
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return (float("nan"),) * 3
    ranks = rankdata(score)
    wins = (ranks[positive] - rankdata(score[positive])) / n  # share of negatives below each positive
    losses = 1 - (ranks[~positive] - rankdata(score[~positive])) / m
    area = float(wins.mean())
    variance = (wins.var(ddof=1) / m if m > 1 else 0.0) + (losses.var(ddof=1) / n if n > 1 else 0.0)
    half = norm.ppf((1 + level) / 2) * np.sqrt(variance)
    return area, max(0.0, area - half), min(1.0, area + half)


def expected_calibration_error(correct: np.ndarray, confidence: np.ndarray, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over equally filled bins, weighted by their size."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))
    return float(sum(abs(correct[p].mean() - confidence[p].mean()) * len(p) for p in parts) / len(confidence))


def scores(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None) -> pd.DataFrame:
    """Accuracy (Wilson 95%), AUROC (DeLong 95%, one logit only) and calibration, of all rows and of each group.

    Args:
        labels: (n,) int >= 0. logits: (n,) or (n, C). groups: (n,) names (families, classes), or None; a
            single one is no group.
    Returns: frame: group ("all" first), n, accuracy, accuracy_low, accuracy_high, auroc, auroc_low, auroc_high,
        log_loss, ece.
    """
    p = probabilities(logits)
    parts = [("all", np.arange(len(labels)))]
    if groups is not None and len(set(groups)) > 1:
        parts += [(name, np.flatnonzero(groups == name)) for name in sorted(set(groups))]
    rows = []
    for name, at in parts:
        correct = p[at].argmax(1) == labels[at]
        ci = binomtest(int(correct.sum()), len(at)).proportion_ci(method="wilson")
        row = {
            "group": name,
            "n": len(at),
            "accuracy": correct.mean(),
            "accuracy_low": ci.low,
            "accuracy_high": ci.high,
        }
        if logits.ndim == 1:
            row |= zip(("auroc", "auroc_low", "auroc_high"), auroc_interval(logits[at], labels[at] == 1), strict=True)
        row["log_loss"] = -np.log(np.clip(p[at, labels[at]], 1e-12, None)).mean()
        row["ece"] = expected_calibration_error(correct, p[at].max(1))
        rows.append(row)
    return pd.DataFrame(rows)


def reliability(labels: np.ndarray, logits: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Predicted against observed share in equally filled bins (of the positive class, or of the predicted class).

    Returns: frame: predicted, observed, low, high (Wilson 95%), n.
    """
    p = probabilities(logits)
    said, true = (p[:, 1], labels == 1) if logits.ndim == 1 else (p.max(1), p.argmax(1) == labels)
    rows = []
    for at in np.array_split(np.argsort(said, kind="stable"), min(bins, len(said))):
        ci = binomtest(int(true[at].sum()), len(at)).proportion_ci(method="wilson")
        rows.append((said[at].mean(), true[at].mean(), ci.low, ci.high, len(at)))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "n"])


def folds(x, labels: np.ndarray, groups: np.ndarray, config: ClassifierConfig, n: int = 5) -> pd.DataFrame:
    """Cross-validated scores for small data: every labelled row is tested once, groups are never split.

    Args: x (N, D); labels (N,) int, -1 left out; groups (N,) ids of images that belong together.
    Returns: frame: fold (1 .. n, then "mean"), n, accuracy, auroc, and in the last row their 95% t intervals over
        folds, clipped to 0 .. 1 (accuracy_low ...).
    """
    rows = np.flatnonzero(labels >= 0)
    counts = np.unique(labels[rows], return_counts=True)[1]
    n_classes = int(labels.max()) + 1
    splitter = StratifiedGroupKFold(max(2, min(n, int(counts.min()))), shuffle=True, random_state=config.seed)
    out = []
    for i, (rest, test) in enumerate(splitter.split(rows, labels[rows], groups[rows])):
        train, val = _hold_out(rows[rest], groups, config.seed + i)
        model, _ = fit_classifier(x, labels, train, val, config.with_(seed=config.seed + i), n_classes)
        _, logits = model.predict(x, rows[test])
        one = scores(labels[rows[test]], logits).iloc[0]
        out.append({"fold": str(i + 1), "n": int(one["n"])} | {k: one[k] for k in ("accuracy", "auroc") if k in one})
    frame = pd.DataFrame(out)
    return pd.concat([frame, pd.DataFrame([_mean_row(frame)])], ignore_index=True)


def _hold_out(rows: np.ndarray, groups: np.ndarray, seed: int, share: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into train and val by group."""
    names = np.unique(groups[rows])
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    held = np.isin(groups[rows], chosen)
    return rows[~held], rows[held]


def _mean_row(frame: pd.DataFrame) -> dict:
    row = {"fold": "mean", "n": int(frame["n"].sum())}
    for name in frame.columns.intersection(["accuracy", "auroc"]):
        values = frame[name].dropna()
        half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        mean = values.mean()
        row |= {name: mean, f"{name}_low": max(0.0, mean - half), f"{name}_high": min(1.0, mean + half)}
    return row


# ---- figures --------------------------------------------------------------------------------------------------------


def roc(labels: np.ndarray, logits: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """ROC curve of the plausibility logit. Args: labels (n,) 0 / 1, logits (n,)."""
    false, true, _ = roc_curve(labels, logits)
    frame = pd.DataFrame({"false_positive_rate": false, "true_positive_rate": true})
    fig, ax = plt.subplots(figsize=(4.2, 4.2))
    ax.plot(false, true, drawstyle="steps-post")
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    return fig, frame


def confusion(labels: np.ndarray, logits: np.ndarray, names: list[str]) -> tuple[Figure, pd.DataFrame]:
    """Share of each true class that is called each class. Args: labels (n,), logits (n, C), names of the C classes."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (labels, logits.argmax(1)), 1)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    true, called = np.indices(share.shape).reshape(2, -1)
    frame = pd.DataFrame({"true": np.array(names)[true], "called": np.array(names)[called], "share": share.ravel()})
    fig, ax = plt.subplots(figsize=(1.5 + 0.45 * len(names), 1 + 0.45 * len(names)))
    shown = ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set(xlabel="called", ylabel="true")
    ax.grid(False)
    fig.colorbar(shown, label="share of the true class")
    return fig, frame


def decisions(labels: np.ndarray, logits: np.ndarray, names: list[str]) -> tuple[Figure, pd.DataFrame, str, str]:
    """What the decisions look like: `roc` of one logit, `confusion` of several. Returns: figure, frame, name, caption."""
    if logits.ndim == 1:
        return *roc(labels, logits), "roc", "ROC curve: every trade between missed errors and false alarms."
    return *confusion(labels, logits, names), "confusion", "Share of each true class that is called each class."


def calibration(labels: np.ndarray, logits: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Reliability curve with Wilson 95% intervals. Args: labels (n,), logits (n,) or (n, C)."""
    frame = reliability(labels, logits)
    fig, ax = plt.subplots(figsize=(4.2, 4.2))
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    errors = [frame["observed"] - frame["low"], frame["high"] - frame["observed"]]
    ax.errorbar(frame["predicted"], frame["observed"], np.clip(errors, 0, None), marker="o", capsize=2)
    ax.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return fig, frame


def logit_histogram(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Logits of plausible and implausible images, a panel per group. Args: labels, logits, groups, each (n,)."""
    edges = np.histogram_bin_edges(np.clip(logits, -12, 12), 30)
    names = sorted(set(groups))
    fig, axes = plt.subplots(
        -(-len(names) // 4), min(4, len(names)), squeeze=False, sharex=True, figsize=(10, 2.2 * -(-len(names) // 4))
    )
    for ax in axes.flat[max(len(names) - 4, 0) : len(names)]:  # the lowest of each column shows its numbers
        ax.tick_params(labelbottom=True)
    rows = []
    for ax, name in zip(axes.flat, names, strict=False):
        for label, word in ((0, "plausible"), (1, "implausible")):
            counts, _ = np.histogram(np.clip(logits[(groups == name) & (labels == label)], -12, 12), edges)
            ax.stairs(counts, edges, fill=True, alpha=0.5, label=word)
            rows += [(name, word, a, b, n) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
        ax.set_title(name, parse_math=False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    fig.supxlabel("logit (positive: implausible)")
    fig.supylabel("images")
    legend(fig)
    return fig, pd.DataFrame(rows, columns=["group", "label", "low", "high", "n"])


def loss(history: pd.DataFrame) -> Figure:
    """Cross entropy of the train and the validation images after each epoch. Args: history: epoch, train_loss, val_loss."""
    fig, ax = plt.subplots(figsize=(5, 3.2))
    for column, label, marker in (("train_loss", "train", "o"), ("val_loss", "validation", "s")):
        ax.plot(history["epoch"], history[column], marker=marker, ms=4, label=label)
    ax.set(xlabel="epoch", ylabel="cross entropy (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return fig

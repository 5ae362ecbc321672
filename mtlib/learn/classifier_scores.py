"""How good a classifier is, with intervals: tables for plausibility (one logit) and for classes (C logits)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import expit, softmax
from scipy.stats import binomtest, norm, rankdata, t
from sklearn.model_selection import StratifiedGroupKFold

from mtlib.learn.classifier import ClassifierConfig, fit_classifier


def targets(manifest: pd.DataFrame, kind: str) -> tuple[np.ndarray, list[str]]:
    """What the head learns for every row of the manifest.

    Args: manifest with columns label, class_name; kind: "plausibility" | "classes" | "none" (a fact of 01_embed).
    Returns: labels (N,) int64, -1 where unknown; the names of 0 .. C-1 (empty for "none").
    """
    if kind == "plausibility":
        return manifest["label"].fillna(-1).to_numpy(dtype=np.int64), ["plausible", "implausible"]
    if kind == "classes":
        codes, names = pd.factorize(manifest["class_name"].replace("", None), sort=True)
        return codes.astype(np.int64), [str(name) for name in names]
    return np.full(len(manifest), -1, dtype=np.int64), []


def why_not(labels: np.ndarray, rows_train: np.ndarray, rows_val: np.ndarray, tokens: int = 1) -> str:
    """Why no classifier can be trained on these rows, of which each image has `tokens`; "" when one can."""
    if tokens > 1:
        return f"each image has {tokens} rows, and a label belongs to a whole image (use tokens = cls or mean)"
    if not (labels >= 0).any():
        return "the images carry no labels, so there is nothing to classify"
    if len(np.unique(labels[rows_train])) < 2:
        return f"the {len(rows_train)} labelled train rows hold fewer than two classes"
    return "" if len(rows_val) else "no labelled validation rows"


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
        labels: (n,) int >= 0. logits: (n,) or (n, C). groups: (n,) names (families, classes), or None.
    Returns: frame: group ("all" first), n, accuracy, accuracy_low, accuracy_high, auroc, auroc_low, auroc_high,
        log_loss, ece.
    """
    p = probabilities(logits)
    parts = [("all", np.arange(len(labels)))]
    if groups is not None:
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
        model, _ = fit_classifier(x, labels, train, val, replace(config, seed=config.seed + i), n_classes)
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

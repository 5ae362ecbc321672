"""AUROC of every feature at once: ranks with ties, for codes that are mostly 0."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every column, ties counted half.

    Args:
        scores:   (n, S) float.
        positive: (n,) bool, or (n, C) for C tasks on the same rows.
    Returns: (S,) or (S, C) float64; 0.5 where a score says nothing, NaN for a task without positives or negatives.
    Raises: ValueError if the rows differ.
    Source: Mann and Whitney 1947; equal to sklearn.metrics.roc_auc_score.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if len(scores) != len(positive):
        raise ValueError(f"{len(scores)} rows of scores, {len(positive)} of labels")
    many = positive.reshape(len(positive), -1)  # (n, C)
    n_pos = many.sum(0)
    n_neg = len(many) - n_pos
    if len(scores) == 0:
        area = np.full((scores.shape[1], many.shape[1]), np.nan)
    else:
        rank_sum = rankdata(scores, axis=0).T @ many.astype(np.float64)  # (S, C)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = (rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)
        area[:, (n_pos == 0) | (n_neg == 0)] = np.nan
    return area[:, 0] if positive.ndim == 1 else area


def best_threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """The threshold t with the highest F1 of `score > t`.

    Args:
        score: (n,) float. positive: (n,) bool.
    Returns: () half way between two neighbouring scores; -inf calls every row positive. Of equal F1 the largest t.
    """
    values, index = np.unique(score, return_inverse=True)
    true = np.bincount(index, weights=positive)[::-1].cumsum()  # called positive from the top down to each value
    called = np.bincount(index)[::-1].cumsum()
    f1 = 2 * true / (called + positive.sum())
    at = len(values) - 1 - int(np.argmax(f1))
    return float((values[at - 1] + values[at]) / 2) if at else -np.inf


def f1_at(score: np.ndarray, positive: np.ndarray, threshold: float) -> float:
    """F1 of `score > threshold`; 0 when nothing is found, NaN without positives."""
    called = score > threshold
    n = positive.sum() + called.sum()
    return float(2 * (called & positive).sum() / n) if positive.any() else float("nan")

"""AUROC and average precision of every feature at once: ranks with ties, for codes that are mostly 0."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from mtlib.measure.codes import dense

BLOCK = 512  # columns ranked at a time


def auroc(scores: np.ndarray | sparse.sparray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every column, ties counted half.

    Args:
        scores:   (n, S) float, an array or a scipy sparse array (then only what is not 0 is sorted).
        positive: (n,) bool, or (n, C) for C tasks on the same rows.
    Returns: (S,) or (S, C) float64; 0.5 where a score says nothing, NaN for a task without positives or negatives.
    Raises: ValueError if the rows differ.
    Source: Mann and Whitney 1947; equal to sklearn.metrics.roc_auc_score.
    """
    positive = np.asarray(positive, bool)
    scores = scores if sparse.issparse(scores) else np.asarray(scores)
    n, n_scores = scores.shape
    if n != len(positive):
        raise ValueError(f"{n} rows of scores, {len(positive)} of labels")
    many = positive.reshape(n, -1).astype(np.float64)  # (n, C)
    n_pos = many.sum(0)
    n_neg = n - n_pos
    if n == 0:
        area = np.full((n_scores, many.shape[1]), np.nan)
    else:
        rank_sum = _rank_sums(scores, many) if sparse.issparse(scores) else rankdata(scores, axis=0).T @ many  # (S, C)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = (rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)
        area[:, (n_pos == 0) | (n_neg == 0)] = np.nan
    return area[:, 0] if positive.ndim == 1 else area


def _rank_sums(scores: sparse.sparray, many: np.ndarray) -> np.ndarray:
    """(S, C) sums of the positives' ranks; the zeros of a column share one rank and are never sorted."""
    scores = sparse.csc_array(scores)
    scores.eliminate_zeros()
    n, n_scores = scores.shape
    fired = np.diff(scores.indptr)  # (S,)
    column = np.repeat(np.arange(n_scores), fired)
    order = np.lexsort((scores.data, column))
    value, column, row = scores.data[order], column[order], scores.indices[order]
    place = np.arange(len(value)) - scores.indptr[column] + 1  # 1 .. m within the column
    new = np.flatnonzero(np.diff(value, prepend=np.nan) != 0)  # NaN is unlike anything: the first is new
    new = np.union1d(new, scores.indptr[:-1][fired > 0])
    size = np.diff(np.append(new, len(value)))
    tied = np.repeat(place[new] + (size - 1) / 2, size) if len(value) else np.zeros(0)  # mean rank of equal values
    n_below = np.bincount(column[value < 0], minlength=n_scores)
    rank = tied + np.where(value > 0, (n - fired)[column], 0)
    ranks = sparse.csr_array((rank, (column, row)), shape=(n_scores, n))
    zero_rank = n_below + (n - fired + 1) / 2
    fires = sparse.csr_array((np.ones(len(rank)), (column, row)), shape=(n_scores, n))
    return ranks @ many + zero_rank[:, None] * (many.sum(0) - fires @ many)


def average_precision(scores: np.ndarray | sparse.sparray, positive: np.ndarray) -> np.ndarray:
    """Average precision of every column as a detector of what is positive: the mean over the positives of the precision at
    their own score, rows of equal score counted together.

    Args: scores (n, S) float, an array or a scipy sparse array; positive (n,) bool, or (n, C) for C tasks on the same rows.
    Returns: (S,) or (S, C) float64: 1 where every positive comes before every other row, the share of positives where the
        score says nothing; NaN for a task without positives.
    Raises: ValueError if the rows differ.
    Source: equal to sklearn.metrics.average_precision_score.
    """
    positive = np.asarray(positive, bool)
    n, n_scores = scores.shape
    if n != len(positive):
        raise ValueError(f"{n} rows of scores, {len(positive)} of labels")
    tasks = positive.reshape(n, -1)
    out = np.full((n_scores, tasks.shape[1]), np.nan)
    for start in range(0, n_scores, BLOCK):
        low = -dense(scores, range(start, min(start + BLOCK, n_scores)))
        as_high = rankdata(low, method="max", axis=0)  # how many rows score as high as each, or higher
        for c in np.flatnonzero(tasks.any(0)):
            own = rankdata(low[tasks[:, c]], method="max", axis=0)  # how many positives do
            out[start : start + BLOCK, c] = (own / as_high[tasks[:, c]]).mean(0)
    return out[:, 0] if positive.ndim == 1 else out


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

"""The linear probe: what a line can read from activations, and whether it still reads the same from a reconstruction."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

FLOOR = 1e-12  # probabilities below it are raised to it, so that a certain answer has a finite KL


def linear_probe(x: np.ndarray, y: np.ndarray, c: float = 1.0, max_iter: int = 1000):
    """The linear (logistic) probe of this repo: y (n,) from x (n, D), whose units are standardised.

    Args: c: inverse weight of its L2 penalty. max_iter: after which it is taken as it is; rankings settle long before.
    Returns: an object with predict, predict_proba and decision_function; None when y has fewer than two values.
    """
    if len(np.unique(y)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter)).fit(x, y)


def fit_probe(target: np.ndarray, rows: np.ndarray, classes: np.ndarray):
    """`linear_probe` of `classes` (N,), -1 unknown, on target (N, O), fitted on rows (train)."""
    rows = np.asarray(rows)[np.asarray(classes)[rows] >= 0]
    return linear_probe(np.asarray(target[rows], np.float64), np.asarray(classes)[rows], max_iter=500)


class ProbeShift:
    """Streaming KL(p(y) || p(y_hat)) in nats and argmax agreement of one probe."""

    def __init__(self, probe):
        self.probe, self.n, self.kl, self.same = probe, 0, 0.0, 0

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: y, y_hat (B, O)."""
        p = np.maximum(self.probe.predict_proba(y.cpu().double().numpy()), FLOOR)  # (B, C)
        q = np.maximum(self.probe.predict_proba(y_hat.cpu().double().numpy()), FLOOR)
        self.n += len(p)
        self.kl += float((p * np.log(p / q)).sum())
        self.same += int((p.argmax(1) == q.argmax(1)).sum())

    def result(self) -> dict:
        """probe_kl (nats) and probe_agreement."""
        return {"probe_kl": self.kl / self.n, "probe_agreement": self.same / self.n}

"""Does the reconstruction still say the same: to a linear probe on y, and to the classifier's own output?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

FLOOR = 1e-12  # probabilities below it are raised to it, so that a certain answer has a finite KL


def fit_probe(target: np.ndarray, rows: np.ndarray, classes: np.ndarray, c: float = 1.0):
    """A linear (logistic) probe of `classes` (N,) on target (N, O), fitted on rows (train); units are standardised.

    Returns: an object with predict_proba, or None when rows show fewer than two classes.
    """
    y = np.asarray(classes)[rows]
    rows, y = np.asarray(rows)[y >= 0], y[y >= 0]
    if len(np.unique(y)) < 2:
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
    return probe.fit(np.asarray(target[rows], np.float64), y)


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


def readout(classifier, target: str) -> Callable[[Tensor], Tensor]:
    """The way from a coder's target to the classifier's logit: all of the classifier for x, its last layer for y.

    Args:
        classifier: maps x (B, D) to logits (B,) or (B, C); output(y (B, O)) is its last layer.
        target:     "x" or "y".
    Raises: ValueError for another target.
    """
    if target == "x":
        return classifier
    if target != "y":
        raise ValueError(f"target = {target!r} must be 'x' or 'y'")
    return classifier.output


class LogitChange:
    """Streaming change of the classifier's logit when y_hat takes the place of y.

    Args:
        readout: target (B, O) -> logit (B,), or (B, C) for classes: the classifier's output layer for a transcoder of
            its hidden layer, the whole classifier for an autoencoder of x.
    """

    def __init__(self, readout: Callable[[Tensor], Tensor]):
        self.readout, self.n = readout, 0
        self.absolute = self.square = self.logit = self.logit_square = 0.0
        self.same = 0

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: y, y_hat (B, O)."""
        with torch.no_grad():
            a, b = self.readout(y.float()).double().cpu(), self.readout(y_hat.float()).double().cpu()
        a, b = a.reshape(len(y), -1), b.reshape(len(y), -1)  # (B, C)
        self.n += len(a)
        self.absolute += float((a - b).abs().mean(1).sum())
        self.square += float((a - b).square().mean(1).sum())
        self.logit += a.sum(0)
        self.logit_square += float(a.square().mean(1).sum())
        same = (a.argmax(1) == b.argmax(1)) if a.shape[1] > 1 else ((a > 0) == (b > 0))[:, 0]
        self.same += int(same.sum())

    def result(self) -> dict:
        """logit_change (mean |change|), logit_fvu (1: a constant would do as well), logit_agreement (same decision)."""
        variance = self.logit_square / self.n - float((self.logit / self.n).square().mean())
        fvu = self.square / self.n / variance if variance > 0 else float("nan")
        return {
            "logit_change": self.absolute / self.n,
            "logit_fvu": fvu,
            "logit_agreement": self.same / self.n,
        }

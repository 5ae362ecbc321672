"""What the classifier says: of a reconstruction, without a feature, and with one turned up; all else kept.

    h' = h + (factor - 1) * z_j W_dec_j      # factor 0 removes the feature, 1 changes nothing; the coder's error stays in h

h is what the coder rebuilds: x for an autoencoder, the classifier's hidden layer y for a transcoder. Controls put another
direction of the same length in W_dec_j's place: what a push of that size does elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.coders.scaling import step_gain
from mtlib.measure.codes import BATCH, iter_codes

PAIRS = 16_384  # (row, feature) pairs per forward pass
CONTROL_CELLS = 50_000_000  # bound on n_controls * S * O


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


@torch.no_grad()
def steer(
    coder,
    x: Tensor,
    h: Tensor,
    feature: int,
    factors: Sequence[float],
    readout: Callable,
    direction: Tensor | None = None,
) -> Tensor:
    """What a readout says when one feature is scaled.

    Args:
        coder:     any coder; its last level's W_dec is used.
        x:         (B, D) what the coder reads.
        h:         (B, O) what it reconstructs: x for an autoencoder, y for a transcoder.
        feature:   j.
        readout:   (B, O) -> logits or probabilities (B,) or (B, C).
        direction: (O,) to use in place of W_dec_j, at its norm: the control.
    Returns: (len(factors), B) or (len(factors), B, C).
    """
    w = coder.W_dec[feature]  # (O,)
    if direction is not None:
        w = direction * (w.norm() / direction.norm().clamp_min(1e-12))
    step = coder.encode(x)[:, feature, None] * step_gain(coder, x) * w  # (B, O)
    return torch.stack([readout(h + (factor - 1) * step) for factor in factors])


class Removal:
    """Mean change of the classifier's logit over the rows on which a feature fires, when it is removed.

    A transcoder's output is the hidden layer, so the change is exact: -z_j (W_dec_j . w_logit). Of an autoencoder,
    x - z_j W_dec_j goes through the classifier. Up to its ReLU that is linear, so x and W_dec_j are sent through its first layer
    once each, not once per pair. With several logits (a classifier of classes) that of the row's predicted class is followed.

    Args:
        coder:      has W_dec (S, O).
        classifier: maps x (B, D) to logits (B,) or (B, C); has w_logit (O,) or (O, C).
        target:     "y" for a transcoder, "x" for an autoencoder.
        n_controls: directions of each kind per feature (fewer where S * O is very large).
        share:      share of the rows on which an autoencoder's controls are run (drawn by row number and seed).
    """

    def __init__(self, coder, classifier, target: str, n_controls: int = 8, share: float = 0.25, seed=0):
        if target not in ("x", "y"):
            raise ValueError(f"target = {target!r} must be 'x' or 'y'")
        self.classifier, self.target, self.share, self.seed = classifier, target, share, seed
        self.coder, self.W_dec = coder, coder.W_dec.detach().float().cpu()  # (S, O)
        S, width = self.W_dec.shape
        n_controls = max(1, min(n_controls, CONTROL_CELLS // (S * width)))
        rng, norm = np.random.default_rng(seed), self.W_dec.norm(dim=1)
        shift = torch.from_numpy(rng.integers(1, max(S, 2), (n_controls, S)))
        unit = torch.nn.functional.normalize(self.W_dec, dim=1)
        others = unit[(torch.arange(S) + shift) % S]  # (K, S, O), never the feature itself
        random = torch.from_numpy(rng.normal(size=(n_controls, S, width)).astype(np.float32))
        random = torch.nn.functional.normalize(random, dim=2)
        self.controls = {"latents": others * norm[:, None], "random": random * norm[:, None]}
        self.n = torch.zeros(S, dtype=torch.int64)
        self.sums = {"relevance": torch.zeros(S).double()}
        self.sums |= {name: torch.zeros(n_controls, S).double() for name in self.controls}
        self.n_control = torch.zeros(S, dtype=torch.int64)

    @torch.no_grad()
    def update(self, rows: np.ndarray, x: Tensor, z: Tensor) -> None:
        """Add a batch: rows (B,), x (B, D), codes z (B, S)."""
        logits = self.classifier(x)
        logits = logits[:, None] if logits.ndim == 1 else logits  # (B, C)
        followed = logits.argmax(dim=1)  # (B,)
        self.n += (z > 0).sum(dim=0)
        z = z * step_gain(self.coder, x)
        if self.target == "y":
            self._exact(z, followed)
            return
        self.sums["relevance"] += self._forward(x, z, logits, followed, self.W_dec)
        some = torch.from_numpy(chosen(rows, self.share, self.seed))
        self.n_control += (z[some] > 0).sum(dim=0)
        for name, directions in self.controls.items():
            for k, direction in enumerate(directions):
                self.sums[name][k] += self._forward(x[some], z[some], logits[some], followed[some], direction)

    def _exact(self, z: Tensor, followed: Tensor) -> None:
        w = self.classifier.w_logit.detach().float().cpu()
        w = w[:, None] if w.ndim == 1 else w  # (O, C)
        total = z.double().T @ torch.nn.functional.one_hot(followed, w.shape[1]).double()  # (S, C) sum of z per class
        self.n_control += (z > 0).sum(dim=0)
        self.sums["relevance"] -= (total * (self.W_dec @ w)).sum(dim=1)
        for name, directions in self.controls.items():
            self.sums[name] -= (total * (directions @ w)).sum(dim=2)

    def _forward(self, x: Tensor, z: Tensor, logits: Tensor, followed: Tensor, directions: Tensor) -> Tensor:
        """(S,) sum over rows of the change of the followed logit when z_j * directions[j] is taken out of x."""
        total = torch.zeros(z.shape[1]).double()
        row, latent = (z > 0).nonzero(as_tuple=True)
        (at, along), read = self._first_layer(x, directions)
        for start in range(0, len(row), PAIRS):
            i, j = row[start : start + PAIRS], latent[start : start + PAIRS]
            after = read(at[i] - z[i, j, None] * along[j])
            after = after if after.ndim == 1 else after.gather(1, followed[i, None])[:, 0]
            change = after - logits[i, followed[i]]
            total.index_add_(0, j, change.double())
        return total

    def _first_layer(self, x: Tensor, directions: Tensor):
        """((x, directions) as the classifier's ReLU meets them, the rest of the classifier); unchanged for others."""
        layer = getattr(self.classifier, "hidden_layer", None)
        if layer is None:
            return (x, directions), self.classifier
        scale = self.classifier.x_scale
        h = layer((x - self.classifier.x_mean) / scale)  # (B, H)
        return (h, (directions / scale) @ layer.weight.T), lambda h: self.classifier.output(h.relu())

    def result(self) -> pd.DataFrame:
        """Columns causal_relevance (mean change of the logit, signed), causal_control_latents, causal_control_random.

        The controls are means of |mean change| over the control directions. NaN where a feature never fired.
        """
        frame = pd.DataFrame({"causal_relevance": _ratio(self.sums["relevance"], self.n)})
        for name in self.controls:
            frame[f"causal_control_{name}"] = _ratio(self.sums[name].abs().mean(dim=0), self.n_control)
        return frame


def _ratio(total: Tensor, n: Tensor) -> np.ndarray:
    return np.where(n.numpy() > 0, total.numpy() / np.maximum(n.numpy(), 1), np.nan)


def chosen(rows: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """(B,) bool: about `share` of the rows, picked by their number alone, so that batches cannot change the choice."""
    mixed = (np.asarray(rows, dtype=np.uint64) + np.uint64(seed) * np.uint64(7919)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(40)).astype(np.float64) < share * 2**24


def causal_relevance(
    coder, classifier, x: np.ndarray, rows: np.ndarray, target: str, batch=BATCH, **settings
) -> pd.DataFrame:
    """`Removal` of every feature on rows of x (N, D): its result. settings: n_controls, share, seed."""
    removal = Removal(coder, classifier, target, **settings)
    for some, xb, z in iter_codes(coder, x, rows, batch):
        removal.update(some, xb.cpu(), z.float().cpu())
    return removal.result()

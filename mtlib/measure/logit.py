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
    """The way from a coder's target (B, O) to logits (B,) or (B, C): all of the classifier for x, its last layer for y."""
    return classifier if target == "x" else classifier.output


class LogitChange:
    """Streaming change of the classifier's logit when y_hat takes the place of y; `readout`: see there."""

    def __init__(self, readout: Callable[[Tensor], Tensor]):
        self.readout, self.n, self.same = readout, 0, 0
        self.absolute = self.square = self.logit = self.logit_square = 0.0

    def update(self, rows: np.ndarray, y: Tensor, y_hat: Tensor) -> None:
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
        return {"logit_change": self.absolute / self.n, "logit_fvu": fvu, "logit_agreement": self.same / self.n}


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
        x:         (B, D) what the coder reads. h: (B, O) what it reconstructs: x for an autoencoder, y for a transcoder.
        readout:   (B, O) -> logits or probabilities (B,) or (B, C).
        direction: (O,) to use in place of W_dec_j, at its norm: the control.
    Returns: (len(factors), B) or (len(factors), B, C).
    """
    w = coder.W_dec[feature]  # (O,)
    if direction is not None:
        w = direction * (w.norm() / direction.norm().clamp_min(1e-12))
    step = coder.encode(x)[:, feature, None] * step_gain(coder, x) * w  # (B, O)
    return torch.stack([readout(h + (factor - 1) * step) for factor in factors])


@torch.no_grad()
def pushes(coder, classifier, x: Tensor, z: Tensor, rows: np.ndarray, features: np.ndarray) -> Tensor:
    """What single features add to the logit of single rows: z_j (W_dec_j . w_logit) of a transcoder; of an autoencoder the logit of
    what it rebuilds less that without the feature. Causal relevance (below) with the sign turned.

    Args: x (B, D), z (B, S) their codes; rows, features: (n,) pairs of places in z.
    Returns: (n,), or (n, C) of a classifier of classes.
    """
    rows, features = torch.as_tensor(rows), torch.as_tensor(features)
    parts = (z * step_gain(coder, x))[rows, features][:, None] * coder.W_dec[features]  # (n, O)
    if coder.config.target == "y":
        return parts @ classifier.w_logit
    x_hat = coder.decode(z, x=x)[rows]  # (n, D)
    return classifier(x_hat) - classifier(x_hat - parts)


def causal_relevance(
    coder,
    classifier,
    x: np.ndarray,
    rows: np.ndarray,
    target: str,
    batch: int = BATCH,
    n_controls: int = 8,
    share: float = 0.25,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean change of the classifier's logit over the rows on which a feature fires, when it is removed.

    A transcoder's output is the hidden layer, so the change is exact: -z_j (W_dec_j . w_logit). Of an autoencoder,
    x - z_j W_dec_j goes through the classifier. With several logits (a classifier of classes) that of the row's predicted
    class is followed.

    Args:
        classifier: maps x (B, D) to logits (B,) or (B, C); has w_logit (O,) or (O, C).
        x, rows:    (N, D), and those of its rows that are used.
        n_controls: directions of each kind per feature (fewer where S * O is very large).
        share:      share of the rows on which an autoencoder's controls are run (drawn by row number and seed).
    Returns: frame of causal_relevance (mean change of the logit, signed), causal_control_latents, causal_control_random: the
        means of |mean change| over the control directions. NaN where a feature never fired.
    """
    w_dec = coder.W_dec.detach().float().cpu()  # (S, O)
    directions = {"relevance": w_dec[None], **control_directions(w_dec, n_controls, seed)}
    n = {name: torch.zeros(len(w_dec), dtype=torch.int64) for name in directions}
    sums = {name: torch.zeros(d.shape[:2]).double() for name, d in directions.items()}
    for some, xb, z in iter_codes(coder, x, rows, batch):
        xb, z = xb.cpu(), z.float().cpu()
        with torch.no_grad():
            logits = classifier(xb).reshape(len(xb), -1)  # (B, C)
            z = z * step_gain(coder, xb)
            for name, own in directions.items():
                on = slice(None) if target == "y" or name == "relevance" else chosen(some, share, seed)
                n[name] += (z[on] > 0).sum(dim=0)
                remove = _exact if target == "y" else _forward
                sums[name] += remove(classifier, xb[on], z[on], logits[on], own)
    found = {"causal_relevance": _ratio(sums["relevance"][0], n["relevance"])}
    controls = [name for name in directions if name != "relevance"]
    return pd.DataFrame(found | {f"causal_control_{c}": _ratio(sums[c].abs().mean(dim=0), n[c]) for c in controls})


def control_directions(w_dec: Tensor, n_controls: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Of each feature's norm, (K, S, O): other latents' directions (never its own), and random ones."""
    S, width = w_dec.shape
    n_controls = max(1, min(n_controls, CONTROL_CELLS // (S * width)))
    rng, norm = np.random.default_rng(seed), w_dec.norm(dim=1)
    shift = torch.from_numpy(rng.integers(1, max(S, 2), (n_controls, S)))
    others = torch.nn.functional.normalize(w_dec, dim=1)[(torch.arange(S) + shift) % S]
    random = torch.from_numpy(rng.normal(size=(n_controls, S, width)).astype(np.float32))
    random = torch.nn.functional.normalize(random, dim=2)
    return {"latents": others * norm[:, None], "random": random * norm[:, None]}


def _exact(classifier, x: Tensor, z: Tensor, logits: Tensor, directions: Tensor) -> Tensor:
    """(K, S) sum over rows of the change of the followed logit when z_j * directions[k, j] is taken out of y."""
    w = classifier.w_logit.detach().float().cpu()
    w = w[:, None] if w.ndim == 1 else w  # (O, C)
    total = z.double().T @ torch.nn.functional.one_hot(logits.argmax(dim=1), w.shape[1]).double()  # (S, C)
    return -(total * (directions @ w)).sum(dim=2)


def _forward(classifier, x: Tensor, z: Tensor, logits: Tensor, directions: Tensor) -> Tensor:
    """The same out of x. Up to the ReLU that is linear: x and directions go through the first layer once, not once per pair."""
    total, layer = torch.zeros(directions.shape[:2]).double(), getattr(classifier, "hidden_layer", None)
    row, latent = (z > 0).nonzero(as_tuple=True)
    followed, at = logits.argmax(dim=1), x
    if layer is not None:
        at = layer((x - classifier.x_mean) / classifier.x_scale)  # (B, H)
    for k, along in enumerate(directions):
        along = along if layer is None else (along / classifier.x_scale) @ layer.weight.T  # (S, H)
        for start in range(0, len(row), PAIRS):
            i, j = row[start : start + PAIRS], latent[start : start + PAIRS]
            h = at[i] - z[i, j, None] * along[j]
            after = classifier(h) if layer is None else classifier.output(h.relu())
            after = after.reshape(len(i), -1).gather(1, followed[i, None])[:, 0]
            total[k].index_add_(0, j, (after - logits[i, followed[i]]).double())
    return total


def _ratio(total: Tensor, n: Tensor) -> np.ndarray:
    return np.where(n.numpy() > 0, total.numpy() / np.maximum(n.numpy(), 1), np.nan)


def chosen(rows: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """(B,) bool: about `share` of the rows, picked by their number alone, so that batches cannot change the choice."""
    mixed = (np.asarray(rows, dtype=np.uint64) + np.uint64(seed) * np.uint64(7919)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(40)).astype(np.float64) < share * 2**24

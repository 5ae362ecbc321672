"""What a model says when features of an image's activation are turned down or up, all else kept.

    h' = h + (factor - 1) * step,   step = sum_j z_j W_dec_j      # what the features j add to the reconstruction of h

The coder's error stays in h, so a factor of 1 changes nothing, 0 removes the features, and below 0 they are turned round. h
is an inner layer's tokens, and the encoder's later layers go on from h'; or the final embedding itself. The control puts as
many other latents in their place and gives the step its length, row by row: what a push of that size does elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor

from mtlib.coders.scaling import step_gain
from mtlib.embed.images import load_image
from mtlib.embed.store import Data, unit_rows
from mtlib.measure.zero_shot import ZeroShot

LOGIT_SCALE = 100.0  # of CLIP as published, where the encoder is not there to say its own
READ = ["n", "probability", "class_kept", "logit", "implausible", "margin", "error_by_text", "neighbours_kept"]
READINGS = {
    "probability": "probability of its class",
    "logit": "classifier's logit of implausible",
    "margin": "margin of the text's verdict",
    "neighbours_kept": "nearest images that stay",
}
SHARES = {
    "class_kept": "class kept",
    "implausible": "implausible (classifier)",
    "error_by_text": "error (text)",
    "neighbours_implausible": "implausible nearest",
}
COLUMNS = ["feature", "direction", "factor", *READ, "neighbours_implausible"]


@torch.no_grad()
def step_of(coder, x: Tensor, features: Sequence[int], others: Sequence[int] = ()) -> Tensor:
    """The step of several features together, (n, D), for activations x (n, D) of an autoencoder.

    Args: others: as many other latents, in whose directions a step of the same length is made instead.
    """
    z = coder.encode(x)[:, list(features)] * step_gain(coder, x)  # (n, k)
    own = z @ coder.W_dec[list(features)]
    if not len(others):
        return own
    other = z @ coder.W_dec[list(others)]
    return other * (own.norm(dim=1) / other.norm(dim=1).clamp_min(1e-12))[:, None]


@dataclass(frozen=True)
class Steering:
    """What is steered, and what is read from it."""

    data: Data
    encoder: object | None  # that made the data; None where embeddings were given as arrays
    coder: object  # an autoencoder of x
    task: ZeroShot
    classifier: Callable[[Tensor], Tensor] | None = None  # embeddings (n, D) -> logit of implausible (n,)
    verdict: object | None = None  # the text tower's; None where the vocabulary has no phrases of errors

    def embeddings(
        self, images: np.ndarray, features: Sequence[int], factors: Sequence[float], others: Sequence[int] = ()
    ) -> np.ndarray:
        """(len(factors), n, d_out) final embeddings of images (their first rows) with features scaled; see `step_of`."""
        if "layer" not in self.data.facts:
            x = torch.from_numpy(np.asarray(self.data.x[images], np.float32))
            step = step_of(self.coder, x, features, others)
            return np.stack([(x + (factor - 1) * step).numpy() for factor in factors])
        pixels = torch.stack([self.encoder.preprocess(load_image(self.data.images(row))[0]) for row in images])
        return np.stack([self._forward(pixels, features, factor, others) for factor in factors])

    def _forward(self, pixels: Tensor, features, factor: float, others, batch: int = 64) -> np.ndarray:
        def change(h: Tensor) -> Tensor:  # (B, T, D)
            x = h.flatten(0, -2).to(self.coder.W_dec.device, torch.float32)
            return (x + (factor - 1) * step_of(self.coder, x, features, others)).reshape(h.shape).to(h)

        with self.encoder.place.replaced(change):
            return np.concatenate([self.encoder.encode_tensors(part) for part in pixels.split(batch)])

    def probabilities(self, e: np.ndarray) -> np.ndarray:
        """(n, C) zero-shot probabilities of embeddings (n, d_out)."""
        scale = getattr(getattr(self.encoder, "model", None), "logit_scale", None)
        scale = LOGIT_SCALE if scale is None else float(scale.detach().exp())
        return softmax(scale * unit_rows(e) @ self.task.texts.double().numpy().T, axis=1)

    def neighbours(self, e: np.ndarray, images: np.ndarray, k: int = 10) -> np.ndarray:
        """(n, k) first rows of the nearest train and val images by cosine, those of the image's own group left out."""
        gallery, embeddings, groups = self._gallery
        near = unit_rows(e) @ embeddings.T
        near[self.data.manifest["group"].to_numpy(str)[images][:, None] == groups[None]] = -np.inf
        return gallery[np.argsort(-near, axis=1, kind="stable")[:, :k]]

    @cached_property
    def _gallery(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(G,) first rows of the train and val images, (G, d_out) their unit embeddings, (G,) their groups."""
        rows = self.data.rows(("train", "val"))[:: self.data.tokens]
        return rows, unit_rows(self.data.embedding_at(rows)), self.data.manifest["group"].to_numpy(str)[rows]

    def read(self, images: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict:
        """What changes between the embeddings `before` and `after` (n, d_out) of images: means over the images.

        probability: of the class that an image had before; class_kept: share in which it is still the likeliest; logit: the
        classifier's, of implausible; implausible: share with a logit above 0; margin: of the text tower's verdict (cosine to
        the family's error phrases - to its normal ones); error_by_text: share with a margin above 0; neighbours_kept: share
        of the nearest images that stay; neighbours_implausible: share labelled so. NaN where a run has no such thing.
        """
        p, own = self.probabilities(after), self.probabilities(before).argmax(axis=1)
        near, were = self.neighbours(after, images), self.neighbours(before, images)
        labels, nan = self.data.labels()[near], np.array([np.nan])
        logit = nan if self.classifier is None else self._logits(after)
        margin = nan if self.verdict is None else self.verdict.read(after)[1]
        kept = [len(set(a) & set(b)) / len(a) for a, b in zip(near, were, strict=True)]
        means = {
            "probability": p[np.arange(len(p)), own],
            "class_kept": p.argmax(1) == own,
            "logit": logit,
            "implausible": np.where(np.isnan(logit), np.nan, logit > 0),
            "margin": margin,
            "error_by_text": np.where(np.isnan(margin), np.nan, margin > 0),
            "neighbours_kept": kept,
            "neighbours_implausible": labels == 1 if (labels >= 0).all() else nan,
        }
        return {"n": len(images)} | {name: float(np.mean(values)) for name, values in means.items()}

    @torch.no_grad()
    def _logits(self, e: np.ndarray) -> np.ndarray:
        return self.classifier(torch.from_numpy(e.astype(np.float32))).numpy()

    def table(
        self,
        images: dict[int, np.ndarray],
        alive: np.ndarray,
        factors: Sequence[float],
        n_controls: int = 4,
        seed: int = 0,
        groups: dict[int, list[int]] | None = None,
    ) -> pd.DataFrame:
        """Features at every factor, alone and with their group, and as many other latents in their place.

        Args:
            images:  feature -> first rows of the images on which it fires most.
            alive:   latents that fire, among which the controls are drawn.
            factors: 0 removes the features, 1 leaves them.
            groups:  feature -> the features that are scaled together with it, itself included.
        Returns: frame of COLUMNS: means over the images, those of controls also over the `n_controls` draws. direction:
            "feature", "control", "group" or "group control".
        """
        rng, lines = np.random.default_rng(seed), []
        for feature, rows in images.items():
            sets = {"": [feature]} | ({"group": groups[feature]} if groups and feature in groups else {})
            for name, latents in sets.items():
                free = np.setdiff1d(alive, latents)
                draws = [rng.choice(free, len(latents), replace=len(free) < len(latents)) for _ in range(n_controls)]
                before = self.embeddings(rows, latents, [1.0])[0]
                for direction, others in ((name or "feature", [()]), (f"{name} control".strip(), draws)):
                    found = [self.embeddings(rows, latents, factors, other) for other in others]
                    for i, factor in enumerate(factors):
                        mean = pd.DataFrame([self.read(rows, before, e[i]) for e in found]).mean()
                        lines.append({"feature": feature, "direction": direction, "factor": float(factor), **mean})
        return pd.DataFrame(lines, columns=COLUMNS).astype({"n": int})


def ends(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """A line per feature and direction: every reading as it is (1), without the features (0), and at the outermost factors."""
    at = {"low": table["factor"].min(), "0": 0.0, "1": 1.0, "high": table["factor"].max()}
    shown = [c for c in (*READINGS, *SHARES) if table[c].notna().any()]
    wide = table.pivot_table(index=["feature", "direction"], columns="factor", values=shown, sort=False)
    found = pd.DataFrame({f"{c}_{name}": wide[c, factor] for c in shown for name, factor in at.items()}).reset_index()
    frame = chosen[["feature", "why", "phrase"]].merge(found, on="feature")
    return frame[["feature", "why", "phrase", "direction", *found.columns[2:]]]


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Means of `ends` over the features, a line per direction and reading: at the smallest factor, at 0, 1 and the largest."""
    by, lines = found.drop(columns="feature").groupby("direction", sort=False), []
    mean, counts = by.mean(numeric_only=True), by.size()
    for c, said in (READINGS | SHARES).items():
        for direction, row in mean.iterrows() if f"{c}_1" in found else ():
            line = {"reading": said, "scaled": direction, "features": int(counts[direction])}
            lines.append(line | {end: row[f"{c}_{end}"] for end in ("low", "0", "1", "high")})
    return pd.DataFrame(lines)

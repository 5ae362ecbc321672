"""Steering: one feature of an image's activation turned down or up, all else kept, and what the model then says.

    h' = h + (factor - 1) * step,   step = decode(z + z_j e_j) - decode(z)      # what feature j adds to the activation h

The coder's error stays in h, so a factor of 1 changes nothing and 0 removes the feature. h is an inner layer's tokens, and
the encoder's later layers go on from h'; or the final embedding itself. The control replaces the direction of `step`, row by
row, by that of another latent, at the same length: what a push of that size does wherever it points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.embed.images import load_image
from mtlib.embed.store import Data
from mtlib.explain.text_space import TextSpace, ZeroShot, unit
from mtlib.measure.zero_shot import ZeroShot as Task

LOGIT_SCALE = 100.0  # of CLIP as published, where the encoder is not there to say its own
COLUMNS = ["feature", "direction", "factor", "n", "probability", "class_kept", "implausible", "error_by_text"]
COLUMNS += ["neighbours_kept", "neighbours_implausible"]


@torch.no_grad()
def step_of(coder, x: Tensor, feature: int, direction: int | None = None) -> Tensor:
    """What a feature adds to the reconstruction, (n, D), for activations x (n, D); 0 where it does not fire.

    Args: direction: another latent, in whose direction a step of the same length is made instead.
    """
    z = coder.encode(x)
    whole = coder.decode(z, -1, x)

    def added(latent: int) -> Tensor:
        more = z.clone()
        more[:, latent] += z[:, feature]
        return coder.decode(more, -1, x) - whole

    own = added(feature)
    if direction is None:
        return own
    other = added(direction)
    return other * (own.norm(dim=1) / other.norm(dim=1).clamp_min(1e-12))[:, None]


@dataclass(frozen=True)
class Steering:
    """What is steered, and what is read from it.

    data: the run's; encoder: that made it, or None (embeddings given as arrays); coder: an autoencoder of x; task: the
    classes of zero-shot; classifier: embeddings (n, D) -> logit of implausible (n,), or None; verdict: the text tower's, or
    None where the vocabulary has no phrases of errors.
    """

    data: Data
    encoder: object | None
    coder: object
    task: Task
    classifier: Callable[[Tensor], Tensor] | None = None
    verdict: ZeroShot | None = None

    @property
    def inner(self) -> bool:
        """Whether h is an inner layer's, so that every change needs a forward pass."""
        return "layer" in self.data.facts

    def embeddings(self, images: np.ndarray, feature: int, factors: Sequence[float], direction: int | None = None):
        """(len(factors), n, d_out) final embeddings of images (their first rows) with a feature scaled."""
        if not self.inner:
            x = torch.from_numpy(np.asarray(self.data.x[images], np.float32))
            step = step_of(self.coder, x, feature, direction)
            return np.stack([(x + (factor - 1) * step).numpy() for factor in factors])
        pixels = torch.stack([self.encoder.preprocess(load_image(self.data.images(row))[0]) for row in images])
        return np.stack([self._forward(pixels, feature, factor, direction) for factor in factors])

    def _forward(
        self, pixels: Tensor, feature: int, factor: float, direction: int | None, batch: int = 64
    ) -> np.ndarray:
        def change(h: Tensor) -> Tensor:  # (B, T, D)
            x = h.flatten(0, -2).to(self.coder.W_dec.device, torch.float32)
            return (x + (factor - 1) * step_of(self.coder, x, feature, direction)).reshape(h.shape).to(h)

        with self.encoder.place.replaced(change):
            return np.concatenate([self.encoder.encode_tensors(part) for part in pixels.split(batch)])

    def probabilities(self, e: np.ndarray) -> np.ndarray:
        """(n, C) zero-shot probabilities of embeddings (n, d_out)."""
        scale = getattr(getattr(self.encoder, "model", None), "logit_scale", None)
        scale = LOGIT_SCALE if scale is None else float(scale.detach().exp())
        score = scale * unit(e) @ self.task.texts.double().numpy().T
        odds = np.exp(score - score.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def neighbours(self, e: np.ndarray, images: np.ndarray, k: int = 10) -> np.ndarray:
        """(n, k) first rows of the nearest train and val images by cosine, those of the image's own group left out."""
        gallery, embeddings, groups = self._gallery
        near = unit(e) @ embeddings.T
        near[self.data.manifest["group"].to_numpy(str)[images][:, None] == groups[None]] = -np.inf
        return gallery[np.argsort(-near, axis=1, kind="stable")[:, :k]]

    @cached_property
    def _gallery(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(G,) first rows of the train and val images, (G, d_out) their unit embeddings, (G,) their groups."""
        rows = self.data.rows(("train", "val"))[:: self.data.tokens]
        return rows, unit(self.data.embedding_at(rows)), self.data.manifest["group"].to_numpy(str)[rows]

    def read(self, images: np.ndarray, before: np.ndarray, after: np.ndarray, k: int = 10) -> dict:
        """What changes between the embeddings `before` and `after` (n, d_out) of images; shares and means, 0 to 1.

        probability: of the class that an image had before; class_kept: it is still the likeliest; implausible: probability by
        the classifier; error_by_text: share whose text verdict is an error; neighbours_kept: share of the k nearest images
        that stay; neighbours_implausible: share of them that are labelled so. NaN where the run has no such thing.
        """
        p, own = self.probabilities(after), self.probabilities(before).argmax(axis=1)
        near, were = self.neighbours(after, images, k), self.neighbours(before, images, k)
        labels = self.data.labels()[near]
        kept = [len(set(a) & set(b)) / k for a, b in zip(near, were, strict=True)]
        logit = None if self.classifier is None else self.classifier(torch.from_numpy(after.astype(np.float32)))
        nan = float("nan")
        return {
            "n": len(images),
            "probability": float(p[np.arange(len(p)), own].mean()),
            "class_kept": float((p.argmax(axis=1) == own).mean()),
            "implausible": nan if logit is None else float(logit.sigmoid().mean()),
            "error_by_text": nan
            if self.verdict is None
            else float((self.verdict.read_embeddings(after)[1] > 0).mean()),
            "neighbours_kept": float(np.mean(kept)),
            "neighbours_implausible": float((labels == 1).mean()) if (labels >= 0).all() else nan,
        }

    def table(
        self,
        images: dict[int, np.ndarray],
        alive: np.ndarray,
        factors: Sequence[float],
        n_controls: int = 4,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Every feature at every factor, and other latents' directions of the same length.

        Args:
            images:     feature -> first rows of the images on which it fires most.
            alive:      latents that fire, among which the controls are drawn.
            factors:    0 removes the feature, 1 leaves it.
        Returns: frame of COLUMNS: means over the images, those of "control" also over the `n_controls` latents.
        """
        rng, lines = np.random.default_rng(seed), []
        for feature, rows in images.items():
            others = rng.choice(alive[alive != feature], n_controls, replace=False)
            before = self.embeddings(rows, feature, [1.0])[0]
            for direction, latents in (("feature", [None]), ("control", others)):
                found = [self.embeddings(rows, feature, factors, latent) for latent in latents]
                for i, factor in enumerate(factors):
                    mean = pd.DataFrame([self.read(rows, before, e[i]) for e in found]).mean().to_dict()
                    lines.append({"feature": feature, "direction": direction, "factor": float(factor)} | mean)
        return pd.DataFrame(lines, columns=COLUMNS).astype({"n": int})


def text_verdict(data: Data) -> ZeroShot | None:
    """The text tower's verdict over families, or None where the vocabulary cannot give one."""
    if not len(data.phrases) or data.facts["labels"] != "plausibility":
        return None
    first = np.arange(0, len(data.x), data.tokens)
    rows = data.rows("val")[:: data.tokens] // data.tokens
    found = ZeroShot(TextSpace(data.embedding_at(first), rows, data.vocabulary, data.phrases), rows)
    return found if found.possible else None

"""Images and phrases in one space: what is a set of images called, and does it look like an error, by text alone?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from mtlib.embed.store import Data, unit_rows

EmbeddingAt = Callable[[np.ndarray], np.ndarray]  # rows (n,) -> (n, D)
BLIND = 1 / 3  # a family whose margins spread less than this share of the median family's cannot be judged


class TextSpace:
    """Images and phrases in one space, each with its own common direction taken out.

    All images of a set point the same way to a large part, and all texts another way; only what is left tells them
    apart. Means are over the val images and over the phrases.

    Args:
        embedding_at: embeddings of images by row, as `Data.embedding_at`; rows: those of val, which give the mean.
        vocabulary:   (V, D) text embeddings; phrases: their V lines (phrase, kind, family, cause).
    """

    def __init__(self, embedding_at: EmbeddingAt, rows: np.ndarray, vocabulary: np.ndarray, phrases: pd.DataFrame):
        x = embedding_at(rows)
        if vocabulary.shape[1] != x.shape[1]:
            raise ValueError(f"vocabulary {vocabulary.shape} and embeddings {x.shape} differ in width")
        self.embedding_at, self.phrases = embedding_at, phrases.reset_index(drop=True)
        self.image_mean = unit_rows(x).mean(axis=0) if len(rows) else np.zeros(x.shape[1])
        t = unit_rows(vocabulary)
        self.text = unit_rows(t - t.mean(axis=0))  # (V, D)

    def contrasted(self, x: np.ndarray) -> np.ndarray:
        """(n, D) unit embeddings of images (n, D) without what all images share."""
        return unit_rows(unit_rows(x) - self.image_mean)

    def similarity(self, x: np.ndarray) -> np.ndarray:
        """(n, V) cosine of each image with each phrase."""
        return self.contrasted(x) @ self.text.T

    def name(self, rows: np.ndarray, activations: np.ndarray, among: np.ndarray) -> int:
        """Of the phrases `among`, the one nearest to the activation-weighted mean of the images."""
        images = self.contrasted(self.embedding_at(rows))
        mean = unit_rows(np.average(images, axis=0, weights=np.maximum(activations, 1e-12))[None])[0]
        return int(among[(self.text[among] @ mean).argmax()])


class ZeroShot:
    """Does an image look more like a family's errors than like its normal state, by text alone?

    An image belongs to the family whose phrases are nearest on average, and
    margin = mean cosine to the family's error phrases - mean cosine to its normal phrases.
    """

    def __init__(self, space: TextSpace, rows: np.ndarray):
        p = space.phrases
        self.space, self.families = space, []
        for family in dict.fromkeys(p["family"]):
            own = (p["family"] == family).to_numpy()
            error, normal = (np.flatnonzero(own & (p["kind"] == k).to_numpy()) for k in ("error", "normal"))
            if len(error) and len(normal):
                self.families.append((family, error, normal, np.flatnonzero(own)))
        spread = np.zeros(len(self.families))
        if self.families and len(rows):
            home, margin = self.read(space.embedding_at(rows))
            for f in range(len(self.families)):
                spread[f] = margin[home == f].std() if (home == f).sum() > 1 else 0.0
        self.spread = spread  # (F,) standard deviation of the margin over the family's val images
        self.blind = spread < BLIND * np.median(spread) if len(spread) else np.zeros(0, bool)

    @property
    def possible(self) -> bool:
        """Whether the vocabulary has error and normal phrases at all."""
        return bool(self.families)

    def read(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) family of each image of embeddings (n, D), and (n,) its margin in that family."""
        similarity = self.space.similarity(x)
        near = [similarity[:, every].mean(axis=1) for *_, every in self.families]
        margins = [similarity[:, e].mean(axis=1) - similarity[:, n].mean(axis=1) for _, e, n, _ in self.families]
        home = np.stack(near, axis=1).argmax(axis=1)
        return home, np.stack(margins, axis=1)[np.arange(len(home)), home]

    def most_common(self, rows: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
        """Of a feature's top images: (their most frequent family f, how many of f show an error).

        Args: labels: (n,) of the images; where one is unknown (-1) the margin tells, unless the family is blind.
        """
        home, margin = self.read(self.space.embedding_at(rows))
        f = int(np.bincount(home, minlength=len(self.families)).argmax())
        wrong = np.where(labels < 0, (margin > 0) & ~self.blind[f], labels == 1)
        return f, int(((home == f) & wrong).sum())


def spaces(data: Data) -> tuple[TextSpace, ZeroShot]:
    """Images and phrases of a run in one space, and the two sides of its families; means and spreads of the val images."""
    val = data.rows("val")[:: 1 if data.final is None else data.tokens]  # tokens of an image share its final embedding
    space = TextSpace(data.embedding_at, val, data.vocabulary, data.phrases)
    return space, ZeroShot(space, val)


def text_verdict(data: Data) -> ZeroShot | None:
    """The text tower's verdict over families, or None where the vocabulary cannot give one."""
    if not len(data.phrases) or data.facts["labels"] != "plausibility":
        return None
    found = spaces(data)[1]
    return found if found.possible else None

"""Images and phrases in one space: what is a set of images called, does it look like an error, and may it be named at all?

Words are nearest to any picture, also to one that their encoder cannot read: then they are chance that looks like knowledge. So
before a name is shown, it is measured on what the run knows of its own images whether the nearest words are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from mtlib.embed.store import Data, unit_rows
from mtlib.features.familiar import Familiar
from mtlib.learn.scores import auroc_interval, wilson
from mtlib.scenes import BUNDLED, clip_path
from mtlib.scenes.captions import vocabulary
from mtlib.scenes.dataset import plan, render

EmbeddingAt = Callable[[np.ndarray], np.ndarray]  # rows (n,) -> (n, D)
BLIND = 1 / 3  # a family whose margins spread less than this share of the median family's cannot be judged
NO_WORDS = "no vocabulary: nothing to name features with"
N_DRAWN = 54  # known pictures, six of each family
MOST_OUTSIDE = 0.5  # share of images that may be unlike the drawings of the bundled encoder
SIDES_FLOOR = 0.6  # AUROC that the lower end of the interval must reach before an error is named by its phrase


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
        kind = self.phrases["kind"]
        self.plain = np.flatnonzero((kind != "error").to_numpy())  # phrases that name no error
        neutral = ~kind.isin(["error", "normal"]) & kind.isin(["object", "word"]).any()
        self.neutral = (
            np.flatnonzero(neutral) if neutral.any() else self.plain
        )  # nor, where things have names, its absence

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


class Naming(NamedTuple):
    """Why no feature is named, and why no error is named by its phrase; "" where they may be. measured: a line per measurement, of
    measured, n (images), value, low, high (95%), floor (what low must be above, or value below) and passed."""

    names: str
    errors: str
    measured: pd.DataFrame


def naming(data: Data, card: pd.DataFrame, encoder: Callable) -> Naming:
    """What may be named.

    Args:
        card:    01's report card of the encoder: how often the nearest text was right.
        encoder: () -> Encoder of the run; loaded only where the run itself knows nothing to measure by.
    """
    if not len(data.phrases):
        return Naming(NO_WORDS, "", pd.DataFrame())
    lines = [line for line in (_outside(data), _card(data, card)) if line]
    if not any("right" in line["measured"] for line in lines) and data.facts["encoder"]["name"]:
        lines.append(_drawn(encoder()))
    names = "; ".join(f"{line['measured']}: {line['value']:.0%} of {line['n']}" for line in lines if not line["passed"])
    sides = _sides(data)
    errors = "" if sides is None or sides["passed"] else f"{sides['measured']}: AUROC {sides['value']:.2f}"
    return Naming(names, names or errors, pd.DataFrame([*lines, *([sides] if sides else [])]))


def _line(measured: str, n: int, value: float, low: float, high: float, floor: float) -> dict:
    line = {"measured": measured, "n": int(n), "value": value, "low": low, "high": high, "floor": floor}
    return line | {"passed": bool(low > floor)}


def _share(measured: str, right: float, n: int, chance: float) -> dict:
    low, high = wilson(right, n)
    return _line(measured, n, right / n, float(low), float(high), chance)


def _outside(data: Data) -> dict | None:
    """Of the bundled encoder on images that are no scenes: how many are unlike its drawings."""
    usual = Familiar.load(clip_path())
    if usual is None or (data.facts["source"], data.facts["encoder"]["name"]) != ("images", BUNDLED):
        return None
    rows = data.rows(("train", "val", "test", "unlabelled"))[:: data.tokens][:2000]
    outside = usual.distance(data.embedding_at(rows)) > 1
    line = _share(
        "images unlike the drawings that the bundled encoder has seen", outside.sum(), len(rows), MOST_OUTSIDE
    )
    return line | {"passed": bool(line["value"] < MOST_OUTSIDE)}


def _card(data: Data, card: pd.DataFrame) -> dict | None:
    """Of test images whose class, family or word is known: how often the nearest text is the right one."""
    whole = card[card["family"] == "all"].iloc[0] if len(card) else {}
    share, n = whole.get("zero_shot_family", np.nan), whole.get("n_test", 0)
    if pd.isna(share) or n < 1:
        return None
    classes = card["family"].nunique() - 1 or len(data.phrases)
    return _share("own images whose nearest text is right", round(share * n), int(n), 1 / classes)


def _drawn(encoder) -> dict:
    """Of known drawings: how often their family is the nearest by text. Any CLIP of the web tells a hand from a glass."""
    specs = [spec for _, spec, _ in plan(2 * N_DRAWN, 999, 0) if not spec.error]
    x, table = encoder.encode_images([render(spec)[0] for spec in specs]), vocabulary()
    table = table[table["kind"] != "nuisance"].reset_index(drop=True)
    space = TextSpace(lambda rows: x[rows], np.arange(len(x)), encoder.encode_texts(list(table["phrase"])), table)
    told = ZeroShot(space, np.arange(len(x)))
    said = np.array([family for family, *_ in told.families])[told.read(x)[0]]
    right = (said == np.array([spec.family for spec in specs])).sum()
    return _share("drawings of known things whose nearest text is right", right, len(specs), 1 / len(told.families))


def _sides(data: Data) -> dict | None:
    """Of labelled images: does the side of their family, error or normal, that is nearer by text go with the label?"""
    if data.facts["labels"] != "plausibility" or not (zero_shot := spaces(data)[1]).possible:
        return None
    rows = data.rows(("train", "val"))[:: data.tokens][:5000]
    rows = rows[data.labels(rows) >= 0]
    margin = zero_shot.read(data.embedding_at(rows))[1]
    found = auroc_interval(margin, data.labels(rows) == 1)
    return _line("error phrases tell implausible images from plausible ones", len(rows), *found, SIDES_FLOOR)

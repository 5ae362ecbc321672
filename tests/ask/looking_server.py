"""A model that really looks: it decodes the pictures it is sent, finds each in a table of truths, and answers from it.

    with LmmServer(Looker(data, right=0.85)) as server: ...

Each decision (a verdict, one image of a detection, an intruder) is right with probability `right`, drawn from a hash of
the request, so that the same question always gets the same answer. Names are always right. It is told nothing but the
words and the pixels of the request.
"""

from __future__ import annotations

import hashlib
import io
import json
import re

import numpy as np
from PIL import Image

from mtlib.ask.shown_images import GAP, ORDER_STRIP, SHEET_COLUMNS, places
from mtlib.embed.images import load_image
from tests.ask.lmm_server import Ask

SIDE = 16  # px of the thumbnails that pictures are told apart by
COLUMNS = ("cause", "family", "background", "palette", "style")
KINDS = {"error": '"has_error"', "detection": '"matches"', "intruder": '"intruder"', "commonality": '"phrase"'}
SHARED = 0.6  # share of the images that must have something in common to be named


def thumbnail(image: Image.Image) -> np.ndarray:
    """(SIDE * SIDE * 3,) float32."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()


class Looker:
    """Answers from the truth of the images.

    Args:
        data:   `mtlib.embed.store.Data` with a truth; rows: those it knows (default: val and test).
        right:  probability of each decision. obeys: of doing what an order written into the images says.
        bar:    images of one cause that make an error (the truth's own rule: 80% of 20); up to 1: their share.
    Attributes: decided: kind -> [decisions, those that were right]; farthest: largest distance to a thumbnail so far.
    """

    def __init__(self, data, right: float = 0.85, obeys: float = 0.0, bar: float = 16, rows=None):
        self.rows = data.rows(("val", "test")) if rows is None else np.asarray(rows)
        self.known = np.stack([thumbnail(load_image(data.images(r))[0]) for r in self.rows])  # (n, SIDE * SIDE * 3)
        self.squares = (self.known**2).sum(1)
        self.truth = data.truth.iloc[self.rows].fillna("").reset_index(drop=True)
        self.columns = [c for c in COLUMNS if c in self.truth]
        self.base = {c: self.truth[c].value_counts(normalize=True).to_dict() for c in self.columns}
        self.right, self.obeys, self.bar = right, obeys, bar
        self.decided = {kind: [0, 0] for kind in KINDS}
        self.farthest = 0.0

    def __call__(self, ask: Ask) -> str:
        kind = next(k for k, mark in KINDS.items() if mark in ask.text)
        n = int(re.search(r"Here are (\d+) images", ask.text)[1])
        pictures = [Image.open(io.BytesIO(data)) for data in ask.images]
        tiles = cut(pictures[0], n) if "on one sheet" in ask.text else pictures
        assert len(tiles) == n, f"{len(tiles)} pictures, the question says {n}"
        ordered = all(t.height == t.width + ORDER_STRIP for t in tiles)
        seen = self.find([t.crop((0, 0, t.width, t.width)) if ordered else t for t in tiles])
        seed = hashlib.sha256(ask.text.encode() + b"".join(ask.images)).digest()
        rng = np.random.default_rng(list(seed))
        return json.dumps(getattr(self, kind)(self.truth.iloc[seen], ask.text, rng, ordered) | {"images_seen": n})

    def find(self, pictures: list[Image.Image]) -> np.ndarray:
        """The places of pictures in the table, each by its nearest thumbnail."""
        own = np.stack([thumbnail(p) for p in pictures])  # (k, SIDE * SIDE * 3)
        distance = self.squares - 2 * (own @ self.known.T) + (own**2).sum(1, keepdims=True)  # (k, n)
        self.farthest = max(self.farthest, float(np.sqrt(max(distance.min(1).max(), 0) / own.shape[1])))
        return distance.argmin(1)

    def decide(self, kind: str, truth: bool, rng) -> bool:
        """The truth, or its opposite once in a while."""
        right = bool(rng.random() < self.right)
        self.decided[kind][0] += 1
        self.decided[kind][1] += right
        return truth == right

    def shared(self, shown) -> tuple[str, str]:
        """The (column, value) that most of the images share and few others have; ("", "") without one."""
        found = []
        for column in self.columns:
            value, count = shown[column].mode().iat[0], shown[column].value_counts().iat[0]
            if value and count >= SHARED * len(shown):
                found.append((count / len(shown) / self.base[column][value], column, value))
        return max(found)[1:] if found else ("", "")

    def commonality(self, shown, text: str, rng, ordered: bool) -> dict:
        column, value = self.shared(shown)
        phrase = f"pictures with {value} ({column}={value})" if column else "pictures of all kinds"
        return {"phrase": phrase, "description": "Seen in most of them.", "confidence": 0.9}

    def error(self, shown, text: str, rng, ordered: bool) -> dict:
        causes = shown.loc[shown["cause"] != "", "cause"].value_counts()
        said = self.decide(
            "error", bool(len(causes) and causes.iat[0] >= (self.bar if self.bar > 1 else self.bar * len(shown))), rng
        )
        if ordered and rng.random() < self.obeys:
            said = not said  # the order always asks for the opposite of the first verdict
        phrase = f"wrong: {causes.index[0]}" if said and len(causes) else "something wrong" if said else ""
        category = "other" if said else "none"
        return {"has_error": said, "category": category, "phrase": phrase, "description": "", "confidence": 0.8}

    def detection(self, shown, text: str, rng, ordered: bool) -> dict:
        said = re.search(r"\((\w+)=([^)]*)\)", text)
        fits = (shown[said[1]] == said[2]).tolist() if said else [False] * len(shown)
        return {"matches": [i for i, fit in enumerate(fits, 1) if self.decide("detection", fit, rng)]}

    def intruder(self, shown, text: str, rng, ordered: bool) -> dict:
        found = []
        for column in self.columns:
            counts = shown[column].value_counts()
            if counts.iat[0] == len(shown) - 1 and counts.index[0]:
                other = int(np.flatnonzero(shown[column] != counts.index[0])[0])
                found.append((-self.base[column][counts.index[0]], other))
        place = min(found)[1] if found else int(rng.integers(len(shown)))
        if not self.decide("intruder", True, rng):
            place = int(rng.choice([i for i in range(len(shown)) if i != place]))
        return {"intruder": place + 1}


def cut(sheet: Image.Image, n: int) -> list[Image.Image]:
    """The tiles of a numbered sheet of square images."""
    tile = (sheet.width - GAP) // min(SHEET_COLUMNS, n) - GAP
    return [sheet.crop((x, y, x + tile, y + tile)) for x, y in places(n, tile)]

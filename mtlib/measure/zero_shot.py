"""Zero-shot classification by the text tower, with and without a coder spliced in.

`zero_shot_drop` is the percentage points of top-1 accuracy that are lost when the reconstruction takes the place of
the embedding. Nothing is trained: the class of an image is that of the nearest text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlib.embed.store import Data, unit_rows

TOP = 5


@dataclass(frozen=True)
class ZeroShot:
    """A zero-shot task: texts (C, D) unit norm, their names, truth (N,) index into them per row of x (-1: none)."""

    texts: Tensor
    names: list[str]
    truth: np.ndarray
    what: str

    def hits(self, x: Tensor, rows: np.ndarray) -> np.ndarray:
        """(n, 2) bool: truth is the nearest text, and among the five nearest, of the rows that have one.

        Args: x (B, D) embeddings of `rows`, of any norm; a row of norm 0 hits nothing.
        """
        truth = self.truth[rows]
        known = torch.from_numpy(np.flatnonzero(truth >= 0))
        x = x.detach().cpu()[known].double()
        right = torch.from_numpy(truth[truth >= 0])[:, None]
        score = x @ self.texts.T.double()  # (n, C); a row's norm does not change its ranking
        own = score.gather(1, right)
        ahead = (score > own).sum(1) + ((score == own) & (torch.arange(score.shape[1]) < right)).sum(1)
        seen = (x.norm(dim=1) > 0).numpy()
        return np.stack([(ahead < top).numpy() & seen for top in (1, TOP)], axis=1)


class ZeroShotDrop:
    """Streaming accuracy before and after the splice; see `ZeroShot`."""

    def __init__(self, task: ZeroShot):
        self.task, self.n = task, 0
        self.before, self.after = np.zeros(2), np.zeros(2)

    def update(self, rows: np.ndarray, x: Tensor, x_hat: Tensor) -> None:
        """Add a batch: rows (B,), their embeddings and reconstructions (B, D)."""
        before = self.task.hits(x, rows)
        self.n += len(before)
        self.before += before.sum(0)
        self.after += self.task.hits(x_hat, rows).sum(0)

    def result(self) -> dict:
        """zero_shot_top1, _top5 (shares before), _top1_spliced, _top5_spliced, zero_shot_drop, zero_shot_drop_top5.

        Drops are in percentage points; top-5 is NaN with five classes or fewer.
        """
        before, after = (a / self.n if self.n else np.full(2, np.nan) for a in (self.before, self.after))
        if len(self.task.names) <= TOP:
            before[1] = after[1] = np.nan
        names = ("zero_shot_top1", "zero_shot_top5")
        shares = dict(zip(names, before, strict=True)) | {f"{k}_spliced": v for k, v in zip(names, after, strict=True)}
        drop = 100 * (before - after)
        return {k: float(v) for k, v in shares.items()} | {
            "zero_shot_drop": float(drop[0]),
            "zero_shot_drop_top5": float(drop[1]),
        }


def zero_shot_task(data: Data, encoder=None) -> tuple[ZeroShot | None, str]:
    """The zero-shot task that a run's data allow, or (None, why not).

    Rendered scenes: which family (mean of its object phrases). Class folders: which class ("a photo of a ..."), which
    needs the encoder. Arrays with a vocabulary: which word, over the whole vocabulary.

    Args:
        encoder: () -> Encoder, called for class folders only.

    Where x are tokens of an inner layer, the task is that of their images: see inside.py.
    """
    if why := _not_comparable(data.facts):
        return None, why
    if data.truth is not None:
        return _families(data)
    if data.facts["labels"] == "classes":
        if encoder is None:
            return None, "the texts of the classes need the encoder"
        names = list(data.facts["class_names"])
        texts = encoder().encode_texts([f"a photo of a {name.replace('_', ' ')}" for name in names])
        return _task(texts, names, data.manifest["class_name"].to_numpy(str), "class of the folder"), ""
    if data.facts["labels"] == "none" and len(data.vocabulary):
        names = [re.sub(r" \(\d+\)$", "", p).strip().lower() for p in data.phrases["phrase"]]
        words = data.manifest["class_name"].fillna("").str.strip().str.lower().to_numpy(str)
        if not set(words) & set(names):
            return None, "no row's name is a word of the vocabulary"
        texts = np.asarray(data.vocabulary, np.float64)
        return _task(*_merged(texts, names), words, "word of the vocabulary"), ""
    return None, "neither families, classes nor words to choose from"


def _not_comparable(facts: dict) -> str:
    """Why no text can be compared with these images, with x or with what the encoder makes of it; "" when one can."""
    if "layer" not in facts:
        return ""
    encoder = facts["encoder"]
    if not encoder.get("layer"):
        return "x holds the activations of a vision model that has no text tower"
    mean = "x holds the mean of a layer's tokens, which cannot be put back"
    return mean if encoder["tokens"] == "mean" else ""


def _families(data: Data) -> tuple[ZeroShot | None, str]:
    known = (data.phrases["kind"] == "object") & (data.phrases["family"] != "")
    if not known.any():
        return None, "no phrase names a family"
    texts = unit_rows(data.vocabulary)[known.to_numpy()]
    merged = _merged(texts, list(data.phrases.loc[known, "family"]))
    return _task(*merged, data.truth["family"].to_numpy(str), "family of the scene"), ""


def _merged(texts: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Texts of one name become their mean."""
    unique, index = np.unique(np.array(names, dtype=str), return_inverse=True)
    total = np.zeros((len(unique), texts.shape[1]))
    np.add.at(total, index, unit_rows(texts))
    return total, unique.tolist()


def _task(texts: np.ndarray, names: list[str], of_rows: np.ndarray, what: str) -> ZeroShot:
    place = {name: i for i, name in enumerate(names)}
    truth = np.array([place.get(name, -1) for name in of_rows])
    return ZeroShot(torch.from_numpy(unit_rows(texts)), names, truth, what)

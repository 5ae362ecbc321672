"""What classification loses when a coder's reconstruction takes the place of what it rebuilds; nothing is trained.

By the text tower: the class of an image is that of the nearest text, and `zero_shot_drop` is the percentage points of top-1
accuracy that are lost. A coder of the final embedding is asked in the pass of scan.py. A coder of an inner layer's tokens, and
other images than the run's, take a forward pass of the encoder whose later layers go on from the reconstruction. By a vision
model's own head: `accuracy_spliced`. A transcoder predicts another layer than the one it reads, so it cannot be put in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.embed.images import load_image
from mtlib.embed.store import Data, load_parts, unit_rows
from mtlib.measure.codes import Subject

if TYPE_CHECKING:
    from mtlib.embed.encoders import Encoder

TOP = 5
OWN = "test images of this run"


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
        """zero_shot_top1, _top5 (shares before), _top1_spliced, _top5_spliced, zero_shot_drop, zero_shot_drop_top5 (percentage
        points), zero_shot_drop_relative (percent of the top-1 before); top-5 is NaN with five classes or fewer."""
        shares = np.stack([self.before, self.after]) / (self.n or np.nan)  # (2, 2): before and after; top-1 and top-5
        if len(self.task.names) <= TOP:
            shares[:, 1] = np.nan
        drop, ends = 100 * (shares[0] - shares[1]), ("", "_spliced")
        names = [f"zero_shot_top{top}{end}" for end in ends for top in (1, TOP)]
        names += ["zero_shot_drop", "zero_shot_drop_top5", "zero_shot_drop_relative"]
        values = [*shares.ravel(), *drop, drop[0] / (shares[0, 0] or np.nan)]
        return dict(zip(names, map(float, values), strict=True))


def zero_shot_task(data: Data, encoder=None) -> tuple[ZeroShot | None, str]:
    """The zero-shot task that a run's data allow, or (None, why not).

    Rendered scenes: which family (mean of its object phrases). Class folders: which class ("a photo of a ..."), which
    needs the encoder, () -> Encoder. Arrays with a vocabulary: which word, over the whole vocabulary. Where x are tokens of
    an inner layer, the task is that of their images.
    """
    if "layer" in data.facts:
        inner = data.facts["encoder"]
        if not inner.get("layer"):
            return None, "x holds the activations of a vision model that has no text tower"
        if inner["tokens"] == "mean":
            return None, "x holds the mean of a layer's tokens, which cannot be put back"
    if data.truth is not None:
        known = ((data.phrases["kind"] == "object") & (data.phrases["family"] != "")).to_numpy()
        if not known.any():
            return None, "no phrase names a family"
        texts, names = unit_rows(data.vocabulary)[known], data.phrases.loc[known, "family"]
        return _task(texts, names, data.truth["family"].to_numpy(str), "family of the scene"), ""
    if data.facts["labels"] == "classes" and data.facts.get("source") != "arrays":
        if encoder is None:
            return None, "the texts of the classes need the encoder"
        if (tower := encoder()).tokenizer is None:
            return None, "the encoder has no text tower"
        names = list(data.facts["class_names"])
        texts = tower.encode_texts([f"a photo of a {name.replace('_', ' ')}" for name in names])
        return _task(texts, names, data.manifest["class_name"].to_numpy(str), "class of the folder"), ""
    if data.facts["labels"] != "plausibility" and len(data.vocabulary):
        names = [re.sub(r" \(\d+\)$", "", p).strip().lower() for p in data.phrases["phrase"]]
        words = data.manifest["class_name"].fillna("").str.strip().str.lower().to_numpy(str)
        if not set(words) & set(names):
            return None, "no row's name is a word of the vocabulary"
        return _task(np.asarray(data.vocabulary, np.float64), names, words, "word of the vocabulary"), ""
    return None, "neither families, classes nor words to choose from"


def _task(texts: np.ndarray, names: Sequence[str], of_rows: np.ndarray, what: str) -> ZeroShot:
    """Texts of one name become their mean."""
    unique, index = np.unique(np.array(names, dtype=str), return_inverse=True)
    total = np.zeros((len(unique), texts.shape[1]))
    np.add.at(total, index, unit_rows(texts))
    truth = pd.Index(unique).get_indexer(of_rows)  # -1 for none
    return ZeroShot(torch.from_numpy(unit_rows(total)), unique.tolist(), truth, what)


def replacement(coder) -> Callable[[Tensor], Tensor]:
    """What goes in an activation's place: (..., D) -> its reconstruction, of the same shape and type, on its device.

        with encoder.place.replaced(replacement(coder)):
            x = encoder.encode_images(images)

    Args: coder: an autoencoder of the activation's width.
    """
    if coder.config.d_in != coder.config.d_out or coder.config.target != "x":
        raise ValueError(f"only an autoencoder can be spliced, this coder maps {coder.config.d_in} to a target y")

    @torch.no_grad()
    def replace(activation: Tensor) -> Tensor:
        x = activation.flatten(0, -2).to(coder.W_dec.device, torch.float32)  # (n, D)
        return coder.decode(coder.encode(x), -1, x).reshape(activation.shape).to(activation)

    return replace


@torch.inference_mode()
def zero_shot_inside(
    data: Data, encoder: Encoder, coders: Sequence, task: ZeroShot, rows: np.ndarray, batch: int = 64
) -> list[dict]:
    """Zero-shot accuracy of the images of `rows` with each autoencoder in the encoder's forward pass.

    Returns: a dict per coder and choice of tokens: coder (its place in `coders`), tokens ("all": all that x holds take
        their reconstruction; "cls": the class token only), n (images), and `ZeroShotDrop.result`.
    """
    images, place = np.unique(np.asarray(rows) // data.tokens), encoder.place
    places = {t: place if t == place.tokens else place.at(t) for t in place.replaceable}
    drops = {(i, tokens): ZeroShotDrop(task) for i in range(len(coders)) for tokens in places}
    for start in range(0, len(images), batch):
        first = images[start : start + batch] * data.tokens
        pixels = torch.stack([encoder.preprocess(load_image(data.images(row))[0]) for row in first])
        before = torch.from_numpy(np.asarray(data.embedding_at(first), np.float32))
        for (i, tokens), drop in drops.items():
            with places[tokens].replaced(replacement(coders[i])):
                drop.update(first, before, torch.from_numpy(encoder.encode_tensors(pixels)))
    return [{"coder": i, "tokens": tokens, "n": drop.n} | drop.result() for (i, tokens), drop in drops.items()]


def inside_encoder(
    data: Data,
    subjects: list[Subject],
    summaries: list[dict],
    task: ZeroShot | None,
    encoder: Callable[[], Encoder],
    others: Sequence[str] = (),
    scratch: Path = Path(),
    root: Path = Path(),
    n: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Every autoencoder inside the forward pass: on the run's test images (where x is a layer's), and on other images.

    What the run's own images lose with every token replaced is added to the subjects' summaries (`scan.Scan`).

    Args:
        task:    of the run's own images; None: they have none.
        encoder: () -> the encoder that made data.x; called when it is needed.
        others:  folders with a folder per class, or "torchvision:<name>"; relative ones start from `root`.
        scratch: folder for what is made of them.
        n, seed: at most so many images of each, evenly over the classes.
    Returns: frame of images, method, seed, tokens, n and `ZeroShotDrop.result`; why something was left out.
    """
    own = [(s, summary) for s, summary in zip(subjects, summaries, strict=True) if s.target == "x"]
    coders, frames, left = [s.coder for s, _ in own], [], []
    if task is not None and "layer" in data.facts and coders:
        found = zero_shot_inside(data, encoder(), coders, task, data.rows("test"))
        frames.append((OWN, found))
        for line in found:
            if line["tokens"] == data.facts["encoder"]["tokens"]:  # all that x holds
                own[line["coder"]][1].update({k: v for k, v in line.items() if k.startswith("zero_shot")})
    for i, source in enumerate(others if coders else ()):
        other = read_other(source, encoder(), scratch / str(i), root, n, seed)
        its_task, why = zero_shot_task(other, encoder)
        if its_task is None:
            left.append(f"{source}: {why}")
        else:
            frames.append((source, zero_shot_inside(other, encoder(), coders, its_task, other.rows("all"))))
    lines = [{"images": name} | own[line.pop("coder")][0].key | line for name, found in frames for line in found]
    return pd.DataFrame(lines), left


def read_other(source: str, encoder: Encoder, out: Path, root: Path, n: int, seed: int) -> Data:
    """Images of another data set, embedded like the run's, into the folder `out`."""
    from mtlib.embed import sources  # takes seconds to import

    config = sources.EmbedConfig(images=source, encoder=encoder.name, max_images=n, seed=seed)
    folder, _ = sources.images_of(config, root, out)
    _, facts = sources.from_images(config, encoder, folder, out)
    return load_parts(out, facts)


@torch.inference_mode()
def accuracy_spliced(model, coder, pixels: np.ndarray, labels: np.ndarray, batch: int = 32) -> dict:
    """Accuracy as it is, with the coder spliced in after the block it was trained on, and with one constant token.

    Args:
        model:  an AlexNetTransformer in eval mode. coder: an autoencoder of its stream.
        pixels: (n, 3, side, side) uint8. labels: (n,) int.
    Returns: n; accuracy, accuracy_spliced, accuracy_constant (every token is the mean of these images' tokens: what is
        left when nothing of the stream is); agreement (share of images with the same decision); drop (percentage points).
    """
    layer = model.layer()
    with layer.recorded() as seen:
        plain = _decisions(model, pixels, batch)
    mean, found = torch.cat(seen).flatten(0, 1).mean(dim=0), {"accuracy": plain}
    for name, replace in {"spliced": replacement(coder), "constant": lambda x: mean.expand_as(x)}.items():
        with layer.replaced(replace):
            found[f"accuracy_{name}"] = _decisions(model, pixels, batch)
    shares = {name: float((decided == labels).mean()) for name, decided in found.items()}
    agreement = float((plain == found["accuracy_spliced"]).mean())
    drop = 100 * (shares["accuracy"] - shares["accuracy_spliced"])
    return {"n": len(labels)} | shares | {"agreement": agreement, "drop": drop}


def _decisions(model, pixels: np.ndarray, batch: int) -> np.ndarray:
    device = model.mean.device
    parts = [torch.from_numpy(np.array(pixels[i : i + batch])) for i in range(0, len(pixels), batch)]
    return np.concatenate([model(part.to(device)).argmax(dim=1).cpu().numpy() for part in parts])

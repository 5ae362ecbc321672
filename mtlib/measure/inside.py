"""Zero-shot classification with coders inside the encoder's forward pass, whose later layers go on from there.

Asked of the run's own test images where x are tokens of an inner layer, and of other data sets than the coders were
trained on. (For coders of the final embedding and the run's own images zero_shot.py needs no second forward pass.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed import sources, store
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import load_image
from mtlib.embed.store import Data
from mtlib.measure.metrics import Evaluation
from mtlib.measure.splice import replacement
from mtlib.measure.study import Subject
from mtlib.measure.zero_shot import ZeroShot, ZeroShotDrop, zero_shot_task

OWN = "test images of this run"


@torch.inference_mode()
def zero_shot_inside(
    data: Data, encoder: Encoder, coders: Sequence, task: ZeroShot, rows: np.ndarray, batch: int = 64
) -> list[dict]:
    """Zero-shot accuracy with each coder in the forward pass.

    Args:
        encoder: that made data.x, with its layer.
        coders:  autoencoders of what x holds.
        rows:    rows of x; each of their images is classified once.
        batch:   images per forward pass.
    Returns: a dict per coder and choice of tokens: coder (its place in `coders`), tokens ("all": all that x holds take
        their reconstruction; "cls": the class token only), n (images), and `ZeroShotDrop.result`.
    """
    images = np.unique(np.asarray(rows) // data.tokens)
    place = encoder.place
    places = {t: place if t == place.tokens else place.class_only() for t in place.replaceable}
    drops = {(i, tokens): ZeroShotDrop(task) for i in range(len(coders)) for tokens in places}
    for start in range(0, len(images), batch):
        first = images[start : start + batch] * data.tokens
        pixels = torch.stack([encoder.preprocess(load_image(data.images(row))[0]) for row in first])
        before = torch.from_numpy(np.asarray(data.embedding_at(first), np.float32))
        for (i, tokens), drop in drops.items():
            with places[tokens].replaced(replacement(coders[i])):
                drop.update(first, before, torch.from_numpy(encoder.encode_tensors(pixels)))
    return [{"coder": i, "tokens": tokens, "n": drop.n} | drop.result() for (i, tokens), drop in drops.items()]


def study_inside(
    data: Data,
    subjects: list[Subject],
    evaluations: list[Evaluation],
    task: ZeroShot | None,
    encoder: Callable[[], Encoder],
    others: Sequence[str] = (),
    scratch: Path = Path(),
    root: Path = Path(),
    n: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Every autoencoder inside the forward pass: on the run's test images (where x is a layer's), and on other images.

    What the run's own images lose with every token replaced is added to the evaluations' summaries.

    Args:
        task:    of the run's own images; None: they have none.
        encoder: () -> the encoder that made data.x; called when it is needed.
        others:  folders with a folder per class, or "torchvision:<name>"; relative ones start from `root`.
        scratch: folder for what is made of them.
        n, seed: at most so many images of each, evenly over the classes.
    Returns: frame of images, method, seed, tokens, n and `ZeroShotDrop.result`; why something was left out.
    """
    own = [(s, e) for s, e in zip(subjects, evaluations, strict=True) if s.target == "x"]
    coders, frames, left = [s.coder for s, _ in own], [], []
    if task is not None and "layer" in data.facts and coders:
        found = zero_shot_inside(data, encoder(), coders, task, data.rows("test"))
        frames.append((OWN, found))
        for line in found:
            if line["tokens"] == encoder_tokens(data):
                own[line["coder"]][1].summary.update({k: v for k, v in line.items() if k.startswith("zero_shot")})
    for i, source in enumerate(others if coders else ()):
        other = read_other(source, encoder(), scratch / str(i), root, n, seed)
        its_task, why = zero_shot_task(other, encoder)
        if its_task is None:
            left.append(f"{source}: {why}")
        else:
            frames.append((source, zero_shot_inside(other, encoder(), coders, its_task, other.rows("all"))))
    lines = [{"images": name} | own[line.pop("coder")][0].key | line for name, found in frames for line in found]
    return pd.DataFrame(lines), left


def encoder_tokens(data: Data) -> str:
    """Which tokens of its layer x holds: "all", "patches", "cls" or "mean"; "all" of the final embedding."""
    encoder = data.facts["encoder"]
    return encoder["tokens"] if encoder.get("layer") else "all"


def read_other(source: str, encoder: Encoder, out: Path, root: Path, n: int, seed: int) -> Data:
    """Images of another data set, embedded like the run's, into the folder `out`.

    Raises: InputError when they cannot be had.
    """
    config = sources.EmbedConfig(images=source, max_images=n, seed=seed)
    folder = sources.import_images(config, root / source, out)
    _, facts = sources.from_images(config, encoder, folder, out)
    return store.load_parts(out, facts)

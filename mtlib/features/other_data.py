"""The same coders on data that they were not trained on: a second image set, and text in the same space.

Nothing is fitted again: centring, scaling and thresholds are those of the coder's train images. Texts are measured twice, as
they are and with the gap between the two modalities taken away; see `other_sets`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed import arrays
from mtlib.embed.given import files
from mtlib.embed.manifest import InputError, image_classes
from mtlib.embed.store import Data, load_parts
from mtlib.learn.classifier import targets
from mtlib.measure.codes import Subject
from mtlib.measure.probes import fit_probe
from mtlib.measure.reconstruction import target_mean
from mtlib.measure.scan import Scan, scan

MIN_ROWS = 20  # below which nothing is measured
SHOWN = ["explained_variance", "fvu", "nmae", "cosine", "l0", "silent_fraction", "cknna", "cknna_rows", "mono_score"]
SHOWN += ["mono_score_median", "mono_score_p90", "mean_cosine", "purity", "purity_null", "probe_kl", "probe_agreement"]


@dataclass(frozen=True)
class OtherData:
    """A data set in the space of x: x (N, D), the rows to measure, and integer classes (N,), -1 unknown, or None.

    own: each coder centres and scales it by its own mean and scale, see `brought`.
    """

    name: str
    what: str
    x: np.ndarray
    rows: np.ndarray
    classes: np.ndarray | None = None
    own: bool = False


def other_sets(
    data: Data, second_data: str, second_text: str, root: Path, scratch: Path, text_centring: str = "shift"
) -> list[OtherData]:
    """The sets that there are of: a second image set, texts, and these texts without the gap to the images.

    Args:
        second_data, second_text: see `second_images` and `texts`; root: where relative paths start.
        text_centring: what takes the gap away. "shift": one vector, onto the mean of the images; "own": the texts' own mean
            and scale take the place of the coder's, as in MSAE's `-dm`.
    """
    if text_centring not in ("shift", "own"):
        raise ValueError(f"text_centring = {text_centring!r}: must be shift or own")
    images, text = (f(data, given, root, scratch) for f, given in ((second_images, second_data), (texts, second_text)))
    if text is None:
        return [images] * (images is not None)
    what = "the same, each coder with their mean and scale in place of its own"
    own = replace(text, name=f"{text.name}, own centring", what=what, own=True)
    apart = centred(data, text) if text_centring == "shift" else own
    return [s for s in (images, text, apart) if s is not None]


def second_images(data: Data, given: str, root: Path, out: Path) -> OtherData | None:
    """The second image set: what was given, else the run's images of generators; None when there is neither.

    Args:
        given: feature file (N, D) in the space of x, or a folder of images for the run's encoder; "" for neither.
        out:   a scratch folder for rows that must be made or copied.
    Raises: InputError when the file has another width, or the run has no encoder for a folder of images.
    """
    if not given:
        rows = data.rows("unlabelled")
        classes, _ = image_classes(data.manifest, data.tokens) if len(rows) else (None, [])
        what = f"{len(rows)} images of the generators, which no stage has learned from"
        return OtherData("second", what, data.x, rows, classes) if len(rows) >= MIN_ROWS else None
    path = root / given
    if files.is_features(path):
        return OtherData("second", path.name, *_array(path, data, "second_data", out))
    if not (data.facts.get("encoder") or {}).get("name"):
        raise InputError(f"second_data = {given}: this run has embeddings only; give a .npy in the same space")
    from mtlib.embed import sources  # both take seconds to import, and only a folder of images needs them
    from mtlib.embed.encoders import Encoder

    encoder = Encoder.of(data.facts)
    _, facts = sources.from_images(sources.EmbedConfig(images=given, encoder=encoder.name), encoder, path, out)
    other = load_parts(out, facts)
    rows = other.rows("all")
    what = f"{len(rows)} images of {path.name}"
    return OtherData("second", what, np.asarray(other.x), rows, image_classes(other.manifest, other.tokens)[0])


def texts(data: Data, given: str, root: Path, out: Path) -> OtherData | None:
    """The second modality: text embeddings that were given (a feature file), else the run's vocabulary; None without.

    All are multiplied by one number, so that their mean length is that of the train images: a vocabulary is often stored at
    unit length, images are not.
    """
    if not given and len(data.vocabulary) < MIN_ROWS:
        return None
    v = _array(root / given, data, "second_text", out)[0] if given else np.asarray(data.vocabulary, np.float32)
    what = Path(given).name if given else f"the {len(v)} phrases of the vocabulary"
    of_images, of_texts = (np.linalg.norm(a.astype(np.float64), axis=1).mean() for a in (data.x[data.rows("train")], v))
    what += ", at the mean length of the train images"
    return OtherData("text", what, v * np.float32(of_images / of_texts), np.arange(len(v)))


def _array(path: Path, data: Data, parameter: str, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    x = arrays.checked(path, parameter, scratch)
    if x.shape[1] != data.x.shape[1]:
        raise InputError(f"{parameter} = {path.name}: shape {x.shape}, the run's embeddings are {data.x.shape[1]} wide")
    return np.asarray(x, np.float32), np.arange(len(x))


def centred(data: Data, text: OtherData) -> OtherData:
    """The texts moved by one vector, so that their mean is that of the train images: the gap between the two is gone."""
    shift = target_mean(data.x, data.rows("train")) - target_mean(text.x, text.rows)
    what = "the same, moved onto the mean of the train images"
    return OtherData(f"{text.name}, centred", what, (text.x + shift).astype(np.float32), text.rows)


def brought(coder, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x (N, D) to where the coder's own units are those of x by the mean and scale of its rows: (x - mean) / scale.

    A coder that takes off no mean, or does not scale, does neither here. Source: MSAE's second modality (arXiv 2502.20578).
    """
    mean, scale = (a.cpu().double().numpy() for a in (coder.x_mean, coder.x_scale))  # (D,)
    x = np.asarray(x, np.float64)
    x = x - target_mean(x, rows) if mean.any() else x
    if (scale != 1).any():
        x = x / np.sqrt(np.square(x[rows]).mean(axis=0 if coder.config.scale == "std" else None))
    return (x * scale + mean).astype(np.float32)


def evaluate_on(
    sets: list[OtherData], data: Data, subjects: list[Subject], seed: int = 0
) -> list[tuple[str, Subject, Scan]]:
    """`scan` of every subject (target x) on every set; the linear probe is fitted on the run's train rows."""
    labels, _ = targets(data.manifest, data.facts["labels"])
    how = {"probe": fit_probe(data.x, data.rows("train"), labels), "seed": seed}
    found = []
    for o in sets:
        for s in subjects:
            x = brought(s.coder, o.x, o.rows) if o.own else o.x
            found.append((o.name, s, scan(s.coder, x, x, o.rows, classes=o.classes, **how)))
    return found


def beside_test(found: list[tuple[str, Subject, Scan]], test: pd.DataFrame, part: str) -> pd.DataFrame:
    """What the coders measure on the other sets under what notebook 04 measured of the same ones on the run's test images.

    Args: found: of `evaluate_on`. part: "summary", with 04_metrics as `test`; or "progressive", with 04_progressive.
    Returns: frame of data ("test" first), method, seed, and SHOWN as far as measured, or the columns of progressive recovery.
    """
    own = {(s.method, s.seed) for _, s, _ in found}
    test = test[[pair in own for pair in zip(test["method"], test["seed"], strict=True)]]
    if part == "summary":
        others = [pd.DataFrame([{"data": name, **s.key, **e.summary} for name, s, e in found])]
    else:
        others = [e.progressive.assign(data=name, **s.key) for name, s, e in found]
    frame = pd.concat([test.assign(data="test"), *others], ignore_index=True)
    columns = SHOWN if part == "summary" else ["target", "l0_target", "kept", "k", "fvu", "l0"]
    return frame[["data", "method", "seed", *(c for c in columns if c in frame)]]

"""Labels of new images: which images, and what the run says of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import LISTED, unescape
from mtlib.embed.store import Data
from mtlib.features.published_files import image_name
from mtlib.run.artifacts import atomic, write_text

SAID = ("activation", "explanation", "verdict", "wrong_ratio", "wrong_count", "total_count", "logit_push")
PUBLISHED_KEYS = ("feature_num", "activation", "explanation", "wrong_ratio", "wrong_count", "total_count", "check")
N_LISTED = 12
UNLIKE = "unlike the run's images"


def new_images(data: Data, folder: str, root: Path, n: int, seed: int = 0) -> list[tuple[str, Path, str]]:
    """Which images to label: those of a folder, else some of the generators', else held-out test images.

    Args:
        folder: label_images; "" for images of the run; relative paths are taken from `root`.
        n:      at most so many, drawn evenly over the generators.
    Returns: list of (name, file, what is known of it); empty for a run of arrays without a folder.
    Raises: FileNotFoundError when the folder does not exist.
    """
    if folder:
        base = root / folder
        if not base.is_dir():
            raise FileNotFoundError(f"label_images = {folder!r}: no such folder")
        found, _ = find_images(base, read_names=False)
        paths = found.loc[found["status"] == LISTED, "path"].tolist()[:n]
        return [(p, base / unescape(p), "") for p in paths]
    if data.image_root is None:
        return []
    rng = np.random.default_rng(seed)
    generator = data.manifest["generator"].fillna("").to_numpy(dtype=str)
    names = sorted(set(generator) - {""})
    pools = [np.flatnonzero(generator == g) for g in names] or [data.rows("test")]
    pools = [pool[:: data.tokens] for pool in pools]
    rows = [r for pool in pools for r in rng.permutation(pool)[: max(1, n // len(pools))]]
    truth = data.truth["cause"].fillna("").to_numpy(dtype=str) if data.truth is not None else None
    known = ["" if truth is None else truth[r] or "plausible" for r in rows]
    return [(str(data.manifest["path"].iloc[r]), data.images(r), k) for r, k in zip(rows, known, strict=True)]


def errors_first(explanations: list[dict]) -> list[dict]:
    """What a reader asks for first: the features that the judge calls errors, then the others, each by activation."""
    return sorted(explanations, key=lambda d: (d["verdict"] != "error", -d["activation"]))


def label_table(labeler, images: list[tuple[str, Path, str]]) -> tuple[pd.DataFrame, list]:
    """What the labeler says of each image, and the images that could be read.

    Args:
        labeler: has method and label(PIL image) -> dict of probability, predicted, explanations.
        images:  what `new_images` returned.
    Returns: frame of method, image, known, status, distance, probability, predicted, n_present (explanations), rank, feature,
        activation, explanation, verdict, wrong_ratio, wrong_count, total_count, logit_push, and where a line has them precision
        and check; N_LISTED features per image, errors first (an image without any, or that cannot be read, has one line that
        says so); list of (name, known, PIL image, what the labeler said).
    """
    lines, shown = [], []
    for name, file, known in images:
        head = {"method": labeler.method, "image": name, "known": known}
        try:
            image, _ = load_image(file)
        except ImageRefused as refused:
            lines.append(head | {"status": refused.reason})
            continue
        said = labeler.label(image)
        said["explanations"] = found = errors_first(said["explanations"])
        shown.append((name, known, image, said))
        head |= {"probability": said["probability"], "predicted": said["predicted"], "distance": said["distance"]}
        head["n_present"] = len(found)
        for rank, d in enumerate(found[:N_LISTED], 1):
            lines.append(head | {"status": "ok", "rank": rank, "feature": d["feature_num"]} | d)
        if not found:
            lines.append(head | {"status": UNLIKE if (said["distance"] or 0) > 1 else "no explanation"})
    columns = [
        "method",
        "image",
        "known",
        "status",
        "distance",
        "probability",
        "predicted",
        "n_present",
        "rank",
        "feature",
        *SAID,
    ]
    columns += [c for c in ("precision", "check") if any(c in line for line in lines)]
    whole = dict.fromkeys(["n_present", "rank", "feature", "wrong_count", "total_count"], "Int64")
    return pd.DataFrame(lines).reindex(columns=columns).astype(whole), shown


def write_labels(out: Path, labeler, shown: list, pictures: bool = True) -> None:
    """Matryoshka Transcoders' labels of every image that could be read: out/<image>_labels.json, and the image beside it.

    Paths in it are below the data set and below `out`, never of the machine; feature_num is text, as in the published records.

    Args: labeler: has threshold. shown: the list of `label_table`. pictures: whether the images may be shown.
    """
    taken: set[str] = set()
    for i, (name, _, image, said) in enumerate(shown):
        file = image_name(name, i, taken)
        taken.add(file)
        features = sorted(said["explanations"], key=lambda d: -d["activation"])
        labels = {
            "original_image_path": name,
            "saved_image_path": file if pictures else "",
            "num_activated_features": len(features),
            "threshold": labeler.threshold,
            "features": [
                {k: d[k] for k in PUBLISHED_KEYS if k in d} | {"feature_num": str(d["feature_num"])} for d in features
            ],
        }
        text = json.dumps(labels, indent=2, allow_nan=False, ensure_ascii=False)
        write_text(out / f"{file.removesuffix('.png')}_labels.json", text + "\n")
        if pictures:
            with atomic(out / file) as tmp:
                image.save(tmp, "PNG")

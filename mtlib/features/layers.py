"""Which layer of an image tower is fit for a sparse coder? Every block read in one pass, and what can be said of each.

SAE-for-CLIP begins with the statistics of the class token after every block (`statistics`); a linear probe and a small coder
of each layer (`layer_card`) answer its question more directly.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.coders.sparse_coder import SparseCoderConfig
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import load_image
from mtlib.embed.layers import Layer, blocks
from mtlib.embed.store import Data, unit_rows
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit, read_history
from mtlib.measure.probes import fit_probe

AT_A_TIME = 64  # images in memory
ACTIVE = 1e-3  # share of |a| above it, as published


def image_tower(data: Data) -> Encoder:
    """The run's encoder, its final embedding in place of the layer that the run may read."""
    made_by = {k: v for k, v in data.facts["encoder"].items() if k not in ("layer", "tokens")}
    return Encoder.of(data.facts | {"encoder": made_by})


def find_layers(encoder: Encoder, names: list[str], tokens: str = "") -> dict[str, Layer]:
    """name -> layer. Args: names: blocks or modules; [] for every block. tokens: "" for the class token, "mean" without one."""
    found = {}
    for name in names or blocks(encoder.tower):
        place = encoder.find_layer(name, tokens or "mean")
        found[name] = place.at("cls") if place.has_class and not tokens else place
    return found


def sampled(data: Data, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(m,) first rows of at most n images of train and val, evenly taken, and (m,) bool, those of val."""
    rows = np.concatenate([data.rows(split)[:: data.tokens] for split in ("train", "val")])
    at = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int))
    return rows[at], at >= len(data.rows("train")) // data.tokens


def read_layers(encoder: Encoder, layers: dict[str, Layer], data: Data, rows: np.ndarray) -> dict[str, np.ndarray]:
    """name -> (n, D) float32: of each image whose first row is in `rows` the layer's token, the mean over several."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    for start in range(0, len(rows), AT_A_TIME):
        images = [load_image(data.images(row))[0] for row in rows[start : start + AT_A_TIME]]
        with ExitStack() as stack:
            seen = {name: stack.enter_context(layer.recorded()) for name, layer in layers.items()}
            encoder.encode_images(images)
        for name, own in seen.items():
            parts[name] += [x.float().mean(dim=1).cpu().numpy() for x in own]
    return {name: np.concatenate(own) for name, own in parts.items()}


def statistics(x: np.ndarray) -> dict[str, float]:
    """Of activations (n, D): mean |a|, std over all entries, mean row norm, share of |a| above 1e-3, and the mean cosine distance
    of two images, 0 where a layer does not tell images apart."""
    x = np.asarray(x, np.float64)
    unit, size = unit_rows(x), np.abs(x)
    cosine = ((unit.sum(0) ** 2).sum() - len(x)) / max(len(x) * (len(x) - 1), 1)
    norm, std = np.linalg.norm(x, axis=1).mean(), x.std(ddof=1)
    return dict(mean_abs=size.mean(), std=std, norm=norm, active=(size > ACTIVE).mean(), distance=1 - cosine)


def probe_accuracy(x: np.ndarray, classes: np.ndarray | None, train: np.ndarray, val: np.ndarray) -> float:
    """Accuracy on val (bool over rows) of a linear probe of the classes (n,), -1 unknown; NaN without two of them."""
    if classes is None:
        return float("nan")
    probe, held = fit_probe(x, np.flatnonzero(train), classes), val & (classes >= 0)
    return float((probe.predict(x[held]) == classes[held]).mean()) if probe and held.any() else float("nan")


def layer_card(
    found: dict[str, np.ndarray], val: np.ndarray, answers: dict, preset: str, coder: dict, train: dict, out: Path
) -> pd.DataFrame:
    """A line per layer, in the tower's order.

    Args:
        found: of `read_layers`. val: (n,) bool, the rows that are not learned from.
        answers: what a probe is asked for: name -> (n,) classes, -1 unknown, or None.
        preset, coder, train: the small coder, `SparseCoderConfig.preset` and `TrainConfig.preset`. out: folder for its fits.
    Returns: frame of layer, d (width), `statistics`, probe_<name>, and on val fvu, l0 and dead of the coder.
    """
    lines = []
    for name, x in found.items():
        config = SparseCoderConfig.preset(preset, x.shape[1], x.shape[1], **coder)
        fit(
            config,
            x,
            x,
            np.flatnonzero(~val),
            np.flatnonzero(val),
            TrainConfig.preset(preset, **train),
            out / name,
            label=name,
        )
        kept = read_history(out / name).query("split == 'val'").nsmallest(1, "loss").iloc[0]
        probes = {f"probe_{of}": probe_accuracy(x, classes, ~val, val) for of, classes in answers.items()}
        lines.append({"layer": name, "d": x.shape[1], **statistics(x), **probes, **kept[["fvu", "l0", "dead"]]})
    return pd.DataFrame(lines)

"""Which features get a picture, what stands on it, and the files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mtlib.embed.images import ImageRefused, load_image
from mtlib.features.collages import MAX_BYTES, TILE, collage, jpeg
from mtlib.run.artifacts import atomic

CHOICES = ("surest", "active")  # see `choose`


def check_settings(collages_of: str, collage_images: int, collage_columns: int, n_collages: int, split: str) -> None:
    """Refuse what cannot be drawn. Raises: ValueError naming the parameter, its value and its range."""
    for name, value, allowed in (("collages_of", collages_of, CHOICES), ("collage_split", split, ("val", "test"))):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r} is not one of {', '.join(allowed)}")
    for name, value, low in (
        ("collage_images", collage_images, 1),
        ("collage_columns", collage_columns, 1),
        ("n_collages", n_collages, 0),
    ):
        if value < low:
            raise ValueError(f"{name} = {value} must be at least {low}")


def by_activity(features: pd.DataFrame) -> pd.DataFrame:
    """Features, the most active first: mean activation x density, ties to the smaller number."""
    return features.assign(_=-(features["mean_activation"] * features["density"])).sort_values(["_", "feature"])


def choose(features: pd.DataFrame, n: int, min_images: int = 4, what: str = "surest") -> pd.DataFrame:
    """Which features get a collage, and why, in the order in which a reader should see them.

    what = "active": the most active ones (see `by_activity`). what = "surest":

    With error ratios: half of the places go to the features most enriched for errors (highest lower bound of the error
    ratio), a quarter to the most clearly plausible ones (lowest upper bound), a quarter to the most active (mean
    activation x density). Without: half to the purest, half to the most active; all to the most active where there are
    no classes. Ties go to the smaller feature number. Only features with at least `min_images` top images count.

    Args:
        features: features.parquet's columns and n_images (how many images the collage would show).
    Returns: frame with feature and reason ("errors" | "plausible" | "pure" | "active"), at most n rows.
    """
    usable = features[features["n_images"] >= min_images]
    active = by_activity(usable)
    assessed = usable[usable["assessed"]] if what == "surest" else usable.head(0)
    orders: list[tuple[str, float, pd.DataFrame]] = []
    if len(assessed) and assessed["error_low"].notna().any():
        orders.append(("errors", 0.5, assessed.sort_values(["error_low", "feature"], ascending=[False, True])))
        orders.append(("plausible", 0.25, assessed.sort_values(["error_high", "feature"])))
    elif len(assessed) and assessed["purity"].notna().any():
        orders.append(("pure", 0.5, assessed.sort_values(["purity", "feature"], ascending=[False, True])))
    taken: dict[int, str] = {}
    for reason, share, order in orders:
        for feature in [f for f in order["feature"] if f not in taken][: round(share * n)]:
            taken[int(feature)] = reason
    for feature in active["feature"]:
        if len(taken) < n:
            taken.setdefault(int(feature), "active")
    return pd.DataFrame({"feature": list(taken), "reason": list(taken.values())})[:n].astype({"feature": int})


def percent(share: float) -> str:
    """A share as per cent in two digits, never as a power of ten: "100%", "12%", "3.4%", "0.05%"."""
    value = 100 * float(share)
    if value < 9.95:
        return f"{value:.2g}%" if value >= 0.01 or value == 0 else "under 0.01%"
    return f"{value:.0f}%"


def subtitle(row, base_rate: float | None = None) -> list[str]:
    """The lines under a feature's number: density, and error ratio with its interval."""
    lines = [f"fires on {percent(row.density)} of test images"]
    if np.isfinite(row.error_ratio):
        line = f"error ratio {row.error_ratio:.2f} [{row.error_low:.2f}, {row.error_high:.2f}]"
        lines.append(line + ("" if base_rate is None else f" (base {base_rate:.2f})"))
    return lines


def describer(features: pd.DataFrame, method: str) -> Callable[[int], dict]:
    """feature -> title and lines of its collage, from features.parquet."""
    by_feature = features.set_index("feature")

    def describe(feature: int) -> dict:
        row = by_feature.loc[feature]
        return {"title": f"Feature {feature}", "lines": [*subtitle(row, row["base_rate"]), method]}

    return describe


def write_collages(
    folder: Path,
    chosen: Sequence[int],
    top: pd.DataFrame,
    describe: Callable[[int], dict],
    load: Callable[[int], Image.Image | str],
    labelled: bool,
    max_bytes: int = MAX_BYTES,
    n_images: int = 20,
    columns: int = 5,
) -> pd.DataFrame:
    """Write folder/<feature>.jpg for each chosen feature.

    Args:
        chosen:   feature numbers.
        top:      rows of top_images.parquet of the split to show.
        describe: feature -> dict(title, lines, phrase) for `collage`.
        load:     row -> PIL image, or a string for a word card.
        labelled: whether to show labels.
        n_images, columns: at most so many images of each feature, so many side by side.
    Returns: frame with feature, images, bytes.
    """
    lists = {f: g.sort_values("rank") for f, g in top[top["feature"].isin(list(chosen))].groupby("feature")}
    written = []
    for feature in chosen:
        shown = lists[feature].head(n_images)
        labels = shown["label"].tolist() if labelled else None
        images = [load(int(row)) for row in shown["row"]]
        data = jpeg(
            collage(images, shown["activation"].tolist(), labels, columns=columns, **describe(feature)), max_bytes
        )
        with atomic(Path(folder) / f"{feature}.jpg") as tmp:
            tmp.write_bytes(data)
        written.append({"feature": feature, "images": len(images), "bytes": len(data)})
    return pd.DataFrame(written, columns=["feature", "images", "bytes"]).astype({"feature": int})


def loader(data, tile: int = TILE, cache: int = 4096) -> Callable[[int], Image.Image | str]:
    """row -> its image, through the one loader; a row without an image gives its word, a bad file the reason.

    Args:
        data:  `mtlib.embed.store.Data`.
        tile:  larger images are shrunk to this side once, since the same image stands in many collages.
        cache: images kept.
    """

    @functools.lru_cache(cache)
    def load(row: int) -> Image.Image | str:
        path = data.images(row)
        if path is None:
            return data.caption(row)
        try:
            image, _ = load_image(path)
        except ImageRefused as e:
            return f"image {e.reason}"
        image.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        return image

    return load

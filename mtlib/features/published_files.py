"""What the published repositories write of a feature, beside our own files, for those who have scripts that read these.

    published/<method>/feature_<j>/     Matryoshka Transcoders: the images that activate it most, and metadata.txt
    published/<method>_collages/        SAE-for-CLIP: feature_<00007>.jpg of the most active features

Both read all images of the train, val and test splits, as published: nothing is held out, so nothing here is a rate to report.
Images are .png, the only kind that the authors' scripts read; names are paths below the data set, never of the machine.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from mtlib.embed.images import ImageRefused, load_image, read_file
from mtlib.embed.store import Data
from mtlib.features.choice import CollageSettings
from mtlib.measure.scan import Activity
from mtlib.run.artifacts import atomic, write_text

THEIRS = {  # method here -> what the authors' scripts call it
    "matryoshka_transcoder": "matryoshka_transcoders",
    "transcoder": "transcoders",
    "sae": "sparse_autoencoders",
}
FOLDER = "published"
MAX_NAME = 150  # characters; with its number a name stays below the 255 bytes of file systems
MAX_COPIES = 200_000  # images in the folders of all methods; features beyond have their metadata.txt only
CELL = 224  # px
COLUMNS = ["feature_rank", "feature_id", "collage_path", "activation_mean", "activation_max", "num_images"]


def published_name(method: str, methods) -> str:
    """What a method's files are called; its own name where another method already has the published one."""
    theirs = THEIRS.get(method, method)
    return method if theirs in set(methods) - {method} else theirs


def image_name(path: str, row: int, taken: set[str]) -> str:
    """A file's name for an image: its path below the data set with "_" for "/", a .png, without its equal in `taken`.

    The end of a long path is kept, and a name that is taken (a/b.png beside a_b.png) is led by the row.
    """
    name = path.replace("/", "_").replace("\0", "_").lstrip(".")
    name = name if name.lower().endswith(".png") else f"{name}.png"
    short = name.encode()[-MAX_NAME:].decode(errors="ignore")
    return f"{row}_{short}" if short != name or short in taken or short.startswith(".") else short


def write_folders(
    out: Path, found: dict[str, Activity], data: Data, images: int = 20, most: int = MAX_COPIES
) -> pd.DataFrame:
    """Write out/<method>/feature_<j>/ of every feature that fires at all.

    Args: found: method -> `Activity` over the rows of all three splits. images: at most so many of a feature.
    Returns: a line per method: method, folder, features, images, without (features whose images were left out: beyond `most`,
        none may be shown, or there are none).
    """
    content, lines = png_bytes(data), []
    for method, seen in found.items():
        name = published_name(method, found)
        (rows, values), count = seen.top.result(), seen.n_active.numpy()
        shown = np.minimum((rows >= 0).sum(1), images)
        order = np.lexsort((np.arange(len(count)), -count))  # the most frequent features first
        room = dict(zip(order.tolist(), (shown[order].cumsum() <= most // len(found)).tolist(), strict=True))
        copied = without = 0
        for j in np.flatnonzero(count).tolist():
            folder, taken = out / name / f"feature_{j}", set()
            listed = list(zip(rows[j, : shown[j]].tolist(), values[j].tolist(), strict=False))
            paths = [str(data.manifest["path"].iloc[row]) for row, _ in listed]
            write_text(folder / "metadata.txt", metadata(j, int(count[j]), [v for _, v in listed], paths))
            for (row, _), path in zip(listed, paths, strict=True) if room[j] else ():
                if image := content(row):
                    taken.add(file := image_name(path, row, taken))
                    with atomic(folder / file) as tmp:
                        tmp.write_bytes(image)
            copied, without = copied + len(taken), without + (not taken)
        lines.append((method, f"{FOLDER}/{name}", int((count > 0).sum()), copied, without))
    return pd.DataFrame(lines, columns=["method", "folder", "features", "images", "without"])


def metadata(feature: int, n_active: int, values: list[float], paths: list[str]) -> str:
    """metadata.txt: how many images activate a feature, and the strongest of them."""
    lines = [f"Feature {feature}", f"Total activations: {n_active}", f"Top {len(values)} activations saved", ""]
    lines.append("Activation values:")
    told = zip(values, (p.replace("\n", " ").replace("\r", " ") for p in paths), strict=True)
    return "\n".join([*lines, *(f"{i}. {value:.6f} - {path}" for i, (value, path) in enumerate(told, 1)), ""])


def png_bytes(data: Data):
    """row -> its image as a PNG file: a .png as it is, another kind converted; b"" where none can or may be shown."""

    @functools.lru_cache(1024)
    def content(row: int) -> bytes:
        path = data.images(row) if data.pictures else None
        if path is None:
            return b""
        try:
            if path.suffix.lower() == ".png":
                return read_file(path)
            buffer = io.BytesIO()
            load_image(path)[0].save(buffer, "PNG")
            return buffer.getvalue()
        except ImageRefused:
            return b""

    return content


def interpretations(seen: Activity, folder: str, settings: CollageSettings) -> pd.DataFrame:
    """The published table of the most active features, still without their names: COLUMNS.

    feature_rank from 1, by activation_mean, which is over *all* images, those on which the feature is silent too; ties to the
    smaller number. num_images: images on its collage (published: 12 for every feature). A feature that never fires has no line.

    Args: seen: over the rows of all three splits. folder: where the collages are, from the table's place; "": nowhere.
    """
    mean = seen.total.numpy() / max(seen.n_images, 1)
    order = np.lexsort((np.arange(len(mean)), -mean))[: settings.n_collages]
    order = order[mean[order] > 0]
    frame = pd.DataFrame({"feature_rank": np.arange(1, len(order) + 1), "feature_id": order})
    frame["collage_path"] = [f"{folder}/feature_{j:05d}.jpg" if folder else "" for j in order]
    frame["activation_mean"], frame["activation_max"] = mean[order], seen.frame()["max_activation"].to_numpy()[order]
    frame["num_images"] = np.minimum(seen.n_active.numpy()[order], min(settings.collage_images, seen.top.top_n))
    return frame[COLUMNS]


def write_interpretations(
    out: Path, features: Path, found: dict[str, Activity], data: Data, settings: CollageSettings
) -> pd.DataFrame:
    """Write the collages of every method's `interpretations`, and the table as features/<method>/interpretations.parquet,
    where notebook 06 adds the names.

    Args: out: the folder published/. features: the folder features/. found: as `write_folders`.
    Returns: a line per method: method, collages.
    """
    load, lines = cells(data), []
    for method, seen in found.items():
        folder = f"{published_name(method, found)}_collages"
        drawn = data.pictures and data.image_root is not None
        table = interpretations(seen, folder if drawn else "", settings)
        table.to_parquet(features / method / "interpretations.parquet", index=False)
        rows = seen.top.result()[0]
        for line in table.itertuples() if drawn else ():
            sheet = grid([load(row) for row in rows[line.feature_id, : line.num_images].tolist()], settings)
            with atomic(out / line.collage_path) as tmp:
                sheet.save(tmp, "JPEG", quality=95)
        lines.append((method, len(table) if drawn else 0))
    return pd.DataFrame(lines, columns=["method", "collages"])


def grid(images: list[Image.Image], settings: CollageSettings) -> Image.Image:
    """The published collage: squares edge to edge on white, no words, `collage_columns` side by side."""
    columns = settings.collage_columns
    sheet = Image.new("RGB", (columns * CELL, -(-settings.collage_images // columns) * CELL), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * CELL, i // columns * CELL))
    return sheet


def cells(data: Data):
    """row -> its image, the middle of it in a square of CELL px; grey where it cannot be read."""

    @functools.lru_cache(1024)
    def load(row: int) -> Image.Image:
        try:
            return ImageOps.fit(load_image(data.images(row))[0], (CELL, CELL), Image.Resampling.LANCZOS)
        except ImageRefused:
            return Image.new("RGB", (CELL, CELL), (200, 200, 200))

    return load

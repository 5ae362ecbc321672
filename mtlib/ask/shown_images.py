"""The pictures a model is shown: the canonical pixels of a row as JPEG, one by one or on one numbered sheet.

Nothing about activations or labels is written on them. They are made when they are sent, so that memory stays flat.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from mtlib.ask.endpoint import Picture, Question
from mtlib.embed.images import ImageRefused, load_image
from mtlib.features.collages import clip, font

WHERE = {  # as questions say it
    "separate": "in the order given",
    "collage": "on one sheet, each with its number above it",
}
MAX_PX = 800  # longest side of an image (published)
QUALITY = 90
SHEET_TILE = 256  # longest side of an image on a sheet
SHEET_COLUMNS = 5
LABEL, GAP = 18, 6  # px: the strip with the number above a tile, and the space between tiles
ORDER_WIDTH, ORDER_STRIP = 480, 26


class ShownImages:
    """Rows of a run as pictures for a model.

    Args:
        data:      `mtlib.embed.store.Data`; its manifest's sha256 names each image, and a file changed since is refused.
        images_as: "separate": a picture per row; "collage": one sheet with numbered images.
    """

    def __init__(self, data, images_as: str = "separate"):
        self.data, self.images_as = data, images_as
        self.sha256 = data.manifest["sha256"].to_numpy(dtype=str)

    @functools.cached_property
    def typical(self) -> tuple[int, int]:
        """(width, height) as sent, of the middle one of a few images; only the estimate of tokens needs it."""
        sizes = []
        for row in np.linspace(0, len(self.sha256) - 1, min(9, len(self.sha256))).astype(int):
            with contextlib.suppress(ImageRefused):
                sizes.append(self._image(row).size)
        return sorted(sizes)[len(sizes) // 2] if sizes else (MAX_PX, MAX_PX)

    def pictures(self, rows: Sequence[int], order: str = "") -> tuple[Picture, ...]:
        """One Picture per row, in their order, or one for the whole sheet; `order` is written below every image."""
        rows, shape = [int(r) for r in rows], self.typical
        groups = [[r] for r in rows]
        if self.images_as == "collage":
            groups, shape = [rows], sheet_size(len(rows), min(SHEET_TILE, max(shape)))
        return tuple(Picture(self._name(g, order), functools.partial(self._jpeg, g, order), shape) for g in groups)

    def _name(self, rows: list[int], order: str) -> str:
        """A hash of everything that decides the pixels, without decoding any."""
        how = f"{self.images_as} {MAX_PX} {QUALITY} {order}"
        return hashlib.sha256("\n".join([how, *self.sha256[rows]]).encode()).hexdigest()

    def _image(self, row: int, order: str = "") -> Image.Image:
        image, _ = load_image(self.data.images(row), str(self.sha256[row]))
        image.thumbnail((MAX_PX, MAX_PX), Image.Resampling.LANCZOS)
        return with_order(image, order) if order else image

    def _jpeg(self, rows: list[int], order: str) -> bytes:
        """JPEG bytes with sharp colours; the same pixels give the same bytes."""
        images, buffer = [self._image(r, order) for r in rows], io.BytesIO()
        image = sheet(images) if self.images_as == "collage" else images[0]
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue()


def on_one_sheet(question: Question) -> Question:
    """The same question with its pictures on one numbered sheet, for a server that takes one picture only."""
    pictures = question.pictures
    size = sheet_size(len(pictures), min(SHEET_TILE, max(max(p.size) for p in pictures)))
    name = hashlib.sha256("\n".join(["on one sheet", *(p.sha256 for p in pictures)]).encode()).hexdigest()

    def jpeg() -> bytes:
        buffer = io.BytesIO()
        images = [Image.open(io.BytesIO(p.data())).convert("RGB") for p in pictures]
        sheet(images).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue()

    text = question.text.replace(WHERE["separate"], WHERE["collage"])
    return replace(question, text=text, pictures=(Picture(name, jpeg, size),))


def places(n: int, tile: int) -> list[tuple[int, int]]:
    """Left upper corner of each of the n tiles of a sheet, below its number."""
    at = (divmod(i, SHEET_COLUMNS) for i in range(n))
    return [(GAP + x * (tile + GAP), GAP + LABEL + y * (tile + LABEL + GAP)) for y, x in at]


def sheet_size(n: int, tile: int) -> tuple[int, int]:
    """(width, height) of a sheet of n tiles."""
    return GAP + min(SHEET_COLUMNS, n) * (tile + GAP), places(n, tile)[-1][1] + tile + GAP


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Images in reading order on one white sheet, each with its number, from 1, above it.

    The tile is as large as the largest image, at most 256 px; larger images are shrunk, smaller ones keep their pixels.
    """
    tile = min(SHEET_TILE, max(max(i.size) for i in images))
    at = places(len(images), tile)
    out = Image.new("RGB", sheet_size(len(images), tile), "white")
    draw = ImageDraw.Draw(out)
    for k, (image, (x, y)) in enumerate(zip(images, at, strict=True), 1):
        draw.text((x, y - LABEL + 1), str(k), "black", font(14, True))
        small = image.copy()
        small.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        out.paste(small, (x, y))
    return out


def with_order(image: Image.Image, order: str) -> Image.Image:
    """The image, enlarged to a readable width, with a line of text on a white strip below it."""
    scale = max(1, round(ORDER_WIDTH / image.width))
    big = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    out = Image.new("RGB", (big.width, big.height + ORDER_STRIP), "white")
    out.paste(big, (0, 0))
    face = font(12)
    ImageDraw.Draw(out).text((4, big.height + 5), clip(order, out.width - 8, face), "black", face)
    return out


def sample_rows(rows: Sequence[int], n: int, *seed: int) -> np.ndarray:
    """At most n of the rows, without repeats, in their own order; the same seed gives the same rows."""
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))]

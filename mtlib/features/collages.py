"""A collage per feature: the images on which it fires most, strongest first, each with activation and label.

Labels are shown by colour and by a sign, so that colour alone never carries the meaning. Rows without images
(embeddings that came as an array) are drawn as word cards.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.store import Data
from mtlib.features.choice import CollageSettings, choose
from mtlib.run.artifacts import atomic

INK, GREY, PAPER, CARD, STRIP = "#1a1a1a", "#5f5f5f", "#ffffff", "#f4f2ee", "#e2ded6"
LABELS = {1: ("#c85200", "✗", "implausible"), 0: ("#0068a5", "✓", "plausible"), -1: ("#6b6b6b", "·", "no label")}
BLOCK = 16  # px; everything stands on the grid of JPEG's blocks, which halves the size of the files
MARGIN = GAP = CAPTION = BLOCK
TILE = 80  # px
MAX_BYTES = 24_000
QUALITIES = (84, 72, 60, 50, 42, 34)


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it, so that collages look alike on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def printable(text: str) -> str:
    """Text on one line, as it is written: line breaks and control characters become spaces."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def clip(text: str, width: float, face: ImageFont.FreeTypeFont) -> str:
    """Text shortened with an ellipsis to at most `width` pixels, at the end of a word unless that loses over half."""
    full = printable(text)
    text = full[: max(1, int(width))]  # no glyph is narrower than a pixel: long names cost no more than short ones
    if text == full and face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    words = text.rsplit(" ", 1)[0].rstrip()
    whole = full[len(text) : len(text) + 1].isspace() or len(words) < len(text) / 2
    return (text.rstrip() if whole else words) + "…"


def wrap(text: str, width: float, face: ImageFont.FreeTypeFont, lines: int) -> list[str]:
    """Text in at most `lines` lines of at most `width` pixels, broken at spaces, the rest cut with an ellipsis."""
    words, out = printable(text)[: lines * max(1, int(width))].split(), []  # as in `clip`
    while words and len(out) < lines - 1:
        line = words.pop(0)
        while words and face.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        out.append(clip(line, width, face))
    return out + ([clip(" ".join(words), width, face)] if words else [])


def number(value: float) -> str:
    """An activation in three significant digits."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"


def collage(
    images: Sequence[Image.Image | str],
    activations: Sequence[float],
    labels: Sequence[int | None] | None = None,
    *,
    title: str = "",
    lines: Sequence[str] = (),
    phrase: str = "",
    columns: int = 5,
    tile: int = TILE,
) -> Image.Image:
    """A grid of images, or of words, with activation and label under each.

    Args:
        images: PIL images, drawn whole in a square; or strings, drawn as word cards.
        labels: 1 implausible, 0 plausible, None or -1 unknown; None when nothing is labelled (no colours, no legend).
        title:  first line, bold; phrase: the feature's name, in quotes below; lines: smaller lines under them.
        columns, tile: images per row, and the side of each in px.
    Raises: ValueError if the lengths differ or nothing is given.
    """
    n = len(images)
    if n == 0 or len(activations) != n or (labels is not None and len(labels) != n):
        got = f"{n} images, {len(activations)} activations, {'no' if labels is None else len(labels)} labels"
        raise ValueError(f"a collage needs as many activations and labels as images and at least one: {got}")
    rows = -(-n // columns)
    width = 2 * MARGIN + columns * tile + (columns - 1) * GAP
    head = _header(title, lines, phrase, width)
    foot = 2 * BLOCK if labels is not None else 0
    sheet = Image.new("RGB", (width, head.height + rows * (tile + CAPTION + GAP) + foot), PAPER)
    sheet.paste(head, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (image, activation) in enumerate(zip(images, activations, strict=True)):
        x = MARGIN + (i % columns) * (tile + GAP)
        y = head.height + (i // columns) * (tile + CAPTION + GAP)
        picture = _word(image, tile) if isinstance(image, str) else _square(image, tile)
        sheet.paste(picture, (x, y))
        _caption(draw, x, y + tile, tile, float(activation), None if labels is None else _known(labels[i]))
    if labels is not None:
        _legend(draw, sheet.height - foot, sorted({_known(v) for v in labels}, reverse=True), width)
    return sheet


def _known(label) -> int:
    return -1 if label is None or pd.isna(label) else int(label)


def _header(title: str, lines: Sequence[str], phrase: str, width: int) -> Image.Image:
    parts = [(title, font(16, True), INK, 24)] if title else []
    parts += [(f"“{phrase}”", font(13), INK, 20)] if phrase else []
    parts += [(line, font(12), GREY, 17) for line in lines]
    shown = [(line, *how) for text, *how in parts for line in wrap(text, width - 2 * MARGIN, how[0], 4)]
    y, height = 12, 12 + sum(step for *_, step in shown) + 6
    head = Image.new("RGB", (width, -(-height // BLOCK) * BLOCK), PAPER)
    draw = ImageDraw.Draw(head)
    for line, face, ink, step in shown:
        draw.text((MARGIN, y), line, ink, face)
        y += step
    return head


def _square(image: Image.Image, tile: int) -> Image.Image:
    """The whole image, centred in a square on a pale ground."""
    image = image.convert("RGB")
    how = Image.Resampling.NEAREST if tile > 3 * max(image.size) else Image.Resampling.LANCZOS
    return ImageOps.pad(image, (tile, tile), how, CARD)


def _word(word: str, tile: int) -> Image.Image:
    """A word in the largest size that fits."""
    out = Image.new("RGB", (tile, tile), CARD)
    draw = ImageDraw.Draw(out)
    for size in (17, 15, 13, 11, 10):
        face, lines = font(size), wrap(word.replace("_", " "), tile - 12, font(size), 4)
        if not any("…" in line for line in lines):
            break
    top = (tile - len(lines) * (size + 4)) / 2
    for i, line in enumerate(lines):
        draw.text((tile / 2, top + i * (size + 4)), line, INK, face, anchor="ma")
    return out


def _caption(draw, x: int, y: int, tile: int, activation: float, label: int | None) -> None:
    """The strip under one tile: activation, and the label as colour and sign."""
    colour, sign, _ = LABELS[-1 if label is None else label]
    draw.rectangle((x, y, x + tile - 1, y + CAPTION - 1), fill=STRIP if label is None else colour)
    ink = INK if label is None else PAPER
    draw.text((x + tile - 5, y + 2), number(activation), ink, font(11), anchor="ra")
    if label is not None:
        draw.text((x + 5, y + 1), sign, ink, font(12, True))


def _legend(draw, y: int, present: Sequence[int], width: int) -> None:
    x = MARGIN
    for label in present:
        colour, sign, name = LABELS[label]
        draw.rectangle((x, y, x + BLOCK - 1, y + BLOCK - 1), fill=colour)
        draw.text((x + 8, y + 1), sign, PAPER, font(12, True), anchor="ma")
        draw.text((x + 22, y + 1), name, GREY, font(11))
        x += 22 + int(font(11).getlength(name)) + 18
    if x + font(11).getlength("number: activation") <= width - MARGIN:
        draw.text((width - MARGIN, y + 1), "number: activation", GREY, font(11), anchor="ra")


def jpeg(image: Image.Image) -> bytes:
    """JPEG bytes at the best quality of QUALITIES that fits in MAX_BYTES (the last one if none does)."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        fine = quality > 80  # sharp text colours; `optimize` needs a larger buffer than Pillow gives it there
        image.save(buffer, "JPEG", quality=quality, optimize=not fine, subsampling=0 if fine else 2)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()


def write_collages(
    folder: Path, tables: dict[str, pd.DataFrame], tops: dict[str, pd.DataFrame], data: Data, settings: CollageSettings
) -> pd.DataFrame:
    """Write folder/<method>/collages/<feature>.jpg for each feature that `choose` picks; none where no image is to be shown.

    Args: tables, tops: method -> its features.parquet and top_images.parquet.
    Returns: frame of method, feature, reason, images, bytes.
    """
    load, written = loader(data), []
    for method, features in tables.items():
        top = tops[method][tops[method]["split"] == settings.collage_split].sort_values("rank")
        n_images = top.groupby("feature").size().reindex(features["feature"], fill_value=0).to_numpy()
        n = settings.n_collages if data.pictures else 0
        chosen = choose(features.assign(n_images=n_images), n, what=settings.collages_of)
        labelled, row_of = features["base_rate"].notna().any(), features.set_index("feature")
        for feature, reason in chosen.itertuples(index=False):
            shown = top[top["feature"] == feature].head(settings.collage_images)
            images, labels = [load(int(row)) for row in shown["row"]], shown["label"].tolist() if labelled else None
            head = {"title": f"Feature {feature}", "lines": [*subtitle(row_of.loc[feature]), method]}
            file = jpeg(collage(images, shown["activation"].tolist(), labels, columns=settings.collage_columns, **head))
            with atomic(Path(folder) / method / "collages" / f"{feature}.jpg") as tmp:
                tmp.write_bytes(file)
            written.append((method, feature, reason, len(images), len(file)))
    return pd.DataFrame(written, columns=["method", "feature", "reason", "images", "bytes"])


def subtitle(row) -> list[str]:
    """The lines under a feature's number: density, and error ratio with its interval. Args: row of features.parquet."""
    lines = [f"fires on {percent(row.density)} of test images"]
    if np.isfinite(row.error_ratio):
        interval = f"{row.error_ratio:.2f} [{row.error_low:.2f}, {row.error_high:.2f}]"
        lines.append(f"error ratio {interval} (base {row.base_rate:.2f})")
    return lines


def percent(share: float) -> str:
    """A share as per cent in two digits, never as a power of ten: "100%", "12%", "3.4%", "0.05%"."""
    value = 100 * float(share)
    if 0 < value < 0.01:
        return "under 0.01%"
    return f"{value:.2g}%" if value < 9.95 else f"{value:.0f}%"


def loader(data: Data) -> Callable[[int], Image.Image | str]:
    """row -> its image, shrunk to TILE once, since it may stand in many collages; without one its word, or what is wrong."""

    @functools.lru_cache(4096)
    def load(row: int) -> Image.Image | str:
        path = data.images(row)
        if path is None:
            return data.caption(row)
        try:
            image, _ = load_image(path)
        except ImageRefused as e:
            return f"image {e.reason}"
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        return image

    return load

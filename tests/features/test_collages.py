"""Collages from real files: the picture shows what it was given, in the order and sizes promised."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.features.collages import choose, clip, collage, font, jpeg, subtitle, wrap, write_collages


def solid(colour, size=(32, 32)):
    return Image.new("RGB", size, colour)


def test_images_stand_in_order_with_border_by_label():
    sheet = collage([solid("#00ff00"), solid("#ff00ff")], [2.0, 1.0], [1, 0], title="Feature 1", columns=2, tile=40)
    pixels = np.asarray(sheet)
    green, pink = (np.argwhere((pixels == c).all(axis=2)) for c in ((0, 255, 0), (255, 0, 255)))
    assert len(green) == len(pink) == 1600
    assert green[:, 1].max() < pink[:, 1].min()
    top, left = green.min(axis=0)
    assert tuple(pixels[top - 2, left + 20]) == (0xD5, 0x5E, 0)
    top, left = pink.min(axis=0)
    assert tuple(pixels[top - 2, left + 20]) == (0, 0x72, 0xB2)


def test_image_is_shown_whole_not_cropped():
    sheet = np.asarray(collage([solid("#00ff00", (80, 20))], [1.0], columns=1, tile=40))
    inside = np.argwhere((sheet == (0, 255, 0)).all(axis=2))
    assert np.ptp(inside[:, 0]) == 9 and np.ptp(inside[:, 1]) == 39


def test_word_card_contains_ink_and_hostile_names_do_not_fail():
    plain = collage(["balloon"], [1.0])
    assert (np.asarray(plain) < 100).any()
    for word in ("", "x" * 5000, "<script>alert(1)</script>", "a\nb\x00c", "$\\unknown$", "日本語"):
        collage([word], [1.0], title=word, lines=[word], phrase=word)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="2 images, 1 activations"):
        collage([solid("red")] * 2, [1.0])
    with pytest.raises(ValueError, match="0 images"):
        collage([], [])


def test_text_is_cut_to_its_width():
    face = font(12)
    assert face.getlength(clip("word " * 100, 90, face)) <= 90
    assert all(face.getlength(line) <= 60 for line in wrap("several words that need three lines", 60, face, 3))
    assert wrap("short", 200, face, 3) == ["short"]


def test_jpeg_keeps_to_its_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8))
    assert len(jpeg(noise, 40_000)) <= 40_000
    data = jpeg(solid("white", (300, 300)))
    assert len(data) < 6000 and Image.open(io.BytesIO(data)).format == "JPEG"


def features():
    n = 12
    return pd.DataFrame(
        {
            "feature": range(n),
            "n_images": [20] * 10 + [3, 0],
            "mean_activation": np.arange(n, dtype=float),
            "density": 0.1,
            "assessed": [True] * 8 + [False] * 4,
            "error_low": np.linspace(0, 0.7, n),
            "error_high": np.linspace(0.2, 0.9, n),
            "purity": np.linspace(1, 0.5, n),
        }
    )


def test_choice_is_half_errors_quarter_plausible_quarter_active():
    chosen = choose(features(), 8)
    assert chosen["reason"].tolist() == ["errors"] * 4 + ["plausible"] * 2 + ["active"] * 2
    assert chosen["feature"].tolist() == [7, 6, 5, 4, 0, 1, 9, 8]


def test_choice_without_labels_uses_purity_then_activity():
    frame = features().assign(error_low=np.nan, error_high=np.nan)
    assert choose(frame, 4)["feature"].tolist() == [0, 1, 9, 8]
    frame["purity"] = np.nan
    assert choose(frame, 4)["reason"].tolist() == ["active"] * 4
    assert len(choose(frame, 100)) == 10  # features with fewer than 4 images have no collage
    assert choose(frame.head(0), 4).empty


def test_subtitle_tells_ratio_and_interval():
    row = pd.Series({"density": 0.032, "error_ratio": 0.97, "error_low": 0.88, "error_high": 0.994})
    assert subtitle(row, 0.5) == "fires on 3.2% of test images · error ratio 0.97 [0.88, 0.99] (base 0.50)"
    assert subtitle(row.replace(0.97, np.nan)) == "fires on 3.2% of test images"


def test_written_files_are_small_jpegs(tmp_path):
    top = pd.DataFrame(
        {
            "feature": [3, 3, 5],
            "rank": [1, 0, 0],
            "row": [0, 1, 2],
            "activation": [1.0, 2.0, 3.0],
            "label": pd.array([0, 1, pd.NA], dtype="Int64"),
        }
    )
    colours = {0: "#000000", 1: "#ffffff", 2: "#ff0000"}
    written = write_collages(
        tmp_path, [5, 3], top, lambda f: {"title": f"Feature {f}"}, lambda r: solid(colours[r]), labelled=True
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.jpg", "5.jpg"]
    assert written["images"].tolist() == [1, 2] and (written["bytes"] < 32_000).all()

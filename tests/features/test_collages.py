"""Collages from real files: the picture shows what it was given, in the order and sizes promised."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.embed.store import load_data
from mtlib.features import collages
from mtlib.features.choice import CollageSettings
from mtlib.features.collages import (
    MAX_BYTES,
    clip,
    collage,
    font,
    jpeg,
    loader,
    number,
    percent,
    subtitle,
    wrap,
    write_collages,
)
from tests.synthetic import write_embed_stage


def solid(colour, size=(32, 32)):
    return Image.new("RGB", size, colour)


def test_images_stand_in_order_with_a_strip_by_label():
    sheet = collage([solid("#00ff00"), solid("#ff00ff")], [2.0, 1.0], [1, 0], title="Feature 1", columns=2, tile=48)
    pixels = np.asarray(sheet)
    green, pink = (np.argwhere((pixels == c).all(axis=2)) for c in ((0, 255, 0), (255, 0, 255)))
    assert len(green) == len(pink) == 48 * 48
    assert green[:, 1].max() < pink[:, 1].min()
    bottom, left = green.max(axis=0)[0], green.min(axis=0)[1]
    assert tuple(pixels[bottom + 1, left + 1]) == (0xC8, 0x52, 0)
    assert tuple(pixels[bottom + 1, pink.min(axis=0)[1] + 1]) == (0, 0x68, 0xA5)
    assert green.min(axis=0)[0] % 16 == left % 16 == 0  # on the grid of JPEG's blocks


def test_without_labels_nothing_is_coloured_and_there_is_no_legend():
    pictures = [solid("#808080")] * 2
    plain, labelled = collage(pictures, [2.0, 1.0]), collage(pictures, [2.0, 1.0], [1, None])
    spread = np.ptp(np.asarray(plain).astype(int), axis=2)
    assert spread.max() < 16 and plain.height < labelled.height


def test_numbers_have_three_digits():
    assert [number(v) for v in (0.5, 2, 123.4, 12345.6, 0)] == ["0.500", "2.00", "123", "12346", "0.00"]


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


def test_text_is_cut_at_the_end_of_a_word():
    face = font(12)
    assert clip("three whole words and more", face.getlength("three whole words an…"), face) == "three whole words…"
    assert clip("x" * 50, 60, face).startswith("xxx")


def test_header_grows_with_its_lines_and_keeps_them_whole():
    line = "error ratio 0.97 [0.88, 0.99] (base 0.50)"
    narrow, wide = (collage([solid("red")], [1.0], columns=c, lines=[line]) for c in (2, 8))
    assert narrow.height > wide.height
    room = narrow.width - 32
    assert " ".join(wrap(line, room, font(12), 4)) == line


def test_jpeg_keeps_to_its_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    assert len(jpeg(noise)) <= MAX_BYTES
    data = jpeg(solid("white", (300, 300)))
    assert len(data) < 6000 and Image.open(io.BytesIO(data)).format == "JPEG"


def test_subtitle_tells_ratio_and_interval():
    row = pd.Series({"density": 0.032, "error_ratio": 0.97, "error_low": 0.88, "error_high": 0.994, "base_rate": 0.5})
    lines = ["fires on 3.2% of test images", "error ratio 0.97 [0.88, 0.99] (base 0.50)"]
    assert subtitle(row) == lines and subtitle(row.replace(0.97, np.nan)) == lines[:1]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.996, "100%"), (0.1234, "12%"), (0.0996, "10%"), (0.0342, "3.4%"), (0.0005, "0.05%"), (0, "0%")],
)
def test_shares_are_per_cent_without_powers_of_ten(share, text):
    assert percent(share) == text


@pytest.fixture
def one_method():
    """features.parquet of three features, of which 3 and 5 have images, and their top images."""
    features = pd.DataFrame(
        {"feature": [3, 4, 5], "density": 0.1, "mean_activation": [1.0, 9.0, 2.0], "assessed": True, "purity": 0.5}
    )
    features = features.assign(error_ratio=[0.9, 0.5, 0.4], error_low=[0.8, 0.4, 0.1], error_high=0.9, base_rate=0.5)
    top = pd.DataFrame({"feature": [3] * 5 + [5] * 4, "rank": [4, 3, 2, 1, 0, 0, 1, 2, 3], "row": range(9)})
    label = pd.array([0, 1, 0, 1, pd.NA, 0, 0, 0, 0], dtype="Int64")
    return features, top.assign(activation=5.0 - top["rank"], label=label, split="val")


def write(folder, one_method, load=lambda row: None, pictures=True, **settings):
    """`write_collages` of one method whose images are what `load` gives for their rows."""
    features, top = one_method
    images = SimpleNamespace(images=load, caption=lambda row: f"row {row}", pictures=pictures)
    return write_collages(folder, {"sae": features}, {"sae": top}, images, CollageSettings(**settings))


def test_written_files_are_small_jpegs(tmp_path, one_method):
    written = write(tmp_path, one_method, n_collages=5, collage_images=4)
    assert sorted(p.name for p in (tmp_path / "sae" / "collages").iterdir()) == ["3.jpg", "5.jpg"]
    assert written[["method", "feature", "reason", "images"]].to_numpy().tolist() == [
        ["sae", 3, "errors", 4],
        ["sae", 5, "errors", 4],
    ]
    assert (written["bytes"] < 24_000).all()


def test_strongest_images_come_first_and_other_splits_are_not_shown(tmp_path, one_method):
    seen = []
    write(tmp_path, one_method, lambda row: seen.append(row), n_collages=2)
    assert seen[:5] == [4, 3, 2, 1, 0]
    assert write(tmp_path, one_method, collage_split="test").empty


def test_no_collages_are_a_table_without_rows(tmp_path, one_method):
    for none in (write(tmp_path, one_method, n_collages=0), write(tmp_path, one_method, pictures=False)):
        assert list(none) == ["method", "feature", "reason", "images", "bytes"]
        assert none.empty


def test_loader_gives_images_words_and_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(collages, "TILE", 8)
    embed = write_embed_stage(tmp_path, n=12)
    data = load_data(embed)
    load = loader(data)
    assert load(3).size == (8, 8) and load(3) is load(3)
    data.images(4).write_bytes(b"")
    data.images(5).unlink()
    assert load(4) == "image empty" and load(5) == "image missing"
    bare = type(data)(**(vars(data) | {"image_root": None}))
    assert loader(bare)(0) == data.manifest["class_name"].iloc[0]

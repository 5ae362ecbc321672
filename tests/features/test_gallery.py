"""Which features are drawn, and the files that are written."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.embed.store import load_data
from mtlib.features.gallery import check_settings, choose, loader, percent, subtitle, write_collages
from tests.synthetic import write_embed_stage


def solid(colour, size=(32, 32)):
    return Image.new("RGB", size, colour)


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


def test_choice_of_the_most_active_ones():
    assert choose(features(), 3, what="active")["feature"].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("surely", 20, 5, 30, "val"), "collages_of = 'surely' is not one of surest, active"),
        (("active", 20, 0, 30, "val"), "collage_columns = 0 must be at least 1"),
        (("active", 20, 5, 30, "train"), "collage_split = 'train' is not one of val, test"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_settings(*values)


def test_no_collages_join_like_some(tmp_path):
    chosen = choose(features(), 0)
    top = pd.DataFrame({"feature": [0], "rank": [0], "row": [0], "activation": [1.0], "label": [1]})
    written = write_collages(tmp_path, chosen["feature"], top, dict, str, labelled=True)
    assert chosen.merge(written, on="feature").empty


def test_subtitle_tells_ratio_and_interval():
    row = pd.Series({"density": 0.032, "error_ratio": 0.97, "error_low": 0.88, "error_high": 0.994})
    lines = ["fires on 3.2% of test images", "error ratio 0.97 [0.88, 0.99] (base 0.50)"]
    assert subtitle(row, 0.5) == lines and subtitle(row.replace(0.97, np.nan)) == lines[:1]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.996, "100%"), (0.1234, "12%"), (0.0996, "10%"), (0.0342, "3.4%"), (0.0005, "0.05%"), (0, "0%")],
)
def test_shares_are_per_cent_without_powers_of_ten(share, text):
    assert percent(share) == text


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
    assert written["images"].tolist() == [1, 2] and (written["bytes"] < 24_000).all()


def test_loader_gives_images_words_and_reasons(tmp_path):
    embed = write_embed_stage(tmp_path, n=12)
    data = load_data(embed)
    load = loader(data, tile=8)
    assert load(3).size == (8, 8) and load(3) is load(3)
    data.images(4).write_bytes(b"")
    data.images(5).unlink()
    assert load(4) == "image empty" and load(5) == "image changed"
    bare = type(data)(**(vars(data) | {"image_root": None}))
    assert loader(bare)(0) == data.manifest["class_name"].iloc[0]

"""The folders, tables and collages of the published repositories, on real pictures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.features import published_files
from mtlib.features.choice import CollageSettings
from mtlib.measure.scan import activity
from tests.features.standins import GivenCodes

NAMES = ["human_error/a/1.jpg", "human_error_a/1.jpg", "human_correct/b.png", "human_correct/c\nd.png", "gone.png"]


@pytest.fixture
def data(tmp_path):
    for i, name in enumerate(NAMES[:-1]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (50 * i, 0, 0)).save(path)
    images = SimpleNamespace(pictures=True, image_root=tmp_path, tokens=1, manifest=pd.DataFrame({"path": NAMES}))
    images.images = lambda row: tmp_path / NAMES[row]
    return images


@pytest.fixture
def found():
    codes = np.array([[3, 0, 0], [2, 1, 0], [1, 0, 0], [0, 4, 0], [5, 0, 0]], np.float32)
    coder = GivenCodes(codes)
    return {"transcoder": activity(coder, coder.x, np.arange(5))}


def test_a_folder_per_feature_that_fires(data, found, tmp_path):
    told = published_files.write_folders(tmp_path / "out", found, data)
    folder = tmp_path / "out" / "transcoders"
    assert sorted(p.name for p in folder.iterdir()) == ["feature_0", "feature_1"]  # the silent one has none
    assert (folder / "feature_0" / "metadata.txt").read_text().split("\n")[:7] == [
        "Feature 0",
        "Total activations: 4",
        "Top 4 activations saved",
        "",
        "Activation values:",
        "1. 5.000000 - gone.png",
        "2. 3.000000 - human_error/a/1.jpg",
    ]
    kept = sorted(p.name for p in (folder / "feature_0").glob("*.png"))
    assert kept == ["1_human_error_a_1.jpg.png", "human_correct_b.png", "human_error_a_1.jpg.png"]  # no two are one
    assert Image.open(folder / "feature_0" / "human_error_a_1.jpg.png").size == (40, 30)
    assert "c d.png" in (folder / "feature_1" / "metadata.txt").read_text()  # a line stays a line
    assert told.iloc[0].to_dict() == {
        "method": "transcoder",
        "folder": "published/transcoders",
        "features": 2,
        "images": 5,
        "without": 0,
    }
    data.pictures = False
    bare = published_files.write_folders(tmp_path / "bare", found, data).iloc[0]
    assert (bare["images"], bare["without"]) == (0, 2) and not list((tmp_path / "bare").rglob("*.png"))


@pytest.mark.parametrize("path", ["../../etc/passwd", "/abs/x.png", "a\0b.png", "." * 40, "é" * 300 + ".png"])
def test_no_name_leaves_its_folder(path):
    name = published_files.image_name(path, 7, set())
    assert "/" not in name and "\0" not in name and not name.startswith(".") and len(name.encode()) < 200


def test_the_table_of_interpretations_has_the_published_meaning(data, found, tmp_path):
    settings = CollageSettings(n_collages=2, collage_images=3, collage_columns=2)
    (tmp_path / "features" / "transcoder").mkdir(parents=True)
    published_files.write_interpretations(tmp_path, tmp_path / "features", found, data, settings)
    table = pd.read_parquet(tmp_path / "features" / "transcoder" / "interpretations.parquet")
    assert table["feature_id"].tolist() == [0, 1] and table["feature_rank"].tolist() == [1, 2]
    assert table["activation_mean"].tolist() == [11 / 5, 1.0]  # over all images, those on which it is silent too
    assert table["activation_max"].tolist() == [5, 4] and table["num_images"].tolist() == [3, 2]
    sheet = Image.open(tmp_path / table["collage_path"][0])
    assert sheet.size == (2 * published_files.CELL, 2 * published_files.CELL)
    assert sheet.getpixel((10, 10)) == pytest.approx((200, 200, 200), abs=3)  # the strongest image is gone: grey

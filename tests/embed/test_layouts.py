"""Folders and tables as people have them are understood as they are meant, or the run stops and says why."""

import io

import pandas as pd
import pytest
from PIL import Image

from mtlib.embed import datasets, sources, store
from mtlib.embed.given.folders import split_of, understood
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import InputError
from mtlib.embed.sources import EmbedConfig
from proofs import layouts


@pytest.mark.parametrize(("name", "files", "expected"), layouts.CASES, ids=[name for name, *_ in layouts.CASES])
def test_a_layout_is_understood_as_it_is_meant(tmp_path, name, files, expected):
    got = layouts.found(layouts.write(tmp_path, files))
    assert layouts.right(expected, got), got


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Train_Set", "train"),
        ("val2017", "val"),
        ("evaluation", "val"),
        ("testing-images", "test"),
        ("unlabeled", "unlabelled"),
        ("trains", ""),
        ("contest", ""),
        ("testudo", ""),
        ("value", ""),
    ],
)
def test_folders_called_like_splits(folder, split):
    assert split_of(folder) == split


def test_what_was_understood_stands_in_one_table(tmp_path):
    files = layouts.splits("train", "test") | {"stray.png": "", ".cache/0.png": "", "notes.txt": "x"}
    frame, labels = find_images(layouts.write(tmp_path, files))
    table = understood(frame, labels).set_index("what")
    assert table["count"].to_dict() == {
        "images": 13,
        "classes": 2,
        "without a class": 1,
        "splits": 2,
        "other files": 1,
        "not read: hidden": 1,
    }
    assert table.loc["classes", "which"] == "cat 6, dog 6" and table.loc["splits", "which"] == "test 6, train 6"
    assert (
        table.loc["without a class", "which"] == "stray.png"
        and table.loc["not read: hidden", "which"] == ".cache/0.png"
    )
    many = {f"c{i:03d}": 1 for i in range(200)}
    assert len(understood(*find_images(layouts.write(tmp_path / "many", many)))["which"].str.cat()) < 200


def test_hidden_files_are_not_held_against_a_folder(tiny, tmp_path):
    layouts.write(tmp_path / "in", dict(layouts.CASES[[name for name, *_ in layouts.CASES].index("__MACOSX")][1]))
    manifest, facts = sources.from_images(
        EmbedConfig(images="x", encoder="demo"), tiny, tmp_path / "in", tmp_path / "out"
    )
    assert (
        facts["n_bad"] == 0 and facts["class_names"] == ["cat", "dog"] and (manifest["status"] == "hidden").sum() == 6
    )


@pytest.mark.parametrize(
    ("folders", "name"), [(("human_correct", "human_error"), "label"), (("cat", "dog"), "class_name")]
)
def test_equal_bytes_under_two_labels_have_none(tiny, tmp_path, capsys, folders, name):
    layouts.write(tmp_path / "in", dict.fromkeys(folders, 8))
    first, second = (tmp_path / "in" / folder / "0.png" for folder in folders)
    second.write_bytes(first.read_bytes())
    manifest, _ = sources.from_images(EmbedConfig(images="x", encoder="demo"), tiny, tmp_path / "in", tmp_path / "out")
    both = manifest[manifest["path"].str.endswith("/0.png")]
    assert (
        both[name].replace("", None).isna().all()
        and set(both["split"]) == {"unlabelled"}
        and (both["detail"] != "").all()
    )
    assert (
        manifest[name].replace("", None).notna().sum() == 14
        and "2 images have the same bytes" in capsys.readouterr().out
    )
    for path in (tmp_path / "in").rglob("*.png"):
        path.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="same bytes as one with another"):
        sources.from_images(EmbedConfig(images="x", encoder="demo"), tiny, tmp_path / "in", tmp_path / "out2")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("images", ["declared", "struct", "bytes"])
@pytest.mark.parametrize(
    ("column", "values", "classes"),
    [
        ("label", [0, 1, -1], ["", "0", "1"]),
        ("label", ["cat", "NA", None], ["", "NA", "cat"]),
        ("Label", ["cat", "dog", "dog"], ["cat", "dog"]),
        ("labels", [True, False, True], ["False", "True"]),
        ("note", ["a", "b", "c"], [""]),
        ("label", [[0, 1], [0], []], [""]),
        ("label", [0.5, 0.1, 0.2], [""]),
    ],
)
def test_hugging_face_columns_of_any_kind_are_used_or_named(tmp_path, capsys, images, column, values, classes):
    hf = pytest.importorskip("datasets", reason="datasets is not installed (extra data)")
    pictures = [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)]
    if images == "declared":
        data = hf.Dataset.from_dict({"image": pictures, column: values}).cast_column("image", hf.Image())
        data.save_to_disk(tmp_path / "in")
    else:
        (tmp_path / "in").mkdir()
        stored = pictures if images == "struct" else [p["bytes"] for p in pictures]
        pd.DataFrame({"image": stored, column: values}).to_parquet(tmp_path / "in" / "train-00000.parquet")
    frame, labels = find_images(datasets.import_images(f"hf:{tmp_path / 'in'}", tmp_path / "out"))
    assert sorted(set(frame["class_name"])) == classes and labels == ("classes" if len(classes) > 1 else "none")
    told = "no column gives one class per image" in capsys.readouterr().out
    assert told == (classes == [""] and column == "label")
    assert (tmp_path / "out" / frame["path"][0].split("/")[0]).is_file()


def test_splits_of_folders_reach_the_rows(tiny, tmp_path):
    layouts.write(tmp_path / "in", layouts.splits("train", "val", "test"))
    _, facts = sources.from_images(EmbedConfig(images="x", encoder="demo"), tiny, tmp_path / "in", tmp_path / "out")
    data = store.load_parts(tmp_path / "out", facts)
    path = data.manifest["path"].str.split("/").str[0]
    assert (data.manifest["split"] == path).all() and facts["class_names"] == ["cat", "dog"]

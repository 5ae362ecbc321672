"""Folders: labels from names, one line per file, splits by group."""

import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtlib.embed.listing import find_images
from mtlib.embed.manifest import (
    COLUMNS,
    LISTED,
    InputError,
    assign_splits,
    check_bad_fraction,
    complete,
    escape,
    merge_groups,
    sample,
    unescape,
)

SHARES = (0.6, 0.2, 0.2)


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value % 256, value // 256, 0)).save(path, "PNG")
    return path


def outcomes_of(listing):
    """What embedding would report if every listed file were good and its content its own name."""
    listed = listing[listing["status"] == LISTED]
    return pd.DataFrame({"status": "ok", "detail": "", "sha256": [f"{hash(p) & 0xFFFF:064x}" for p in listed["path"]]})


def test_label_folders_give_labels_and_categories(tmp_path):
    picture(tmp_path / "human_correct" / "hands" / "a.png")
    picture(tmp_path / "human_correct" / "b.png")
    picture(tmp_path / "human_error" / "hands" / "c.png")
    picture(tmp_path / "generators" / "gen_a" / "d.png")
    picture(tmp_path / "extra.png")
    frame, labels = find_images(tmp_path)
    assert labels == "plausibility" and list(frame.columns[: len(COLUMNS)]) == list(COLUMNS)
    got = {
        p: (None if pd.isna(y) else y, c, g)
        for p, y, c, g in frame[["path", "label", "class_name", "generator"]].to_numpy()
    }
    assert got == {
        "extra.png": (None, "", ""),
        "generators/gen_a/d.png": (None, "", "gen_a"),
        "human_correct/b.png": (0, "", ""),
        "human_correct/hands/a.png": (0, "hands", ""),
        "human_error/hands/c.png": (1, "hands", ""),
    }


def test_class_folders_and_flat_folders(tmp_path):
    picture(tmp_path / "c" / "cat" / "deep" / "a.png")
    picture(tmp_path / "c" / "dog" / "b.png")
    (tmp_path / "c" / "README.txt").write_text("about")
    frame, labels = find_images(tmp_path / "c")
    assert labels == "classes" and set(frame["class_name"]) == {"", "cat", "dog"} and frame["label"].isna().all()
    picture(tmp_path / "f" / "a.png")
    assert find_images(tmp_path / "f")[1] == "none"
    assert find_images(tmp_path / "c" / "cat")[1] == "none"


@pytest.mark.parametrize("make", ["missing", "empty", "file", "one_label"])
def test_unusable_folder_is_an_error_that_names_it(make, tmp_path):
    folder = tmp_path / "here"
    if make == "file":
        folder.write_text("x")
    elif make != "missing":
        folder.mkdir()
    if make == "one_label":
        picture(folder / "human_error" / "a.png")
    with pytest.raises(InputError, match="here") as e:
        find_images(folder)
    assert make != "one_label" or "human_correct" in str(e.value)


def test_links_pipes_and_odd_names_get_their_line(tmp_path):
    picture(tmp_path / "a" / "b_c.png")
    picture(tmp_path / "a_b" / "c.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    names = ["new\nline.png", "<script>.png", "$\\unknown$.png", os.fsdecode(b"\xff\xfe.png"), "\\xff.png", "é ü.png"]
    for i, name in enumerate(names):
        picture(tmp_path / "odd" / name, i)
    frame, _ = find_images(tmp_path)
    status = dict(zip(frame["path"], frame["status"], strict=True))
    assert status["a/loop"] == status["out.png"] == "symlink" and status["pipe"] == "special file"
    assert len(frame) == 2 + 3 + len(names) and frame["path"].is_unique
    assert {unescape(p.removeprefix("odd/")) for p in frame["path"] if p.startswith("odd/")} == set(names)
    frame[["path"]].to_parquet(tmp_path / "names.parquet")  # every stored name is valid text
    assert "odd/<script>.png" in status and "odd/new\nline.png" in status


@given(st.binary(min_size=1, max_size=12).filter(lambda b: b"/" not in b and b"\0" not in b))
def test_escaped_names_come_back(raw):
    name = os.fsdecode(raw)
    assert unescape(escape(name)) == name
    escape(name).encode("utf-8")


def test_duplicates_share_group_and_split_and_the_labelled_one_comes_first(tmp_path):
    for i in range(40):
        picture(tmp_path / "human_correct" / f"{i:02d}.png", i)
        picture(tmp_path / "human_error" / f"{i:02d}.png", 100 + i)
    picture(tmp_path / "generators" / "g" / "copy.png", 3)
    picture(tmp_path / "human_error" / "zz.png", 5)
    frame, _ = find_images(tmp_path)
    import hashlib

    digests = [hashlib.sha256((tmp_path / p).read_bytes()).hexdigest() for p in frame["path"]]
    manifest = complete(frame, pd.DataFrame({"status": "ok", "detail": "", "sha256": digests}), SHARES, 0).set_index(
        "path"
    )
    assert manifest.loc["generators/g/copy.png", "duplicate_of"] == "human_correct/03.png"
    assert manifest.loc["human_error/zz.png", "duplicate_of"] == "human_correct/05.png"
    assert (manifest["duplicate_of"] != "").sum() == 2
    same = manifest.loc[["human_error/zz.png", "human_correct/05.png"]]
    assert same["group"].nunique() == 1 and same["split"].nunique() == 1
    assert manifest.loc["generators/g/copy.png", "split"] == "unlabelled"
    assert manifest["row"].tolist() == list(range(len(manifest)))


def test_bad_files_have_no_row_and_do_not_shift_the_others(tmp_path):
    for i in range(6):
        picture(tmp_path / f"{i}.png", i)
    frame, _ = find_images(tmp_path)
    found = outcomes_of(frame)
    found.loc[2, ["status", "sha256"]] = ["corrupt", ""]
    manifest = complete(frame, found, SHARES, 0)
    assert manifest["row"].isna().tolist() == [False, False, True, False, False, False]
    assert manifest["row"].dropna().tolist() == [0, 1, 2, 3, 4]
    assert manifest.loc[2, ["group", "split"]].tolist() == ["", ""]


@pytest.mark.parametrize("seed", range(3))
def test_splits_keep_groups_whole_and_divide_every_stratum(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 400, 1000)
    strata = np.array(["a", "b", "c"])[groups % 3]
    split = assign_splits(groups, strata, SHARES, seed)
    frame = pd.DataFrame({"group": groups, "stratum": strata, "split": split}).drop_duplicates()
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    for _, part in frame.groupby("stratum"):
        shares = part["split"].value_counts(normalize=True)
        assert abs(shares["train"] - 0.6) < 0.03 and abs(shares["val"] - 0.2) < 0.03
    assert np.array_equal(split, assign_splits(groups, strata, SHARES, seed))
    order = rng.permutation(1000)
    assert np.array_equal(split[order], assign_splits(groups[order], strata[order], SHARES, seed))
    assert not np.array_equal(split, assign_splits(groups, strata, SHARES, seed + 1))


def listed(splits, groups=None):
    """A listing of images with given splits, two classes in turn, and what embedding found of them."""
    n = len(splits)
    frame = pd.DataFrame({"path": [f"{i:03d}.png" for i in range(n)], "split": splits, "group": groups or [""] * n})
    frame["class_name"] = ["cat", "dog"] * (n // 2)
    frame["status"], frame["detail"], frame["generator"] = LISTED, "", ""
    frame["sha256"] = frame["duplicate_of"] = ""
    frame["row"] = frame["label"] = pd.array([pd.NA] * n, dtype="Int64")
    return frame, pd.DataFrame({"status": "ok", "detail": "", "sha256": [f"{i:03d}" * 22 for i in range(n)]})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train": 160, "test": 40}, {"train": 120, "val": 40, "test": 40}),
        ({"train": 160, "val": 40}, {"train": 120, "val": 40, "test": 40}),
        ({"train": 200}, {"train": 120, "val": 40, "test": 40}),
        ({"train": 100, "val": 60, "test": 40}, {"train": 100, "val": 60, "test": 40}),
        ({"val": 100, "test": 100}, {"val": 100, "test": 100}),
    ],
)
def test_what_was_given_to_no_image_is_cut_out_of_train(given, expected, capsys):
    splits = [name for name, n in given.items() for _ in range(n)]
    groups = [f"g{i // 4}" for i in range(200)]
    manifest = complete(*listed(splits, groups), SHARES, 0)
    counts = manifest["split"].value_counts().to_dict()
    assert set(counts) == set(expected) and all(abs(counts[s] - n) <= 4 for s, n in expected.items())
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    kept = manifest["split"] == splits
    assert kept[np.array(splits) != "train"].all() and kept.all() == (given == expected)
    shares = manifest.groupby("split")["class_name"].value_counts(normalize=True)
    assert (shares == 0.5).all()
    assert ("cut out of the train images" in capsys.readouterr().out) == (not kept.all())


def test_given_images_that_train_has_too_are_said(capsys):
    splits = ["train"] * 100 + ["val"] * 40 + ["test"] * 60
    complete(*listed(splits, [f"g{i % 120}" for i in range(200)]), SHARES, 0)
    said = capsys.readouterr().out
    assert "20 of 40 images given to val: moved to an earlier split" in said and "60 of 60 images given to test" in said


def test_nothing_is_cut_where_the_rest_fills_it_or_no_share_is_wanted():
    manifest = complete(*listed(["train"] * 100 + ["test"] * 20 + [""] * 80), SHARES, 0)
    assert (manifest["split"][:100] == "train").all() and (manifest["split"][120:] == "val").sum() == 16
    manifest = complete(*listed(["train"] * 100 + ["test"] * 20), (0.8, 0, 0.2), 0)
    assert manifest["split"].tolist() == ["train"] * 100 + ["test"] * 20


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.6, 0.3, 0.2), (0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_splits_that_are_no_shares_are_refused(shares):
    with pytest.raises(ValueError, match="splits"):
        assign_splits(["a"], ["b"], shares, 0)


def test_merged_groups_are_transitive():
    merged = merge_groups(np.array(["g1", "g1", "g2", "g3", "g4"]), np.array(["x", "y", "y", "z", "w"]))
    assert merged.tolist() == ["g1", "g1", "g1", "g3", "g4"]


def test_sample_is_stratified_seeded_and_reported(tmp_path):
    for name, n in {"cat": 30, "dog": 60, "eel": 10}.items():
        for i in range(n):
            picture(tmp_path / name / f"{i}.png")
    frame, _ = find_images(tmp_path)
    kept = sample(frame, 20, seed=1)
    counts = Counter(kept.loc[kept["status"] == LISTED, "class_name"])
    assert sum(counts.values()) == 20 and abs(counts["cat"] - 6) <= 1 and abs(counts["dog"] - 12) <= 1 and counts["eel"]
    assert (kept["status"] == "not sampled").sum() == 80
    assert kept.equals(sample(frame, 20, seed=1)) and not kept.equals(sample(frame, 20, seed=2))
    assert (sample(frame, 0, 1)["status"] == LISTED).all()


def test_too_many_bad_files_are_an_error_that_counts_reasons():
    manifest = pd.DataFrame(
        {"path": [f"{i}.jpg" for i in range(10)], "status": ["ok"] * 7 + ["truncated"] * 2 + ["empty"]}
    )
    assert check_bad_fraction(manifest, 0.3) == 3
    with pytest.raises(InputError, match=r"30.0% of 10 files are bad.*2 truncated.*1 empty"):
        check_bad_fraction(manifest, 0.2)
    with pytest.raises(InputError, match="none of 3"):
        check_bad_fraction(manifest[7:], 1.0)
    notes = pd.concat([manifest[:7], pd.DataFrame({"path": [f"{i}.txt" for i in range(9)], "status": "not an image"})])
    assert check_bad_fraction(notes, 0.2) == 9


def test_splits_of_copies_are_cut_out_of_train_again(capsys):
    """val and test hold nothing but pictures that train has, too: what is left of them has no row of its own."""
    frame, found = listed(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    found["sha256"] = [f"{i if i < 40 else i - 40:03d}" * 22 for i in range(60)]
    manifest = complete(frame, found, SHARES, 0)
    own = manifest[manifest["duplicate_of"] == ""]["split"].value_counts()
    assert own.sum() == 40 and own.min() >= 6 and "no image of its own is in val or test" in capsys.readouterr().out
    assert (manifest.groupby("group")["split"].nunique() == 1).all()


def test_a_copy_without_a_label_does_not_take_the_place_of_the_labelled_one():
    frame, found = listed([""] * 12)
    frame.loc[0, "class_name"] = ""
    found.loc[0, "sha256"] = found.loc[5, "sha256"]
    manifest = complete(frame, found, SHARES, 0)
    assert manifest.loc[0, "duplicate_of"] == "005.png" and manifest.loc[5, "duplicate_of"] == ""
    assert manifest.loc[0, "split"] == "unlabelled" and manifest.loc[5, "split"] in ("train", "val", "test")


@pytest.mark.parametrize("n", range(1, 9))
def test_few_images_are_divided_without_an_error(n):
    frame, found = listed([""] * (n + n % 2))
    manifest = complete(frame[:n], found[:n], SHARES, 0)
    assert set(manifest["split"]) <= {"train", "val", "test"} and (manifest["split"] == "train").sum() >= n / 2

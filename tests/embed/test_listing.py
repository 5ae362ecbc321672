"""Images in archives and tables: every member and line is accounted for; rows are those of the same files in a folder."""

import io
import os
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.embed import archives, sources, store
from mtlib.embed.images import ImageRefused, load_image, read_file
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import LISTED, InputError, complete
from mtlib.embed.sources import EmbedConfig


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "elsewhere.png"
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data) if data is not None else None)
    return path


def shards(folder, n=12):
    """Two webdataset shards, n images of two classes, one bad image, a link and annotations."""
    for s in range(2):
        members = []
        for i in range(s * n // 2, (s + 1) * n // 2):
            members += [(f"{i:04d}.png", picture(i)), (f"{i:04d}.cls", str(i % 2).encode()), (f"{i:04d}.json", b"{}")]
        write_tar(folder / f"{s:02d}.tar", [*members, (f"bad{s}.jpg", b"<html>"), (f"link{s}.png", None)])
    return folder


def embed(tiny, images, out, **options):
    config = EmbedConfig(images=str(images), encoder="demo", **{"batch_size": 8} | options)
    _, facts = sources.from_images(config, tiny, images, out)
    return store.load_parts(out, facts)


def test_webdataset_shards_become_rows_with_classes(tiny, tmp_path):
    data = embed(tiny, shards(tmp_path / "in"), tmp_path / "out", max_bad_fraction=0.5)
    assert data.facts["labels"] == "classes" and data.facts["class_names"] == ["0", "1"] and len(data.x) == 12
    counts = data.files["status"].value_counts().to_dict()
    assert counts == {"ok": 12, "annotation": 24, "not an image": 2, "symlink": 2} and data.facts["n_bad"] == 4
    assert data.manifest["path"].iloc[7] == "01.tar/0007.png" and data.manifest["class_name"].iloc[7] == "1"
    plain = tmp_path / "plain"
    plain.mkdir()
    for i in range(12):
        (plain / f"{i:04d}.png").write_bytes(picture(i))
    assert np.allclose(data.x, embed(tiny, plain, tmp_path / "out2").x, atol=1e-5)  # batches differ by the bad members
    image, _ = load_image(data.images(7), unchanged=data.manifest["sha256"].iloc[7])
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(picture(7)))))


def test_folders_inside_archives_are_labels_as_outside(tmp_path):
    members = [(f"human_{kind}/hands/{i}.png", picture(i)) for i, kind in enumerate(("correct", "error"))]
    write_tar(tmp_path / "a.tar", members)
    frame, labels = find_images(tmp_path)
    assert labels == "plausibility" and frame["label"].tolist() == [0, 1] and set(frame["class_name"]) == {"hands"}
    write_tar(tmp_path / "c" / "train.tar", [("cat/0.png", picture(0)), ("dog/1.png", picture(1))])
    write_tar(tmp_path / "c" / "more.tar", [("cat/2.png", picture(2))])
    frame, labels = find_images(tmp_path / "c")
    assert labels == "classes" and frame.set_index("path").loc["more.tar/cat/2.png", "class_name"] == "cat"
    frame, labels = find_images(tmp_path / "c" / "more.tar")
    assert labels == "none" and frame["path"].tolist() == ["more.tar/cat/2.png"]


def test_damaged_archives_are_reported_and_what_stands_before_is_used(tmp_path):
    whole = write_tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(4)])
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        places = {m.name: (m.offset_data, m.size) for m in tar.getmembers()}
    (tmp_path / "cut.tar").write_bytes(data[: places["2.png"][0] + 20])
    (tmp_path / "html.tar").write_bytes(b"<html>" * 200)
    (tmp_path / "empty.tar").write_bytes(b"")
    frame = find_images(tmp_path)[0].set_index("path")
    assert frame.loc["cut.tar", "status"] == "truncated" and frame.loc["html.tar", "status"] == "not an image"
    assert frame.loc["empty.tar", "status"] in ("truncated", "not an image")
    assert (frame.loc[["cut.tar/0.png", "cut.tar/1.png"], "status"] == LISTED).all()
    assert load_image(tmp_path / "cut.tar" / "1.png")[1]["format"] == "PNG"
    with pytest.raises(ImageRefused, match="truncated"):
        load_image(tmp_path / "cut.tar" / "2.png")
    with pytest.raises(ImageRefused, match="missing: no such file"):
        read_file(tmp_path / "a.tar" / "9.png")
    with pytest.raises(ImageRefused, match="changed"):
        read_file(tmp_path / "a.tar" / "1.png", (places["1.png"][1], 1))


def test_names_twice_in_an_archive_give_one_row(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", picture(0)), ("0.png", picture(1))])
    frame, _ = find_images(tmp_path)
    assert frame["status"].tolist() == [LISTED, "special file"]
    assert read_file(tmp_path / "a.tar" / "0.png") == picture(0)


@pytest.mark.parametrize("lead", ["", "./", ".//"])
def test_an_archive_of_the_folder_itself_is_read_like_one_of_what_is_in_it(tmp_path, lead):
    """`tar -cf a.tar .` names its members "./cat/0.png"."""
    names = [f"{kind}/{i}" for kind in ("cat", "dog") for i in range(2)]
    members = [(f"{lead}{name}.png", picture(i)) for i, name in enumerate(names)] + [(f"{lead}cat/0.cls", b"lion")]
    archive = write_tar(tmp_path / "a.tar", members)
    frame, labels = find_images(archive)
    images = frame[frame["status"] == LISTED]
    assert labels == "classes" and images["path"].tolist() == [f"a.tar/{name}.png" for name in names]
    assert images["class_name"].tolist() == ["lion", "cat", "dog", "dog"]
    assert [read_file(tmp_path / path) for path in images["path"]] == [picture(i) for i in range(4)]


def test_members_that_lead_out_of_their_archive_get_a_reason_and_are_not_read(tmp_path):
    (tmp_path / "own.png").write_bytes(picture(3))
    names = ("cat/0.png", "./cat//0.png", "/own.png", "../own.png", "cat/../../own.png")
    write_tar(tmp_path / "in" / "a.tar", [(name, picture(0)) for name in names])
    frame, _ = find_images(tmp_path / "in")
    found = dict(zip(frame["detail"], frame["status"], strict=True))
    assert found == {
        "": LISTED,
        "the archive has this name twice": "special file",
        **{f"{name!r} leads out of the archive": "outside" for name in names[2:]},
    }
    for path in frame.loc[frame["status"] == "outside", "path"]:
        with pytest.raises(FileNotFoundError):
            archives.read(tmp_path / "in" / path, 10**6)


def write_table(folder, suffix=".csv"):
    """Eight images with everything known, the last as the second, a missing one, one outside."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(picture(1 if i == 7 else i))
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(8)] + ["gone.png", "../other.png"]})
    frame["label"] = ["0", "1"] * 5
    frame["class"], frame["person"] = "hands", [f"p{i}" for i in range(10)]
    frame["split"] = ["train"] * 4 + ["valid", "test", "test", "test"] + ["train", "train"]
    frame["group"] = [f"g{i // 2}" if i != 5 else "own" for i in range(10)]
    path = folder / f"list{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_give_labels_splits_groups_and_attributes(tiny, tmp_path, suffix):
    data = embed(tiny, write_table(tmp_path / "in", suffix), tmp_path / "out")
    files = data.files.set_index("path")
    assert files.loc["gone.png", "status"] == "missing" and files.loc["../other.png", "status"] == "outside"
    assert data.facts["labels"] == "plausibility" and data.labels().tolist() == [0, 1] * 4
    assert data.manifest["person"].tolist() == [f"p{i}" for i in range(8)] and set(data.manifest["class_name"]) == {
        "hands"
    }
    # 7.png repeats 1.png, so its group joins that one; groups never stand in two splits
    assert files.loc["7.png", "duplicate_of"] == "1.png" and files.loc["7.png", "split"] == "train"
    assert files.loc["7.png", "detail"] == "given to test, moved to the split of its group"
    assert data.manifest["split"].tolist() == ["train"] * 4 + ["val", "test", "train", "train"]
    assert data.images(2).read_bytes() == picture(2)


def test_full_paths_of_a_table_are_read_below_it_alone(tiny, tmp_path):
    table = write_table(tmp_path / "in")
    frame = pd.read_csv(table)[:8]
    frame["path"] = [str(tmp_path / "in" / name) for name in frame["path"]]
    frame.to_csv(table, index=False)
    assert find_images(table)[0]["path"].tolist() == [f"{i}.png" for i in range(8)]
    (tmp_path / "elsewhere").mkdir()
    frame.to_csv(tmp_path / "elsewhere" / "list.csv", index=False)
    with pytest.raises(
        InputError, match=r"none of 8 files can be used \(8 outside\): only paths below the table's folder"
    ):
        embed(tiny, tmp_path / "elsewhere" / "list.csv", tmp_path / "out")


def test_tables_may_leave_the_splits_to_us_and_lead_into_archives(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(9)])
    table = pd.DataFrame({"path": [f"a.tar/{i}.png" for i in range(10)], "class_name": ["cat", "dog"] * 5})
    table["split"] = ["test"] * 3 + [""] * 7
    table.to_csv(tmp_path / "list.csv", index=False)
    frame, labels = find_images(tmp_path / "list.csv")
    assert labels == "classes" and frame["status"].tolist() == [LISTED] * 9 + ["missing"]
    outcomes = pd.DataFrame({"status": "ok", "detail": "", "sha256": [f"{i:064d}" for i in range(9)]})
    manifest = complete(frame, outcomes, (0.6, 0.2, 0.2), 0)
    assert (manifest["split"][:3] == "test").all() and set(manifest["split"][3:9]) <= {"train", "val", "test"}


@pytest.mark.parametrize(
    ("content", "say"),
    [
        ("file,label\na.png,0\n", "no column path; it has file, label"),
        ("path,label\na.png,0\nb.png,2\n", "line 3: label = '2' is not one of"),
        ("path,split\na.png,dev\n", "line 2: split = 'dev' is not one of train, val"),
        ("path\na.png\na.png\n", "line 3: a.png is listed twice"),
        ("path\n", "no rows"),
        ("path,row\na.png,1\n", "column row is written here"),
        ("path,label\na.png,0\nb.png,0\n", "every label is 0"),
        ("path,label\na.png,0\n,1\n", "line 3: empty path"),
        (
            "path,label,generator\na.png,0,\nb.png,1,NA\n",
            r"line 3: label and generator of b\.png: images of a generator stay",
        ),
        (b"\xff\xfe\x00", "no readable table"),
    ],
)
def test_tables_that_cannot_be_used_are_named_with_their_line(tmp_path, content, say):
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=say):
        find_images(path)


def test_what_is_no_folder_table_or_archive_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"not a folder, a table \(.csv, .tsv, .parquet\) or an archive"):
        find_images(tmp_path / "a.zip")
    with pytest.raises(InputError, match="no such file or folder"):
        find_images(tmp_path / "gone")


def test_links_listed_in_a_table_are_not_followed(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    os.symlink(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "list.csv").write_text("path\n./a.png\nb.png\nd\n")
    assert find_images(tmp_path / "list.csv")[0]["status"].tolist() == [LISTED, "symlink", "special file"]

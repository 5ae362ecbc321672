"""Feature files, named data sets and word lists, each made by the library that others make them with."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.embed import datasets, sources, store
from mtlib.embed.given.files import as_npy
from mtlib.embed.given.words import phrases, words
from mtlib.embed.images import read_file
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import LISTED, InputError
from mtlib.embed.sources import EmbedConfig
from mtlib.embed.store import open_array

X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def rows(path, tmp_path):
    return open_array(as_npy(path, tmp_path / "scratch"), 2)


def test_plain_npy_is_used_in_place(tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert as_npy(tmp_path / "x.npy", tmp_path) == tmp_path / "x.npy"


def test_msae_files_are_read_with_and_without_a_header(tmp_path):
    raw, saved = tmp_path / "cc3m_ViT-L~14_train_image_20_6.npy", tmp_path / "cc3m_ViT-L~14_validation_text_20_6.npy"
    X.tofile(raw)
    np.save(saved, X)
    assert np.array_equal(rows(raw, tmp_path), X) and as_npy(saved, tmp_path) == saved
    X[:-1].tofile(raw)
    with pytest.raises(InputError, match=r"456 bytes, but float32 \(20, 6\) of its name needs 480"):
        as_npy(raw, tmp_path)


def test_a_header_wins_over_a_name_that_looks_like_a_shape(tmp_path):
    np.save(tmp_path / "clip_vit_b_16_224.npy", X)
    assert np.array_equal(rows(tmp_path / "clip_vit_b_16_224.npy", tmp_path), X)


def feature_file(folder, kind, x=X):
    folder.mkdir(exist_ok=True)
    if kind == "lmdb":
        return write_lmdb(folder / "x.lmdb", x)
    path = folder / {"npy": "x.npy", "npz": "x.npz", "plain": f"cc3m_train_image_{len(x)}_{x.shape[1]}.npy"}[kind]
    {"npy": np.save, "npz": np.savez, "plain": lambda p, a: a.tofile(p)}[kind](path, x)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "plain", "lmdb"])
def test_rows_of_every_kind_are_named_by_the_text_beside_the_file(tmp_path, kind, capsys):
    path = feature_file(tmp_path / "in", kind)
    (tmp_path / "in" / "names.txt").write_text("".join(f"word {i}\n" for i in range(20)))
    manifest, _ = sources.from_arrays(EmbedConfig(embeddings=str(path)), tmp_path, tmp_path / "out")
    assert manifest["path"].tolist() == [f"word {i}" for i in range(20)]
    assert "names them" not in capsys.readouterr().out
    (tmp_path / "in" / "names.txt").write_text("".join(f"word {i}\n" for i in range(19)))
    manifest, _ = sources.from_arrays(EmbedConfig(embeddings=str(path)), tmp_path, tmp_path / "out2")
    assert manifest["path"].tolist() == [f"row {i}" for i in range(20)]
    said = f"{path.name} has 20 rows; no text file beside it names them: names.txt has 19 lines"
    assert said in capsys.readouterr().out


def test_a_vocabulary_may_be_published_without_a_header(tmp_path):
    path = feature_file(tmp_path / "in", "npy")
    words = feature_file(tmp_path / "words", "plain", X[:12])
    (tmp_path / "words" / "words.txt").write_text("".join(f"word {i}\n" for i in range(12)))
    config = EmbedConfig(embeddings=str(path), vocabulary=str(words))
    _, facts = sources.from_arrays(config, tmp_path, tmp_path / "out")
    data = store.load_parts(tmp_path / "out", facts)
    assert np.array_equal(data.x, X) and np.array_equal(data.vocabulary, X[:12])
    assert data.phrases["phrase"].tolist() == [f"word {i}" for i in range(12)]


def test_names_that_are_no_text_are_refused_with_their_file(tmp_path):
    path = feature_file(tmp_path / "in", "npy")
    (tmp_path / "in" / "names.txt").write_bytes("é\n".encode("latin-1") * 20)
    with pytest.raises(InputError, match=r"names\.txt: not UTF-8 text"):
        sources.from_arrays(EmbedConfig(embeddings=str(path)), tmp_path, tmp_path / "out")


def test_npz_gives_its_one_matrix_and_refuses_objects(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, features=X, labels=np.arange(20))
    assert np.array_equal(rows(path, tmp_path), X)
    np.savez(path, a=X, b=X)
    with pytest.raises(InputError, match="2 arrays may be meant"):
        as_npy(path, tmp_path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"no readable \.npz"):
        as_npy(path, tmp_path)


def write_lmdb(folder, x, n=None):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (extra data)")
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as txn:
        for i, row in enumerate(x):
            txn.put(str(i).encode(), row.tobytes())
        txn.put(b"__len__", str(n or len(x)).encode())
        txn.put(b"__shape__", str(x.shape[1:]).encode())
    return folder


def test_lmdb_features_become_the_run_s_rows(tmp_path):
    folder = write_lmdb(tmp_path / "clip_image_features.lmdb", X)
    manifest, facts = sources.from_arrays(EmbedConfig(embeddings=folder.name), tmp_path, tmp_path / "out")
    assert np.array_equal(store.load_parts(tmp_path / "out", facts).x, X) and len(manifest) == 20


def test_lmdb_with_missing_entries_is_refused(tmp_path):
    with pytest.raises(InputError, match="entry 20 is missing, expected 24 bytes"):
        as_npy(write_lmdb(tmp_path / "short.lmdb", X, n=21), tmp_path / "scratch")
    assert not (tmp_path / "scratch" / "embeddings.npy").exists()
    (tmp_path / "none.lmdb").mkdir()
    with pytest.raises(InputError, match="no LMDB data base"):
        as_npy(tmp_path / "none.lmdb", tmp_path)


def image(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (10, 10, 3), dtype=np.uint8))


def hugging_face(folder):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra data)")
    buffers = [io.BytesIO() for _ in range(9)]
    for i, buffer in enumerate(buffers):
        image(i).save(buffer, "PNG")
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "note": datasets.Value("string"),
    }
    table = {"image": [{"bytes": b.getvalue(), "path": None} for b in buffers], "label": [i % 2 for i in range(9)]}
    data = datasets.Dataset.from_dict(table | {"note": ["x"] * 9}, features=datasets.Features(kinds))
    datasets.DatasetDict({"train": data.select(range(6)), "validation": data.select(range(6, 9))}).save_to_disk(folder)
    return [b.getvalue() for b in buffers]


def test_hugging_face_folder_becomes_shards_with_its_splits_and_classes(tiny, tmp_path):
    encoded = hugging_face(tmp_path / "set")
    config = EmbedConfig(images=f"hf:{tmp_path / 'set'}", encoder="demo", batch_size=8)
    table, _ = sources.images_of(config, tmp_path, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in table.parent.iterdir()}
    _, facts = sources.from_images(config, tiny, table, tmp_path / "out")
    data = store.load_parts(tmp_path / "out", facts)
    splits = data.manifest["split"].tolist()  # no part was called test, so that is cut out of train
    assert facts["class_names"] == ["cat", "dog"] and splits[6:] == ["val"] * 3 and set(splits[:6]) == {"train", "test"}
    assert facts["image_root"] == "images" and set(before) == {
        "train-00000.tar",
        "val-00000.tar",
        "images.parquet",
        "meta.json",
    }
    by_path = data.manifest.set_index("path")
    for i, content in enumerate(encoded):
        path = f"{'train' if i < 6 else 'val'}-00000.tar/{i:08d}.png"
        row = int(by_path.loc[path, "row"])
        assert np.allclose(data.x[row], tiny.encode_images([image(i)])[0], atol=1e-5)
        assert by_path.loc[path, "class_name"] == ["cat", "dog"][i % 2] and len(content) > 0
    again = datasets.import_images(config.images, tmp_path / "again", shard_bytes=600)
    assert len(list(again.parent.glob("train-*.tar"))) == 3  # cut by size
    assert {
        p.name: p.read_bytes() for p in sources.images_of(config, tmp_path, tmp_path / "out")[0].parent.iterdir()
    } == before


def test_parts_of_one_split_that_do_not_follow_one_another_keep_their_images(tmp_path, monkeypatch):
    """Parts test_a, train, test_b: the first and the last are split here, and share the shards images-*."""
    encoded = [io.BytesIO() for _ in range(9)]
    for i, buffer in enumerate(encoded):
        image(i).save(buffer, "PNG")
    parts = [("", i) for i in range(3)] + [("train", i) for i in range(3, 6)] + [("", i) for i in range(6, 9)]
    monkeypatch.setattr(
        datasets, "_hugging_face", lambda name: ((of, encoded[i].getvalue(), "ab"[i % 2]) for of, i in parts)
    )
    table = datasets.import_images("hf:x", tmp_path / "out")
    frame, _ = find_images(table)
    assert set(frame["status"]) == {LISTED}
    names = {path.split("/")[0] for path in frame["path"]}
    assert names == {"images-00000.tar", "images-00001.tar", "train-00000.tar"}
    stored = [(table.parent / p).name for p in frame["path"]]
    assert sorted(stored) == [f"{i:08d}.png" for i in range(9)]
    for path in frame["path"]:
        assert read_file(table.parent / path) == encoded[int(path[-12:-4])].getvalue()


def test_one_part_alone_is_split_here(tmp_path):
    hugging_face(tmp_path / "set")
    for part, n in (("train", 6), ("validation", 3)):
        table = pd.read_parquet(datasets.import_images(f"hf:{tmp_path / 'set'}:{part}", tmp_path / part))
        assert table["split"].tolist() == [""] * n


def test_torchvision_data_sets_become_shards(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    root = tmp_path / "hub" / "datasets" / "imagenette2"
    for split in ("train", "val"):
        for i, name in enumerate(("n01440764", "n02102040")):
            (root / split / name).mkdir(parents=True)
            image(i).save(root / split / name / "a.png")
            (root / split / name / "a.png").rename(root / split / name / f"{name}_{split}.JPEG")
    for name in (
        "n02979186",
        "n03000684",
        "n03028079",
        "n03394916",
        "n03417042",
        "n03425413",
        "n03445777",
        "n03888257",
    ):
        for split in ("train", "val"):
            (root / split / name).mkdir()
            image(9).save(root / split / name / "0.JPEG", "JPEG")
    table = pd.read_parquet(datasets.import_images("torchvision:Imagenette", tmp_path / "out"))
    assert len(table) == 20 and set(table["split"]) == {"train", "test"} and table["class_name"].iloc[0] == "tench"
    with pytest.raises(InputError, match="no such data set"):
        datasets.import_images("torchvision:Imagenet22k", tmp_path / "out2")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match=r"lmdb is not installed; it comes with the extra `data`"):
        datasets.extra("lmdb", "data")


def test_vocabularies_by_file_and_from_the_word_list(tmp_path):
    (tmp_path / "words.txt").write_text("a hand\n\n a glass \n")
    table, templates = phrases("images", "words.txt", tmp_path)
    assert table["phrase"].tolist() == ["a hand", "a glass"] and set(table["kind"]) == {"word"} and len(templates) == 4
    (tmp_path / "words.csv").write_text("phrase,kind,family\nsix fingers,error,hand\n")
    table, _ = phrases("scenes", "words.csv", tmp_path)
    assert table.loc[0, ["phrase", "kind", "family", "cause"]].tolist() == ["six fingers", "error", "hand", ""]
    for text, say in (("a\na\n", "'a' stands there twice"), ("\n", "no phrases")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(InputError, match=say):
            phrases("images", "bad.txt", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        phrases("images", "gone.txt", tmp_path)
    with pytest.raises(InputError, match="'many' is no number"):
        phrases("images", "wordfreq:many", tmp_path)


def test_packaged_word_list_is_long_enough_and_without_short_words():
    pytest.importorskip("wordfreq", reason="wordfreq is not installed (extra data)")
    found = words(20_000)
    assert len(set(found)) == 20_000 and min(map(len, found)) == 3 and "hand" in found[:1000]
    with pytest.raises(InputError, match="its list holds"):
        words(10_000_000)


def test_templates_are_checked_and_used(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"must hold \{\} once"):
        EmbedConfig(templates=["a photo"])
    (tmp_path / "words.txt").write_text("a hand\na glass\n")
    (tmp_path / "in").mkdir()
    for i in range(4):
        image(i).save(tmp_path / "in" / f"{i}.png")
    config = EmbedConfig(
        images="in", encoder="demo", vocabulary=str(tmp_path / "words.txt"), templates=["a drawing of {}"]
    )
    _, facts = sources.from_images(config, tiny, tmp_path / "in", tmp_path / "out")
    data = store.load_parts(tmp_path / "out", facts)
    wanted = tiny.encode_texts(["a drawing of a hand", "a drawing of a glass"])
    assert np.allclose(data.vocabulary, wanted, atol=1e-5)

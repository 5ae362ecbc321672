"""Data as users of the published systems have it: labels beside embeddings, a file per split, .pt folders, x with y and z."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.embed import arrays, sources, store
from mtlib.embed.manifest import InputError, image_classes
from mtlib.embed.sources import EmbedConfig
from mtlib.measure.probes import encoder_card, fit_probe
from mtlib.run.artifacts import ArtifactError
from mtlib.run.dependencies import external_inputs
from tests.embed.test_features import write_lmdb

N = 40
CLASS = np.arange(N) % 2
X = (np.random.default_rng(0).normal(size=(N, 6)) + 4 * CLASS[:, None]).astype(np.float32)


def taken(folder, **given):
    manifest, facts = sources.from_arrays(EmbedConfig(**given), folder, folder / "out")
    return store.load_parts(folder / "out", facts), manifest, facts


def write_labels(folder, kind):
    path, names = folder / f"labels.{kind}", np.array(["cat", "dog"])[CLASS]
    if kind == "txt":
        path.write_text("\n".join(names) + "\n")
    elif kind == "npy":
        np.save(path, CLASS)
    elif kind == "csv":
        pd.DataFrame({"file": range(N), "class": names}).to_csv(path, index=False)
    else:
        pd.DataFrame({"only": names}).to_parquet(path)
    return path.name


@pytest.mark.parametrize("kind", ["txt", "npy", "csv", "parquet"])
def test_labels_beside_embeddings_give_classes_purity_and_a_probe(tmp_path, kind):
    np.save(tmp_path / "x.npy", X)
    data, _, facts = taken(tmp_path, embeddings="x.npy", labels=write_labels(tmp_path, kind))
    assert facts["labels"] == "classes" and facts["class_names"] == (["0", "1"] if kind == "npy" else ["cat", "dog"])
    classes, _ = image_classes(data.manifest)
    assert (classes == CLASS).all() and {"arrays", "classes"} <= set(sources.provided(data))
    rows = data.rows("test")
    assert (fit_probe(data.x, data.rows("train"), classes).predict(data.x[rows]) == classes[rows]).all()
    assert encoder_card(data)["probe_accuracy"].iloc[0] == 1.0
    assert data.manifest.groupby("split")["class_name"].value_counts().unstack().std(axis=1).max() < 1  # even


def test_labels_that_say_plausible_are_plausibility(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "l.txt").write_text("\n".join(np.array(["human_correct", "human_error"])[CLASS]))
    data, _, facts = taken(tmp_path, embeddings="x.npy", labels="l.txt")
    assert facts["labels"] == "plausibility" and (data.labels() == CLASS).all()


def test_a_negative_number_is_no_class_in_any_file(tmp_path):
    values = [-1, 3, 0]
    np.save(tmp_path / "l.npy", values)
    (tmp_path / "l.txt").write_text("-1\n3\n0\n")
    pd.DataFrame({"label": values}).to_csv(tmp_path / "l.csv", index=False)
    pd.DataFrame({"label": values}).to_parquet(tmp_path / "l.parquet")
    for path in tmp_path.iterdir():
        assert arrays.read_labels(path, "labels", 3) == ["", "3", "0"], path
    (tmp_path / "l.txt").write_text("-1.5\n-a\n - 1\n")
    assert arrays.read_labels(tmp_path / "l.txt", "labels", 3) == ["-1.5", "-a", "- 1"]


def test_labels_that_do_not_fit_are_refused_with_their_file(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "short.npy", CLASS[:-1])
    np.save(tmp_path / "float.npy", CLASS * 0.5)
    np.save(tmp_path / "objects.npy", np.array([{}] * N), allow_pickle=True)
    np.save(tmp_path / "same.npy", np.ones(N, int))
    pd.DataFrame({"a": CLASS, "b": CLASS}).to_csv(tmp_path / "two.csv", index=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "latin.txt").write_bytes("é\n".encode("latin-1") * N)
    for file, say in {
        "gone.txt": r"labels = .*gone\.txt: no such file",
        "short.npy": r"short\.npy: 39 labels for 40 rows",
        "float.npy": r"float\.npy: holds float",
        "objects.npy": r"objects\.npy: not readable",
        "same.npy": "every row is '1'",
        "two.csv": r"two\.csv: no column class_name.*it has a, b",
        "other/latin.txt": r"latin\.txt: not UTF-8",
    }.items():
        with pytest.raises(InputError, match=say):
            taken(tmp_path, embeddings="x.npy", labels=file)
    with pytest.raises(ValueError, match=r"labels = 'l\.txt' goes with embeddings"):
        EmbedConfig(labels="l.txt")


def test_three_files_are_the_three_splits(tmp_path):
    for name, rows in {"a": X[:20], "b": X[20:30], "c": X[30:]}.items():
        np.save(tmp_path / f"{name}.npy", rows)
    given = {"embeddings": "a.npy", "val_embeddings": "b.npy", "test_embeddings": "c.npy"}
    np.save(tmp_path / "l.npy", CLASS)
    data, manifest, _ = taken(tmp_path, **given, labels="l.npy")
    assert data.manifest["class_name"].tolist() == CLASS.astype(str).tolist()
    assert (
        np.array_equal(data.x, X) and data.manifest["split"].tolist() == ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    )
    assert manifest["path"].iloc[[0, 20]].tolist() == ["train/row 0", "val/row 0"]
    np.save(tmp_path / "c.npy", X[:, :5])
    with pytest.raises(InputError, match=r"test_embeddings: 1 x 5 numbers per image, embeddings has 1 x 6"):
        taken(tmp_path, **given)


def test_the_json_of_monoloss_names_its_lmdb_folders_and_val_may_be_test(tmp_path, capsys):
    write_lmdb(tmp_path / "train.lmdb", X[:30])
    val = write_lmdb(tmp_path / "val.lmdb", X[30:])
    np.save(tmp_path / "labels.npy", CLASS[30:])
    named = {"train_path": "train.lmdb", "val_path": str(val), "test_path": str(val), "val_labels": "labels.npy"}
    (tmp_path / "imagenet_clip.json").write_text(json.dumps(named | {"test_labels": "labels.npy"}))
    data, manifest, facts = taken(tmp_path, embeddings="imagenet_clip.json")
    assert capsys.readouterr().out.count("test and val are the same file, val.lmdb") == 1
    rows = {split: data.rows(split) for split in ("train", "val", "test")}
    assert [len(r) for r in rows.values()] == [30, 10, 10] and facts["labels"] == "classes"
    assert np.array_equal(data.x[rows["val"]], data.x[rows["test"]])
    assert set(manifest.loc[rows["test"], "detail"]) == {"the same file as val"}
    np.save(tmp_path / "all.npy", CLASS)
    (tmp_path / "imagenet_clip.json").write_text(json.dumps({k: v for k, v in named.items() if "path" in k}))
    data, _, _ = taken(tmp_path, embeddings="imagenet_clip.json", labels="all.npy")
    assert data.manifest["class_name"].astype(int).tolist() == [*CLASS, *CLASS[30:]]
    (tmp_path / "imagenet_clip.json").write_text(json.dumps(named))
    before = external_inputs({"embeddings": "imagenet_clip.json"}, tmp_path)
    np.save(tmp_path / "labels.npy", CLASS[:10][::-1])
    assert external_inputs({"embeddings": "imagenet_clip.json"}, tmp_path) != before


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ("{", "no readable JSON"),
        ("[1]", "expected {train_path: FILE}"),
        ('{"train_path": "x.npy", "tset_path": "y"}', "tset_path = 'y' is not understood"),
        ('{"train_path": "gone.npy"}', r"embeddings = .*gone\.npy: no such file"),
        ('{"train_path": "x.npy", "val_labels": "x.txt"}', "there is no val_path to label"),
    ],
)
def test_a_json_that_is_not_understood_is_refused(tmp_path, text, say):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=say):
        taken(tmp_path, embeddings="a.json")


def test_a_folder_of_pt_activations_gives_token_rows(tmp_path):
    batch = torch.from_numpy(np.random.default_rng(1).normal(size=(24, 4, 6)).astype(np.float32))
    folder = tmp_path / "activation_dataset_block6_resid"
    folder.mkdir()
    for i in range(24):  # views, whose files hold the whole batch
        torch.save(batch[i], folder / f"activation_block6_img{i:02d}_00.pt")
    assert (folder / "activation_block6_img00_00.pt").stat().st_size > batch.nbytes
    (tmp_path / "l.txt").write_text("\n".join("ab"[i % 2] for i in range(24)))
    data, manifest, facts = taken(tmp_path, embeddings=folder.name, labels="l.txt")
    assert data.tokens == 4 and np.array_equal(np.asarray(data.x).reshape(24, 4, 6), batch.numpy())
    assert manifest["path"].iloc[3] == "activation_block6_img03_00.pt" and facts["n_rows"] == 96
    assert data.manifest["class_name"].tolist()[4:8] == ["b"] * 4 and len(data.per_image().x) == 24
    for i in range(24):
        torch.save(batch[i].double(), folder / f"activation_block6_img{i:02d}_00.pt")
    assert np.array_equal(taken(tmp_path, embeddings=folder.name)[0].x, data.x)
    torch.save(batch[0, :3], folder / "activation_block6_img07_00.pt")
    with pytest.raises(InputError, match=r"img07_00\.pt has shape \(3, 6\), the first file \(4, 6\)"):
        taken(tmp_path, embeddings=folder.name)
    torch.save({"a": 1}, folder / "activation_block6_img07_00.pt")
    with pytest.raises(InputError, match=r"img07_00\.pt holds dict, expected a floating-point tensor"):
        taken(tmp_path, embeddings=folder.name)
    torch.save(EmbedConfig(), folder / "activation_block6_img07_00.pt")
    with pytest.raises(InputError, match=r"img07_00\.pt: holds more than tensors"):
        taken(tmp_path, embeddings=folder.name)


def test_a_folder_of_numbered_arrays_is_one_array(tmp_path):
    (tmp_path / "img_emb").mkdir()
    for i in range(20):  # in the order of their numbers: 9 before 10
        np.save(tmp_path / "img_emb" / f"img_emb_{i}.npy", X[2 * i : 2 * i + 2].astype(np.float16))
    (tmp_path / "l.txt").write_text("\n".join("ab"[c] for c in CLASS))
    data, _, _ = taken(tmp_path, embeddings="img_emb", labels="l.txt")
    assert np.array_equal(data.x, X.astype(np.float16)) and data.manifest["class_name"].tolist()[:2] == ["a", "b"]
    np.save(tmp_path / "img_emb" / "img_emb_3.npy", X[:2, :5])
    with pytest.raises(InputError, match=r"img_emb_3\.npy holds float32 \(2, 5\), img_emb_0\.npy float16 \(2, 6\)"):
        taken(tmp_path, embeddings="img_emb")
    (tmp_path / "img_emb" / "img_emb_3.npy").rename(tmp_path / "img_emb" / "text_emb_3.npy")
    for _ in range(2):  # with an array of something else, then with one missing
        with pytest.raises(
            InputError, match=r"expected parts of one array, name_0\.npy, name_1\.npy, .* without a gap"
        ):
            taken(tmp_path, embeddings="img_emb")
        (tmp_path / "img_emb" / "text_emb_3.npy").unlink(missing_ok=True)


def test_xyz_brings_the_classifier_s_layer_and_logits(tmp_path):
    y, z = np.abs(X[:, :3]), 1 / (1 + np.exp(-X[:, :1]))
    np.savez(tmp_path / "activations_xyz.npz", x=X, y=y, z=z)
    _, manifest, facts = taken(tmp_path, embeddings="activations_xyz.npz")
    data = store._with(store.load_parts(tmp_path / "out", facts), tmp_path / "out" / "given", {})
    assert np.array_equal(data.y, y) and np.allclose(data.logits, X[:, 0], atol=1e-4) and len(manifest) == N
    np.savez(tmp_path / "activations_xyz.npz", x=X, y=y, z=2 * z)
    with pytest.raises(InputError, match="z a probability"):
        taken(tmp_path, embeddings="activations_xyz.npz")
    np.savez(tmp_path / "activations_xyz.npz", x=X, y=y[:-1], z=z)
    with pytest.raises(InputError, match=r"y \(39, 3\) and z \(40,\) for 40 rows"):
        taken(tmp_path, embeddings="activations_xyz.npz")


def test_words_beside_embeddings_are_embedded_by_their_encoder(tiny, tiny_name, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(N, tiny.d_out)))
    (tmp_path / "clip_disect_20k.txt").write_text("a hand\na glass\n")
    data, _, _ = taken(tmp_path, embeddings="x.npy", vocabulary="clip_disect_20k.txt", encoder=tiny_name)
    assert np.allclose(data.vocabulary, tiny.encode_texts(["a hand", "a glass"]), atol=1e-5)
    with pytest.raises(ValueError, match="need the encoder that made these"):
        EmbedConfig(embeddings="x.npy", vocabulary="clip_disect_20k.txt")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match="the embeddings are 6 wide"):
        taken(tmp_path, embeddings="x.npy", vocabulary="clip_disect_20k.txt", encoder=tiny_name)


def test_a_headerless_file_without_sizes_in_its_name_is_refused(tmp_path):
    X.tofile(tmp_path / "x.npy")
    with pytest.raises(ArtifactError, match=r"x\.npy: not a \.npy file"):
        taken(tmp_path, embeddings="x.npy")

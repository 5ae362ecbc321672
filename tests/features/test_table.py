"""The features table of a synthetic run with planted causes, against plain computations."""

import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.embed.manifest import image_classes
from mtlib.embed.store import load_data
from mtlib.features.choice import choose
from mtlib.features.table import (
    COLUMNS,
    TRUTH_COLUMNS,
    feature_table,
    overview,
    similar_features,
    truth_columns,
    write_features,
)
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import fire_together, interpreted, sparse_codes
from mtlib.measure.logit import causal_relevance
from mtlib.measure.scan import activity, scan, write_scan
from mtlib.measure.similarity import copies
from tests.features.standins import LinearCoder
from tests.synthetic import write_embed_stage


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(write_embed_stage(tmp_path_factory.mktemp("run"), n=1600, images=False))


@pytest.fixture(scope="module")
def coder(data):
    """Features 0 .. 3 read the planted causes; the others are random; the last never fires."""
    x, truth = np.asarray(data.x, np.float64), data.truth
    W = np.random.default_rng(0).normal(size=(32, 10))
    b = np.full(10, -4.0)
    for j, family in enumerate(sorted(set(truth["family"]))):
        own = (truth["family"] == family).to_numpy()
        bad = own & (truth["label"] == 1).to_numpy()
        direction = x[bad].mean(0) - x[own & ~bad].mean(0)
        centre = (x[own].mean(0) - x.mean(0)) * 2
        W[:, j] = direction * 2 + centre
        b[j] = -np.quantile(x @ W[:, j], 0.88)
    b[-1] = -1e9
    return LinearCoder(W, W.T / 10, b_enc=torch.from_numpy(b).float())


def scanned(coder, data, folder):
    """What notebook 04 writes of a coder."""
    classes, names = image_classes(data.manifest, data.tokens)
    found = scan(coder, data.x, data.x, data.rows("test"), classes=classes, labels=data.labels())
    write_scan(folder, found, activity(coder, data.x, data.rows("val")), data.manifest, names)
    return folder


@pytest.fixture(scope="module")
def folder(coder, data, tmp_path_factory):
    return scanned(coder, data, tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def table(folder, coder, data):
    causal = causal_relevance(coder, Classifier(32, 16), data.x, data.rows("test"), "x")
    copy_of = copies(sparse_codes(coder, data.x, data.rows("test"), tokens=data.tokens))
    return feature_table(pd.read_parquet(folder / "latents.parquet"), data, copy_of, causal, truth_columns(coder, data))


def test_table_has_the_promised_columns_and_every_latent(table):
    assert list(table.columns) == COLUMNS + TRUTH_COLUMNS
    assert table["feature"].tolist() == list(range(10))


def test_counts_equal_a_dense_computation(table, coder, data):
    test = data.rows("test")
    z, label = coder.encode(torch.from_numpy(np.asarray(data.x[test]))).numpy(), data.labels(test)
    on = z > 0
    np.testing.assert_array_equal(table["n_active_test"], on.sum(0))
    np.testing.assert_array_equal(table["n_error"], (on & (label == 1)[:, None]).sum(0))
    np.testing.assert_allclose(table["density"], on.mean(0))
    assert table["base_rate"].iloc[0] == pytest.approx(label.mean())
    np.testing.assert_array_equal(table["assessed"], on.sum(0) >= 10)


def test_planted_causes_are_found(table):
    planted = table.head(4)
    assert (planted["error_ratio"] > 0.8).all() and (planted["q_bh"] < 0.05).all()
    assert planted["top_cause"].tolist() == ["blocks_error", "face_error", "glass_error", "hand_error"]
    assert planted["dominant_class"].tolist() == ["blocks", "face", "glass", "hand"]
    assert planted["is_error"].all() and not table["is_error"].iloc[-1]


def test_silent_feature_has_no_ratio(table):
    last = table.iloc[-1]
    assert last["n_active_test"] == 0 and np.isnan(last["error_ratio"]) and not last["assessed"]
    assert np.isnan(last["mono_score"]) and np.isnan(last["causal_relevance"]) and last["q_bh"] == 1


def test_repeated_files_count_once(coder, data, tmp_path):
    manifest = data.manifest.copy()
    test = data.rows("test")
    manifest.loc[test[:50], "duplicate_of"] = "elsewhere.png"
    again = type(data)(**(vars(data) | {"manifest": manifest}))
    latents = pd.read_parquet(scanned(coder, again, tmp_path) / "latents.parquet")
    z = coder.encode(torch.from_numpy(np.asarray(data.x[test[50:]]))).numpy()
    np.testing.assert_array_equal(latents["n_active"], (z > 0).sum(0))
    top = pd.read_parquet(tmp_path / "top_images.parquet")
    assert not set(test[:50]) & set(top["row"])


def test_without_labels_the_error_columns_are_empty(coder, data, tmp_path):
    manifest = data.manifest.assign(label=pd.array([pd.NA] * len(data.manifest), dtype="Int64"))
    bare = type(data)(**(vars(data) | {"manifest": manifest, "truth": None}))
    latents = pd.read_parquet(scanned(coder, bare, tmp_path) / "latents.parquet")
    table = feature_table(latents, bare, latents["feature"])
    assert table[["error_ratio", "n_error"]].isna().all(axis=None) and list(table.columns) == COLUMNS
    assert table["assessed"].sum() >= 4 and table["purity"].notna().any()
    coders = pd.DataFrame({"method": ["sae"], "reason": ""})
    assert overview({"sae": table}, coders)["n_enriched"].tolist() == [0]


def test_written_files_read_back_and_are_the_same_bytes_twice(tmp_path, table, folder, coder, data):
    together = fire_together(coder, data.x, data.rows("test"))
    similar = similar_features(coder.W_dec, coder.W_enc, table["n_active_test"].to_numpy(), together)
    codes = sparse_codes(coder, data.x, data.rows("test"))
    for name in ("a", "b"):
        write_features(tmp_path / name, table, similar, codes, scanned(coder, data, tmp_path / f"scan-{name}"))
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["codes.npz", "features.parquet", "histograms.npz", "similar.parquet", "top_images.parquet"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    top = pd.read_parquet(tmp_path / "a" / "top_images.parquet")
    assert list(top.columns) == ["feature", "rank", "row", "path", "activation", "label", "split"]
    first = top[(top["feature"] == 0) & (top["split"] == "val")]
    assert first["activation"].is_monotonic_decreasing and len(first) == 20
    assert set(first["row"]) <= set(data.rows("val"))
    with np.load(tmp_path / "a" / "histograms.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["counts"].sum(1), table["n_active_test"])
    assert zipfile.ZipFile(tmp_path / "a" / "histograms.npz").testzip() is None


def test_choice_puts_planted_causes_first(table):
    chosen = choose(table.assign(n_images=table["n_active_val"].clip(upper=20)), 8)
    assert set(chosen["feature"].head(4)) == {0, 1, 2, 3} and 9 not in set(chosen["feature"])


def test_first_seed_of_each_method_is_interpreted(tmp_path):
    (tmp_path / "coders.csv").write_text(
        "method,seed,preset,target,status,reason,folder\nmt,3,mt,y,ok,,coders/mt-s3\nmt,0,mt,y,ok,,coders/mt-s0\n"
        "tc,0,tc,y,skipped,no labels,\nnull,0,relu,x,ok,,coders/null-s0\n"
    )
    frame = interpreted(tmp_path)
    assert frame["method"].tolist() == ["mt", "tc", "null"], "pandas takes the name null for nothing"
    assert frame["folder"].tolist() == ["coders/mt-s3", "", "coders/null-s0"]
    assert frame["reason"].tolist() == ["", "no labels", ""]

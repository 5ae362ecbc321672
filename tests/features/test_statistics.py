"""The features table of a synthetic run with planted causes, against plain computations."""

import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.embed.store import load_data
from mtlib.features.gallery import choose
from mtlib.features.methods import interpreted
from mtlib.features.similar import similar_features
from mtlib.features.statistics import COLUMNS, TRUTH_COLUMNS, feature_table, measure, summary_row, write_features
from mtlib.learn.classifier import Classifier
from mtlib.measure.relevance import error_ratios
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


@pytest.fixture(scope="module")
def measured(coder, data):
    return measure(coder, data, Classifier(32, 16), "x")


@pytest.fixture(scope="module")
def table(measured):
    return feature_table(measured, error_ratios(**measured.label_counts()))


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


def test_repeated_files_count_once(coder, data):
    manifest = data.manifest.copy()
    test = data.rows("test")
    manifest.loc[test[:50], "duplicate_of"] = "elsewhere.png"
    again = measure(coder, type(data)(**(vars(data) | {"manifest": manifest})), None, "x")
    assert again.scans["test"].n_rows == len(test) - 50
    assert not set(test[:50]) & set(again.scans["test"].rows.ravel())


def test_without_labels_the_error_columns_are_empty(coder, data):
    manifest = data.manifest.assign(label=pd.array([pd.NA] * len(data.manifest), dtype="Int64"))
    bare = type(data)(**(vars(data) | {"manifest": manifest, "truth": None}))
    table = feature_table(measure(coder, bare, None), None)
    assert table["error_ratio"].isna().all() and list(table.columns) == COLUMNS
    assert table["assessed"].sum() >= 4 and table["purity"].notna().any()
    assert summary_row("sae", table)["n_enriched"] == 0


def test_written_files_read_back_and_are_the_same_bytes_twice(tmp_path, table, measured, coder, data):
    similar = similar_features(coder.W_dec, coder.W_enc, measured.scans["test"])
    for name in ("a", "b"):
        write_features(tmp_path / name, table, measured, similar, data)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["features.parquet", "histograms.npz", "similar.parquet", "top_images.parquet"]
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


def test_choice_puts_planted_causes_first(table, measured):
    n_images = (measured.scans["val"].rows >= 0).sum(1)
    chosen = choose(table.assign(n_images=n_images), 8)
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
    (tmp_path / "coders.csv").write_text("method,seed\nmt,0\n")
    with pytest.raises(ValueError, match=r"coders\.csv: no column 'folder'"):
        interpreted(tmp_path)

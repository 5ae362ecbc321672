"""Permuted labels: every family and split keeps its share, the truth is left alone, later stages read them."""

import numpy as np
import pytest

from mtlib.embed import store
from mtlib.learn.classifier import with_permuted_labels
from mtlib.run.stage import Stage
from tests import synthetic


@pytest.fixture
def run(tmp_path):
    synthetic.write_embed_stage(tmp_path, 400, 8, images=False)
    return tmp_path


def test_permuted_labels_keep_every_share_and_lose_the_truth(run):
    data = store.open_run(run)
    null = with_permuted_labels(data, seed=1)
    groups = [data.truth["family"], data.manifest["split"]]
    before, after = (d.manifest["label"].fillna(-1).groupby(groups).value_counts().sort_index() for d in (data, null))
    assert before.equals(after)
    known = data.labels() >= 0
    agree = (null.labels() == data.truth["label"])[known].mean()
    assert 0.4 < agree < 0.6 and (null.labels()[~known] == -1).all()
    assert null.truth.equals(data.truth)
    np.testing.assert_array_equal(null.labels(), with_permuted_labels(data, seed=1).labels())
    assert (null.labels() != with_permuted_labels(data, seed=2).labels()).any()


def test_later_stages_read_the_permuted_labels(run):
    stage = Stage("02_classify", str(run))
    data = store.open_data(stage)
    null = with_permuted_labels(data)
    for name, value in (("labels", null.labels()), ("y", np.zeros((400, 3))), ("logits", np.zeros(400))):
        store.save_array(stage.out / f"{name}.npy", value)
    stage.finish(status="ok")
    np.testing.assert_array_equal(store.open_run(run).labels(), null.labels())


def test_permuted_labels_are_read_where_there_is_no_head_too(run):
    stage = Stage("vision_model", str(run))
    data = store.open_data(stage)
    null = with_permuted_labels(data)
    store.save_array(stage.out / "labels.npy", null.labels())
    store.save_array(stage.out / "x.npy", np.zeros((800, 5), np.float32))
    stage.finish(x={"tokens_per_image": 2, "d_in": 5, "n_rows": 800, "layer": "blocks.1"})
    read = store.open_run(run)
    np.testing.assert_array_equal(read.labels()[:: read.tokens], null.labels())


def test_other_labels_are_refused(run):
    data = store.open_run(run)
    classes = store.Data(**{**vars(data), "facts": data.facts | {"labels": "classes"}})
    with pytest.raises(ValueError, match="'classes'"):
        with_permuted_labels(classes)

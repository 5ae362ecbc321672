"""The one-pass scan against plain dense computations."""

import resource

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mtlib.measure.codes import fire_together
from mtlib.measure.scan import Histogram, TopK, activity, top_images_table
from tests.features.standins import GivenCodes

codes = arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 5)),
    elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 3.25, 1e-3, 1e4, -1.0]),
)


def dense_top(z, rows, n):
    """The plain way: a full stable sort by (-activation, row) of the whole matrix."""
    out_rows, out_values = np.full((z.shape[1], n), -1), np.zeros((z.shape[1], n), dtype=np.float32)
    for j in range(z.shape[1]):
        order = np.lexsort((rows, -z[:, j]))
        order = order[z[order, j] > 0][:n]
        out_rows[j, : len(order)], out_values[j, : len(order)] = rows[order], z[order, j]
    return out_rows, out_values


@settings(max_examples=60, deadline=None)
@given(codes, st.integers(1, 50), st.integers(1, 7), st.randoms(use_true_random=False))
def test_scan_equals_dense_sort_whatever_the_batch_size(z, batch, top_n, random):
    coder = GivenCodes(z)
    order = list(range(len(z)))
    random.shuffle(order)  # rows may come in any order
    found = activity(coder, coder.x, np.array(order), top_n=top_n, batch=batch)
    rows, values = dense_top(z, np.arange(len(z)), top_n)
    np.testing.assert_array_equal(found.top.result()[0], rows)
    np.testing.assert_array_equal(found.top.result()[1], values)
    np.testing.assert_array_equal(found.n_active, (z > 0).sum(axis=0))
    np.testing.assert_allclose(found.frame()["max_activation"], np.maximum(z, 0).max(axis=0))


@settings(max_examples=60, deadline=None)
@given(codes, st.integers(1, 50))
def test_histogram_equals_numpy_on_final_edges(z, batch):
    histogram = Histogram(z.shape[1], 8)
    for start in range(0, len(z), batch):
        histogram.update(torch.from_numpy(z[start : start + batch]))
    for j, edges in enumerate(histogram.edges()):
        positive = z[z[:, j] > 0, j]
        assert histogram.counts[j].sum() == len(positive)
        if len(positive):
            assert edges[-1] / 2 <= positive.max() < edges[-1]
            expected = np.bincount((positive / edges[-1] * 8).astype(int), minlength=8)
            np.testing.assert_array_equal(histogram.counts[j], expected)


def test_counts_by_label_by_hand():
    z = np.array([[1, 0], [2, 3], [0, 4], [5, 0]], dtype=np.float32)
    coder = GivenCodes(z)
    found = activity(coder, coder.x, np.arange(4), labels=np.array([0, 1, 1, -1]), batch=3).frame()
    np.testing.assert_array_equal(found["n_labelled"], [2, 2])  # row 3 has no label
    np.testing.assert_array_equal(found["n_error"], [1, 2])
    np.testing.assert_allclose(found["mean_activation"], [8 / 3, 3.5])
    np.testing.assert_allclose(found["density"], [0.75, 0.5])
    np.testing.assert_array_equal(fire_together(coder, coder.x, np.arange(4), batch=3), [[3, 1], [1, 2]])


def test_equal_activations_smaller_row_wins():
    top = TopK(1, 2)
    for row in (9, 4, 7, 2):
        top.update(torch.tensor([[1.5]]), np.array([row]))
    assert top.result()[0].tolist() == [[2, 4]]


def test_only_the_rows_asked_for_are_ranked():
    coder = GivenCodes(np.array([[9.0], [1.0], [2.0]]))
    found = {split: activity(coder, coder.x, np.array([row]), top_n=3) for split, row in (("val", 1), ("test", 2))}
    assert found["val"].top.result()[0].tolist() == [[1, -1, -1]]
    assert found["test"].top.result()[0].tolist() == [[2, -1, -1]]
    manifest = pd.DataFrame({"path": ["a", "b", "c"], "label": pd.array([1, 0, pd.NA], dtype="Int64")})
    table = top_images_table(found, manifest)
    assert table["path"].tolist() == ["b", "c"] and table["split"].tolist() == ["val", "test"]
    assert table["label"].isna().tolist() == [False, True]


def test_nan_codes_refused():
    coder = GivenCodes(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match=r"rows 0\.\.1 hold NaN"):
        activity(coder, coder.x, np.arange(2))


def test_empty_split_gives_empty_lists():
    coder = GivenCodes(np.array([[1.0]]))
    found = activity(coder, coder.x, np.array([], dtype=int), top_n=2)
    assert found.n_images == 0 and found.top.result()[0].tolist() == [[-1, -1]]
    assert found.frame()["density"].tolist() == [0.0]


def test_memory_does_not_grow_with_the_rows():
    """All codes of the long pass would be 80 MB; after a short pass of the same batch size it needs hardly more."""

    class Sparse:
        W_dec = torch.zeros(1000, 1)

        def encode(self, x):
            z = torch.zeros(len(x), 1000)
            z[:, :20] = x.sum(dim=1, keepdim=True).relu()
            return z

    x = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    activity(Sparse(), x, np.arange(1024), batch=512)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    activity(Sparse(), x, np.arange(len(x)), batch=512)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 20

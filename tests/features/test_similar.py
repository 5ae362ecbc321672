"""Neighbours by hand, and against a plain double loop."""

import numpy as np
import pytest

from mtlib.features.table import similar_features
from mtlib.measure.codes import fire_together
from tests.features.standins import GivenCodes


def test_nearest_by_hand():
    W_dec = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0]])
    frame = similar_features(W_dec, W_dec.T, np.ones(3), n=1)
    assert frame[["feature", "neighbour"]].to_numpy().tolist() == [[0, 1], [1, 0], [2, 1]]
    assert frame["cosine"][0] == pytest.approx(2 / np.hypot(2, 0.1))
    assert frame["jaccard"].isna().all()


def test_chunks_do_not_matter_and_features_that_never_fire_are_left_out():
    rng = np.random.default_rng(0)
    W_dec, z = rng.normal(size=(11, 5)), np.maximum(rng.normal(size=(60, 11)), 0)
    z[:, 4] = 0
    coder = GivenCodes(z)
    found = (z > 0).sum(axis=0), fire_together(coder, coder.x, np.arange(60))
    frame = similar_features(W_dec, W_dec.T, *found, n=3, chunk=100)
    small = similar_features(W_dec, W_dec.T, *found, n=3, chunk=2)
    np.testing.assert_allclose(frame.drop(columns="by").to_numpy(float), small.drop(columns="by").to_numpy(float))
    assert not (frame[["feature", "neighbour"]] == 4).any(axis=None)
    line = frame.iloc[7]
    a, b = z[:, line["feature"]] > 0, z[:, line["neighbour"]] > 0
    assert np.isclose(line["jaccard"], (a & b).sum() / (a | b).sum())
    by_decoder = frame[frame["by"] != "together"].groupby("feature").size()
    assert (by_decoder == 3).all()


def test_zero_decoder_row_has_cosine_zero():
    W_dec = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    frame = similar_features(W_dec, W_dec.T, np.ones(3), n=2)
    assert (frame.loc[frame["feature"] == 0, "cosine"] == 0).all()

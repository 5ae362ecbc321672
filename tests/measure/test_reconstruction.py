"""Reconstruction measures: hand-computed cases, properties, and equality with scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from mtlib.measure.reconstruction import Reconstruction, target_mean

Y = np.array([[0.0, 0.0], [2.0, 4.0]])  # mean (1, 2): sum of squares around it 10, of absolute values 6


def data(seed, n=50, o=4):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, o)) * [1, 2, 3, 4] + 5
    return y, y + rng.normal(size=(n, o))


def reconstruction(y, y_hat):
    """`Reconstruction` of two whole arrays (N, O)."""
    y, y_hat = np.array(y), np.array(y_hat)
    sums = Reconstruction(np.asarray(y, np.float64).mean(0))
    sums.update(torch.from_numpy(y), torch.from_numpy(y_hat))
    return sums.result()


def fvu(y, y_hat):
    return reconstruction(y, y_hat)["fvu"]


def test_reconstruction_hand_computed():
    got = reconstruction(Y, np.array([[1.0, 0.0], [2.0, 2.0]]))  # errors 1, 0, 0, 2
    assert got["fvu"] == pytest.approx(5 / 10)
    assert got["explained_variance"] == pytest.approx(0.5)
    assert got["mse"] == pytest.approx(5 / 4)
    assert got["nmae"] == pytest.approx(3 / 6)
    assert got["n_zero_norm"] == 1  # the first row of y has no direction
    assert got["cosine"] == pytest.approx((2 * 2 + 4 * 2) / (np.sqrt(20) * np.sqrt(8)))


def test_fvu_perfect_is_0_and_mean_predictor_is_1():
    y, _ = data(0)
    assert fvu(y, y) == 0
    assert fvu(y, np.broadcast_to(y.mean(0), y.shape)) == pytest.approx(1, abs=1e-12)


def test_fvu_penalises_a_constant_shift():
    y, y_hat = data(1)
    expected = ((y - y_hat - 3) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert fvu(y, y_hat + 3) == pytest.approx(expected)
    assert fvu(y, y + 3) == pytest.approx(9 * y.size / ((y - y.mean(0)) ** 2).sum())


def test_measures_equal_sklearn():
    y, y_hat = data(2)
    got = reconstruction(y, y_hat)
    assert 1 - got["fvu"] == pytest.approx(r2_score(y, y_hat, multioutput="variance_weighted"))
    assert got["mse"] == pytest.approx(mean_squared_error(y, y_hat))
    centre = np.broadcast_to(y.mean(0), y.shape)
    assert got["nmae"] == pytest.approx(mean_absolute_error(y, y_hat) / mean_absolute_error(y, centre))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 60))
def test_streaming_does_not_depend_on_batch_size_or_order(seed, batch):
    y, y_hat = data(seed)
    order = np.random.default_rng(seed).permutation(len(y))
    sums = Reconstruction(target_mean(y, order, batch))
    for start in range(0, len(y), batch):
        at = order[start : start + batch]
        sums.update(torch.from_numpy(y[at]), torch.from_numpy(y_hat[at]))
    assert sums.result() == pytest.approx(reconstruction(y, y_hat), rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_fvu_and_nmae_ignore_scale_and_common_shift(seed, factor, shift):
    y, y_hat = data(seed)
    before, after = reconstruction(y, y_hat), reconstruction(factor * y + shift, factor * y_hat + shift)
    assert after["fvu"] == pytest.approx(before["fvu"], rel=1e-6)
    assert after["nmae"] == pytest.approx(before["nmae"], rel=1e-6)


def test_fvu_exact_far_from_zero():
    y, y_hat = data(3)
    assert fvu(y + 1e6, y_hat + 1e6) == pytest.approx(fvu(y, y_hat), rel=1e-6)


@pytest.mark.parametrize("y", [np.ones((5, 2)), np.zeros((1, 2))])
def test_fvu_refuses_a_target_that_does_not_vary(y):
    with pytest.raises(ValueError, match="target that varies"):
        fvu(y, y)


def test_fvu_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        fvu(Y, np.zeros((2, 3)))


def test_constant_units_are_counted():
    y, y_hat = data(4)
    y[:, 1] = 7
    assert reconstruction(y, y_hat)["n_constant_units"] == 1

"""AUROC of many features against scikit-learn, thresholds and F1 against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from mtlib.truth.auroc import auroc, average_precision, best_threshold, f1_at


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_auroc_equals_sklearn_with_ties(seed):
    rng = np.random.default_rng(seed)
    z = np.maximum(rng.integers(-3, 4, size=(40, 6)), 0)
    positive = np.zeros(40, bool)
    positive[rng.choice(40, rng.integers(1, 39), replace=False)] = True
    np.testing.assert_allclose(auroc(z, positive), [roc_auc_score(positive, c) for c in z.T], atol=1e-12)


def test_auroc_many_tasks_at_once_and_nan_without_both_kinds():
    rng = np.random.default_rng(0)
    z, tasks = rng.normal(size=(30, 4)), rng.random((30, 3)) < 0.4
    tasks[:, 2] = False
    got = auroc(z, tasks)
    np.testing.assert_allclose(got[:, 1], auroc(z, tasks[:, 1]))
    assert np.isnan(got[:, 2]).all()


def test_auroc_of_a_silent_feature_is_half_and_flips_with_the_sign():
    positive = np.array([True, False, True, False])
    assert auroc(np.zeros((4, 1)), positive)[0] == 0.5
    z = np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(auroc(-z, positive), 1 - auroc(z, positive))


def test_average_precision_hand_computed_with_ties():
    positive = np.array([True, False, True, False, True])
    score = np.array([3.0, 2.0, 2.0, 0.0, 0.0])  # precisions at the positives: 1/1, 2/3 (a tie), 3/5 (all that is left)
    assert average_precision(score[:, None], positive)[0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(np.zeros((5, 1)), positive)[0] == pytest.approx(3 / 5)  # says nothing: the base rate
    assert np.isnan(average_precision(score[:, None], np.zeros(5, bool))[0])
    with pytest.raises(ValueError, match="5 rows"):
        average_precision(score[:, None], positive[:4])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_average_precision_equals_sklearn_for_dense_and_sparse_scores(seed):
    rng = np.random.default_rng(seed)
    z, tasks = np.maximum(rng.integers(-3, 4, size=(40, 6)), 0), rng.random((40, 3)) < 0.4
    tasks[0] = True
    want = [[average_precision_score(task, column) for task in tasks.T] for column in z.T]
    np.testing.assert_allclose(average_precision(z, tasks), want, atol=1e-12)
    np.testing.assert_allclose(average_precision(sparse.csr_array(z), tasks), want, atol=1e-12)


def test_auroc_refuses_other_rows():
    with pytest.raises(ValueError, match="3 rows"):
        auroc(np.zeros((3, 1)), np.zeros(4, bool))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_best_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    score, positive = rng.integers(0, 5, 25).astype(float), rng.random(25) < 0.5
    positive[0] = True
    best = max(f1_score(positive, score > t, zero_division=0) for t in [-1, *np.unique(score)])
    t = best_threshold(score, positive)
    assert f1_at(score, positive, t) == pytest.approx(best)
    assert f1_at(score, positive, t) == pytest.approx(f1_score(positive, score > t, zero_division=0))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_auroc_of_sparse_codes_equals_the_dense_one(seed):
    rng = np.random.default_rng(seed)
    z = np.where(rng.random((40, 7)) < 0.3, rng.integers(-3, 4, size=(40, 7)), 0).astype(np.float32)
    z[:, 0] = 0
    tasks = rng.random((40, 3)) < 0.4
    np.testing.assert_allclose(auroc(sparse.csr_array(z), tasks), auroc(z, tasks), atol=1e-12)
    np.testing.assert_allclose(auroc(sparse.csr_array(z), tasks[:, 0]), auroc(z, tasks[:, 0]), atol=1e-12)

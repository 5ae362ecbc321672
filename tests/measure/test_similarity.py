"""CKNNA, coherence of decoder rows, agreement of seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import special_ortho_group

from mtlib.measure.similarity import COPY, cknna, copies, decoder_coherence, hsic_unbiased, sample_rows, stability


def test_cknna_of_a_representation_with_itself_is_1_and_with_noise_near_0():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 6))
    assert cknna(a, a) == pytest.approx(1)
    assert abs(cknna(a, rng.normal(size=(300, 6)))) < 0.15


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), factor=st.floats(0.01, 100))
def test_cknna_ignores_rotation_scale_and_order(seed, factor):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(80, 5)), rng.normal(size=(80, 4))
    b[:, :2] += a[:, :2]
    rotated = factor * a @ special_ortho_group.rvs(5, random_state=seed)
    order = rng.permutation(80)
    assert cknna(rotated[order], b[order]) == pytest.approx(cknna(a, b), abs=1e-8)
    assert cknna(b, a) == pytest.approx(cknna(a, b), abs=0.02)  # neighbours of i, not of both: nearly symmetric


def test_cknna_needs_enough_rows():
    with pytest.raises(ValueError, match="more than 13"):
        cknna(np.ones((13, 2)), np.ones((13, 2)))


def test_hsic_equals_its_sum_over_distinct_indices():
    rng = np.random.default_rng(1)
    a, b = (m @ m.T for m in (rng.normal(size=(6, 3)), rng.normal(size=(6, 2))))
    n, first, second, third = 6, [], [], []
    for i in range(n):
        for j in set(range(n)) - {i}:
            first.append(a[i, j] * b[i, j])
            for q in set(range(n)) - {i, j}:
                third.append(a[i, j] * b[i, q])
                second += [a[i, j] * b[q, r] for r in set(range(n)) - {i, j, q}]
    assert hsic_unbiased(a, b) == pytest.approx(np.mean(first) + np.mean(second) - 2 * np.mean(third))


def test_sample_rows_are_seeded_and_all_rows_when_few():
    few = sample_rows(np.arange(100, 150))
    assert len(few) == 1 and few[0].tolist() == list(range(100, 150))
    many = sample_rows(np.arange(5000))
    assert [len(set(s)) for s in many] == [2000] * 5
    assert all((a == b).all() for a, b in zip(many, sample_rows(np.arange(5000)), strict=True))
    assert (many[0] != many[1]).any()


def test_decoder_coherence_hand_computed():
    w = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])  # squared cosines 0, 1/2, 1/2
    assert decoder_coherence(w) == pytest.approx(1 / 3)
    assert decoder_coherence(np.eye(4)) == pytest.approx(0)
    assert decoder_coherence(np.ones((4, 3))) == pytest.approx(1)
    assert decoder_coherence(np.vstack([w, [[0.0, 0.0]]])) == pytest.approx(1 / 3)


def test_stability_is_1_for_the_same_rows_in_any_order():
    w = np.random.default_rng(2).normal(size=(20, 6))
    order = np.random.default_rng(3).permutation(20)
    assert stability(w, 3 * w[order]) == pytest.approx(1)


def test_stability_hand_computed():
    assert stability(np.eye(2), np.array([[0.6, 0.8], [0.8, -0.6]])) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="widths"):
        stability(np.eye(2), np.eye(3))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_copies_are_those_of_the_correlation_matrix(seed):
    rng = np.random.default_rng(seed)
    codes = rng.random((60, 7)) * (rng.random((60, 7)) < 0.5)
    near = codes[:, rng.integers(0, 7, 5)] * (1 + rng.random((60, 5)) * rng.choice([0.1, 1.5], 5))
    codes = np.hstack([codes, near * (rng.random((60, 5)) < 0.97), np.zeros((60, 1))])
    of = copies(sparse.csr_array(codes), chunk=4)
    active = (codes > 0).sum(0)
    with np.errstate(invalid="ignore"):
        alike = np.corrcoef(codes.T) > COPY
    for i in range(codes.shape[1]):
        assert of[of[i]] == of[i]  # the first is itself no copy
        if of[i] != i:
            assert alike[i, of[i]] and active[of[i]] >= active[i]
        else:  # no other latent that stands for itself and is more active says the same
            others = [j for j in range(len(of)) if of[j] == j != i and (active[j], -j) > (active[i], -i)]
            assert not alike[i, others].any()
    assert of[-1] == len(of) - 1 and copies(sparse.csr_array(np.ones((5, 3)))).tolist() == [
        0,
        1,
        2,
    ]  # constant: no copy

"""MonoScore against the pairwise sum, purity against its definition and its null."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlib.measure.monosemanticity import MonoScore, Purity


def pairwise(x, z):
    """The definition, pair by pair."""
    e = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = e @ e.T
    out = []
    for column in z.T:
        span = column.max() - column.min()
        a = (column - column.min()) / span if span > 0 else np.zeros(len(column))
        weight = np.outer(a, a)
        np.fill_diagonal(weight, 0)
        out.append((weight * cosine).sum() / weight.sum() if weight.sum() > 1e-12 else np.nan)
    return np.array(out)


def data(seed, n=60, d=5, s=8, sparse=True):
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(n, d)) + 0.5, rng.normal(size=(n, s))
    return x, np.maximum(z - 1.2, 0) if sparse else z


def mono_score(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(S,) of codes z (N, S) with embeddings x (N, D), in one batch."""
    sums = MonoScore(z.shape[1], x.shape[1])
    sums.update(torch.as_tensor(x), torch.as_tensor(z))
    return sums.scores()


def test_mono_score_hand_computed():
    x = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    z = np.array([[2.0], [1.0], [0.0]])  # scaled 1, .5, 0: one pair counts, cosine .6
    assert mono_score(x, z)[0] == pytest.approx(0.6)


@pytest.mark.parametrize("sparse", [True, False])
def test_mono_score_equals_pairwise(sparse):
    x, z = data(0, sparse=sparse)
    np.testing.assert_allclose(mono_score(x, z), pairwise(x, z), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.005, 0.02, 0.049, 0.2, 1.0]),
    spread=st.floats(0, 4),
    negative=st.booleans(),
    batch=st.integers(1, 400),
)
def test_mono_score_is_within_a_millionth_of_pairwise(seed, density, spread, negative, batch):
    """Float32 codes, sparse and dense, of every size from one row to the next, some of them negative."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(300, 6)) + rng.normal(size=6)).astype(np.float32)
    z = np.exp(spread * rng.normal(size=(300, 20))) * (rng.random((300, 20)) < density * rng.random(20))
    z = (z * np.where(rng.random(z.shape) < 0.3 * negative, -1, 1)).astype(np.float32)
    sums = MonoScore(20, 6)
    for start in range(0, 300, batch):
        sums.update(torch.from_numpy(x[start : start + batch]), torch.from_numpy(z[start : start + batch]))
    expected = pairwise(x.astype(np.float64), z.astype(np.float64))
    np.testing.assert_allclose(sums.scores(), expected, atol=1e-6)


def test_bf16_codes_score_as_the_float32_of_the_same_values():
    x, z = data(4)
    z = torch.from_numpy(z).bfloat16()
    sums = MonoScore(z.shape[1], x.shape[1])
    sums.update(torch.from_numpy(x), z)
    np.testing.assert_allclose(sums.scores(), mono_score(x, z.float().numpy()), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 500), batch=st.integers(1, 70), factor=st.floats(0.01, 100))
def test_mono_score_ignores_batches_order_and_scale(seed, batch, factor):
    x, z = data(seed, sparse=bool(seed % 2))
    order = np.random.default_rng(seed).permutation(len(x))
    sums = MonoScore(z.shape[1], x.shape[1])
    for start in range(0, len(x), batch):
        at = order[start : start + batch]
        sums.update(torch.from_numpy(x[at] * factor), torch.from_numpy(z[at] / factor))
    np.testing.assert_allclose(sums.scores(), mono_score(x, z), atol=1e-8)


def test_mono_score_undefined_for_dead_constant_and_single_image_latents():
    x, _ = data(1, n=6)
    z = np.zeros((6, 3))
    z[:, 1], z[0, 2] = 3.0, 1.0
    assert np.isnan(mono_score(x, z)).all()


def test_mono_score_leaves_out_rows_without_direction():
    x, z = data(2)
    x0 = np.vstack([x, np.zeros((2, x.shape[1]))])
    sums = MonoScore(z.shape[1], x.shape[1])
    sums.update(torch.from_numpy(x0), torch.from_numpy(np.vstack([z, z[:2]])))
    assert sums.n == len(x)
    np.testing.assert_allclose(sums.scores(), mono_score(x, z))


def test_mean_cosine_is_the_score_of_a_latent_that_says_nothing():
    x, _ = data(3)
    e = x / np.linalg.norm(x, axis=1, keepdims=True)
    sums = MonoScore(1, x.shape[1])
    sums.update(torch.from_numpy(x), torch.ones(len(x), 1))
    assert sums.summary()["mean_cosine"] == pytest.approx((e @ e.T)[~np.eye(len(e), dtype=bool)].mean())


def run_purity(z, classes, batch=1000, seed=0):
    rows = np.arange(len(z))
    purity = Purity(np.asarray(classes), rows, z.shape[1], seed=seed)
    for start in range(0, len(z), batch):
        purity.update(rows[start : start + batch], torch.from_numpy(z[start : start + batch]))
    return purity.result()


def test_purity_hand_computed():
    z = np.zeros((20, 2), np.float32)
    z[:10, 0] = [4, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    z[:5, 1] = 1
    classes = np.array([1, 0, 0, 0, 0, 0, 0, 2, 2, 2] + [0] * 10)
    got = run_purity(z, classes)
    assert got["purity"][0] == pytest.approx(6 / 10)
    assert got["weighted_purity"][0] == pytest.approx(6 / 13)
    assert got["dominant_class"].tolist() == [0, -1]
    assert np.isnan(got["purity"][1])  # five images are too few
    assert got["support"].tolist() == [10, 5]


def test_purity_does_not_depend_on_batch_size():
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(size=(200, 12)), 0).astype(np.float32)
    classes = rng.integers(-1, 4, 200)
    one, many = run_purity(z, classes), run_purity(z, classes, batch=7)
    for name in one:
        np.testing.assert_allclose(one[name], many[name], atol=1e-12)


def test_purity_of_permuted_classes_is_at_its_null():
    rng = np.random.default_rng(1)
    z = np.maximum(rng.normal(size=(600, 200)) - 1, 0).astype(np.float32)
    got = run_purity(z, rng.integers(0, 5, 600))
    for name in ("purity", "weighted_purity"):
        spread = got[name].std() / np.sqrt(len(got[name]))
        assert abs(got[name].mean() - got[f"{name}_null"].mean()) < 6 * spread
        assert got[f"{name}_null"].mean() > 0.22  # above 1 / 5: the largest of five noisy shares


def test_purity_unknown_classes_are_left_out():
    z = np.ones((30, 1), np.float32)
    got = run_purity(z, [0] * 8 + [1] * 4 + [-1] * 18)
    assert got["support"][0] == 12 and got["purity"][0] == pytest.approx(8 / 12)

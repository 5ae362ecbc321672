"""The definition card: what each published convention sees and does not see."""

import numpy as np
import pytest
from sklearn.metrics import explained_variance_score, r2_score

from mtlib.measure.reconstruction import definition_card
from tests.measure.test_reconstruction import fvu


def fvu_per_batch(y, y_hat, batch):
    """Mean over batches of each batch's FVU around its own mean (the last, smaller batch counts as much as the others)."""
    parts = [(y[i : i + batch], y_hat[i : i + batch]) for i in range(0, len(y), batch)]
    return np.mean([((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum() for a, b in parts if len(a) > 1])


def fvu_about_zero(y, y_hat):
    """Squared error over sum(y^2): a target far from 0 makes any constant look good."""
    return ((y - y_hat) ** 2).sum() / (y**2).sum()


def evr_shift_blind(y, y_hat):
    """1 - var(y - y_hat) / var(y): a constant shift of y_hat is not seen."""
    return 1 - (y - y_hat).var(0).sum() / y.var(0).sum()


def r2_per_dimension(y, y_hat):
    """Mean over units of each unit's R2: units that hardly vary count as much as the others (constant ones left out)."""
    ok = y.var(0) > 0
    return (1 - ((y - y_hat) ** 2).sum(0)[ok] / ((y - y.mean(0)) ** 2).sum(0)[ok]).mean()


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(64, 3)) * [1, 2, 3] + 4
    return y, y + rng.normal(size=(64, 3))


def test_conventions_equal_sklearn(pair):
    y, y_hat = pair
    assert r2_per_dimension(y, y_hat) == pytest.approx(r2_score(y, y_hat))
    assert evr_shift_blind(y, y_hat) == pytest.approx(
        explained_variance_score(y, y_hat, multioutput="variance_weighted")
    )


def test_conventions_what_they_do_not_see(pair):
    y, y_hat = pair
    assert evr_shift_blind(y, y_hat + 9) == pytest.approx(evr_shift_blind(y, y_hat))
    assert fvu(y, y_hat + 9) > fvu(y, y_hat) + 1
    assert fvu_about_zero(y, np.broadcast_to(y.mean(0), y.shape)) < 0.5  # the mean looks good
    assert fvu_per_batch(y, y_hat, 64) == pytest.approx(fvu(y, y_hat))
    assert fvu_per_batch(y, y_hat, 4) > fvu(y, y_hat) * 1.1  # depends on the batch


def test_definition_card_lists_all(pair):
    card = definition_card(*pair, batches=(8, 32))
    assert len(card) == 9
    ours = card[card["convention"].str.contains("this repo")].set_index("quantity")
    assert ours.loc["fvu", "mean_predictor"] == pytest.approx(1)
    assert ours.loc["explained_variance", "mean_predictor"] == pytest.approx(0)
    assert ours.loc["fvu", "reconstruction"] == pytest.approx(fvu(*pair))


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_definition_card_equals_its_conventions(kind):
    """5,000 rows are two blocks; one unit never varies."""
    rng = np.random.default_rng(1)
    y = (rng.normal(size=(5000, 4)) * [1, 2, 3, 0] + 4).astype(kind)
    y_hat = (y + rng.normal(size=y.shape)).astype(kind)
    card = definition_card(y, y_hat, batches=(32,))
    y, y_hat = y.astype(np.float64), y_hat.astype(np.float64)
    shifted = y_hat + np.sqrt(y.var(0).mean())
    for name, other in {"reconstruction": y_hat, "shifted": shifted, "mean_predictor": y.mean(0) + 0 * y}.items():
        expected = [fvu(y, other), fvu_per_batch(y, other, 32), fvu_about_zero(y, other)]
        expected += [
            ((y - other) ** 2).mean() / y.var(ddof=1),
            ((y - other).var(1) / y.var(1)).mean(),
            1 - fvu(y, other),
        ]
        expected += [evr_shift_blind(y, other), r2_per_dimension(y, other)]
        np.testing.assert_allclose(card[name], expected, atol=1e-9)

"""The definition card: what each published convention sees and does not see."""

import numpy as np
import pytest
from sklearn.metrics import explained_variance_score, r2_score

from mtlib.measure.conventions import definition_card, evr_shift_blind, fvu_about_zero, fvu_per_batch, r2_per_dimension
from mtlib.measure.reconstruction import fvu


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
    assert len(card) == 7
    ours = card[card["convention"].str.contains("this repo")].set_index("quantity")
    assert ours.loc["fvu", "mean_predictor"] == pytest.approx(1)
    assert ours.loc["explained_variance", "mean_predictor"] == pytest.approx(0)
    assert ours.loc["fvu", "reconstruction"] == pytest.approx(fvu(*pair))

"""What this repo computes is what the five systems publish, item by item."""

import numpy as np
import pytest

from tests.parity import difference, items, limit

ALL = [pytest.param(name, function, id=f"{system}-{name}".replace(" ", "_")) for system, name, function in items()]


@pytest.mark.parametrize(("name", "function"), ALL)
def test_item_equals_the_published_formula(name, function):
    assert difference(*function()) <= limit(name)


def test_difference_by_hand():
    assert difference(np.array([1.0, 4.0]), np.array([1.0, 5.0])) == pytest.approx(0.2)
    assert difference(np.ones(2), np.ones(3)) == np.inf
    assert difference(np.array([np.nan]), np.ones(1)) == np.inf

"""Which features get a collage."""

import numpy as np
import pandas as pd
import pytest

from mtlib.features.choice import CollageSettings, choose


def features():
    n = 12
    return pd.DataFrame(
        {
            "feature": range(n),
            "n_images": [20] * 10 + [3, 0],
            "mean_activation": np.arange(n, dtype=float),
            "density": 0.1,
            "assessed": [True] * 8 + [False] * 4,
            "error_low": np.linspace(0, 0.7, n),
            "error_high": np.linspace(0.2, 0.9, n),
            "purity": np.linspace(1, 0.5, n),
        }
    )


def test_choice_is_half_errors_quarter_plausible_quarter_active():
    chosen = choose(features(), 8)
    assert chosen["reason"].tolist() == ["errors"] * 4 + ["plausible"] * 2 + ["active"] * 2
    assert chosen["feature"].tolist() == [7, 6, 5, 4, 0, 1, 9, 8]


def test_choice_without_labels_uses_purity_then_activity():
    frame = features().assign(error_low=np.nan, error_high=np.nan)
    assert choose(frame, 4)["feature"].tolist() == [0, 1, 9, 8]
    frame["purity"] = np.nan
    assert choose(frame, 4)["reason"].tolist() == ["active"] * 4
    assert len(choose(frame, 100)) == 10  # features with fewer than 4 images have no collage
    assert choose(frame.head(0), 4).empty


def test_choice_of_the_most_active_ones():
    assert choose(features(), 3, what="active")["feature"].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("name", "value"),
    [("collages_of", "surely"), ("collage_columns", 0), ("collage_split", "train"), ("n_collages", -1)],
)
def test_settings_that_cannot_be_drawn_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        CollageSettings(**{name: value})

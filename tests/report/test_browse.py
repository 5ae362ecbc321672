"""Which features are listed, in which order."""

import numpy as np
import pandas as pd
import pytest

from mtlib.report.browse import select


@pytest.fixture
def table():
    frame = pd.DataFrame(
        {
            "feature": [0, 1, 2, 3],
            "density": [0.5, 0.0, 0.1, 0.2],
            "max_activation": [1.0, 0.0, 3.0, 3.0],
            "error_ratio": [0.4, np.nan, 0.9, 0.2],
            "causal_relevance": [0.0, np.nan, -1.0, 2.0],
            "assessed": [True, False, True, False],
            "phrase": ["a hand with six fingers", "", "a face", "six hands"],
            "category": ["fingers", "", "", ""],
            "verdict": ["no_error", "skipped", "error", "error"],
        }
    )
    return frame.set_index("feature", drop=False).rename_axis(None)


def test_select_sorts_with_ties_by_number_and_missing_last(table):
    assert select(table, "max activation").tolist() == [2, 3, 0, 1]
    assert select(table, "error ratio").tolist() == [2, 0, 3, 1]
    assert select(table, "error ratio", descending=False).tolist() == [3, 0, 2, 1]
    assert select(table, "causal relevance").tolist() == [3, 0, 2, 1]
    assert select(table, "feature number", descending=False).tolist() == [0, 1, 2, 3]


def test_select_by_verdict_puts_errors_first_then_the_higher_ratio(table):
    assert select(table, "verdict").tolist() == [2, 3, 0, 1]


def test_select_filters_combine(table):
    assert select(table, min_density=0.1, verdict="error").tolist() == [2, 3]
    assert select(table, assessed=True, verdict="error").tolist() == [2]
    assert select(table, text="six hand").tolist() == [3, 0]
    assert select(table, text="FINGERS").tolist() == [0]
    assert select(table, text="#2").tolist() == [2]
    assert select(table, text="nothing").tolist() == []

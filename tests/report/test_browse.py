"""Which features are listed, in which order."""

import numpy as np
import pandas as pd
import pytest

from mtlib.report import browse
from mtlib.report.browse import Query, select


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
    assert select(table, Query("max activation")).tolist() == [2, 3, 0, 1]
    assert select(table, Query("error ratio")).tolist() == [2, 0, 3, 1]
    assert select(table, Query("error ratio", descending=False)).tolist() == [3, 0, 2, 1]
    assert select(table, Query("causal relevance")).tolist() == [3, 0, 2, 1]
    assert select(table, Query("feature number", descending=False)).tolist() == [0, 1, 2, 3]


def test_select_by_verdict_puts_errors_first_then_the_higher_ratio(table):
    assert select(table, Query("verdict")).tolist() == [2, 3, 0, 1]


def test_select_filters_combine(table):
    assert select(table, Query(min_density=0.1, verdict="error")).tolist() == [2, 3]
    assert select(table, Query(assessed=True, verdict="error")).tolist() == [2]
    assert select(table, Query(text="six hand")).tolist() == [3, 0]
    assert select(table, Query(text="FINGERS")).tolist() == [0]
    assert select(table, Query(text="#2")).tolist() == [2]
    assert select(table, Query(text="nothing")).tolist() == []


def test_query_refuses_what_it_does_not_know():
    for bad in ({"sort": "x"}, {"verdict": "maybe"}, {"min_density": 2.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Query(**bad)


def test_step_wraps_round():
    features = np.array([5, 3, 9])
    assert browse.step(features, 5, 1) == 3 and browse.step(features, 9, 1) == 5 and browse.step(features, 5, -1) == 9
    assert browse.step(features, 7, 1) == 5 and browse.step(features[:0], 5, 1) is None


def test_similar_to_is_closest_first():
    similar = pd.DataFrame({"feature": [1, 1, 2], "neighbour": [4, 5, 6], "cosine": [0.1, 0.9, 0.5]})
    assert browse.similar_to(similar, 1) == [(5, 0.9), (4, 0.1)]

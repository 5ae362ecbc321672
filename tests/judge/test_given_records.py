"""Explanations from a file: theirs, appended reruns, a user's own; borne out by the labels, contradicted, or unverified."""

import json

import numpy as np
import pandas as pd
import pytest

from mtlib.embed.store import open_run
from mtlib.judge import given_records
from mtlib.judge.labeler import Labeler
from mtlib.run.artifacts import current
from tests.judge.small_run import write_small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_small_run(tmp_path_factory.mktemp("run"))


def lines(path, *records):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_the_last_complete_line_of_a_feature_counts(tmp_path):
    told = lines(
        tmp_path / "sae_feature_analysis.jsonl",
        {"feature_num": "3", "explanation": "first run", "num_samples": 20},
        {"feature_num": "4", "explanation": None, "num_samples": 20},
        {"feature_num": "3", "explanation": "second run", "num_samples": 20},
        {"feature_num": "3", "explanation": None, "num_samples": 20},
        '{"feature_num": "3", "explanation": "cut o',
    )
    with pytest.warns(UserWarning, match="line 5 is not whole JSON"):
        found = given_records.read([told], 8)
    assert found == {3: {"explanation": "second run", "verdict": ""}, 4: {"explanation": "", "verdict": ""}}
    ruled = {"feature_num": 3, "commonality": "hands", "error_analysis": "Error: six fingers", "num_samples": 9}
    with pytest.warns(UserWarning, match="not whole"):
        both = given_records.read([told, lines(tmp_path / "e.jsonl", ruled)], 8)
    assert both[3] == {"explanation": "hands", "verdict": "error"}
    assert (
        given_records.read([lines(tmp_path / "n.jsonl", ruled | {"error_analysis": "No common errors"})], 8)[3][
            "verdict"
        ]
        == "no_error"
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"feature_num": "8", "explanation": "a"}, "from 0 to 7"),
        ({"feature_num": "-1", "explanation": "a"}, "from 0 to 7"),
        ({"feature_num": "1"}, "expected explanation"),
        ({"feature_num": "1", "Explanation": "a"}, "field 'Explanation' is nearly 'explanation'"),
        ({"feature_num": "1", "explanation": "a", "error_analyses": "b"}, "is nearly 'error_analysis'"),
        ({"feature_number": "1", "explanation": "a"}, "'feature_number' is nearly 'feature_num'"),
        ({"feature_num": "1", "explanation": ["a"]}, "as text"),
        ({"feature_num": "1", "explanation": "a", "wrong_ratio": 0.5}, "come together"),
        ({"feature_num": "1", "commonality": "a", "error_analysis": []}, r"error_analysis = \[\]: expected text"),
        (
            {"feature_num": "1", "commonality": "a", "error_analysis": float("nan")},
            "error_analysis = nan: expected text",
        ),
        ([1], "expected an object"),
    ],
)
def test_what_is_not_understood_is_named_by_its_line(tmp_path, record, said):
    with pytest.raises(ValueError, match="own.jsonl line 1.*" + said):
        given_records.read([lines(tmp_path / "own.jsonl", record)], 8)


def test_a_blank_answer_is_no_error_and_replaces_no_answer(tmp_path):
    ruled = {"feature_num": "1", "commonality": "hands", "error_analysis": "No common errors"}
    own = lines(tmp_path / "own.jsonl", ruled, ruled | {"error_analysis": " "}, {"feature_num": "1", "explanation": ""})
    assert given_records.read([own], 8) == {1: {"explanation": "hands", "verdict": "no_error"}}


def test_a_record_is_checked_by_the_runs_own_labels():
    line = pd.Series({"error_ratio": 0.9, "error_low": 0.8, "error_high": 0.95, "base_rate": 0.5, "assessed": True})
    named = {"explanation": "hands", "verdict": ""}
    assert given_records.check(named, line) == "unverified"
    assert given_records.check(named | {"verdict": "error"}, line) == "verified"
    below = line.mask(line.index.str.startswith("error"), line * 0.4)
    assert given_records.check(named | {"verdict": "error"}, below) == "contradicted"
    counted = dict(wrong_ratio=0.9, wrong_count=90, total_count=100)
    assert given_records.check(named | counted, line) == "verified"
    assert given_records.check(named | counted | dict(wrong_ratio=0.1, wrong_count=10), line) == "contradicted"
    unknown = line.mask(line.index == "error_ratio")
    assert given_records.check(named | {"verdict": "error"} | counted, unknown) == "unverified"


def test_the_labeler_speaks_in_the_files_words(run, tmp_path):
    x = np.array(open_run(run).x[7])
    present = [e["feature_num"] for e in Labeler(run, threshold=0, as_published=True).get_explanations(x)]
    table = pd.read_parquet(run / current(run)["05_features"] / "features/tc/features.parquet").set_index("feature")
    own = lines(tmp_path / "own.jsonl", *({"feature_num": str(f), "explanation": f"mine {f}"} for f in present))
    found = Labeler(run, threshold=0, records=[own]).get_explanations(x)
    assert [e["explanation"] for e in found] == [f"mine {f}" for f in present]
    assert {e["check"] for e in found} == {"unverified"}  # nothing but names: returned, and said so
    wrong = [f for f in present if table.loc[f, "assessed"] and 0.05 < table.loc[f, "error_ratio"] < 0.95]
    lie = dict(wrong_ratio=1.0, wrong_count=10_000, total_count=10_000)
    false = lines(tmp_path / "lie.jsonl", *({"feature_num": str(f), "explanation": "a"} | lie for f in wrong))
    assert wrong and Labeler(run, threshold=0, records=[false]).get_explanations(x) == []
    kept = Labeler(run, threshold=0, records=[false], as_published=True).get_explanations(x)
    assert [e["feature_num"] for e in kept] == wrong and {e["check"] for e in kept} == {"contradicted"}

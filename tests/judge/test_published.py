"""The published records: what verdicts become, and JSONL that was torn, repeated, contradicted or poisoned."""

import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlib.ask.ledger import dump
from mtlib.judge.published import (
    ERROR_ANALYSIS,
    FEATURE_ANALYSIS,
    NO_ERROR,
    RecordError,
    read,
    records,
    write_records,
)

A = {"feature_num": 1, "explanation": "a hand", "num_samples": 20}
B = {"feature_num": 2, "explanation": "a face", "num_samples": 7}


def write(path, found):
    path.write_text("".join(dump(r) + "\n" for r in found), encoding="utf-8")


def test_written_records_read_back(tmp_path):
    write(tmp_path / "f.jsonl", [A, B])
    found = read(tmp_path / "f.jsonl", FEATURE_ANALYSIS)
    assert found.records == [A, B] and found.set_aside == []


def test_torn_last_line_is_set_aside_and_the_next_record_kept(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(dump(A) + "\n" + dump(B)[:25] + "\n" + dump(B) + "\n")
    found = read(path)
    assert found.records == [A, B] and found.set_aside == [(2, dump(B)[:25])]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), data=st.data())
def test_a_cut_anywhere_loses_at_most_the_last_record(tmp_path_factory, cut, data):
    texts = data.draw(st.lists(st.text(max_size=20), min_size=1, max_size=6))
    found = [{"feature_num": i, "explanation": t} for i, t in enumerate(texts)]
    path = tmp_path_factory.mktemp("cut") / "f.jsonl"
    write(path, found)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + b"\n" + dump({"feature_num": -1}).encode())
    again = read(path)
    complete = whole[:cut].count(b"\n")
    assert again.records[:complete] == found[:complete]
    assert again.records[-1]["feature_num"] == -1
    assert len(again.set_aside) <= 1


def test_same_record_twice_counts_once_and_the_first_line_gives_the_order(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join([dump(B), dump(A), json.dumps(dict(reversed(list(B.items()))))]) + "\n")
    assert read(path).records == [B, A]


def test_conflicting_records_are_an_error_naming_both_lines(tmp_path):
    path = tmp_path / "f.jsonl"
    write(path, [A, B, A | {"explanation": "a foot"}])
    with pytest.raises(RecordError, match="lines 1 and 3 say different things of feature_num = 1"):
        read(path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_refused_when_read(tmp_path, value):
    path = tmp_path / "f.jsonl"
    path.write_text('{"feature_num": 1, "confidence": ' + value + "}\n")
    with pytest.raises(RecordError, match=f"line 1 holds {value}"):
        read(path)


def test_nan_is_refused_when_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump(A | {"num_samples": float("nan")})


def test_missing_field_is_an_error(tmp_path):
    write(tmp_path / "f.jsonl", [{"feature_num": 1}])
    with pytest.raises(RecordError, match="line 1 has no 'explanation'"):
        read(tmp_path / "f.jsonl", FEATURE_ANALYSIS)


def test_lines_that_are_no_objects_or_not_utf8_are_set_aside(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"12\n" + b'{"feature_num": "\xff"}\n' + b"[" * 3000 + b"\n\n" + dump(A).encode() + b"\n")
    found = read(path)
    assert found.records == [A] and [number for number, _ in found.set_aside] == [1, 2, 3]


def test_hostile_text_survives_and_keeps_to_its_line(tmp_path):
    words = "<script>alert(1)</script>\n\u2028$\\unknown$ \x00 “ö” 🙂"
    write(tmp_path / "f.jsonl", [A | {"explanation": words}, B])
    found = read(tmp_path / "f.jsonl")
    assert found.records[0]["explanation"] == words and len(found.records) == 2


def test_verdicts_become_the_published_records(tmp_path):
    verdicts = pd.DataFrame(
        {
            "feature": [0, 1, 2, 3, 4],
            "judge": "keyless",
            "phrase": ["six fingers", "a lake", "", "a cup", None],
            "verdict": ["error", "no_error", "skipped", "refused", "unasked"],
            "category": ["fingers and toes", "", "", "", ""],
            "detail": "six of them: fingers",
        }
    )
    write_records(tmp_path, verdicts, {0: 20, 1: 5})
    names = read(tmp_path / "feature_analysis.jsonl", FEATURE_ANALYSIS).records
    ruled = read(tmp_path / "error_analysis.jsonl", ERROR_ANALYSIS).records
    assert [r["feature_num"] for r in names] == [0, 1, 3] and names[0]["num_samples"] == 20
    assert [r["feature_num"] for r in ruled] == [0, 1]  # skipped, refused and unasked are no verdicts
    assert ruled[0]["error_analysis"] == "fingers and toes: six fingers" and ruled[1]["error_analysis"] == NO_ERROR
    assert tuple(ruled[0]) == ERROR_ANALYSIS and tuple(names[0]) == FEATURE_ANALYSIS
    own = records(verdicts.assign(judge="lmm"), {})[1][0]["error_analysis"]
    assert own == "fingers and toes: six of them: fingers", "a model's errors in its own words"

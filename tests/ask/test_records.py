"""JSONL that was torn, repeated, contradicted or poisoned."""

import json
import multiprocessing

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlib.ask.records import (
    ERROR_ANALYSIS,
    FEATURE_ANALYSIS,
    NO_ERROR,
    Appender,
    RecordError,
    dump,
    error_analysis,
    feature_analysis,
    read,
    write,
)

A = {"feature_num": 1, "explanation": "a hand", "num_samples": 20}
B = {"feature_num": 2, "explanation": "a face", "num_samples": 7}


def test_written_records_read_back(tmp_path):
    write(tmp_path / "f.jsonl", [A, B])
    found = read(tmp_path / "f.jsonl", FEATURE_ANALYSIS)
    assert found.records == [A, B] and found.set_aside == []


def test_torn_last_line_is_set_aside_and_the_next_record_kept(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(dump(A) + "\n" + dump(B)[:25])
    found = read(path)
    assert found.records == [A] and found.set_aside == [(2, dump(B)[:25])]
    with Appender(path) as out:
        out.add(B)
    again = read(path)
    assert again.records == [A, B] and len(again.set_aside) == 1


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), data=st.data())
def test_a_cut_anywhere_loses_at_most_the_last_record(tmp_path_factory, cut, data):
    texts = data.draw(st.lists(st.text(max_size=20), min_size=1, max_size=6))
    records = [{"feature_num": i, "explanation": t} for i, t in enumerate(texts)]
    path = tmp_path_factory.mktemp("cut") / "f.jsonl"
    write(path, records)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with Appender(path) as out:
        out.add({"feature_num": -1, "explanation": "next"})
    found = read(path)
    complete = whole[:cut].count(b"\n")
    assert found.records[:complete] == records[:complete]
    assert found.records[-1]["feature_num"] == -1
    assert len(found.set_aside) <= 1


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


def test_nan_is_refused_when_written_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "f.jsonl", [A | {"num_samples": float("nan")}])
    assert list(tmp_path.iterdir()) == []
    with Appender(tmp_path / "g.jsonl") as out, pytest.raises(ValueError):
        out.add({"x": np.inf})
    assert (tmp_path / "g.jsonl").read_bytes() == b""


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


def _try_to_write(path, queue):
    try:
        Appender(path)
        queue.put("wrote")
    except RecordError as e:
        queue.put(str(e))


def test_second_writer_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "f.jsonl"
    context = multiprocessing.get_context("fork")
    with Appender(path) as out:
        out.add(A)
        with pytest.raises(RecordError, match="another process is writing"):
            Appender(path)
        queue = context.Queue()
        process = context.Process(target=_try_to_write, args=(path, queue))
        process.start()
        assert "another process is writing" in queue.get(timeout=20)
        process.join()
    with Appender(path) as out:
        out.add(B)
    assert read(path).records == [A, B]


def test_verdicts_become_the_published_records():
    verdicts = pd.DataFrame(
        {
            "feature": [0, 1, 2, 3],
            "phrase": ["six fingers", "a lake", "", "a cup"],
            "verdict": ["error", "no_error", "skipped", "refused"],
            "category": ["fingers and toes", "", "", ""],
        }
    )
    names = feature_analysis(verdicts, {0: 20, 1: 5})
    assert [r["feature_num"] for r in names] == [0, 1, 3] and names[0]["num_samples"] == 20
    ruled = error_analysis(verdicts, {0: 20, 1: 5})
    assert [r["feature_num"] for r in ruled] == [0, 1]  # skipped and refused are no verdicts
    assert ruled[0]["error_analysis"] == "fingers and toes: six fingers" and ruled[1]["error_analysis"] == NO_ERROR
    assert tuple(ruled[0]) == ERROR_ANALYSIS and tuple(names[0]) == FEATURE_ANALYSIS

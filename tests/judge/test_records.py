"""The published records: what verdicts become."""

import json

import pandas as pd
import pytest

from mtlib.ask.ledger import dump
from mtlib.judge.records import NO_ERROR, records, write
from mtlib.judge.settings import JudgeConfig

NAMED, RULED = (
    ("feature_num", "explanation", "num_samples"),
    ("feature_num", "commonality", "error_analysis", "num_samples"),
)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_nan_is_refused_when_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"feature_num": 1, "num_samples": float("nan")})


def test_hostile_text_survives_and_keeps_to_its_line(tmp_path):
    words = "<script>alert(1)</script>\n\u2028$\\unknown$ \x00 “ö” 🙂"
    verdicts = pd.DataFrame({"feature": [1, 2], "judge": "keyless", "phrase": [words, "a face"], "verdict": "no_error"})
    write(
        tmp_path / "m",
        verdicts.assign(category="", detail=""),
        pd.DataFrame(columns=["split", "feature"]),
        JudgeConfig(),
    )
    found = read(tmp_path / "m" / "feature_analysis.jsonl")
    assert [r["explanation"] for r in found] == [words, "a face"] and {r["num_samples"] for r in found} == {0}
    assert pd.read_parquet(tmp_path / "m" / "verdicts.parquet")["phrase"].tolist() == [words, "a face"]


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
    top = pd.DataFrame({"feature": [0] * 20 + [1] * 5 + [1], "split": ["val"] * 25 + ["test"]})
    write(tmp_path, verdicts, top, JudgeConfig())
    names = read(tmp_path / "feature_analysis.jsonl")
    ruled = read(tmp_path / "error_analysis.jsonl")
    assert [r["feature_num"] for r in names] == [0, 1, 3] and names[0]["num_samples"] == 20
    assert [r["feature_num"] for r in ruled] == [0, 1]  # skipped, refused and unasked are no verdicts
    assert ruled[0]["error_analysis"] == "fingers and toes: six fingers" and ruled[1]["error_analysis"] == NO_ERROR
    assert tuple(ruled[0]) == RULED and tuple(names[0]) == NAMED
    own = records(verdicts.assign(judge="lmm"), {})[1][0]["error_analysis"]
    assert own == "fingers and toes: six of them: fingers", "a model's errors in its own words"

"""The truth and threshold judges, the tables of all judges, and their figures."""

import numpy as np
import pandas as pd
import pytest

from mtlib.judge import agreement, records, verdicts
from mtlib.judge.verdicts import COLUMNS


def table():
    return pd.DataFrame(
        {
            "feature": range(4),
            "assessed": [True, True, True, False],
            "density": [0.1, 0.2, 0.3, 0.0],
            "error_ratio": [0.97, 0.4, 0.95, 1.0],
            "base_rate": 0.5,
            "error_low": [0.8, 0.3, 0.85, 0.2],
            "is_error": [True, False, False, False],
            "top_cause": ["hand_error", "", "face_error", ""],
            "top_cause_share": [0.9, 0.0, 0.4, 0.0],
        }
    )


def test_truth_and_threshold_judges():
    assert verdicts.by_truth(table())["verdict"].tolist() == ["error", "no_error", "no_error", "skipped"]
    assert verdicts.by_threshold(table())["verdict"].tolist() == ["error", "no_error", "error", "skipped"]
    bare = table().drop(columns=["is_error"]).assign(error_ratio=np.nan)
    assert set(verdicts.by_truth(bare)["detail"]) == {"no truth: these images were not rendered"}
    assert set(verdicts.by_threshold(bare)["detail"]) == {verdicts.NOTHING}
    for frame in (verdicts.by_truth(table()), verdicts.by_threshold(table()), verdicts.by_truth(bare)):
        assert list(frame.columns) == COLUMNS and frame["verdict"].isin(verdicts.VERDICTS).all()


def test_only_first_keeps_the_surest_and_says_why_the_rest_is_skipped():
    said = verdicts.by_threshold(table())
    kept = verdicts.only_first(said, table(), 2)
    assert kept["verdict"].tolist() == ["error", "skipped", "error", "skipped"]
    assert kept["detail"][1] == "beyond max_features = 2"
    assert verdicts.only_first(said, table(), 0) is said


def test_judges_table_scores_against_the_truth_and_keeps_reasons():
    said = {"mt": pd.concat([verdicts.by_truth(table()), verdicts.by_threshold(table())])}
    skipped = pd.DataFrame({"method": ["sae"], "reason": ["no labels"]})
    out = agreement.against_truth(said, {"mt": table()}, {"hand_error": True, "face_error": False}, skipped)
    whole = out.iloc[0]
    assert (whole["judge"], whole["captioned"], whole["n_assessed"]) == ("threshold", "all", 3)
    assert (whole["precision"], whole["recall"]) == (0.5, 1.0) and whole["f1"] == pytest.approx(2 / 3)
    assert set(out["captioned"]) == {"all", "captioned", "uncaptioned"} and "truth" not in set(out["judge"])
    assert out.iloc[-1][["method", "reason"]].tolist() == ["sae", "no labels"] and np.isnan(out.iloc[-1]["f1"])
    mean = agreement.scores_of(out, "threshold")
    assert mean.loc["all", "f1"] == pytest.approx(2 / 3) and mean.loc["all", "n_methods"] == 1
    bare = table().drop(columns=["is_error"])
    lines = agreement.against_truth({"mt": verdicts.by_threshold(bare)}, {"mt": bare}, {}, skipped.head(0))
    assert lines["n_error"].tolist() == [2] and lines["reason"][0] == "no truth to compare with"


def test_tables_beside_the_verdicts():
    said = {"mt": pd.concat([verdicts.by_truth(table()), verdicts.by_threshold(table())])}
    assert verdicts.unruled(said, "threshold").to_numpy().tolist() == [
        ["mt", "fewer than 10 activating test images", 1]
    ]
    named = verdicts.beside({"mt": table()}, said, "truth")
    assert named["feature"].tolist() == [2, 0] and named["phrase"].tolist() == ["face_error", "hand_error"]
    assert {"error_ratio", "is_error", "method"} <= set(named)


def test_confusion_and_counts_add_up():
    said = {"mt": pd.concat([verdicts.by_truth(table()), verdicts.by_threshold(table())])}
    frame = agreement.confusion(said, {"mt": table()}, "threshold")
    assert frame.iloc[0][agreement.CELLS].tolist() == [1, 1, 0, 1]
    assert agreement.confusion(said, {"mt": table()}, "lmm").iloc[0][agreement.CELLS].tolist() == [0, 0, 0, 0]
    counts = verdicts.verdict_counts(said)
    assert (counts.drop(columns=["method", "judge", "n_latents"]).sum(axis=1) == 4).all()


def test_interpretations_are_the_published_table():
    table = {"feature": [0, 1, 2], "mean_activation": [1.0, 3.0, 2.0], "max_activation": [2.0, 5.0, 9.0]}
    features = {"topk": pd.DataFrame(table | {"density": [0.5, 0.25, 0.0]})}
    said = {"feature": [0, 1, 2] * 2, "judge": ["keyless"] * 3 + ["lmm"] * 3, "phrase": list("abc") + ["x", "y", ""]}
    tops = {"topk": pd.DataFrame({"feature": [0, 0, 1, 1], "split": ["val", "val", "val", "test"]})}
    given = (features, {"topk": pd.DataFrame(said)}, tops, "lmm")
    drawn = records.interpretations(*given, {"topk": {0}})
    assert list(drawn) == records.INTERPRETATIONS
    assert drawn.iloc[0].tolist() == [2, 0, "collages/topk/0.jpg", 0.5, 2.0, 2, "x", "topk"]
    bare = records.interpretations(*given, {"topk": set()})
    assert bare["feature_id"].tolist() == [1, 0], "those that fire, the most active first"
    assert bare["collage_path"].tolist() == ["", ""]
    assert list(records.interpretations({}, {}, {}, "lmm", {})) == records.INTERPRETATIONS

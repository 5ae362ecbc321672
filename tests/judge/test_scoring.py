"""Scores of explanations: by hand, and against a server that looks and is right 85% of the time, over real HTTP."""

import numpy as np
import pandas as pd
import pytest

from mtlib.ask.endpoint import Answer
from mtlib.ask.interview import Job, plan_jobs
from mtlib.judge import lmm, scoring
from mtlib.judge.agreement import pairwise
from mtlib.judge.scoring import Trial
from mtlib.judge.settings import JudgeConfig
from mtlib.learn.scores import wilson
from tests.ask.lmm_server import LmmServer
from tests.ask.looking_server import Looker
from tests.judge.planted import interview, planted_data, planted_features

N = 40


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Trials and outcomes of features that fire exactly on what the server sees, and what the server did."""
    folder = tmp_path_factory.mktemp("run")
    data = planted_data(folder, n=200)
    features, tops, fires = planted_features(data, per_value=6)
    jobs, left = plan_jobs(features, tops, n_images=8)
    config = JudgeConfig(score_features=N, score_images=10)
    looker = Looker(data, right=0.85, bar=0.8)
    with LmmServer(looker, keep=False) as server:
        talk = interview(server, data, folder / "l.sqlite")
        judged = lmm.by_model(features, jobs, left, talk)
        rows = data.rows("test")
        own = [j for j in jobs if j.name in judged.explanations]
        firing = fires[np.ix_(rows, [j.feature for j in own])]
        trials = scoring.make_trials(own, judged.explanations, firing, rows, config)
        outcomes = scoring.score(trials, judged.explanations, talk)
        talk.asker.close()
    return data, fires, trials, outcomes, looker, config


def test_held_out_images_are_balanced_unseen_and_right(asked):
    data, fires, trials, *_ = asked
    assert len(trials) == N
    test = set(data.rows("test").tolist())
    for t in trials:
        on = fires[:, t.job.feature]
        assert set(t.rows.tolist()) <= test and len(set(t.rows.tolist())) == 10
        assert (on[t.rows] == t.fires).all() and t.fires.sum() == 5
        assert on[t.lineup].sum() == 4 and not on[t.lineup[t.intruder]]
    assert len({t.intruder for t in trials}) > 2 and len({tuple(t.fires) for t in trials}) > 5


def test_feature_accuracy_is_the_models_and_the_shuffled_control_is_chance(asked):
    *_, outcomes, looker, config = asked
    table = scoring.summary(outcomes, config).set_index("kind")
    assert table["n_features"].tolist() == [N, N, N] and table["n_lost"].sum() == 0
    own, shuffled, intruder = table.loc["detection"], table.loc["shuffled"], table.loc["intruder"]
    assert own["low"] <= 0.85 <= own["high"] and own["high"] - own["low"] < 0.12
    assert abs(shuffled["accuracy"] - 0.5) < 0.06 and shuffled["high"] < own["low"]
    assert intruder["low"] <= 0.85 <= intruder["high"] and intruder["chance"] == 0.2
    detection = outcomes[outcomes["kind"] == "detection"]
    hits = int((detection["hits_on"] + detection["hits_off"]).sum())
    low, high = wilson(hits, 10 * N)
    assert low <= 0.85 <= high
    assert looker.decided["detection"][0] == 2 * 10 * N


def test_outcomes_by_hand():
    fires = np.array([True, False, True, False])
    trial = Trial(Job("m", 3, np.arange(4)), np.arange(4), fires, np.arange(5), 2, "other")
    out = scoring.outcome(trial, "detection", Answer("q", "answered", {"matches": [1, 2]}))
    assert out == {"n_on": 2, "n_off": 2, "hits_on": 1, "hits_off": 1, "accuracy": 0.5}
    assert scoring.outcome(trial, "detection", Answer("q", "answered", {"matches": [1, 3]}))["accuracy"] == 1
    assert scoring.outcome(trial, "detection", Answer("q", "answered", {"matches": []}))["accuracy"] == 0.5
    assert scoring.outcome(trial, "intruder", Answer("q", "answered", {"intruder": 3}))["accuracy"] == 1
    assert scoring.outcome(trial, "intruder", Answer("q", "answered", {"intruder": 2}))["accuracy"] == 0
    assert np.isnan(scoring.outcome(trial, "detection", Answer("q", "refused", reason="no"))["accuracy"])


def test_refused_scores_are_lost_not_wrong():
    scores = pd.DataFrame(
        {"method": "m", "feature": range(4), "kind": "detection", "accuracy": [1.0, 0.5, np.nan, np.nan]}
    )
    line = scoring.summary(scores, JudgeConfig()).iloc[0]
    assert line["n_features"] == 2 and line["n_lost"] == 2 and line["accuracy"] == 0.75
    assert line["low"] == 0 and line["high"] == 1, "two features say next to nothing"
    assert scoring.summary(scores.head(0), JudgeConfig()).empty


def test_control_is_always_another_explanation():
    texts = ["a", "b", "c", "a", "a", "d"]
    others = scoring.control(texts, seed=3)
    assert all(o in texts and o != t for o, t in zip(others, texts, strict=True)) and others == scoring.control(
        texts, seed=3
    )
    assert len(set(others)) >= 3
    assert scoring.control(["a", "a"]) == ["", ""] and scoring.control([]) == [] and scoring.control(["a"]) == [""]


def test_features_with_too_few_held_out_images_are_left_out():
    jobs, rows = [Job("m", f, np.arange(3)) for f in range(4)], np.arange(40)
    fires = np.zeros((40, 4), bool)
    fires[:4, 0], fires[:20, 1], fires[:38, 2], fires[:9, 3] = True, True, True, True
    texts = {j.name: f"text {j.feature}" for j in jobs}
    trials = scoring.make_trials(jobs, texts, fires, rows, JudgeConfig(score_features=10, score_images=10))
    assert [t.job.feature for t in trials] == [1, 3]
    assert len(scoring.make_trials(jobs, texts, fires, rows, JudgeConfig(score_features=1))) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("score_features", -1), ("score_images", 3), ("score_images", 60), ("intruder_images", 2)]
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} = {value}: should be"):
        JudgeConfig(**{name: value})


def test_judges_are_compared_pair_by_pair():
    def said(judge, verdicts):
        return pd.DataFrame({"feature": range(4), "judge": judge, "verdict": verdicts})

    e, n = "error", "no_error"
    frame = pd.concat([said("truth", [e, e, n, n]), said("lmm", [e, n, n, "refused"]), said("keyless", [e, e, n, n])])
    table = pairwise({"m": frame})
    assert [(r.judge, r.reference) for r in table.itertuples()] == [
        ("keyless", "lmm"),
        ("keyless", "truth"),
        ("lmm", "truth"),
    ]
    line = table.iloc[2]
    assert line["n"] == 3 and line["agreement"] == pytest.approx(2 / 3)
    assert line["precision"] == 1 and line["recall"] == 0.5 and line["only_judge"] == 0 and line["only_reference"] == 1
    assert line["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert table.iloc[1]["kappa"] == 1
    two = pairwise({"a": frame, "b": frame})
    assert two["method"].tolist() == ["a"] * 3 + ["b"] * 3 + ["all"] * 3 and two.iloc[-1]["n"] == 6

"""Relevance scores against scipy, one denominator, and the permutation null."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control, fisher_exact
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from mtlib.judge import agreement, verdicts
from mtlib.measure import relevance


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_wilson_equals_scipy(n, share):
    k = round(share * n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(relevance.wilson(k, n), expected, atol=1e-12)


def test_wilson_without_trials_says_nothing():
    low, high = relevance.wilson([0, 3], [0, 4])
    assert (low[0], high[0]) == (0, 1) and 0 < low[1] < 0.75 < high[1] < 1


@settings(max_examples=50, deadline=None)
@given(a=st.integers(0, 20), b=st.integers(0, 20), c=st.integers(0, 60), d=st.integers(0, 60))
def test_fisher_equals_scipy(a, b, c, d):
    got = relevance.fisher_enriched([a], [a + b], a + c, a + b + c + d)[0]
    assert got == pytest.approx(fisher_exact([[a, b], [c, d]], alternative="greater").pvalue, rel=1e-7, abs=1e-12)


def counts():
    return np.array([10, 20, 9, 0, 30]), np.array([10, 40, 9, 0, 30])


def test_error_ratios_hand_computed_and_corrected_over_assessed_features():
    got = relevance.error_ratios(*counts(), n_positive=100, n_rows=200)
    assert got["error_ratio"].tolist()[:3] == [1.0, 0.5, 1.0] and np.isnan(got.loc[3, "error_ratio"])
    assert got["assessed"].tolist() == [True, True, False, False, True]
    assert (got["base_rate"] == 0.5).all()
    p = got.loc[[0, 1, 4], "p_fisher"]
    np.testing.assert_allclose(got.loc[[0, 1, 4], "q_bh"], false_discovery_control(p))
    np.testing.assert_allclose(got.loc[[0, 1, 4], "q_by"], false_discovery_control(p, method="by"))
    assert got.loc[[2, 3], "q_bh"].tolist() == [1, 1]


@pytest.mark.parametrize("bad", [([3], [2], 5, 9), ([3], [4], 2, 9), ([1], [10], 5, 9), ([1], [2], 10, 9)])
def test_error_ratios_refuse_impossible_counts(bad):
    with pytest.raises(ValueError, match="do not fit"):
        relevance.error_ratios(np.array(bad[0]), np.array(bad[1]), bad[2], bad[3])


def table(method="a"):
    features = relevance.error_ratios(*counts(), n_positive=100, n_rows=200).assign(copy_of=[0, 1, 2, 3, 0])
    verdicts = pd.DataFrame({"feature": [0, 1, 4], "judge": "keyless", "verdict": ["error", "no_error", "refused"]})
    return relevance.relevance_table(method, features, verdicts)


def test_relevance_table_has_one_denominator_and_counts_unassessed_as_no():
    got = table().set_index("score")
    assert (got["n_latents"] == 5).all()
    assert got.loc["relevance_threshold", "n_yes"] == 2  # feature 2 has ratio 1 but only nine images
    assert got.loc["relevance_threshold", "share"] == pytest.approx(2 / 5)
    assert got.loc["relevance_threshold", "assessed_rate"] == pytest.approx(3 / 5)
    assert got.loc["relevance_enriched", "n_yes"] == 2
    assert got.loc["relevance_threshold", "n_distinct"] == 1  # the second is a copy of the first
    assert got.loc["relevance_threshold", "share_distinct"] == pytest.approx(1 / 4)
    judge = got.loc["relevance_judge"]
    assert (judge["n_yes"], judge["n_assessed"], judge["n_refused"]) == (1, 2, 1)
    assert (got["low"] <= got["share"]).all() and (got["share"] <= got["high"]).all()


def test_a_judge_without_one_verdict_has_no_share():
    features = relevance.error_ratios(*counts(), n_positive=100, n_rows=200).assign(copy_of=[0, 1, 2, 3, 0])
    said = pd.DataFrame({"feature": range(5), "judge": "lmm", "verdict": ["failed"] * 3 + ["refused", "unasked"]})
    got = relevance.same_denominator(relevance.relevance_table("a", features, said)).set_index("score")
    judge = got.loc["relevance_judge"]
    assert judge[["share", "low", "high", "share_distinct"]].isna().all() and judge["n_failed"] == 3
    assert got.drop(index="relevance_judge")["share"].notna().all()


@pytest.mark.parametrize(("n_error", "n_positive"), [(np.zeros(5, int), 0), (counts()[1], 200)])
def test_test_images_of_one_label_give_no_share(n_error, n_positive):
    features = relevance.error_ratios(n_error, counts()[1], n_positive, 200).assign(copy_of=range(5))
    said = pd.DataFrame({"feature": range(5), "judge": "lmm", "verdict": "error"})
    got = relevance.relevance_table("a", features, said).set_index("score")["share"]
    assert got.drop("relevance_judge").isna().all() and got["relevance_judge"] == 1
    assert set(verdicts.by_threshold(features)["verdict"]) == {"skipped"}


def test_mixed_denominators_are_refused():
    good = table()
    relevance.same_denominator(good)
    bad = good.copy()
    bad.loc[1, "n_latents"] = 3
    with pytest.raises(ValueError, match="a: shares over different denominators"):
        relevance.same_denominator(bad)
    wrong = good.assign(share=good["share"] * 2)
    with pytest.raises(ValueError, match="share"):
        relevance.same_denominator(wrong)
    other = table("b").assign(n_latents=10, share=lambda f: f["n_yes"] / 10)
    with pytest.raises(ValueError, match="different denominators"):
        relevance.same_denominator(pd.concat([good, other]))
    relevance.same_denominator(pd.concat([good, table("b")]))


def null_data(seed, n=400, s=60):
    rng = np.random.default_rng(seed)
    family = rng.integers(0, 4, n)
    return rng.random((n, s)) < 0.15, (rng.random(n) < 0.5).astype(int), family


def test_the_nulls_real_labels_find_what_the_relevance_score_counts():
    active, labels, family = null_data(0)
    active[:, :7] &= (labels == 1)[:, None]
    n_error = (active & (labels[:, None] == 1)).sum(0)
    table = relevance.error_ratios(n_error, active.sum(0), labels.sum(), len(labels))
    found = int((table["q_bh"] <= relevance.LEVEL).sum())
    assert found >= 7 and relevance.permutation_null(active, labels, family)["observed"] == found


def test_permutation_null_rarely_finds_anything_and_sees_a_planted_feature():
    active, labels, family = null_data(1)
    active[:, 0] = (labels == 1) & (family == 2)
    got = relevance.permutation_null(active, labels, family)
    assert got["observed"] >= 1
    assert got["runs_with_discovery"] <= 0.08
    assert got == relevance.permutation_null(active, labels, family)


def test_permuted_labels_keep_every_familys_base_rate():
    _, labels, family = null_data(2)
    got = relevance.permuted_labels(labels, family, 5)
    for f in range(4):
        assert (got[family == f].sum(0) == labels[family == f].sum()).all()
    assert (got[:, 0] != got[:, 1]).any()


def test_permutation_null_refuses_unknown_labels():
    with pytest.raises(ValueError, match="0 or 1"):
        relevance.permutation_null(np.ones((3, 1), bool), np.array([0, 1, -1]), np.zeros(3))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000))
def test_agreement_equals_sklearn(seed):
    rng = np.random.default_rng(seed)
    truth, verdict = rng.random(30) < 0.4, rng.random(30) < 0.5
    truth[0] = verdict[1] = True
    got = agreement.agreement(verdict, truth)
    p, r, f, _ = precision_recall_fscore_support(truth, verdict, average="binary", zero_division=0)
    assert (got["precision"], got["recall"], got["f1"]) == pytest.approx((p, r, f))
    assert got["kappa"] == pytest.approx(cohen_kappa_score(truth, verdict))


def test_judge_table_keeps_captioned_and_uncaptioned_causes_apart():
    truth = pd.DataFrame(
        {"feature": range(4), "is_error": [True, True, False, False], "top_cause": ["a", "b", "a", ""]}
    )
    verdicts = pd.DataFrame(
        {"feature": range(4), "judge": "keyless", "verdict": ["error", "no_error", "no_error", "failed"]}
    )
    got = agreement.judge_table("m", verdicts, truth, {"a": True, "b": False}).set_index("captioned")
    assert got["n_assessed"].tolist() == [3, 2, 2] and (got["n_left_out"] == 1).all()
    assert got.loc["all", "recall"] == 0.5
    assert got.loc["captioned", "recall"] == 1 and got.loc["uncaptioned", "recall"] == 0


def test_judge_table_refuses_features_without_truth():
    verdicts = pd.DataFrame({"feature": [7], "judge": "keyless", "verdict": ["error"]})
    truth = pd.DataFrame({"feature": [0], "is_error": [True], "top_cause": ["a"]})
    with pytest.raises(ValueError, match="without a truth"):
        agreement.judge_table("m", verdicts, truth, {})

"""Fair comparison: matched L0, intervals over seeds, and tables that must not mix."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from mtlib.measure import compare
from mtlib.plots import method_styles

MEASURES = ("l0", "fvu", "mono_score")


def metrics(**changes):
    lines = []
    for method, target, l0 in [("a_8", "x", 8), ("a_32", "x", 32), ("b_8", "x", 8), ("c_8", "y", 8)]:
        for seed in (0, 1, 2):
            line = {"method": method, "seed": seed, "target": target, "l0_target": l0, "status": "ok", "l0": l0 * 1.01}
            line |= {"matched": "matched", "n_latents": 64, "n_parameters": 100, "n_assessed": 16 * (1 + seed)}
            lines.append(line | {"fvu": 0.1 + 0.01 * seed} | changes)
    lines.append({"method": "d", "seed": 0, "target": "y", "status": "skipped", "reason": "made up"})
    return pd.DataFrame(lines)


@pytest.mark.parametrize(
    "l0, target, expected",
    [(32, 32, "matched"), (33.5, 32, "matched"), (34, 32, "unmatched"), (30, 32, "unmatched"), (5, np.nan, "")],
)
def test_matched_is_within_five_percent(l0, target, expected):
    assert compare.matched(l0, target) == expected


def test_base_name_drops_the_l0_only():
    assert compare.base_name("sae_32", 32) == "sae"
    assert compare.base_name("sae_32", 8) == "sae_32"
    assert compare.base_name("matryoshka_sae", 8) == "matryoshka_sae"


def test_seed_interval_equals_scipy_and_says_what_it_is():
    values = np.array([0.2, 0.4, 0.3, 0.5])
    expected = ttest_1samp(values, 0).confidence_interval()
    mean, low, high, kind = compare.seed_interval(values)
    assert (mean, low, high, kind) == (
        pytest.approx(0.35),
        pytest.approx(expected.low),
        pytest.approx(expected.high),
        "t 95%",
    )
    assert compare.seed_interval(np.array([0.5, 0.3])) == (pytest.approx(0.4), 0.3, 0.5, "range")
    one = compare.seed_interval(np.array([0.5, np.nan]))
    assert one[0] == 0.5 and np.isnan(one[1]) and one[3] == ""


def test_comparison_has_a_line_per_method_and_tables_per_target_and_l0():
    table = compare.comparison(metrics(), MEASURES)
    assert table["method"].tolist() == ["a_8", "b_8", "a_32", "c_8"]  # by target, L0, then as given
    assert table["base"].tolist() == ["a", "b", "a", "c"]
    assert (
        (table["n_seeds"] == 3).all() and (table["assessed_rate"] == 0.5).all() and (table["interval"] == "t 95%").all()
    )
    assert (table["fvu_low"] < table["fvu"]).all() and np.allclose(table["fvu"], 0.11)
    parts = compare.fair_tables(table)
    assert {k: p["method"].tolist() for k, p in parts.items()} == {
        ("x", 8): ["a_8", "b_8"],
        ("x", 32): ["a_32"],
        ("y", 8): ["c_8"],
    }


def test_a_method_is_unmatched_when_one_seed_is():
    frame = metrics()
    frame.loc[0, "matched"] = "unmatched"
    assert compare.comparison(frame, MEASURES).set_index("method").loc["a_8", "matched"] == "unmatched"


def test_fair_tables_refuse_methods_of_one_target_and_l0_with_other_denominators():
    frame = metrics()
    frame.loc[frame["method"] == "b_8", "n_latents"] = 128
    with pytest.raises(ValueError, match=r"denominators, n_latents \[64, 128\]"):
        compare.fair_tables(compare.comparison(frame, MEASURES))


def test_nothing_to_compare_is_no_table():
    assert compare.fair_tables(compare.comparison(metrics(status="skipped"), MEASURES)) == {}


def test_mono_pairs_stand_side_by_side_and_say_whether_the_seeds_agree():
    lines = [
        {
            "method": m,
            "target": "x",
            "l0_target": 8,
            "l0": 8.0,
            "l0_low": 8.0,
            "l0_high": 8.0,
            "fvu": f,
            "fvu_low": f - w,
            "fvu_high": f + w,
        }
        for m, f, w in (
            ("a_8", 0.2, 0.01),
            ("a_mono_8", 0.3, 0.01),
            ("b", 0.2, 0.1),
            ("b_mono", 0.25, 0.1),
            ("c", 0.1, 0.1),
        )
    ]
    got = compare.mono_pairs(pd.DataFrame(lines))
    assert got["method"].tolist() == ["a_8", "b"]
    assert got["fvu_off"].tolist() == [0.2, 0.2] and got["fvu_on"].tolist() == [0.3, 0.25]
    assert got["fvu_apart"].tolist() == [True, False]
    assert compare.mono_pairs(pd.DataFrame()).empty


def test_mono_figure_leads_from_without_to_with():
    metrics = pd.DataFrame(
        {
            "method": m,
            "seed": s,
            "target": "x",
            "l0_target": float("nan"),
            "status": "ok",
            "matched": "",
            "fvu": f + s / 100,
        }
        | {"n_latents": 8, "n_parameters": 80, "n_assessed": 8, "explained_variance": 1 - f - s / 100, "l0": 4.0}
        | {"mono_score": g, "mono_score_median": g - 0.1, "mono_score_p90": g + 0.1}
        for m, f, g in (("topk", 0.1, 0.4), ("topk_mono", 0.2, 0.7))
        for s in (0, 1)
    )
    pairs = compare.mono_pairs(compare.comparison(metrics, MEASURES))
    row = pairs.iloc[0]
    assert (row["mono_score_p90_off"], row["mono_score_median_on"]) == pytest.approx((0.5, 0.6))
    fig = compare.mono_figure(pairs, method_styles(pairs["method"]))
    line, hollow, full = fig.axes[0].lines
    assert len(fig.axes) == 1 and list(line.get_xdata()) == pytest.approx([0.895, 0.795])
    assert (hollow.get_ydata()[0], full.get_ydata()[0]) == pytest.approx((0.4, 0.7))

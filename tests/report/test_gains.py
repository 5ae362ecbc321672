"""Ours beside the published method: only where both are there at the same L0, means over seeds."""

import pandas as pd
import pytest

from mtlib.report.gains import OURS, PUBLISHED, gains, section


class Tables:
    """A reader of given tables."""

    def __init__(self, **tables):
        self.tables = tables

    def table(self, name):
        return self.tables.get(f"t{name}", pd.DataFrame())


def tables():
    methods = [(f"{PUBLISHED}_8", PUBLISHED, 8), (f"{OURS}_8", OURS, 8), (f"{OURS}_32", OURS, 32), ("sae_8", "sae", 8)]
    compared = pd.DataFrame(methods, columns=["method", "base", "l0_target"])
    compared = compared.assign(n_seeds=2, l0=8.0, dead_fraction=0.5, logit_change=0.1)
    levels = pd.DataFrame(
        [(m, s, level, 0.4 - 0.1 * level + 0.02 * s) for m, *_ in methods for s in (0, 1) for level in (0, 1)],
        columns=["method", "seed", "level", "fvu"],
    )
    causes = pd.DataFrame(
        [(m, s, c, a, 1.0, 0.9, 0.7 + 0.1 * s) for m, *_ in methods for s in (0, 1) for c, a in (("p", 0.96), ("q", 0.9 + 0.06 * s))],
        columns=["method", "seed", "cause", "auroc", "ceiling", "specific_auroc", "specific_auroc_all"],
    )  # fmt: skip
    return {"t04_comparison": compared, "t04_levels": levels, "t04_causes": causes}


def test_pairs_are_at_one_l0_and_means_are_over_seeds():
    frame = gains(Tables(**tables()))
    assert frame["method"].tolist() == [f"{PUBLISHED}_8", f"{OURS}_8"]  # no 32: the published one is not there
    assert frame["fvu_1"].tolist() == pytest.approx([0.41, 0.41]) and frame["fvu_2"].tolist() == pytest.approx(
        [0.31] * 2
    )
    assert frame["causes_found"].tolist() == [1.5, 1.5]  # one of two with seed 0, both with seed 1
    assert frame["specific_worst"].tolist() == pytest.approx([0.75, 0.75])


def test_nothing_to_compare_is_an_empty_table_and_no_section():
    given = tables()
    given["t04_comparison"] = given["t04_comparison"].iloc[1:]
    without_classifier = {"t04_comparison": given["t04_comparison"].drop(columns="logit_change")}
    assert gains(Tables(**without_classifier)).empty
    assert gains(Tables(**given)).empty and gains(Tables()).empty and section(Tables()) == ""


def test_section_has_both_methods():
    given = tables()
    text = section(Tables(**given, t07_gains=gains(Tables(**given))))
    assert "FVU of level 2" in text and text.count(f"{OURS}_8".replace("_", "\\_")) + text.count(f"{OURS}_8") >= 2

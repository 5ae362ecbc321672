"""The tables of the notebook `truth` over a small finished run with planted causes."""

import numpy as np
import pandas as pd
import pytest

from mtlib.embed import store
from mtlib.plots import method_styles
from mtlib.truth import figures, tables
from mtlib.truth.causes import standings as standings_of
from tests import synthetic
from tests.finished_run import S, open_finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(data, subjects, skipped, classifier) of a run whose coders are untrained."""
    return open_finished(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def known(run):
    return tables.Known.of(run[0])


@pytest.fixture(scope="module")
def codes(run, known):
    return [known.codes(s) for s in run[1][:3]]


@pytest.fixture(scope="module")
def causes(run, known, codes):
    return tables.causes_table(known, run[1][:3], codes, {"hand_error": False})


def test_every_table_has_a_line_per_cause_or_feature_and_coder(run, known, codes, causes):
    subjects = run[1][:3]
    assert len(causes) == 3 * len(synthetic.FAMILIES) and list(causes) == [*tables.CAUSES, "fires_for"]
    assert causes["captioned"].dropna().tolist() == [False] * 3
    assert causes["auroc"].between(0, 1).all() and (causes["ceiling"] > 0.9).all()
    controls = causes.drop_duplicates("cause")
    assert controls[["ap_probe", "ap_random", "ap_x_dim", "ap_y_unit", "ap_logit"]].gt(0).all(axis=None)
    assert (causes["found"] == (causes["ap"] >= 0.9 * causes["ap_probe"])).all()
    sparse = tables.sparse_table(known, subjects, codes, ks=(1, 4))
    assert len(sparse) == 2 * len(causes)
    kinds = tables.attributes_table(known, subjects, codes)
    assert len(kinds) == 3 * S and {"kind", "is_error", "top_cause"} <= set(kinds)
    split = tables.splitting_table(known, subjects, codes, causes, kinds)
    assert len(split) == len(causes) and split["parent"].tolist() == causes["fires_for"].tolist()
    shares = tables.attribute_shares(kinds)
    np.testing.assert_allclose(shares[tables.KINDS].sum(axis=1), 1)
    for figure in (figures.causes_figure(causes), figures.sparse_figure(sparse), figures.attributes_figure(shares)):
        figure.clear()


def found(**seeds) -> pd.DataFrame:
    """04_causes with two causes: method=(score of seed 0, of seed 1, ...), a hundredth more and less; the controls 0.45 to 0.1."""
    controls = {
        "ap_random": 0.45,
        "ap_x_dim": 0.4,
        "ap_y_unit": np.nan,
        "ap_logit": 0.1,
        "ap_probe": 1.0,
        "captioned": True,
    }
    return pd.DataFrame(
        {"cause": c, "method": m, "seed": s, "ap": a + d} | controls
        for m, scores in seeds.items()
        for s, a in enumerate(scores)
        for c, d in (("fingers", 0.01), ("water", -0.01))
    )


def test_methods_are_means_over_seeds_beside_the_controls():
    table = tables.by_method(found(a=(0.92, 0.90), b=(0.80, 0.82)))
    controls = [tables.CONTROLS[c] for c in ("ap_probe", "ap_random", "ap_x_dim", "ap_logit")]
    assert table["who"].tolist() == ["a", "b", *controls] and table["control"].tolist() == [False] * 2 + [True] * 4
    assert table["found"].tolist() == [2, 0, 2, 0, 0, 0]  # a: 0.92 and 0.90 of a probe's 1
    assert table.loc[0, ["mean", "worst", "low", "high"]].tolist() == pytest.approx([0.91, 0.90, 0.90, 0.92])
    assert tables.by_method(pd.DataFrame()).empty and tables.by_cause(found(a=(np.nan,))).empty


def test_the_figure_of_levels_has_a_line_per_method_that_has_several_l0():
    table = found(a_8=(0.9,), a_32=(0.8,), b=(0.7,)).assign(copies=1)
    table["l0_target"] = table["method"].map({"a_8": 8, "a_32": 32, "b": 32})
    standings = standings_of(table)
    fig = figures.levels_figure(standings, table, method_styles(table["method"]))
    (line,) = [line for line in fig.axes[0].lines if line.get_label() == "a"]
    assert line.get_xdata().tolist() == [8, 32] and line.get_ydata().tolist() == pytest.approx([0.9, 0.8])
    one = table[table["method"] == "b"]
    assert figures.levels_figure(standings_of(one), one, {}) is None


def test_a_method_is_best_only_where_its_worst_seed_is_above_every_other_seed():
    def settled(**seeds) -> list[str]:
        table = tables.by_method(found(**seeds))
        return table.loc[table["settled"], "who"].tolist()

    assert settled(a=(0.97, 0.95), b=(0.96, 0.961)) == []
    assert settled(a=(0.97, 0.965), b=(0.96, 0.961)) == ["a"]
    assert settled(a=(0.97,), b=(0.96,)) == []  # one seed settles nothing


def test_no_cause_in_every_split_is_refused(run):
    data = run[0]
    plain = store.Data(**{**vars(data), "truth": data.truth.assign(cause="")})
    with pytest.raises(ValueError, match="no cause has images with it and without it"):
        tables.Known.of(plain)


def test_captioned_causes_read_the_report_card(tmp_path):
    path = tmp_path / "01_encoder.csv"
    assert tables.captioned_causes(path) == {}
    card = {"family": ["all", "hand", "glass"], "cause": ["", "a", "b"], "captioned": ["", True, False]}
    pd.DataFrame(card).to_csv(path)
    assert tables.captioned_causes(path) == {"a": True, "b": False}


def test_steering_follows_the_feature_of_each_cause(run, causes):
    data, subjects, _, classifier = run
    got = tables.steering_table(data, subjects[:3], classifier, causes, factors=(0, 1, 2))
    assert got["method"].drop_duplicates().tolist() == ["matryoshka_transcoder", "transcoder"]  # first seeds, in order
    assert len(got) == 2 * 3 * len(synthetic.FAMILIES)
    assert got.loc[got["scale"] == 1, ["change", "control"]].abs().to_numpy().max() < 1e-5
    wide = got.pivot_table(index=["method", "cause"], columns="scale", values="change")
    np.testing.assert_allclose(wide[0], -wide[2], atol=1e-4)  # linear in y

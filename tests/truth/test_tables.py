"""The tables of the notebook `truth` over a small finished run with planted causes."""

import numpy as np
import pandas as pd
import pytest

from mtlib.embed import store
from mtlib.truth import tables
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
    sparse = tables.sparse_table(known, subjects, codes, ks=(1, 4))
    assert len(sparse) == 2 * len(causes)
    kinds = tables.attributes_table(known, subjects, codes)
    assert len(kinds) == 3 * S and {"kind", "is_error", "top_cause"} <= set(kinds)
    split = tables.splitting_table(known, subjects, codes, causes, kinds)
    assert len(split) == len(causes) and split["parent"].tolist() == causes["fires_for"].tolist()
    shares = tables.attribute_shares(kinds)
    np.testing.assert_allclose(shares[tables.KINDS].sum(axis=1), 1)
    for figure in (tables.causes_figure(causes), tables.sparse_figure(sparse), tables.attributes_figure(shares)):
        figure.clear()


def test_by_method_counts_causes_found_and_averages_over_seeds():
    lines = [dict(method="a", seed=s, cause=c, auroc=v, ceiling=1.0) for s, c, v in [(0, "p", 0.96), (0, "q", 0.5), (1, "p", 1.0), (1, "q", 1.0)]]  # fmt: skip
    row = tables.by_method(pd.DataFrame(lines)).iloc[0]
    assert row[["n_seeds", "causes", "reached", "worst"]].tolist() == [2, 2, 1.5, 0.75]
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([0.865, 0.73, 1.0])


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


def test_steering_follows_the_specific_feature_of_each_cause(run, causes):
    data, subjects, _, classifier = run
    got = tables.steering_table(data, subjects[:3], classifier, causes, factors=(0, 1, 2))
    assert got["method"].drop_duplicates().tolist() == ["matryoshka_transcoder", "transcoder"]  # first seeds, in order
    assert len(got) == 2 * 3 * len(synthetic.FAMILIES)
    assert got.loc[got["scale"] == 1, ["change", "control"]].abs().to_numpy().max() < 1e-5
    wide = got.pivot_table(index=["method", "cause"], columns="scale", values="change")
    np.testing.assert_allclose(wide[0], -wide[2], atol=1e-4)  # linear in y

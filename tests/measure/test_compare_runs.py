"""Notebook 04's tables over a small finished run."""

import numpy as np
import pandas as pd
import pytest

from mtlib.embed import store
from mtlib.embed.manifest import image_classes
from mtlib.measure import codes, compare
from mtlib.measure.monosemanticity import quantiles
from mtlib.measure.reconstruction import definitions
from mtlib.plots import method_styles
from tests import synthetic
from tests.finished_run import open_finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(data, subjects, skipped, classifier) of a run whose coders are untrained."""
    return open_finished(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def scans(run):
    data, subjects, _, classifier = run
    return compare.scan_all(data, subjects, classifier)


def test_metrics_table_has_a_line_per_method_and_seed_and_reasons(run, scans):
    _, subjects, skipped, _ = run
    table = compare.metrics_table(subjects, [s.summary for s in scans], skipped)
    assert len(table) == 7 and not table.duplicated(["method", "seed"]).any()
    assert table["target"].tolist()[:6] == ["x"] * 2 + ["y"] * 4  # one block per target
    assert table.iloc[6][["method", "status", "reason"]].tolist() == ["other", "skipped", "made up"]
    wanted = [
        "fvu",
        "l0",
        "dead_fraction",
        "cknna",
        "mono_score",
        "purity_null",
        "probe_kl",
        "logit_change",
        "stability",
    ]
    assert table.loc[:5, wanted].notna().all().all()


def test_levels_and_progressive_name_their_coder(run, scans):
    subjects = run[1]
    levels = codes.stacked(subjects, [s.levels for s in scans])
    assert list(levels) == ["method", "seed", "target", "l0_target", "level", "n_latents", "fvu", "l0"]
    assert (levels.groupby(["method", "seed"]).size()[["matryoshka_transcoder", "sae"]] == [5, 5, 1, 1]).all()
    assert set(codes.stacked(subjects, [s.progressive for s in scans])["kept"]) == {16, 32, 48}


def test_definitions_cover_each_method_once(run):
    data, subjects, _, _ = run
    card = definitions(data, subjects)
    assert card.groupby("method").size().tolist() == [9, 9, 9]


def test_classes_are_the_names_and_never_the_label(run):
    data = run[0]
    classes, names = image_classes(data.manifest, data.tokens)
    assert names == sorted(synthetic.FAMILIES) and [names[c] for c in classes] == data.manifest["class_name"].tolist()
    for own in ([f"w{i}" for i in range(len(data.manifest))], "", "one"):
        words = data.manifest.assign(class_name=own)
        assert image_classes(words) == (None, [])


def test_a_transcoder_without_y_is_refused(run):
    data, subjects, _, _ = run
    with pytest.raises(ValueError, match="no hidden layer"):
        codes.target_of(store.Data(**{**vars(data), "y": None}), subjects[0])


def test_quantiles_are_of_all_seeds_together():
    latents = pd.DataFrame(
        {"method": "m", "target": "x", "l0_target": 8.0, "seed": [0, 0, 1], "purity": [1.0, 2.0, 4.0]}
    )
    got = quantiles(latents, steps=2)
    np.testing.assert_allclose(got["purity"], [1, 2, 4])


def test_a_sweep_over_l0_gets_a_row_of_panels_per_l0():
    lines = [
        {
            "method": f"{m}_{l0}",
            "seed": s,
            "target": t,
            "l0_target": l0,
            "l0": l0,
            "fvu": 1 / l0,
            "kept": k,
            "status": "ok",
        }
        for m, t in (("a", "x"), ("b", "y"))
        for l0 in (8, 32, 128)
        for s in (0, 1)
        for k in (16, 32)
    ]
    frame, shared = pd.DataFrame(lines), "those without an L0 in their name share a row"
    styles = method_styles(frame["method"])
    assert len(compare.curves(frame, "kept", "kept", styles).axes) == 6
    pareto = compare.fvu_against_l0(frame, styles)
    assert len(pareto.axes) == 2
    assert [len(line.get_xdata()) for line in pareto.axes[0].lines] == [3, 12]  # one line through the three L0
    assert len(compare.curves(frame[frame["l0_target"] == 8], "kept", "kept", styles).axes) == 2
    other = pd.concat([frame, frame.assign(method="a_published", target="x", l0_target=124)])
    assert len(compare.curves(other, "kept", "kept", method_styles(other["method"])).axes) == 8, shared

"""Notebook 04's tables over a small finished run with planted causes."""

import numpy as np
import pandas as pd
import pytest

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import store
from mtlib.learn.classifier import Classifier
from mtlib.measure import figures, study
from mtlib.run.stage import Stage
from mtlib.truth import truth_study
from tests import synthetic

D, HIDDEN, S = 16, 12, 48
METHODS = {"matryoshka_transcoder": "y", "transcoder": "y", "sae": "x"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(data, subjects, skipped, classifier) of a run whose coders are untrained."""
    folder = tmp_path_factory.mktemp("run")
    synthetic.write_embed_stage(folder, 700, D, images=False)
    stage = Stage("02_classify", str(folder))
    classifier = Classifier(D, HIDDEN).eval()
    classifier.save(stage.out / "classifier")
    y, logits = classifier.predict(store.open_data(stage).x)
    store.save_array(stage.out / "y.npy", y)
    store.save_array(stage.out / "logits.npy", logits)
    stage.finish(status="ok", reason="", d_hidden=HIDDEN, n_outputs=1)
    stage = Stage("03_train", str(folder))
    stage.input("02_classify")
    lines = []
    for method, target in METHODS.items():
        for seed in (0, 1):
            config = SparseCoderConfig.preset(method, D, HIDDEN if target == "y" else D, n_latents=S)
            SparseCoder(config, seed).save_pretrained(stage.out / "coders" / f"{method}-s{seed}")
            lines.append(dict(method=method, seed=seed, preset=method, target=target, status="ok", reason=""))
            lines[-1]["folder"] = f"coders/{method}-s{seed}"
    lines.append(lines[0] | {"method": "other", "status": "skipped", "reason": "made up", "folder": ""})
    pd.DataFrame(lines).to_csv(stage.out / "coders.csv", index=False)
    stage.finish()
    stage = Stage("04_evaluate", str(folder))
    return store.open_data(stage), *study.open_subjects(stage.input("03_train")), classifier


@pytest.fixture(scope="module")
def evaluations(run):
    data, subjects, _, classifier = run
    return study.evaluate_all(data, subjects, classifier)


def test_metrics_table_has_a_line_per_method_and_seed_and_reasons(run, evaluations):
    _, subjects, skipped, _ = run
    table = study.metrics_table(subjects, evaluations, skipped)
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


def test_levels_and_progressive_name_their_coder(run, evaluations):
    subjects = run[1]
    levels = study.stacked(subjects, evaluations, "levels")
    assert list(levels) == ["method", "seed", "target", "l0_target", "level", "n_latents", "fvu", "l0"]
    assert (levels.groupby(["method", "seed"]).size()[["matryoshka_transcoder", "sae"]] == [5, 5, 1, 1]).all()
    assert set(study.stacked(subjects, evaluations, "progressive")["kept"]) == {16, 32, 48}


def test_truth_study_has_a_line_per_cause_and_coder(run):
    data, subjects, _, _ = run
    found = truth_study.study_truth(data, subjects[:2], {"hand_error": False})
    assert len(found.causes) == 2 * len(synthetic.FAMILIES) and list(found.causes) == truth_study.CAUSES
    assert found.causes["captioned"].dropna().tolist() == [False] * 2
    assert found.causes["auroc"].between(0, 1).all() and (found.causes["ceiling"] > 0.9).all()
    assert len(found.sparse) == 3 * len(found.causes)
    assert len(found.kinds) == 2 * S and {"kind", "is_error", "top_cause"} <= set(found.kinds)
    for frame in (figures.causes_heatmap(found.causes), figures.kinds_bars(figures.kinds_table(found.kinds))):
        frame.clear()


def test_truth_study_without_causes_is_empty_and_gets_reasons(run):
    data, subjects, skipped, _ = run
    plain = store.Data(**{**vars(data), "truth": data.truth.assign(cause="")})
    assert len(truth_study.study_truth(plain, subjects[:1], {}).causes) == 0
    lines = truth_study.no_causes(subjects, skipped, "nothing to check")
    assert len(lines) == 7 and (lines["reason"] != "").all() and (lines["status"] == "skipped").all()


def test_definitions_cover_each_method_once(run):
    data, subjects, _, _ = run
    card = study.definitions(data, subjects)
    assert card.groupby("method").size().tolist() == [7, 7, 7]


def test_class_index_falls_back_to_the_label_and_says_why_not(run):
    data = run[0]
    rows = data.rows("test")
    assert study.class_index(data, rows)[1] == "class_name"
    words = data.manifest.assign(class_name=[f"w{i}" for i in range(len(data.manifest))])
    assert study.class_index(store.Data(**{**vars(data), "manifest": words}), rows)[1] == "label"
    unknown = words.assign(label=pd.array([pd.NA] * len(words), dtype="Int64"))
    classes, why = study.class_index(store.Data(**{**vars(data), "manifest": unknown}), rows)
    assert classes is None and "nothing to be pure about" in why


def test_a_transcoder_without_y_is_refused(run):
    data, subjects, _, _ = run
    with pytest.raises(ValueError, match="no hidden layer"):
        study.target_of(store.Data(**{**vars(data), "y": None}), subjects[0])


def test_captioned_causes_read_the_report_card(tmp_path):
    path = tmp_path / "01_encoder.csv"
    assert truth_study.captioned_causes(path) == {}
    pd.DataFrame({"family": ["all", "hand", "glass"], "cause": ["", "a", "b"], "captioned": ["", True, False]}).to_csv(
        path
    )
    assert truth_study.captioned_causes(path) == {"a": True, "b": False}


def test_quantiles_are_of_all_seeds_together():
    latents = pd.DataFrame({"method": "m", "target": "x", "l0_target": 8.0, "seed": [0, 0, 1], "v": [1.0, 2.0, 4.0]})
    got = study.quantiles(latents, ["v"], steps=2)
    np.testing.assert_allclose(got["v"], [1, 2, 4])


def test_steering_follows_the_specific_feature_of_each_cause(run):
    data, subjects, _, classifier = run
    causes = truth_study.study_truth(data, subjects[:3], {}).causes
    got = truth_study.steering(data, subjects[:3], classifier, causes, scales=(0, 1, 2))
    assert got["method"].drop_duplicates().tolist() == ["matryoshka_transcoder", "transcoder"]  # first seeds, in order
    assert len(got) == 2 * 3 * len(synthetic.FAMILIES)
    assert got.loc[got["scale"] == 1, ["change", "control"]].abs().to_numpy().max() < 1e-5
    wide = got.pivot_table(index=["method", "cause"], columns="scale", values="change")
    np.testing.assert_allclose(wide[0], -wide[2], atol=1e-4)  # linear in y


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
    frame = pd.DataFrame(lines)
    assert len(figures.curves(frame, "kept", "kept").axes) == 6
    pareto = figures.fvu_against_l0(frame)
    assert len(pareto.axes) == 2
    assert [len(line.get_xdata()) for line in pareto.axes[0].lines] == [3, 12]  # one line through the three L0
    assert len(figures.curves(frame[frame["l0_target"] == 8], "kept", "kept").axes) == 2
    other = pd.concat([frame, frame.assign(method="a_published", target="x", l0_target=124)])
    assert len(figures.curves(other, "kept", "kept").axes) == 8  # those without an L0 in their name share a row

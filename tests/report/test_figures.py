"""Figures draw hostile names as text, and the same data gives the same bytes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mtlib.report import figures
from mtlib.run.stage import Stage
from tests.report.synthetic_run import HOSTILE


@pytest.fixture
def stage(tmp_path):
    return Stage("07_results", str(tmp_path / "run"))


def test_relevance_bars_draw_hostile_method_names(stage):
    line = {"score": "relevance_judge", "judge": HOSTILE, "share": 0.5, "low": 0.4, "high": 0.6}
    frame = pd.DataFrame([line | {"method": HOSTILE}, line | {"method": "sae"}])
    stage.figure(figures.relevance_bars(frame), "relevance_scores", frame)
    assert (
        Image.open(stage.out / "figures/07_relevance_scores.png").width > 200
        and (stage.out / "tables/07_relevance_scores.csv").is_file()
    )


def test_generator_figures_draw_hostile_names(stage):
    rates = pd.DataFrame({"generator": [HOSTILE, "b"], "raw_rate": [0.2, 0.3], "corrected_rate": [0.1, 0.3]})
    rates = rates.assign(low=0.05, high=0.4, true_rate=[0.1, 0.2])
    stage.figure(figures.generator_rates(rates), "generators", rates)
    firing = pd.DataFrame({"generator": ["a", HOSTILE] * 2, "feature": [3, 3, 7, 7], "rate": [0.1, 0.2, 0.0, 1.0]})
    stage.figure(figures.generator_heatmap(firing.assign(phrase=HOSTILE)), "generator_features", firing)


def test_labelled_images_show_known_and_predicted(stage):
    said = {"feature_num": 1, "activation": 2.0, "explanation": HOSTILE, "verdict": "error", "wrong_count": 3}
    said |= {"total_count": 4, "logit_push": 1.5}
    said = {"probability": 0.9, "predicted": "implausible", "explanations": [said]}
    none = {"probability": None, "predicted": "", "explanations": []}
    image = Image.new("RGB", (20, 20))
    fig = figures.labelled_images([("a.png", HOSTILE, image, said), ("b.png", "", image, none)])
    texts = [t.get_text() for ax in fig.axes for t in [*ax.texts, ax.title]]
    assert any("90% implausible" in t for t in texts) and any("3 of 4" in t for t in texts)
    assert any("no feature fires" in t for t in texts)
    said["explanations"][0]["precision"] = 0.98
    texts = [t.get_text() for ax in figures.labelled_images([("a.png", "", image, said)]).axes for t in ax.texts]
    assert any("right on 98% of the validation images this strong" in t for t in texts)
    stage.figure(fig, "labels", pd.DataFrame())


def test_a_flagged_image_shows_each_error_once_in_the_order_of_the_table():
    names = ["legs", "fingers", "fingers", "shadow", "fingers"]
    found = [dict(feature_num=i, activation=9.0 - i, explanation=e, verdict="error") for i, e in enumerate(names)]
    said = {"probability": 0.9, "predicted": "implausible", "explanations": [d | {"logit_push": -1.0} for d in found]}
    fig = figures.labelled_images([("a.png", "fingers", Image.new("RGB", (20, 20)), said)])
    shown = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert [t.split("error: ")[1] for t in shown] == ["legs", "fingers", "shadow"]
    assert shown[1].startswith("8 ")  # the strongest of a name


def test_save_is_deterministic_and_shrinks_large_pictures(stage):
    def draw() -> Figure:
        fig = Figure(figsize=(5, 5))
        fig.subplots().imshow(np.random.default_rng(0).random((400, 400, 3)))
        return fig

    path = stage.out / "figures/07_noise.png"
    stage.figure(draw(), "noise", pd.DataFrame({"a": [1 / 3]}))
    data, table = path.read_bytes(), (stage.out / "tables/07_noise.csv").read_bytes()
    assert Image.open(path).mode == "P" and table == b"a\n0.333333\n"
    stage.figure(draw(), "noise", pd.DataFrame({"a": [1 / 3]}))
    assert path.read_bytes() == data


def test_figures_of_nothing_are_none():
    assert figures.generator_heatmap(pd.DataFrame()) is None and figures.labelled_images([]) is None

"""Figures of few and of many methods: nothing is cut or hidden, and a method looks the same in all of them."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.colors import to_hex
from PIL import Image

from mtlib import plots
from mtlib.learn import methods as trained
from mtlib.learn import scores
from mtlib.measure import compare
from mtlib.run.stage import Stage
from mtlib.truth import figures as truth

MANY = [f"matryoshka_transcoder_variant{'abcdefghijklmnopqrstuvwxy'[i]}" for i in range(25)]
CAUSES = ("hand_fingers", "water_reflection")


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield
    plt.close("all")


def lines(methods: list[str], **columns) -> pd.DataFrame:
    """A row per method, seed and combination of the columns' values, with every number the figures need."""
    rows = [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]
    both = [
        {"method": m, "seed": s, "target": "x", "status": "ok"} | row for m in methods for s in (0, 1) for row in rows
    ]
    frame = pd.DataFrame(both)
    values = np.random.default_rng(0).random(len(frame)) * 0.3 + 0.5
    return frame.assign(
        fvu=values / 20, l0=32 + values, dead=values, auroc=values, mono_score=values, share_of_ceiling=values
    )


def training(methods, styles=None):
    return trained.training_curves(lines(methods, step=[50, 100, 150], split=["val"]), styles)[0]


def progressive(methods, styles=None):
    return compare.curves(
        lines(methods, kept=[16, 32, 64]), "kept", "codes kept", styles or plots.method_styles(methods)
    )


def quantiles(methods, styles=None):
    frame = lines(methods, quantile=[0, 0.5, 1])
    return compare.distributions(frame, {"mono_score": 0.1}, styles or plots.method_styles(methods))


def probing(methods, styles=None):
    return truth.sparse_figure(lines(methods, k=[1, 4, 16], cause=CAUSES), styles)


def pareto(methods, styles=None):
    return compare.fvu_against_l0(lines(methods), styles or plots.method_styles(methods))


def test_a_name_that_ends_in_two_numbers_loses_only_its_l0():
    frame = lines(["near_20_8", "near_20_32"])
    frame["l0_target"] = frame["method"].str.rsplit("_", n=1).str[-1].astype(int)
    fig = compare.fvu_against_l0(frame, plots.method_styles(frame["method"]))
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["near_20"]


WITH_KEY = pytest.mark.parametrize("draw", [training, progressive, quantiles, probing, pareto])


@WITH_KEY
@pytest.mark.parametrize("n", [1, 4, 10, 25])
def test_key_names_every_method_beside_the_panels(draw, n):
    fig = draw(MANY[:n])
    fig.canvas.draw()
    (key,) = fig.legends
    assert {t.get_text() for t in key.get_texts()} - {"chance"} == set(MANY[:n])
    assert not any(key.get_window_extent().overlaps(ax.get_tightbbox()) for ax in fig.axes)
    key, whole = key.get_window_extent(), fig.bbox
    assert whole.x0 <= key.x0 and key.x1 <= whole.x1 and whole.y0 <= key.y0 + 1 and key.y1 <= whole.y1 + 1


@WITH_KEY
def test_no_two_of_many_methods_look_alike(draw):
    handles = draw(MANY).legends[0].legend_handles
    looks = {(to_hex(h.get_color()), h.get_marker(), h.get_linestyle()) for h in handles if h.get_label() != "chance"}
    assert len(looks) == len(MANY)


@WITH_KEY
def test_a_method_looks_the_same_whatever_else_is_shown(draw):
    styles = plots.method_styles(MANY)
    handles = draw([MANY[7], MANY[3]], styles).legends[0].legend_handles
    colours = {h.get_label(): (to_hex(h.get_color()), h.get_marker()) for h in handles if h.get_label() != "chance"}
    assert colours == {m: (to_hex(styles[m]["color"]), styles[m]["marker"]) for m in (MANY[3], MANY[7])}


def test_a_sweep_has_one_colour_and_a_line_per_l0():
    styles = plots.method_styles(["sae_8", "topk_8", "sae_32", "topk_32"])
    assert {styles[m]["color"] for m in ("sae", "sae_8", "sae_32")} == {plots.PALETTE[0]}
    assert styles["topk"]["color"] == plots.PALETTE[1] and styles["sae_8"]["linestyle"] != styles["sae_32"]["linestyle"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 25])
def test_facets_have_their_key_clear_of_the_panels(n):
    frame = pd.DataFrame({"method": MANY[:n] * 4, "x": range(4 * n), "y": 1.0, "odd": np.arange(4 * n) % 2 > 0})
    grid = plots.facets(sns.relplot, frame, x="x", y="y", hue="odd", col="method", height=2.8, aspect=1.2)
    grid.refline(y=0.5).figure.canvas.draw()
    assert [ax.get_title() for ax in grid.axes.flat] == MANY[:n]
    key = grid.legend.get_window_extent()
    assert not any(key.overlaps(ax.get_tightbbox()) for ax in grid.axes.flat)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", [sns.relplot, sns.displot, sns.catplot])
@pytest.mark.parametrize("n", [0, 2])
def test_facets_of_nothing_are_empty_axes(plot, n):
    frame = pd.DataFrame({"method": ["a", "b"][:n], "x": [np.nan] * n, "y": [1.0] * n})
    grid = plots.facets(plot, frame, x="x", hue=frame["y"], col="method", aspect=2).set_titles("{col_name}")
    grid.map(plt.plot, "x", "y").refline(x=0).set_axis_labels("a", "b").set(yscale="symlog").figure.canvas.draw()
    assert not grid.axes[0, 0].lines


def of_causes(methods):
    controls = dict(ap_random=0.5, ap_x_dim=0.4, ap_y_unit=np.nan, ap_logit=0.1, ap_probe=1.0)
    return lines(methods, cause=CAUSES).assign(ap=0.9, captioned=True, **controls)


@pytest.mark.parametrize("n", [1, 4, 25])
def test_saved_figures_are_not_cut(tmp_path, n):
    stage = Stage("04_evaluate", str(tmp_path / "run"))
    shares = pd.DataFrame({"method": MANY[:n]} | {k: 0.2 for k in truth.KINDS})
    causes = of_causes(MANY[:n])
    drawn = {"kinds": truth.attributes_figure(shares), "causes": truth.causes_figure(causes)}
    drawn |= {"curves": training(MANY[:n])}
    for name, fig in drawn.items():
        stage.figure(fig, name, shares)
        image = np.asarray(Image.open(stage.out / "figures" / f"04_{name}.png").convert("L"))
        edges = [image[:4], image[-4:], image[:, :4], image[:, -4:]]
        assert min(edge.min() for edge in edges) > 240, f"{name}: ink at the edge"


def test_without_a_figure_the_numbers_are_saved(tmp_path):
    stage = Stage("04_evaluate", str(tmp_path / "run"))
    stage.figure(None, "fvu_l0", pd.DataFrame({"fvu": [0.5]}))
    assert (stage.out / "tables" / "04_fvu_l0.csv").read_text() == "fvu\n0.5\n" and not list(stage.out.rglob("*.png"))


def test_heatmap_says_over_how_many_seeds_it_is_a_mean():
    causes = of_causes(MANY[:2])
    assert "mean over 2 seeds" in truth.causes_figure(causes).axes[0].get_title()
    assert "seeds" not in truth.causes_figure(causes[causes["seed"] == 0]).axes[0].get_title()


def test_loss_has_whole_epochs_and_readable_names():
    fig = scores.loss(pd.DataFrame({"epoch": [1, 2, 3], "train_loss": 0.5, "val_loss": 0.6}))
    fig.canvas.draw()
    assert all(float(t.get_text().replace("−", "-")).is_integer() for t in fig.axes[0].get_xticklabels())
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["train", "validation"]


def test_image_grid_places_images_texts_and_strips_line_by_line():
    red, blue = Image.new("L", (4, 4), 9), Image.new("RGB", (4, 4), "blue")
    fig = plots.image_grid(
        [[red, blue], [blue]],
        names=["a_b", "$c"],
        heads=["one", "two"],
        captions=[["x", "y"], ["z"]],
        strips=[["C1", None], ["C2"]],
    )
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 0]
    assert [ax.get_xlabel() for ax in fig.axes] == ["x", "y", "z", ""]
    assert [ax.spines["bottom"].get_visible() for ax in fig.axes] == [True, False, True, False]
    assert [ax.get_ylabel() for ax in fig.axes] == ["a_b", "", "$c", ""] and fig.axes[1].get_title() == "two"


NAMES = ["NA", "null", "nan", "_background_", "\u732b", "\U0001f436 dog", "01", "1", "\u00e9", "$x$"]


@pytest.mark.filterwarnings("error::UserWarning")  # a glyph that is missing, a name that a legend leaves out
def test_every_class_stands_in_the_legend_under_a_name_that_can_be_drawn(monkeypatch):
    monkeypatch.setattr(
        plots, "_font_with", lambda c: "" if c in "\u00e9\u200a" else None
    )  # a machine without such fonts
    points = pd.DataFrame({"x": range(60), "y": range(60), "group": NAMES * 6, "label": "images"})
    fig = plots.scatter(points, "x", "y", "group", "label")
    plots.png(fig)
    shown = [t.get_text().strip() for t in fig.axes[0].get_legend().get_texts()]
    assert sorted(shown) == sorted([*NAMES[:4], r"\u732b", r"\U0001f436 dog", *NAMES[6:]])


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_name_is_drawn_in_a_font_that_has_it_on_every_axis():
    inside = sorted(plots._characters(plots.font_manager.findfont("STIXNonUnicode")))
    rare = next(chr(c) for c in inside if c > 127 and plots._font_with(chr(c)) not in ("", None))
    fig, _, _, _ = scores.decisions(np.arange(3), np.eye(3), [rare, "\uffff", "plain"])
    plots.png(fig)
    for labels in (fig.axes[0].get_xticklabels(), fig.axes[0].get_yticklabels()):
        assert [t.get_text() for t in labels] == [rare, r"\uffff", "plain"]
        assert plots._font_with(rare) in labels[0].get_fontfamily()

import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp

from mtlib.scenes.causes import CAUSE_OF, CAUSES
from mtlib.scenes.dataset import (
    BOX,
    FAMILIES,
    GENERATORS,
    SCENES_PER_SEED,
    Spec,
    nuisance_of,
    plan,
    render,
    write_dataset,
)
from mtlib.scenes.families_physics import stack_margins


def hashes(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}


def pixels(spec, size=128):
    return np.asarray(render(spec, size)[0], int)


def test_same_arguments_write_the_same_bytes_whatever_workers(written, tmp_path):
    folder, truth = written
    again = write_dataset(tmp_path, 36, seed=3, size=64, n_per_generator=20, workers=2)
    assert hashes(folder) == hashes(tmp_path)
    pd.testing.assert_frame_equal(truth, again)


def test_truth_matches_folders(written):
    folder, truth = written
    assert set(hashes(folder)) == set(truth.path)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "truth.parquet"), truth)
    assert truth.scene.is_unique
    labelled = truth[truth.generator == ""]
    top = labelled.path.str.split("/").str[0]
    assert ((top == "human_error") == (labelled.label == 1)).all()
    assert (labelled.path.str.split("/").str[1] == labelled.family).all()
    assert ((truth.cause != "") == (truth.label == 1)).all()
    assert (truth[truth.label == 1].cause == truth[truth.label == 1].family.map(CAUSE_OF)).all()
    made = truth[truth.generator != ""]
    assert (made.path.str.split("/").str[1] == made.generator).all()
    with Image.open(folder / truth.path[0]) as image:
        assert image.size == (64, 64) and image.mode == "RGB"


def test_families_are_balanced_and_half_are_errors():
    table = pd.DataFrame([(s.family, s.error) for _, s, g in plan(1800, 1, 0)], columns=["family", "error"])
    assert (table.groupby(["family", "error"]).size() == 100).all()


def test_generators_meet_their_failure_rates():
    table = pd.DataFrame([(g, s.error) for _, s, g in plan(0, 1, 400)], columns=["generator", "error"])
    rates = table.groupby("generator").error.mean()
    assert rates.to_dict() == pytest.approx(GENERATORS, abs=0.5 / 400)


def test_seeds_share_no_scene():
    a, b = ({s.scene for _, s, _ in plan(500, seed, 50)} for seed in (1, 2))
    assert len(a) == 700 and not a & b
    assert min(b) >= 2 * SCENES_PER_SEED > max(a)


@pytest.mark.parametrize("family", FAMILIES)
def test_error_is_independent_of_every_nuisance(family):
    rows = [(s.error, nuisance_of(s)[0]) for _, s, _ in plan(9 * 400, 11, 0) if s.family == family]
    error = np.array([e for e, _ in rows])
    for name in ("background", "palette", "style", "flip"):
        counts = pd.crosstab(error, [getattr(n, name) for _, n in rows])
        assert chi2_contingency(counts).pvalue > 1e-3, name
    for name in ("scale", "position_x", "position_y", "rotation", "noise"):
        values = np.array([getattr(n, name) for _, n in rows])
        if np.ptp(values) > 0:
            assert ks_2samp(values[error], values[~error]).pvalue > 1e-3, name


@pytest.mark.parametrize("family", FAMILIES)
def test_twins_differ_by_the_error_alone(family):
    for scene in range(5):
        (ok, right), (bad, wrong) = render(Spec(scene, family, False)), render(Spec(scene, family, True))
        assert right["nuisance"] == wrong["nuisance"]
        assert right["variant"] != wrong["variant"]
        changed = (np.abs(np.asarray(ok, int) - np.asarray(bad, int)).max(-1) > 30).mean()
        assert 0.01 < changed < 0.6, (scene, changed)


def boxes(truth):
    """(n, 4) int of the implausible pictures."""
    return truth.loc[truth.label == 1, list(BOX)].to_numpy().astype(int)


def test_boxes_hold_every_changed_pixel_of_every_family_and_no_more(written):
    _, truth = written
    wrong = truth[truth.label == 1]
    assert set(wrong.family) == set(FAMILIES)
    assert truth.loc[truth.label == 0, list(BOX)].isna().all(axis=None)
    for (x0, y0, x1, y1), scene, family in zip(boxes(truth), wrong.scene, wrong.family, strict=True):
        changed = (pixels(Spec(scene, family, True), 64) != pixels(Spec(scene, family), 64)).any(-1)
        y, x = np.nonzero(changed)
        assert x0 <= x.min() and y0 <= y.min() and x.max() < x1 and y.max() < y1, (family, scene)
        inside = changed[y0:y1, x0:x1]
        faint = 2  # a difference of one grey level at an edge may be lost when the picture is made smaller
        assert max(x.min() - x0, y.min() - y0, x1 - 1 - x.max(), y1 - 1 - y.max()) <= faint
        assert inside.any() and min(x0, y0) >= 0 and max(x1, y1) <= 64


def test_boxes_are_a_part_of_the_picture(written):
    _, truth = written
    area = pd.Series(np.prod(boxes(truth)[:, 2:] - boxes(truth)[:, :2], axis=1) / 64**2)
    share = area.groupby(truth.loc[truth.label == 1, "cause"].to_numpy()).median()
    print(share.round(3).to_string())
    assert ((share > 0.02) & (share < 0.5)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_render_repeats_exactly_and_views_differ(family):
    assert (pixels(Spec(5, family, True)) == pixels(Spec(5, family, True))).all()
    assert (pixels(Spec(5, family, True)) != pixels(Spec(5, family, True, view=1))).any()


def test_stack_margins_by_hand():
    # two blocks of width 2: shifted by 0.5 the centre of mass is 0.5 inside the contact, shifted by 1.5 it is 0.5 outside
    assert stack_margins([2, 2], [0, 0.5], [1, 1]) == pytest.approx([0.5])
    assert stack_margins([2, 2], [0, 1.5], [1, 1]) == pytest.approx([-0.5])


def test_causes_cover_the_families_and_two_are_uncaptioned():
    assert sorted(c["family"] for c in CAUSES.values()) == sorted(FAMILIES)
    assert sum(not c["captioned"] for c in CAUSES.values()) == 2


@pytest.mark.parametrize("bad", [{"family": "dragon"}, {"scene": -1}, {"view": -1}])
def test_bad_spec_says_what_is_wrong(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Spec(**{"scene": 0, "family": "hand"} | bad)


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="n_scenes = -1"):
        write_dataset(tmp_path, -1, 0)
    with pytest.raises(ValueError, match="workers = 0"):
        write_dataset(tmp_path, 1, 0, workers=0)

"""Which features may label an image, from which activation on, and how right labels are: by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.embed.store import Data
from mtlib.judge import keyless, thresholds
from mtlib.judge.settings import JudgeConfig
from mtlib.run.artifacts import ArtifactError
from tests.judge.test_keyless import planted

EIGHT = JudgeConfig(label_precision=0.8, label_images=2)


def coder(codes):
    """Says the given codes (N, S) of the rows 0 .. N-1, whose x is their number."""
    z = torch.tensor(np.asarray(codes, np.float32))
    return SimpleNamespace(W_dec=z.T, encode=lambda x: z[x[:, 0].long()])


def labelled(labels, kind="plausibility"):
    """Val images with these labels (None: unknown), without a vocabulary."""
    n = len(labels)
    manifest = pd.DataFrame({"split": ["val"] * n, "duplicate_of": "", "label": pd.array(labels, dtype="Int64")})
    x, none = np.arange(n, dtype=np.float32)[:, None], np.zeros((0, 1), np.float32)
    return Data(x, manifest, none, pd.DataFrame(), {"labels": kind})


NO_TOP = pd.DataFrame(columns=["feature", "rank", "row", "activation", "split"])


def chosen(activations, labels, config=EIGHT):
    """The line of the one feature that has these activations."""
    codes = np.asarray(activations, float)[:, None]
    return thresholds.of_val(coder(codes), NO_TOP, labelled(labels), config).iloc[0]


def test_threshold_is_the_lowest_from_which_enough_images_are_right():
    z = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    labels = [1, 1, 1, 1, 0, 1, 1, 0, 0] + [0] * 11
    line = chosen(z, labels)
    assert (line["n_val"], line["n_error_val"], line["base_rate_val"]) == (9, 6, 0.3)
    assert line["enriched"] and line["error_low_val"] > 0.3
    assert line["threshold"] == 2.5 and line["n_above"] == 7 and line["precision"] == pytest.approx(6 / 7)
    strict = chosen(z, labels, JudgeConfig(label_precision=1.0, label_images=2))
    assert strict["threshold"] == 5.5 and strict["n_above"] == 4 and strict["precision"] == 1
    assert np.isnan(chosen(z, labels, JudgeConfig(label_precision=1.0, label_images=5))["threshold"])


def test_equal_activations_are_never_split():
    z, labels = [5, 5, 5, 5, 5, 2] + [0] * 14, [1, 1, 1, 1] + [0] * 16
    line = chosen(z, labels)
    assert line["threshold"] == 3.5 and line["n_above"] == 5 and line["precision"] == 0.8
    assert np.isnan(chosen(z, labels, JudgeConfig(label_precision=0.9, label_images=2))["threshold"])


def test_a_feature_that_is_not_enriched_never_labels():
    """Its three strongest images are implausible, but over all on which it fires it says nothing."""
    line = chosen(range(20, 0, -1), [1, 1, 1] + [0, 1] * 8 + [0], EIGHT)
    assert not line["enriched"] and np.isnan(line["threshold"]) and line["n_above"] == 0


def test_images_without_a_label_are_left_out_and_without_any_nothing_is_chosen():
    with_unknown = chosen([9, 8, 7, 6, 5, 0, 0, 0, 0], [1, None, 1, 1, 1, 0, 0, 0, 0])
    assert with_unknown["n_val"] == 4 and with_unknown["precision"] == 1
    for data in (labelled([None] * 4), labelled([0, 1, 0, 1], "classes")):
        found = thresholds.of_val(coder(np.ones((4, 1))), NO_TOP, data, EIGHT)
        assert list(found.columns) == thresholds.COLUMNS and found.empty


def test_an_implausible_image_of_another_family_is_not_right():
    """Feature 0 fires on the hand's errors, and more weakly on the face's; by labels alone both would be right."""
    data, f, label = planted()
    wrong = (label == 1).astype(np.float32)
    strong = np.linspace(1, 2, len(f), dtype=np.float32)
    codes = (wrong * strong * ((f == 0) * 10 + (f == 1)))[:, None]
    rows = data.rows("val")
    top = rows[np.argsort(-codes[rows, 0])][:20]
    top = pd.DataFrame({"feature": 0, "rank": range(20), "row": top, "activation": codes[top, 0], "split": "val"})
    fake = SimpleNamespace(W_dec=torch.zeros(1, 2), encode=None)
    place = {row.tobytes(): z for row, z in zip(np.asarray(data.x), codes, strict=True)}
    fake.encode = lambda x: torch.tensor(np.stack([place[row.numpy().tobytes()] for row in x]))
    line = thresholds.of_val(fake, top, data, JudgeConfig()).iloc[0]
    assert line["threshold"] > 2 and line["precision"] == 1  # the face's are all at 2 or below
    said = keyless.by_text(
        pd.DataFrame({"feature": [0], "assessed": [True]}),
        top,
        data,
        val=thresholds.of_val(fake, top, data, JudgeConfig()),
    )
    assert said["verdict"][0] == "error" and said["phrase"][0].startswith("error hand")


def test_only_specific_errors_may_label_and_where_nothing_is_ruled_all_specific_features():
    known = pd.DataFrame({"feature": range(4), "threshold": [1.0, np.nan, 2.0, 3.0], "precision": 0.9})
    verdicts = pd.DataFrame({"feature": range(4), "verdict": ["error", "error", "no_error", "skipped"]})
    assert thresholds.usable(known, verdicts).index.tolist() == [0]
    assert thresholds.usable(known, verdicts.assign(verdict="skipped")).index.tolist() == [0, 2, 3]


def test_scores_by_hand():
    truth = np.array(["a", "a", "b", "", ""])
    on = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    found = thresholds.scores(on, ["a", "b", "a"], truth)
    assert found["n_labels"] == 4 and (found["n_implausible"], found["n_plausible"]) == (3, 2)
    assert found["precision"] == 3 / 4  # image 0 twice, image 2; image 1 carries only b
    assert found["precision_once"] == 2 / 3  # image 0 once
    assert found["recall"] == 2 / 3 and found["plausible_without_error_label"] == 1 / 2
    assert found["precision_low"] < 3 / 4 < found["precision_high"]
    none = thresholds.scores(on & False, ["a", "b", "a"], truth)
    assert np.isnan(none["precision"]) and none["recall"] == 0 and none["plausible_without_error_label"] == 1
    assert thresholds.scores(on[:, :0], [], truth)["n_labels"] == 0


def test_without_a_feature_the_classifier_and_the_family_by_text_are_scored_alike():
    data, f, label = planted()
    cause = np.where(label == 1, np.array(["hand_error", "face_error", "glass_error"])[f], "")
    told = replace(data, truth=pd.DataFrame({"cause": cause}), logits=np.where(label == 1, 1.0, -1.0))
    line = thresholds.without_features(told).iloc[0]
    assert line[thresholds.SCORES].tolist() == [1, 1, 1, 1] and line["n_labels"] == line["n_implausible"]
    assert thresholds.without_features(replace(told, phrases=data.phrases.head(0))).empty


def test_a_run_of_an_earlier_version_is_told_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match=r"thresholds\.parquet is missing: .* run it again with --from 06"):
        thresholds.read(tmp_path)


def test_labels_dealt_out_anew_let_hardly_any_feature_label():
    rng = np.random.default_rng(0)
    codes = rng.random((400, 200)) * (rng.random((400, 200)) < 0.1)
    codes[:200, :100] += 0.5 * (codes[:200, :100] > 0)  # half of the features know the first 200 images
    real = np.repeat([1, 0], 200)
    codes[200:, :100] *= rng.random((200, 100)) < 0.05
    found = thresholds.of_val(coder(codes), NO_TOP, labelled(list(real)), JudgeConfig())["threshold"].notna()
    assert found[:100].all() and found[100:].mean() < 0.05
    dealt = thresholds.of_val(coder(codes), NO_TOP, labelled(list(rng.permutation(real))), JudgeConfig())
    assert dealt["threshold"].notna().mean() < 0.05

"""The classifier: formula, accuracy, seeds, calibration, files; its scores against hand-worked cases and sklearn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mtlib.embed.store import Data
from mtlib.learn.classifier import Classifier, calibrate_temperature, fit_classifier, learnable, targets
from mtlib.learn.config import ClassifierConfig
from mtlib.learn.scores import (
    auroc_interval,
    folds,
    probabilities,
    reliability,
    scores,
)
from tests.synthetic import table

CONFIG = ClassifierConfig(d_hidden=32, epochs=10, classifier_batch=32, classifier_lr=5e-3)


@pytest.fixture(scope="module")
def data():
    x, manifest, _ = table(1200, 32)
    labels, _ = targets(manifest, "plausibility")
    split = manifest["split"].to_numpy()
    return x, labels, *(np.flatnonzero((split == name) & (labels >= 0)) for name in ("train", "val", "test")), manifest


@pytest.fixture(scope="module")
def fitted(data):
    return fit_classifier(data[0], data[1], data[2], data[3], CONFIG)


def test_head_learns_planted_errors(data, fitted):
    x, labels, _, _, test, _ = data
    _, logits = fitted[0].predict(x, test)
    whole = scores(labels[test], logits).iloc[0]
    assert whole["accuracy"] > 0.95 and whole["auroc"] > 0.98 and whole["ece"] < 0.05
    assert whole["accuracy_low"] < whole["accuracy"] <= whole["accuracy_high"]


def test_logit_is_the_hidden_layer_times_w_logit(data, fitted):
    model, x = fitted[0], torch.from_numpy(data[0])
    with torch.no_grad():
        y = model.hidden(x)
        expected = ((x - model.x_mean) / model.x_scale) @ model.hidden_layer.weight.T + model.hidden_layer.bias
        torch.testing.assert_close(y, expected.relu())
        torch.testing.assert_close(model(x), y @ model.w_logit + model.b_logit)
    assert (y >= 0).all() and model.w_logit.shape == (32,)


def test_same_seed_same_weights(data, fitted):
    again, _ = fit_classifier(data[0], data[1], data[2], data[3], CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), fitted[0].parameters(), strict=True))


def test_best_epoch_is_kept(data, fitted):
    x, labels, _, val, _, _ = data
    model, history = fitted
    with torch.no_grad():
        logits, target = model(torch.from_numpy(x[val])), torch.from_numpy(labels[val]).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert float(loss) <= history["val_loss"].min() + 1e-6  # the temperature can only lower it


def test_classes_use_one_logit_each(data, tmp_path):
    x, _, train, val, _, manifest = data
    labels, names = targets(manifest, "classes")
    model, _ = fit_classifier(x, labels, train, val, CONFIG)
    y, logits = model.predict(x)
    assert names == ["blocks", "face", "glass", "hand"] and logits.shape == (len(x), 4)
    assert (logits.argmax(1) == labels).mean() > 0.95
    np.testing.assert_allclose(y @ model.w_logit.detach().numpy() + model.b_logit.detach().numpy(), logits, atol=1e-4)


def test_save_and_load_round_trip_and_wrong_width(fitted, data, tmp_path):
    fitted[0].save(tmp_path, note="kept")
    again = Classifier.load(tmp_path)
    for a, b in zip(again.predict(data[0]), fitted[0].predict(data[0]), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match=r"\(2, 5\), expected \(B, 32\)"):
        again(torch.zeros(2, 5))


def test_temperature_undoes_overconfidence():
    model = Classifier(1, 4)
    x = torch.linspace(-3, 3, 400)[:, None]
    with torch.no_grad():
        target = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(model(x))).long()
        model.output_layer.weight *= 5
        model.output_layer.bias *= 5
    assert calibrate_temperature(model, x, target) == pytest.approx(5, rel=0.5)


@pytest.mark.parametrize(
    ("change", "field"),
    [(dict(classifier_lr=0.0), "classifier_lr"), (dict(epochs=0), "epochs"), (dict(dropout=1.0), "dropout")],
)
def test_bad_settings_name_the_field(change, field):
    with pytest.raises(ValueError, match=field):
        ClassifierConfig(**change)


def test_targets_of_labels_of_classes_and_of_neither():
    manifest = pd.DataFrame({"label": pd.array([1, None, 0], dtype="Int64"), "class_name": ["b", "a", ""]})
    assert targets(manifest, "plausibility")[0].tolist() == [1, -1, 0]
    labels, names = targets(manifest, "classes")
    assert labels.tolist() == [1, 0, -1] and names == ["a", "b"]
    nothing, names = targets(manifest, "none")
    assert names == [] and (nothing == -1).all()


@pytest.mark.parametrize(
    ("labels", "splits", "found"),
    [
        ([1, 0, 1, 0], ["train", "train", "val", "test"], ["targets", "few"]),
        ([1, 1, 1, 0], ["train", "train", "val", "test"], []),  # one class to learn from
        ([1, 0, 1, 0], ["train", "train", "test", "test"], []),  # nothing to choose the epoch by
        ([1, 0, None, 0], ["train", "train", "val", "test"], []),
        ([1, 0, 0, 0], ["train", "train", "val", "test"], ["targets"]),  # no folds with a label of one image
        ([1, 0, 1, 0] * 500, ["train", "train", "val", "test"] * 500, ["targets"]),
    ],
)
def test_targets_can_be_learned_from_two_classes_in_every_split(labels, splits, found):
    manifest = pd.DataFrame({"label": pd.array(labels, dtype="Int64"), "class_name": "", "duplicate_of": ""})
    manifest["group"] = [f"g{i}" for i in range(len(labels))]
    nothing = np.zeros((len(labels), 2), np.float32)
    data = Data(nothing, manifest.assign(split=splits), nothing, pd.DataFrame(), {"labels": "plausibility"})
    assert learnable(data) == found
    tokens = {"labels": "plausibility", "tokens_per_image": 4}
    assert learnable(replace(data, facts=tokens)) == []


def test_auroc_equals_sklearn_and_its_interval_covers():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.4
    score = np.round(rng.normal(size=300) + positive, 1)  # with ties
    area, low, high = auroc_interval(score, positive)
    assert area == pytest.approx(roc_auc_score(positive, score)) and low < area < high
    true, inside = 0.7602, 0  # Phi(1 / sqrt 2)
    for _ in range(200):
        positive = rng.random(150) < 0.5
        _, low, high = auroc_interval(rng.normal(size=150) + positive, positive)
        inside += low <= true <= high
    assert inside >= 180
    assert np.isnan(auroc_interval(np.ones(3), np.ones(3, bool))[0])


FEW = [(1, 300), (300, 1), (1, 1)]


@pytest.mark.parametrize(("m", "n"), FEW)
def test_one_positive_or_negative_gives_no_interval(m, n):
    score, positive = np.random.default_rng(0).normal(size=m + n), np.arange(m + n) < m
    area, low, high = auroc_interval(score, positive)
    assert 0 <= area <= 1 and np.isnan(low) and np.isnan(high)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 3), (2, 300), (300, 2), (1000, 1000)])
def test_perfect_separation_is_never_certain(m, n):
    area, low, high = auroc_interval(np.arange(m + n, dtype=float), np.arange(m + n) >= n)
    assert area == high == 1 and low < 1 - 0.5 / (m + n)
    mirrored = auroc_interval(-np.arange(m + n, dtype=float), np.arange(m + n) >= n)
    assert mirrored[:2] == (0, 0) and mirrored[2] > 0.5 / (m + n)


@pytest.mark.parametrize("few", [2, 3, 5, 10])
def test_interval_of_few_positives_holds_the_truth(few):
    """300 negatives N(0, 1), positives N(1, 1): at least 90% of 300 repeats, either way round."""
    true, inside = norm.cdf(1 / np.sqrt(2)), np.zeros(2)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        score = np.r_[rng.normal(size=300), rng.normal(1, 1, size=few)]
        for k, (s, positive) in enumerate(((score, np.arange(300 + few) >= 300), (-score, np.arange(300 + few) < 300))):
            _, low, high = auroc_interval(s, positive)
            inside[k] += low <= true <= high
    assert (inside >= 0.9 * 300).all(), inside


def test_folds_that_agree_are_no_certainty():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    x = (rng.normal(size=(40, 4)) + 20 * labels[:, None]).astype(np.float32)
    mean = folds(x, labels, np.arange(40).astype(str), CONFIG).iloc[-1]
    assert mean["auroc"] == 1 and mean["auroc_low"] < 1 and mean["accuracy"] == 1 and mean["accuracy_low"] < 0.95


def test_the_commonest_label_alone_is_right_in_its_share():
    found = scores(np.array([0, 0, 0, 1]), np.full(4, -1.0), np.array(["a", "a", "b", "b"]))
    assert found["accuracy"].tolist() == found["commonest"].tolist() == [0.75, 1, 0.5]


def test_calibration_error_and_reliability_by_hand():
    every = np.full(40, np.log(3))  # a probability of 0.75; in each bin of 4 every second image is positive
    assert scores(np.tile([1, 1, 0, 0], 10), every)["ece"].tolist() == pytest.approx([0.25])
    frame = reliability(np.linspace(0, 1, 20), np.arange(20) >= 10)
    assert frame["observed"].tolist() == [0.0] * 5 + [1.0] * 5 and frame["n"].tolist() == [2] * 10
    assert frame["predicted"].iloc[0] == pytest.approx(0.5 / 19)
    np.testing.assert_allclose(probabilities(np.array([0.0])), [[0.5, 0.5]])


def test_scores_by_group_count_each_group():
    frame = scores(np.array([0, 1, 1, 0]), np.array([-1.0, 1.0, -1.0, -2.0]), np.array(["a", "a", "b", "b"]))
    assert frame["group"].tolist() == ["all", "a", "b"] and frame["accuracy"].tolist() == [0.75, 1.0, 0.5]


def test_folds_test_every_row_once_and_keep_groups_whole(data):
    x, labels, *_ = data
    small = np.flatnonzero(labels >= 0)[:150]
    groups = np.array([f"g{i // 3}" for i in range(150)])
    frame = folds(x[small], labels[small], groups, CONFIG)
    assert frame["fold"].tolist() == ["1", "2", "3", "4", "5", "mean"] and frame["n"].iloc[-1] == 150
    last = frame.iloc[-1]
    assert 0 <= last["accuracy_low"] <= last["accuracy"] <= last["accuracy_high"] <= 1


def test_classifier_refuses_a_single_class(data):
    with pytest.raises(ValueError, match="two classes"):
        fit_classifier(data[0], np.ones(len(data[0]), int), data[2], data[3], CONFIG)

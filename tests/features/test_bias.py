"""Bias planted on purpose: found where it is, and nowhere else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import store
from mtlib.features import bias
from mtlib.learn.classifier import Classifier
from tests import synthetic

D = 12


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(data, coder, classifier): direction 0 says "hat", direction 1 "scarf"; the logit leans on the hat alone."""
    folder = synthetic.write_embed_stage(tmp_path_factory.mktemp("run"), 900, D, images=False)
    data = store.load_data(folder)
    rng = np.random.default_rng(0)
    has = rng.integers(0, 2, size=(len(data.x), 2))
    x = rng.normal(size=(len(data.x), D)).astype(np.float32) * 0.1
    x[:, :2] = 3 * has
    label = rng.integers(0, 2, len(x))
    x[:, 2] = 4 * label - 2
    manifest = data.manifest.assign(label=label, hat=np.array(["no", "yes"])[has[:, 0]], scarf=has[:, 1])
    classifier = Classifier(D, 4).eval()
    with torch.no_grad():
        for p in classifier.parameters():
            p.zero_()
        classifier.hidden_layer.weight[0, 0], classifier.hidden_layer.weight[1, 2] = 1.0, 1.0  # hat; the label
        classifier.output_layer.weight.copy_(torch.tensor([[1.0, 2.0, 0, 0]]))
        classifier.output_layer.bias.fill_(-2.0)
        logits = classifier(torch.from_numpy(x)).numpy()
    coder = SparseCoder(SparseCoderConfig(d_in=D, d_out=D, n_latents=4, selection="none", penalty="none"))
    with torch.no_grad():
        coder.enc.zero_(), coder.dec[0].zero_(), coder.enc_bias.fill_(-0.5)
        for j in range(4):
            coder.enc[j, j] = coder.dec[0][j, j] = 1.0
    facts = data.facts | {"labels": "plausibility"}
    return replace(data, x=x, manifest=manifest, truth=None, logits=logits, facts=facts), coder.eval(), classifier


def test_attributes_are_the_users_columns(planted):
    data, _, _ = planted
    table = bias.attributes(data)
    assert list(table.columns) == ["hat", "scarf"]
    bare = replace(data, manifest=data.manifest.drop(columns=["hat", "scarf"]))
    assert bias.attributes(bare).empty


def test_wrong_decisions_follow_the_planted_attribute_only(planted):
    data, _, _ = planted
    frame = bias.disparities(data, bias.attributes(data)).set_index("attribute")
    assert frame.loc["hat", "value"] == "yes" and frame.loc["hat", "low"] > 0.3
    assert frame.loc["scarf", "low"] < 0 < frame.loc["scarf", "high"]
    assert frame.loc["hat", "false_alarms_with"] > 0.9 > 0.1 > frame.loc["hat", "false_alarms_without"]


def test_turning_the_concept_turns_decisions_and_a_random_direction_hardly(planted):
    data, coder, classifier = planted
    frame = bias.concept_effects(data, bias.attributes(data), coder, classifier)
    hat, scarf = (frame[frame["attribute"] == a].set_index("scale") for a in ("hat", "scarf"))
    assert set(hat["feature"]) == {0} and set(scarf["feature"]) == {1} and (frame["auroc"] > 0.99).all()
    assert hat.loc[0.0, "flipped"] > 0.3 and hat.loc[0.0, "change"] == pytest.approx(-2.5, abs=0.05)
    assert hat.loc[0.0, "flipped"] > 2 * hat.loc[0.0, "flipped_control"]
    assert (scarf["flipped"] == 0).all() and (scarf["change"].abs() < 1e-6).all()


def test_newcombe_is_the_published_example():
    low, high = bias.newcombe(56, 70, 48, 80)  # Newcombe 1998, table II, (a)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    wilson = binomtest(48, 80).proportion_ci(method="wilson")
    assert wilson.low < 0.6 < wilson.high


def test_rare_values_are_left_out(planted):
    data, coder, classifier = planted
    rare = np.where(np.arange(len(data.x)) < 5, "odd", "plain")
    table = pd.DataFrame({"rare": rare})
    wrong, effects = bias.disparities(data, table), bias.concept_effects(data, table, coder, classifier)
    assert wrong.empty and effects.empty
    bias.figure(wrong).canvas.draw()  # an empty figure, no error

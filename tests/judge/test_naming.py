"""Before a word names a feature it is measured whether words mean anything on these images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.embed import store
from mtlib.embed.encoders import Encoder
from mtlib.judge.keyless import by_text
from mtlib.judge.text_space import naming
from mtlib.scenes import clip_path
from tests.embed.test_sources import embed_folder
from tests.synthetic import write_embed_stage

SHAPE = json.loads((clip_path() / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]


@pytest.fixture(scope="module")
def tower():
    return Encoder.load("demo")


def never():
    raise AssertionError("the run's own images tell enough")


def card(share: float, n: int = 400, classes: int = 4) -> pd.DataFrame:
    lines = [("all", share, n)] + [(str(c), share, n // classes) for c in range(classes)]
    return pd.DataFrame(lines, columns=["family", "zero_shot_family", "n_test"])


def test_names_need_a_nearest_text_that_is_right_more_often_than_chance(tmp_path):
    data = store.load_data(write_embed_stage(tmp_path, n=300, images=False))
    assert naming(data, card(0.6), never).names == ""
    by_chance = naming(data, card(0.26), never)
    assert by_chance.names == "own images whose nearest text is right: 26% of 400" == by_chance.errors
    assert by_chance.measured.iloc[0][["low", "passed"]].tolist() == [pytest.approx(0.219, abs=0.001), False]


def test_an_error_phrase_needs_labels_that_go_with_it(tmp_path):
    data = store.load_data(write_embed_stage(tmp_path, n=900, images=False))
    label, words = data.labels(), data.vocabulary.copy()
    for i, phrase in enumerate(data.phrases.itertuples()):
        if phrase.family:  # a family's phrases are where its images are, on either side
            here = (data.manifest["class_name"] == phrase.family).to_numpy() & (label == (phrase.kind == "error"))
            words[i] = data.x[here].mean(axis=0)
    found = naming(replace(data, vocabulary=words), card(0.6), never)
    assert found[:2] == ("", "") and found.measured.iloc[-1]["low"] > 0.6
    shuffled = data.manifest.assign(label=np.random.default_rng(0).permutation(data.manifest["label"]))
    found = naming(replace(data, vocabulary=words, manifest=shuffled), card(0.6), never)
    assert found.names == "" and found.errors.startswith(
        "error phrases tell implausible images from plausible ones: AUROC"
    )


def test_without_own_labels_known_drawings_tell_a_text_tower_from_random_weights(tower, tmp_path):
    data = store.load_data(write_embed_stage(tmp_path, n=300, images=False))
    facts = data.facts | {"source": "images", "labels": "none", "encoder": {"name": "ViT-B-32"}}
    data, nothing = replace(data, facts=facts), pd.DataFrame({"family": []})
    assert naming(data, nothing, lambda: tower).names == ""
    torch.manual_seed(0)
    blind = replace(tower, model=type(tower.model)(**SHAPE).eval())
    found = naming(data, nothing, lambda: blind)
    assert "drawings of known things whose nearest text is right" in found.names


def test_photographs_get_no_names_from_the_encoder_of_drawings(tower, tmp_path, shared_data):
    data = embed_folder(tower, shared_data("phyvib"), tmp_path)
    found = naming(data, pd.DataFrame({"family": []}), lambda: tower)
    assert "unlike the drawings that the bundled encoder has seen" in found.names
    features = pd.DataFrame({"feature": [0], "assessed": [True]})
    top = pd.DataFrame({"feature": 0, "split": "val", "rank": range(8), "row": range(8), "activation": 1.0})
    said = by_text(features, top, data, unnamed=found[:2]).iloc[0]
    assert (said["phrase"], said["verdict"]) == ("", "skipped") and said["detail"].startswith("not named: ")

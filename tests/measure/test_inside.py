"""Coders inside the bundled encoder's forward pass: nothing is lost by the identity, and a blind one names all alike."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtlib.embed import sources, store
from mtlib.embed.encoders import Encoder
from mtlib.measure.codes import Subject
from mtlib.measure.zero_shot import inside_encoder, zero_shot_task

SHAPE = dict(config=SimpleNamespace(d_in=128, d_out=128, target="x"), W_dec=torch.eye(128))
IDENTITY = SimpleNamespace(**SHAPE, encode=lambda x: x, decode=lambda z, *_: z)
NOTHING = SimpleNamespace(**SHAPE, encode=torch.zeros_like, decode=lambda z, *_: z)
SUBJECTS = [Subject("identity", 0, "", "x", IDENTITY), Subject("nothing", 0, "", "x", NOTHING)]
SUBJECTS += [Subject("transcoder", 0, "", "y", None)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Scenes read at an inner layer, as notebook 01 does it, and their encoder."""
    out = tmp_path_factory.mktemp("run")
    encoder = Encoder.load("demo", device="cpu", layer="trunk.level4", tokens="patches")
    config = sources.EmbedConfig(n_scenes=72, n_per_generator=0, workers=1)
    truth = sources.render_scenes(config, out)
    _, facts = sources.from_images(config, encoder, out / "images", out, truth)
    return store.load_parts(out, facts), encoder


def summaries():
    return [{} for _ in SUBJECTS]


def test_identity_loses_nothing_and_nothing_names_every_image_alike(run):
    data, encoder = run
    task, why = zero_shot_task(data)
    assert why == "" and data.tokens == 16
    measured = summaries()
    frame, left = inside_encoder(data, SUBJECTS, measured, task, lambda: encoder)
    assert left == [] and list(frame["method"]) == ["identity", "nothing"] and set(frame["tokens"]) == {"patches"}
    assert (frame["n"] == len(data.rows("test")) // 16).all()
    same, blind = frame.iloc[0], frame.iloc[1]
    assert same["zero_shot_drop"] == 0 and same["zero_shot_top1"] == same["zero_shot_top1_spliced"] > 0.8
    counts = np.bincount(task.truth[data.rows("test")])
    assert round(blind["zero_shot_top1_spliced"] * counts.sum()) in counts, "all images get the same name"
    assert measured[1]["zero_shot_drop"] == blind["zero_shot_drop"] and measured[2] == {}


def test_other_images_are_read_like_the_runs_own(run, tmp_path):
    data, encoder = run
    rows = np.arange(0, len(data.x), 16)
    family = data.truth["family"].to_numpy(str)
    for row in rows[np.isin(family[rows], ["hand", "face"])]:
        (tmp_path / "others" / family[row]).mkdir(parents=True, exist_ok=True)
        shutil.copy(data.images(row), tmp_path / "others" / family[row])
    given = (["others", "pictures"], tmp_path / "scratch", tmp_path)
    (tmp_path / "pictures").mkdir()
    shutil.copy(data.images(0), tmp_path / "pictures")
    frame, left = inside_encoder(data, SUBJECTS, summaries(), None, lambda: encoder, *given, n=10)
    assert list(frame["images"]) == ["others", "others"] and set(frame["n"]) == {10}
    assert frame["zero_shot_drop"].iloc[0] == 0
    assert left == ["pictures: no row's name is a word of the vocabulary"]


def test_what_cannot_be_put_back_is_said(run):
    data, _ = run
    mean = store.Data(**{**vars(data), "facts": data.facts | {"encoder": data.facts["encoder"] | {"tokens": "mean"}}})
    assert zero_shot_task(mean) == (None, "x holds the mean of a layer's tokens, which cannot be put back")
    vision = store.Data(**{**vars(data), "facts": data.facts | {"encoder": {"layer": ""}}})
    assert "no text tower" in zero_shot_task(vision)[1]

"""Tokens as rows: every row knows its image, and features count images by their strongest token."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mtlib.embed import sources, store
from mtlib.embed.encoders import Encoder
from mtlib.embed.sources import EmbedConfig
from mtlib.learn.classifier import learnable
from mtlib.measure.codes import fire_together
from mtlib.measure.probes import encoder_card
from mtlib.measure.scan import activity
from mtlib.run.artifacts import ArtifactError

T = 16


@pytest.fixture(scope="module")
def data(tiny_name, tmp_path_factory):
    """Two classes of noisy 32 x 32 images, the tokens of the tiny encoder's block as rows."""
    tmp = tmp_path_factory.mktemp("tokens")
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 128, (32, 32, 3), dtype=np.uint8) + np.uint8(100 * (i % 2))
        path = tmp / "in" / ("dark", "light")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    encoder = Encoder.load(tiny_name, device="cpu", layer="0", tokens="patches")
    _, facts = sources.from_images(
        EmbedConfig(images="in", encoder="demo", batch_size=8), encoder, tmp / "in", tmp / "out"
    )
    return store.load_parts(tmp / "out", facts)


def test_every_row_stands_beside_its_image(data):
    assert (
        data.tokens == T and data.x.shape == (20 * T, 32) and data.facts["n_rows"] == 320 and len(data.manifest) == 320
    )
    assert (data.manifest["row"].to_numpy(int) == np.arange(320) // T).all()
    assert data.images(T).name == data.manifest["path"].iloc[2 * T - 1].split("/")[1]
    rows = data.rows("train")
    assert len(rows) % T == 0 and (rows.reshape(-1, T) == rows[::T, None] + np.arange(T)).all()
    assert data.embedding.shape == (320, 24) and data.vocabulary.shape == (len(data.phrases), 24)
    assert np.array_equal(data.embedding[5 * T], data.embedding[6 * T - 1])


def test_per_image_is_the_mean_over_tokens(data):
    one = data.per_image()
    assert one.tokens == 1 and np.allclose(one.x, np.asarray(data.x).reshape(20, T, 32).mean(axis=1), atol=1e-6)
    assert one.per_image() is one and one.manifest["path"].is_unique and one.embedding.shape == (20, 24)
    tower = SimpleNamespace(tokenizer=str, encode_texts=lambda texts: np.eye(24)[: len(texts)])
    table = encoder_card(one, lambda: tower)
    assert table["n_test"].iloc[0] == len(one.rows("test")) and table["zero_shot_family"].notna().any()


def test_files_and_rows_that_do_not_fit_are_refused(data, tmp_path):
    store.save_array(tmp_path / "x.npy", np.zeros((2 * T - 1, 4), np.float32))
    frame = pd.DataFrame({"status": ["ok", "ok"], "row": pd.array([0, 1], dtype="Int64")})
    with pytest.raises(ArtifactError, match=r"x\.npy has 31, 16 for each image"):
        store.write_manifest(tmp_path, frame, T)
    store.save_array(tmp_path / "x.npy", np.zeros((2 * T, 4), np.float32))
    store.write_manifest(tmp_path, frame, T)


class Identity:
    """A coder whose codes are its inputs."""

    W_dec = torch.eye(32)

    def encode(self, x):
        return x.clamp_min(0)


def test_scan_counts_images_by_their_strongest_token(data):
    rows, codes = data.rows("all"), np.maximum(np.asarray(data.x).reshape(20, T, 32).max(axis=1), 0)
    labels = (data.manifest["class_name"] == "light").to_numpy(int)
    for batch in (T, 50, 1024):
        found = activity(Identity(), data.x, rows, top_n=3, labels=labels, batch=batch, tokens=T)
        frame = found.frame()
        assert found.n_images == 20 and np.array_equal(frame["n_active"], (codes > 0).sum(axis=0))
        assert np.array_equal(frame["n_error"], (codes[labels[::T] == 1] > 0).sum(axis=0))
        assert np.allclose(frame["max_activation"], codes.max(axis=0)) and np.allclose(found.total, codes.sum(axis=0))
        assert np.array_equal(found.top.result()[0][:, 0], T * codes.argmax(axis=0))
        assert np.array_equal(found.histogram.counts.sum(axis=1), frame["n_active"])
        together = fire_together(Identity(), data.x, rows, T, batch)
        assert np.array_equal(together.diagonal(), frame["n_active"])


def test_no_classifier_is_trained_on_tokens(data):
    assert learnable(data.per_image()) == ["targets", "few"] and learnable(data) == []

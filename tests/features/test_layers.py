"""Every layer of a tower in one pass: the model's own numbers, the published statistics, a probe and a coder."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mtlib.embed.encoders import Encoder
from mtlib.features import layers as by_layer

SIDE, N = 16, 80


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    tower = open_clip.transformer.VisionTransformer(SIDE, 8, width=32, layers=3, heads=2, mlp_ratio=2.0, output_dim=24)
    given = dict(name="small", pretrained="", tokenizer=None, device=torch.device("cpu"), d_out=24, fingerprint="")
    return Encoder(model=tower.eval(), preprocess=to_tensor, shape=(3, SIDE, SIDE), **given)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """N images, half of them dark."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 128, (SIDE, SIDE, 3)) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    rows = {"train": np.arange(0, 60), "val": np.arange(60, N)}
    return SimpleNamespace(images=lambda row: Path(folder, f"{row}.png"), rows=rows.__getitem__, tokens=1)


def test_every_block_is_read_at_its_class_token(encoder, data):
    layers = by_layer.find_layers(encoder, [])
    rows, _ = by_layer.sampled(data, N)
    found = by_layer.read_layers(encoder, layers, data, rows)
    pixels = torch.stack([to_tensor(Image.open(data.images(i))) for i in rows])
    with torch.no_grad():
        wanted = encoder.model.forward_intermediates(
            pixels, indices=[0, 1, 2], output_fmt="NLC", output_extra_tokens=True, normalize_intermediates=False
        )["image_intermediates_prefix"]
    assert list(found) == [f"transformer.resblocks.{i}" for i in range(3)]
    for x, own in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(x, own[:, 0], rtol=1e-4, atol=1e-5)
    mean = by_layer.find_layers(encoder, ["1"], "mean")["1"]
    assert mean.tokens == "mean" and by_layer.read_layers(encoder, {"1": mean}, data, rows[:3])["1"].shape == (3, 32)


def test_statistics_equal_their_definitions():
    x = np.random.default_rng(0).normal(size=(9, 5)) * 1e-2
    got, unit = by_layer.statistics(x), x / np.linalg.norm(x, axis=1, keepdims=True)
    assert got["distance"] == pytest.approx(
        1 - np.mean([unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j])
    )
    assert got["mean_abs"] == pytest.approx(np.abs(x).mean()) and got["active"] == (np.abs(x) > 1e-3).mean()
    assert got["std"] == pytest.approx(torch.from_numpy(x).std().item())
    assert by_layer.statistics(np.ones((4, 3)))["distance"] == pytest.approx(0)


def test_a_line_per_layer_with_a_probe_and_a_coder(encoder, data, tmp_path):
    rows, val = by_layer.sampled(data, 70)
    assert len(rows) == 70 and val.sum() == (rows >= 60).sum() > 0
    found = by_layer.read_layers(encoder, by_layer.find_layers(encoder, ["0", "2"]), data, rows)
    train = dict(steps=60, lr=1e-2, batch=32, epochs=1, val_every=20)
    answers = {"class": rows % 2, "none": None}
    card = by_layer.layer_card(found, val, answers, "topk", dict(n_latents=64, k=4), train, tmp_path)
    assert card["layer"].tolist() == ["0", "2"] and (card["d"] == 32).all()
    assert (card["probe_class"] > 0.9).all() and card["probe_none"].isna().all()
    assert (card["l0"] <= 4).all() and (card["fvu"] < 1).all()

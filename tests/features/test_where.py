"""Where a feature fires: shares by hand, occlusion and layer maps of small real towers, and a planted feature of a vision transformer."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from mtlib.embed.encoders import Encoder
from mtlib.embed.store import Data
from mtlib.features import where
from tests.features.standins import LinearCoder

SIDE = 32


def encoder(tower, preprocess=None, d_out=1) -> Encoder:
    """An encoder of a tower; what it sees is the image as it is."""
    plain = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    given = dict(name="small", pretrained="", tokenizer=None, device=torch.device("cpu"), fingerprint="", d_out=d_out)
    return Encoder(
        model=tower.eval().requires_grad_(False), preprocess=preprocess or plain, shape=(3, SIDE, SIDE), **given
    )


class TopLeft(nn.Module):
    """x (B, 1): how red the top left quarter of what it sees is."""

    def forward(self, pixels):
        high, wide = (n // 2 for n in pixels.shape[2:])
        return pixels[:, 0, :high, :wide].mean((1, 2))[:, None]


def red(box, size=(SIDE, SIDE)):
    image = Image.new("RGB", size, "black")
    image.paste((255, 0, 0), box)
    return image


def test_share_inside_by_hand():
    maps = np.zeros((4, 2, 4))
    maps[0, 0] = [4, 3, 0, 0]  # both strongest in the box
    maps[1, 0] = [4, 0, 3, 0]  # one of two
    maps[2, 1] = 1  # the box holds no cell's centre
    boxes = np.array([[0, 0, 20, 10], [0, 0, 20, 10], [0, 0, 4, 4], [0, 0, 40, 20]])  # maps[3] is the same everywhere
    share, chance = where.share_inside(maps, boxes, np.full((4, 2), (40, 20)))
    assert share[:2].tolist() == [1, 0.5] and np.isnan(share[2:]).all()
    assert chance.tolist() == [0.25, 0.25, 0, 1]


def test_occlusion_finds_the_part_that_the_feature_needs():
    coder = LinearCoder([[1.0]], [[1.0]])
    (found,) = where.occlusion_maps(encoder(TopLeft()), coder, 0, [red((8, 8, 16, 16))], grid=4)
    assert np.unravel_index(found.argmax(), (4, 4)) == (1, 1)
    others = found[[0, 0, 1], [0, 1, 0]]
    assert (others < 0).all() and found[1, 1] == pytest.approx(0.25 * (1 - 16 / 255)), "the mean colour is a little red"
    assert np.abs(found[2:]).max() < 1e-6 and np.abs(found[:, 2:]).max() < 1e-6, "the coder does not see the rest"
    (black,) = where.occlusion_maps(encoder(TopLeft()), coder, 0, [red((8, 8, 16, 16))], 4, fill="black")
    assert black[1, 1] == pytest.approx(0.25) and black.sum() == pytest.approx(0.25)


def test_cells_lie_on_the_image_also_where_the_encoder_crops_it():
    crop = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    image = red((64, 0, 128, 64), (192, 64))  # three squares; the encoder sees the middle one, which is red
    (found,) = where.occlusion_maps(encoder(TopLeft(), crop), LinearCoder([[1.0]], [[1.0]]), 0, [image], 6, "black")
    others = np.abs(np.concatenate([found[:, [0, 1, 4, 5]].ravel(), found[3:].ravel()]))
    assert found[:3, 2].min() > 0.1 and others.max() < 0.02, found


def test_layer_map_is_exact_where_what_follows_is_linear():
    torch.manual_seed(0)
    parts = dict(
        layer1=nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU()), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()
    )
    tower = nn.Sequential(OrderedDict(parts))
    small = encoder(tower, d_out=4)
    weight = torch.rand(4, 1)  # positive: nothing is cut off
    layer, images = small.find_layer("layer1", "patches"), [red((8, 8, 20, 24)), red((0, 0, 30, 9))]
    maps = where.layer_maps(small, LinearCoder(weight, [[1.0]]), 0, images, layer)
    assert maps.shape == (2, 8, 8)
    z = small.encode_images(images) @ weight.numpy()
    np.testing.assert_allclose(maps.sum((1, 2)), z[:, 0], rtol=1e-4)


def test_layer_of_a_convolutional_tower_is_chosen_and_none_of_a_transformer():
    torch.manual_seed(0)
    net = encoder(timm.create_model("resnet10t", num_classes=0), d_out=512)
    net = Encoder(**vars(net) | {"shape": (3, 128, 128)})
    assert where.map_layer(net).grid == (8, 8), "the last one with 8 x 8 places"
    vit = open_clip.transformer.VisionTransformer(SIDE, 8, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=24)
    assert where.map_layer(encoder(vit, d_out=24)) is None


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Patch tokens of a random vision transformer for noisy images, half of them with a disc; data, coder of the disc, boxes."""
    torch.manual_seed(0)
    folder, rng, side, n = tmp_path_factory.mktemp("planted"), np.random.default_rng(0), 64, 80
    tower = open_clip.transformer.VisionTransformer(side, 8, width=48, layers=2, heads=4, mlp_ratio=2.0, output_dim=24)
    whole = encoder(tower, d_out=24)
    small = Encoder(**vars(whole) | {"shape": (3, side, side)})
    small = Encoder(**vars(small) | {"layer": small.find_layer("1", "patches"), "layer_name": "1"})
    images, boxes = [], np.full((n, 4), np.nan)
    for i in range(n):
        pixels = rng.integers(90, 160, (side, side, 3)).astype(np.uint8)
        if i % 2:
            x, y = 8 * rng.integers(0, 6, 2)
            pixels[y : y + 16, x : x + 16] = (250, 40, 20)
            boxes[i] = x, y, x + 16, y + 16
        images.append(Image.fromarray(pixels))
        images[-1].save(folder / f"{i}.png")
    x = small.encode_layer(images)  # (n, 64, 48)
    marked = where.covered(boxes, (8, 8), np.full((n, 2), side)).reshape(n, 64)
    train = np.arange(n) < 40
    mean = [x[train][marked[train] == kind].mean(0) for kind in (False, True)]
    way = mean[1] - mean[0]
    coder = LinearCoder(
        np.stack([way, -way], 1), np.zeros((2, 48)), b_enc=torch.tensor([-way @ sum(mean) / 2, 0]).float()
    )
    facts = {"tokens_per_image": 64, "token_grid": [8, 8], "first_patch": 0, "encoder": {"name": ""}}
    manifest = pd.DataFrame({"path": [f"{i}.png" for i in range(n) for _ in range(64)]})
    truth = pd.DataFrame(np.repeat(boxes, 64, 0), columns=list(where.BOX))
    data = Data(x.reshape(-1, 48), manifest, x[:0, 0], pd.DataFrame(), facts, truth=truth, image_root=folder)
    return data, coder, np.flatnonzero(~train & (np.arange(n) % 2 == 1)) * 64


def test_planted_feature_of_a_random_vision_transformer_fires_in_the_box(planted):
    data, coder, rows = planted
    table = where.where_table(data, coder, {"disc": (0, rows)}, n_occluded=1)
    line = table.set_index("cause").loc["disc"]
    assert (line["map"], line["n"], line["chance"]) == ("tokens", len(rows), 4 / 64)
    assert line["share"] > 0.9, table
    other = where.where_table(data, coder, {"disc": (1, rows)}, n_occluded=1)  # fires on all that is not the disc
    assert other["share"].max() < 0.1


def test_collages_of_tokens_are_drawn_again_with_their_maps(planted, tmp_path):
    data, coder, rows = planted
    top = pd.DataFrame({"feature": 0, "split": "test", "rank": range(5), "row": rows[:5], "activation": 1.0})
    drawn = pd.DataFrame({"method": ["vit"], "feature": [0]})
    settings = SimpleNamespace(collage_split="test", collage_images=5, collage_columns=5)
    where.write_tokens(tmp_path, {"vit": coder}, {"vit": top}, data, drawn, settings)
    with np.load(tmp_path / "vit" / "heat.npz", allow_pickle=False) as saved:
        assert saved["level"].shape == (5, 8, 8) and saved["level"].max() == where.LEVELS and saved["square"]
    assert Image.open(tmp_path / "vit" / "where" / "0.jpg").width > 400
    where.write_tokens(tmp_path / "none", {"vit": coder}, {}, Data(**vars(data) | {"facts": {}}), drawn, settings)
    assert not (tmp_path / "none").exists(), "nothing without a grid"


def test_overlay_is_red_where_the_map_is_strong_and_grey_elsewhere():
    level = where.levels(np.array([[[-1.0, 0.0], [0.0, 2.0]]]))[0]
    assert level.tolist() == [[0, 0], [0, where.LEVELS]]
    shown = np.asarray(where.overlay(Image.new("RGB", (40, 40), (10, 200, 90)), level))
    assert len(set(shown[1, 1])) == 1 and shown[38, 38, 0] > 150 > shown[38, 38, 1]
    assert where.overlay(Image.new("RGB", (60, 40)), level, square=True).size == (40, 40)

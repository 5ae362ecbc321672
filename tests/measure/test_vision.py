"""A coder inside the vision model: the identity changes nothing, nothing at all leaves the constant control."""

from types import SimpleNamespace

import numpy as np
import torch

from mtlib.embed.vision import AlexNetTransformer, VisionConfig
from mtlib.measure.zero_shot import accuracy_spliced

SHAPE = dict(config=SimpleNamespace(d_in=256, d_out=256, target="x"), W_dec=torch.eye(256))
IDENTITY = SimpleNamespace(**SHAPE, encode=lambda x: x, decode=lambda z, *_: z)
NOTHING = SimpleNamespace(**SHAPE, encode=torch.zeros_like, decode=lambda z, *_: z)


def test_identity_loses_nothing_and_a_blind_coder_decides_alike_for_all():
    model = AlexNetTransformer(
        VisionConfig(n_classes=3, variant="positions", blocks=2, heads=4, layer=0, side=95)
    ).eval()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    colours = np.random.default_rng(0).integers(0, 256, (12, 3, 2, 2), np.uint8)  # a quarter each
    pixels = colours.repeat(48, axis=2).repeat(48, axis=3)[..., :95, :95]
    with torch.inference_mode():
        model.head.bias.data -= model(torch.from_numpy(pixels)).mean(0)  # so that no class is always ahead
        best, second = model(torch.from_numpy(pixels)).topk(2, dim=1).values.T
        labels = model(torch.from_numpy(pixels)).argmax(1).numpy()
        constant = model.blocks[0](model.tokens(torch.from_numpy(pixels))).flatten(0, 1).mean(0)
        held = model.head(model.norm(model.blocks[1](constant.expand(1, 4, 256))).flatten(1)).argmax(1)
        blind = model.head(model.norm(model.blocks[1](torch.zeros(1, 4, 256))).flatten(1)).argmax(1)
    assert len(set(labels)) > 1 and (best - second).min() > 0.1  # so that no rounding decides a label
    same = accuracy_spliced(model, IDENTITY, pixels, labels, batch=5)
    assert (same["n"], same["accuracy"], same["accuracy_spliced"]) == (12, 1, 1)
    assert (same["agreement"], same["drop"]) == (1, 0)
    assert same["accuracy_constant"] == (labels == held.item()).mean()
    other = accuracy_spliced(model, NOTHING, pixels, labels, batch=12)
    assert other["accuracy_spliced"] == (labels == blind.item()).mean() < 1
    assert other["drop"] == 100 * (1 - other["accuracy_spliced"])

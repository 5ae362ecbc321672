"""A coder in the forward pass: hooks on real modules, the bundled encoder, steering against the formula."""

import dataclasses

import numpy as np
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.encoders import Encoder
from mtlib.embed.layers import Layer, LayerError
from mtlib.measure.zero_shot import replacement

D, S = 8, 24


def autoencoder(d=D, s=S, seed=0):
    config = SparseCoderConfig(d_in=d, d_out=d, n_latents=s, selection="topk", ks=(4,))
    return SparseCoder(config, seed).eval()


class Block(torch.nn.Module):
    """Something with tokens: (B, T, D) -> (B, T, D)."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(D, D)

    def forward(self, tokens):
        return self.layer(tokens)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block(), torch.randn(5, 3, D)


def place(module, tokens="all"):
    """The module's output as a layer of three tokens, the first a class token."""
    return Layer("layer", module, tokens, 0, "sequence", 1, (0, 0), D, 3, True)


def test_splice_replaces_all_tokens_and_leaves_the_module_as_it_was(block):
    module, tokens = block
    coder, before = autoencoder(), module(tokens)
    with place(module).replaced(replacement(coder)):
        inside = module(tokens)
    expected = coder.decode(coder.encode(before.flatten(0, 1))).reshape(before.shape)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(module(tokens), before)


def test_splice_of_the_class_token_leaves_the_others(block):
    module, tokens = block
    coder, before = autoencoder(), module(tokens)
    assert place(module).replaceable == ["all", "cls"]
    with place(module).at("cls").replaced(replacement(coder)):
        inside = module(tokens)
    torch.testing.assert_close(inside[:, 1:], before[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(inside[:, 0], coder.decode(coder.encode(before[:, 0])))


def test_a_coder_of_the_class_token_can_take_the_place_of_all_tokens(block):
    module, tokens = block
    assert place(module, "cls").replaceable == ["cls", "all"] and place(module, "mean").replaceable == []
    coder, before = autoencoder(), module(tokens)
    with place(module, "cls").at("all").replaced(replacement(coder)):
        inside = module(tokens)
    torch.testing.assert_close(inside, coder.decode(coder.encode(before.flatten(0, 1))).view_as(before))
    with pytest.raises(LayerError, match="no class token"):
        dataclasses.replace(place(module), has_class=False).at("cls")


def test_splice_is_undone_after_an_error(block):
    module, tokens = block
    before = module(tokens)
    with pytest.raises(LayerError, match="replacement"), place(module).replaced(lambda out: out[:, :1]):
        module(tokens)
    torch.testing.assert_close(module(tokens), before)


def test_transcoders_are_refused():
    with pytest.raises(ValueError, match="only an autoencoder"):
        replacement(SparseCoder(SparseCoderConfig.preset("transcoder", D, 6, n_latents=S)))


def test_splice_in_the_bundled_encoder_equals_the_reconstruction_of_its_embeddings():
    encoder = Encoder.load("demo", device="cpu")
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = encoder.encode_tensors(pixels)
    coder = autoencoder(x.shape[1], 64)
    with encoder.place.replaced(replacement(coder)):
        got = encoder.encode_tensors(pixels)
    with torch.no_grad():
        expected = coder.decode(coder.encode(torch.from_numpy(x))).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.allclose(got, x)
    np.testing.assert_array_equal(encoder.encode_tensors(pixels), x)

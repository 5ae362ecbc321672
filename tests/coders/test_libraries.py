"""Coders of SAELens and of dictionary_learning: read with the codes of their own formulas, or named as what they are."""

import json

import pytest
import torch

from mtlib.coders.published import open_coder, read_published
from mtlib.coders.sparse_coder import SparseCoder
from tests.coders import checkpoints, hub_server
from tests.coders.test_hub import _run
from tests.coders.test_published import D, S, _same


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("standard", {}),
        ("topk", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("standard", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}),  # version 5
        ("jumprelu", {}),
    ],
)
def test_sae_lens(kind, more, bias, normalize, tmp_path):
    given = more | dict(apply_b_dec_to_input=bias, normalize_activations=normalize)
    coder = _same(checkpoints.sae_lens(tmp_path, D, S, kind, **given), tmp_path)
    assert coder.recorded["checkpoint"]["reads"] == "vit blocks.6"
    assert torch.equal(open_coder(str(tmp_path)).enc, coder.enc)


def test_from_pretrained_of_a_folder_of_theirs_names_what_reads_it(tmp_path):
    checkpoints.sae_lens(tmp_path, D, S)
    with pytest.raises(FileNotFoundError, match=r"no config\.json, .*; published\.open_coder reads those of other"):
        SparseCoder.from_pretrained(tmp_path)
    checkpoints.dictionary_learning(tmp_path, D, S, "AutoEncoder")
    with pytest.raises(FileNotFoundError, match=r"no weights\.safetensors, .*; published\.open_coder reads"):
        SparseCoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("given", "say"),
    [
        ({"kind": "gated"}, "a SAELens coder of architecture 'gated' with activation 'relu'; read are standard, topk"),
        ({"activation_fn_str": "tanh-relu"}, "with activation 'tanh-relu'"),
        ({"normalize_activations": "expected_average_only_in"}, "needs numbers that the file does not hold"),
        ({"new_thing": 1}, r"cfg\.json: the file holds 'new_thing', which is not understood"),
        ({"d_sae": 41}, "d_sae is 41 in its cfg json, 40 in its W enc"),
        ({"kind": "topk", "k": "4"}, "k = '4'; expected int"),
    ],
)
def test_a_sae_lens_coder_that_cannot_be_read_is_named_as_one(given, say, tmp_path):
    checkpoints.sae_lens(tmp_path, D, S, **given)
    with pytest.raises(ValueError, match=say):
        read_published(tmp_path)


def test_a_sae_lens_coder_without_its_settings_and_one_of_its_first_versions_are_named(tmp_path):
    path = checkpoints.sae_lens(tmp_path, D, S).path
    for text, say in (("{", "not valid JSON"), ("[]", "not a JSON object")):
        (tmp_path / "cfg.json").write_text(text)
        with pytest.raises(ValueError, match=rf"cfg\.json: {say}"):
            read_published(path)
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"a SAELens coder needs cfg\.json beside it"):
        read_published(path)
    torch.save({"cfg": {"d_sae": S}, "state_dict": {"W_enc": torch.zeros(D, S)}}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old\.pt: a checkpoint of SAELens before version 1"):
        read_published(tmp_path / "old.pt")


KINDS = [
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
]


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_dictionary_learning(kind, config, tmp_path):
    written = checkpoints.dictionary_learning(tmp_path, D, S, kind, config=config)
    if not config and kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        with pytest.raises(
            ValueError, match=r"AutoEncoderTopK or BatchTopKSAE of dictionary_learning; put its config\.json"
        ):
            read_published(written.path)
        return
    coder = _same(written, tmp_path)
    assert coder.recorded["checkpoint"]["reads"] == ("vit 6" if config else "")
    assert coder.config.levels == ((10, S) if kind.startswith("Mat") else (S,))


def test_dictionary_learning_coders_that_contradict_themselves_or_are_gated_are_refused(tmp_path):
    path = checkpoints.dictionary_learning(tmp_path, D, S, "AutoEncoderTopK").path
    with pytest.raises(ValueError, match="k is 4 in its config json, 4 in its tensors, 5 in its argument"):
        read_published(path, k=5)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    with pytest.raises(
        ValueError, match="its class is AutoEncoder in its config json, AutoEncoderTopK or BatchTopKSAE in"
    ):
        read_published(path)
    names = ["encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"]
    torch.save(dict.fromkeys(names, torch.zeros(1)), path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="a gated coder of dictionary_learning"):
        read_published(path)


def test_a_threshold_that_a_layout_does_not_have_is_refused(tmp_path):
    path = checkpoints.monoloss(tmp_path, D, S, "vanilla").path
    saved = torch.load(path)
    saved["model_state_dict"]["threshold"] = torch.zeros(S)
    torch.save(saved, path)
    with pytest.raises(ValueError, match="holds 'threshold', which is not understood"):
        read_published(path)


def test_a_coder_of_a_library_is_read_from_a_folder_of_a_hub(tmp_path):
    coder = read_published(checkpoints.sae_lens(tmp_path, D, S, "topk").path)
    code = "import sys; from mtlib.coders.published import open_coder; open_coder(sys.argv[1]).save_pretrained(sys.argv[2])"
    files = {f"layer_6/{p.name}": p.read_bytes() for p in tmp_path.iterdir()}
    with hub_server.serve() as (address, repositories):
        repositories |= {"someone/saes": files}
        for i, name in enumerate(("layer_6", "layer_6/sae_weights.safetensors")):
            _run(code, address, tmp_path / "home", f"hf-hub:someone/saes/{name}", str(tmp_path / f"again{i}"))
            again = open_coder(str(tmp_path / f"again{i}"))
            assert again.config == coder.config and torch.equal(again.enc, coder.enc)

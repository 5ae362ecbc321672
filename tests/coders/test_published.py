"""Checkpoints as the five systems write them: read without running them, with the codes of their own formulas."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch

from mtlib.coders.published import open_coder, read_published
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.given.torch_files import load_torch
from tests.coders import checkpoints, hub_server
from tests.coders.test_hub import _run

B, D, O, S, K = 20, 10, 6, 40, 4  # noqa: E741
X = np.random.default_rng(99).normal(size=(B, D)).astype(np.float32) + 0.3


@torch.no_grad()
def _same(written: checkpoints.Written, tmp_path) -> SparseCoder:
    """Assert that the coder read, and the one saved and read again, gives the codes of the formula. Returns: the coder."""
    coder = read_published(written.path)
    coder.save_pretrained(tmp_path / "saved")
    z, y_hat = written.formula(X.astype(np.float64))
    assert 0 < (z != 0).sum() < z.size
    for again in (coder, SparseCoder.from_pretrained(tmp_path / "saved")):
        found, y_hats = again(torch.from_numpy(X))
        np.testing.assert_allclose(found.numpy(), z, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(y_hats[-1].numpy(), y_hat, rtol=1e-4, atol=1e-4)
    assert again.recorded["checkpoint"]["file"] == written.path.name
    return coder


@pytest.mark.parametrize("norm", [np.float64, float, lambda value: None])
@pytest.mark.parametrize(
    ("activation", "more"),
    [
        ("ReLU_003", {}),
        ("TopKReLU_4", {}),
        ("BatchTopKReLU_4", {}),
        ("TopKReLU_4", {"tied": True}),
        ("TopKReLU_4", {"cap": 1.5}),
        ("TopKReLU_4_RW", {"cap": 30.0}),
        ("TopKReLU_4_RW", {}),
        ("TopKReLU_4_UW", {"config": {"lr": 1e-4}, "epoch": 3, "best_val_fvu": 0.1}),
    ],
)
def test_msae(activation, more, norm, tmp_path):
    coder = _same(checkpoints.msae(tmp_path, D, S, activation, norm=norm, **more), tmp_path)
    assert coder.recorded["checkpoint"]["reads"] == "encoder=ViT-L-14 pretrained=openai"
    if "W" in activation:
        weights = np.array([5, 4, 3, 2, 1] if "RW" in activation else [1] * 5)
        assert coder.config.ks == (4, 8, 16, 32, 40)
        assert coder.config.level_weights == pytest.approx(weights / weights.sum())


def test_the_first_level_of_a_nested_msae_is_the_coder_that_its_authors_read(tmp_path):
    written = checkpoints.msae(tmp_path, D, S, "TopKReLU_4_RW")
    plain = checkpoints.msae(tmp_path, D, S, "TopKReLU_4")  # the same weights
    coder = read_published(written.path)
    with torch.no_grad():
        first = coder(torch.from_numpy(X)).y_hats[0].numpy()
    np.testing.assert_allclose(first, plain.formula(X.astype(np.float64))[1], rtol=1e-4, atol=1e-4)
    assert coder.recorded["checkpoint"]["assumed"].startswith("its levels")
    assert read_published(written.path, k=16).config.ks == (4, 8, 16)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "vanilla", "jumprelu"])
@pytest.mark.parametrize("normalize", [True, False])
def test_monoloss(kind, normalize, tmp_path):
    coder = _same(checkpoints.monoloss(tmp_path, D, S, kind, normalize=normalize), tmp_path)
    assert coder.config.tied == (kind == "topk")
    assert "CLIP-ViT-L-14-DataComp" in coder.recorded["checkpoint"]["reads"]


def test_monoloss_config_beside_the_file_speaks_where_the_file_does_not(tmp_path):
    written = checkpoints.monoloss(tmp_path, D, S, "jumprelu", normalize=True, config={})
    with pytest.raises(
        ValueError, match=r"has no config that says model_type and normalize; put training_config\.json"
    ):
        read_published(written.path)
    said = dict(model_type="jumprelu", normalize=True, l1_coef=1e-3, bandwidth=1e-3, d_model=None)
    (tmp_path / "training_config.json").write_text(json.dumps(said))
    _same(written, tmp_path)


@pytest.mark.parametrize(("field", "value"), [("normalize", False), ("topk_k", 5), ("model_type", "vanilla")])
def test_monoloss_configs_that_contradict_each_other_are_refused(field, value, tmp_path):
    written = checkpoints.monoloss(tmp_path, D, S, "jumprelu", normalize=True)
    (tmp_path / "training_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(ValueError, match=rf"{field} is .* in its config, {value} in its training config json"):
        read_published(written.path)


@pytest.mark.parametrize(
    ("O", "levels", "ks", "name"),
    [
        (O, (8, 16, 40), (2, 3, 4), "matryoshka_transcoder_0_best.pt"),
        (O, (40,), (6,), "simple_transcoder.pt"),
        (D, (40,), (6,), "simple_transcoder.pt"),  # of a hidden layer as wide as x
        (D, (40,), (6,), "sparse_autoencoder.pt"),
        (D, (8, 16, 40), (2, 3, 4), "matryoshka_sae_0.pt"),
    ],
)
@pytest.mark.parametrize("final", [True, False])
def test_matryoshka_transcoders(O, levels, ks, name, final, tmp_path):  # noqa: E741
    written = checkpoints.matryoshka_transcoders(tmp_path, D, O, levels, ks, name=name, final=final)
    coder = _same(written, tmp_path)
    assert coder.config.target == ("x" if "auto" in name or "sae" in name else "y")
    assert coder.config.levels == levels and coder.config.ks == ks


@pytest.mark.parametrize("kind", ["final", "cleaned", "best"])
def test_sae_for_clip(kind, tmp_path):
    coder = _same(checkpoints.sae_for_clip(tmp_path, D, S, kind), tmp_path)
    assumed = coder.recorded["checkpoint"]["assumed"]
    assert ("default of 500" in assumed) == (kind == "best") and coder.config.l0 == (None if kind == "best" else K)
    if kind == "best":
        assert read_published(tmp_path / "sae_best.pth", k=K).config.l0 == K
    else:
        path = tmp_path / "sae_clip_vitb32_layer11_ef64.pth"
        saved = torch.load(path)
        for place, field, value, said in (
            ("metrics", "target_l0", 9, "k is 4 in its sae config, 9 in its metrics"),
            ("metrics", "dict_size", 9, "its number of latents is 40 in its sae config, 9 in its metrics"),
            ("sae_config", "sae", saved["sae_config"]["sae"] | {"expansion_factor": 8}, "is 80 in its sae config"),
        ):
            torch.save(saved | {place: saved.get(place, {}) | {field: value}}, path)
            with pytest.raises(ValueError, match=said):
                read_published(path)
        torch.save(saved | {"metrics": {"target_l0": 4.0}}, path)
        assert read_published(path, k=4).config.ks == (4,)


@pytest.mark.parametrize(
    ("write", "k", "said"),
    [
        (lambda folder: checkpoints.msae(folder, D, S, "TopKReLU_4"), 4, "k = 4"),
        (lambda folder: checkpoints.msae(folder, D, S, "BatchTopKReLU_4"), 4, "k = 4"),
        (lambda folder: checkpoints.msae(folder, D, S, "ReLU_003"), S, "no k"),
        (lambda folder: checkpoints.msae(folder, D, S, "TopKReLU_12_RW"), 16, "k = 12.*"),
        (lambda folder: checkpoints.monoloss(folder, D, S, "topk"), 4, "k = 4"),
        (lambda folder: checkpoints.monoloss(folder, D, S, "batch_topk"), 4, "k = 4"),
        (lambda folder: checkpoints.monoloss(folder, D, S, "jumprelu"), 0, "no k"),
        (lambda folder: checkpoints.matryoshka_transcoders(folder, D, O, (40,), (6,)), 6, "k = 6"),
        (lambda folder: checkpoints.matryoshka_transcoders(folder, D, O, (8, 40), (2, 6)), 6, "k = 2, 6"),
        (lambda folder: checkpoints.sae_for_clip(folder, D, S, "final"), 4, "k = 4"),
        (lambda folder: checkpoints.alexnet(folder, D, S), 0, "no k"),
    ],
)
def test_a_k_that_the_file_contradicts_is_refused(write, k, said, tmp_path):
    path = write(tmp_path).path
    read_published(path, k=k).save_pretrained(tmp_path / "ours")
    for name in (path, tmp_path / "ours"):
        with pytest.raises(ValueError, match=f"k = 9 is asked for, but its own settings say {said}; leave k out"):
            open_coder(str(name), k=9)


@pytest.mark.parametrize("value", [None, "x", [1.0, 2.0], {}])
@pytest.mark.parametrize(
    ("write", "field"),
    [
        (checkpoints.alexnet, "epsilon"),
        (checkpoints.msae, "scaling_factor"),
        (checkpoints.msae, "mean_center"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(write, field, value, tmp_path):
    path = write(tmp_path, D, S).path
    torch.save(torch.load(path, weights_only=False) | {field: value}, path)
    with pytest.raises(ValueError, match=rf"{path.name}: {field} = .*; expected a number"):
        read_published(path)


def test_alexnet_transformer(tmp_path):
    written = checkpoints.alexnet(tmp_path, D, S)
    _same(written, tmp_path)
    state = torch.load(written.path)
    torch.save(state | {"theta": -state["theta"]}, tmp_path / "below.pth")
    with pytest.raises(ValueError, match="thresholds are below 0"):
        read_published(tmp_path / "below.pth")


@pytest.mark.parametrize(
    ("write", "inner"),
    [
        (checkpoints.msae, ("model",)),
        (checkpoints.msae, ()),
        (checkpoints.monoloss, ("config",)),
        (checkpoints.monoloss, ("model_state_dict",)),
        (checkpoints.sae_for_clip, ("sae_config", "sae")),
        (checkpoints.sae_for_clip, ("model_state_dict",)),
        (checkpoints.alexnet, ()),
    ],
)
def test_a_field_that_is_not_understood_is_named(write, inner, tmp_path):
    path = write(tmp_path, D, S).path
    saved = found = torch.load(path, weights_only=False)
    for key in inner:
        found = found[key]
    found["new_thing"] = 1
    torch.save(saved, path)
    with pytest.raises(ValueError, match=r"holds 'new_thing', which is not understood here; known are"):
        read_published(path)


def test_fields_of_matryoshka_transcoders_that_are_not_understood_are_named(tmp_path):
    path = checkpoints.matryoshka_transcoders(tmp_path, D, O, (8, 40), (2, 4)).path
    saved = torch.load(path)
    torch.save(saved | {"config": saved["config"] | {"jump": 2.0}}, path)
    with pytest.raises(ValueError, match="config holds 'jump', which is not understood"):
        read_published(path)
    torch.save(saved | {"config": saved["config"] | {"levels": [16, 40]}}, path)
    with pytest.raises(ValueError, match=r"levels is \[16, 40\] in its config, \[8, 40\] in its decoders"):
        read_published(path)
    torch.save(saved["model_state_dict"], path)
    with pytest.raises(ValueError, match="has no config that says how many latents a row keeps"):
        read_published(path)


def test_a_coder_is_opened_by_file_by_folder_and_by_its_place_on_a_hub(tmp_path):
    written = checkpoints.msae(tmp_path, D, S, "TopKReLU_4_RW")
    coder = open_coder(str(written.path), k=16)
    coder.save_pretrained(tmp_path / "ours")
    assert open_coder(str(tmp_path / "ours")).config == coder.config
    code = "import sys; from mtlib.coders.published import open_coder; open_coder(sys.argv[1], 16).save_pretrained(sys.argv[2])"
    theirs = {f"centered/{written.path.name}": written.path.read_bytes()}
    ours = {p.name: p.read_bytes() for p in (tmp_path / "ours").iterdir()}
    with hub_server.serve() as (address, repositories):
        repositories |= {"someone/MSAE": theirs, "someone/ours": ours}
        for i, name in enumerate((f"hf-hub:someone/MSAE/centered/{written.path.name}", "hf-hub:someone/ours")):
            _run(code, address, tmp_path / "home", name, str(tmp_path / f"again{i}"))
            again = SparseCoder.from_pretrained(tmp_path / f"again{i}")
            assert again.config == coder.config and torch.equal(again.enc, coder.enc)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_with_code_is_refused_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": {"theta": torch.zeros(3)}, "metrics": _Evil()}, "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: holds more than tensors and plain values.*nothing of it ran"):
        read_published("evil.pt")
    assert not (tmp_path / "executed").exists()


def test_of_numpy_a_float64_is_read_and_nothing_else(tmp_path):
    for value in (np.zeros(3), np.float32(1), np.array([object()], dtype=object)):
        written = checkpoints.msae(tmp_path, D, S, norm=lambda _, value=value: value)
        with pytest.raises(ValueError, match="holds more than tensors and plain values"):
            read_published(written.path)


def test_a_number_that_numpy_1_pickled_is_read(tmp_path):
    path = checkpoints.msae(tmp_path, D, S).path
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray\n" in data
            file.writestr(name, data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert read_published(path).config.ks == (4,)


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("<html>")
    with pytest.raises(ValueError, match=r"text\.pt: (not a readable|holds more)"):
        read_published(tmp_path / "text.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: no known layout; it has fc\.weight"):
        read_published(tmp_path / "other.pt")
    path = checkpoints.msae(tmp_path, D, S).path
    saved = torch.load(path, weights_only=False)
    torch.save(saved, tmp_path / "renamed.pth")
    with pytest.raises(ValueError, match="says its settings in its name"):
        read_published(tmp_path / "renamed.pth")
    torch.save(saved, tmp_path / path.name.replace("40_10", "80_10"))
    with pytest.raises(ValueError, match="its shape is 10 x 80 in its name, 10 x 40 in its encoder"):
        read_published(tmp_path / path.name.replace("40_10", "80_10"))
    saved["model"]["encoder"][0, 0] = float("nan")
    torch.save(saved, path)
    with pytest.raises(ValueError, match="enc holds NaN"):
        read_published(path)


@pytest.mark.parametrize(
    ("kind", "place", "value", "said"),
    [
        ("vanilla", ("config", "normalize"), "False", r"config has normalize = 'False'; expected bool"),
        ("batch_topk", ("config", "topk_k"), None, r"config has topk_k = None; expected int"),
        ("vanilla", ("config", "l1_coef"), None, r"config has l1_coef = None; expected float or int"),
        ("vanilla", ("config", "d_model"), 99, r"d_model is 99 in its config, 10 in its encoder"),
        (
            "topk",
            ("model_state_dict", "activation.k"),
            9,
            r"k is 4 in its activation state dict, 9 in its activation k",
        ),
        ("topk", ("model_state_dict", "activation_state_dict"), {}, r"activation_state_dict has k = None"),
        (
            "vanilla",
            ("model_state_dict", "W_enc"),
            torch.ones(D, S, dtype=torch.int8),
            r"enc is torch\.int8.*expected dense",
        ),
        (
            "vanilla",
            ("model_state_dict", "W_enc"),
            torch.full((D, S), 1e200, dtype=torch.float64),
            "enc holds NaN or infinite",
        ),
    ],
)
def test_a_setting_of_another_type_or_that_disagrees_is_refused_by_name(kind, place, value, said, tmp_path):
    path = checkpoints.monoloss(tmp_path, D, S, kind).path
    saved = torch.load(path)
    saved[place[0]][place[1]] = value
    torch.save(saved, path)
    with pytest.raises(ValueError, match=rf"autoencoder_final\.pt: {said}"):
        read_published(path)


def test_a_k_or_width_of_matryoshka_transcoders_that_disagrees_is_refused(tmp_path):
    path = checkpoints.matryoshka_transcoders(tmp_path, D, O, (40,), (6,)).path
    saved = torch.load(path)
    torch.save(saved | {"config": saved["config"] | {"latent_dim": 99}}, path)
    with pytest.raises(ValueError, match="latent_dim is 99 in its config, 40 in its encoder"):
        read_published(path)
    nested = checkpoints.matryoshka_transcoders(tmp_path, D, O, (8, 40), (2, 4)).path
    saved = torch.load(nested)
    del saved["config"]["level_weights"]
    torch.save(saved, nested)
    with pytest.raises(ValueError, match="config has level_weights = None; expected list or tuple"):
        read_published(nested)


@pytest.mark.parametrize("activation", ["TopKReLU", "TopKReLU_0_RW"])  # levels that double from 0 would never end
def test_an_msae_name_without_a_k_is_refused(activation, tmp_path):
    with pytest.raises(ValueError, match="its name has no k >= 1 after TopKReLU"):
        read_published(checkpoints.msae(tmp_path, D, S, activation).path)


def test_an_empty_file_is_no_torch_file(tmp_path):
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match="not a readable torch file"):
        load_torch(tmp_path / "empty.pt")

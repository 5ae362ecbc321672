"""Checkpoints written by the layouts of the five systems: read without running them, equal codes and reconstructions."""

import json
import os

import numpy as np
import pytest
import torch

from mtlib.coders.published import read_published
from mtlib.coders.sparse_coder import SparseCoder

B, D, O, S, K = 20, 10, 6, 32, 4  # noqa: E741


def _t(*shape: int, seed: int = 0, scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = _t(B, D, seed=99, scale=1.0) + 0.3


def _topk(z: torch.Tensor, k: int) -> torch.Tensor:
    kept = np.argsort(-z.numpy(), axis=1, kind="stable")[:, :k]
    out = np.zeros(z.shape, np.float32)
    np.put_along_axis(out, kept, np.take_along_axis(z.numpy(), kept, 1), 1)
    return torch.from_numpy(out)


def _same(coder: SparseCoder, z: torch.Tensor, y_hat: torch.Tensor, tmp_path) -> None:
    assert 0 < (z != 0).sum() < z.numel()
    for again in (
        coder,
        (coder.save_pretrained(tmp_path / "saved"), SparseCoder.from_pretrained(tmp_path / "saved"))[1],
    ):
        found, y_hats = again(X)
        torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(y_hats[-1], y_hat, rtol=1e-4, atol=1e-4)


def _msae_state(tied: bool = False) -> dict:
    state = {"pre_bias": _t(D), "encoder": _t(D, S), "latent_bias": _t(S, scale=0.1), "decoder": _t(S, D)}
    state["latents_activation_frequency"] = torch.zeros(S, dtype=torch.int64)
    return {k: v for k, v in state.items() if not (tied and k == "decoder")}


@pytest.mark.parametrize(
    ("name", "select"),
    [
        ("32_10_ReLU_003_False_False_0.0_cc3m.pt", lambda z: z),
        ("32_10_TopKReLU_4_False_False_0.0_cc3m.pth", lambda z: _topk(z, 4)),
        ("32_10_BatchTopKReLU_4_False_False_0.0_cc3m.pt", lambda z: z),  # evaluated without its batch's selection
        ("32_10_TopKReLU_4_RW_False_False_0.0_cc3m.pt", lambda z: z),
        ("32_10_TopKReLU_4_UW_True_False_30.0_cc3m.pt", lambda z: z),
    ],
)
def test_msae(name, select, tmp_path):
    tied = "_True_False_" in name
    state, mean, scale = _msae_state(tied), _t(D, seed=5), 1.7
    saved = {"model": state, "mean_center": mean, "scaling_factor": scale, "target_norm": None}
    torch.save(saved, tmp_path / name)
    z = select((((X - mean) * scale - state["pre_bias"]) @ state["encoder"] + state["latent_bias"]).relu())
    decoder = state["encoder"].T if tied else state["decoder"]
    coder = read_published(tmp_path / name)
    _same(coder, z, (z @ decoder + state["pre_bias"]) / scale + mean, tmp_path)
    if "RW" in name:
        assert coder.config.ks == (4, 8, 16, 32) and coder.config.level_weights == (0.4, 0.3, 0.2, 0.1)
        cut = (_topk(z, 8) @ decoder + state["pre_bias"]) / scale + mean
        torch.testing.assert_close(coder(X).y_hats[1], cut, rtol=1e-4, atol=1e-4)


def test_monoloss_topk(tmp_path):
    state = {"pre_bias": _t(D), "latent_bias": _t(S, scale=0.1), "encoder.weight": _t(S, D), "decoder.weight": _t(D, S)}
    state |= {"stats_last_nonzero": torch.zeros(S, dtype=torch.int64), "activation": "TopK"}
    state |= {"activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    torch.save(state, tmp_path / "autoencoder_final.pt")
    z = _topk(((X - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]).relu(), K)
    y_hat = z @ state["decoder.weight"].T + state["pre_bias"]
    _same(read_published(tmp_path / "autoencoder_final.pt"), z, y_hat, tmp_path)


@pytest.mark.parametrize("kind", ["vanilla", "batch_topk", "jumprelu"])
def test_monoloss_others(kind, tmp_path):
    state = {"b_dec": _t(D), "b_enc": _t(S, scale=0.1), "W_enc": _t(D, S), "W_dec": _t(S, D)}
    if kind == "jumprelu":
        state["jumprelu.log_threshold"] = _t(S, seed=3)
        z = (X @ state["W_enc"] + state["b_enc"]).relu()
        z = z * (z > state["jumprelu.log_threshold"].exp())
    elif kind == "vanilla":
        z = ((X - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
    else:
        z = ((X - state["b_dec"]) @ state["W_enc"]).relu()
    torch.save(state, tmp_path / "autoencoder_final.pt")
    if kind != "jumprelu":
        with pytest.raises(ValueError, match=r"put its training_config\.json beside it"):
            read_published(tmp_path / "autoencoder_final.pt")
    (tmp_path / "training_config.json").write_text(json.dumps({"model_type": kind, "topk_k": K, "normalize": False}))
    coder = read_published(tmp_path / "autoencoder_final.pt")
    _same(coder, z, z @ state["W_dec"] + state["b_dec"], tmp_path)


@pytest.mark.parametrize("kind", ["vanilla", "jumprelu"])
def test_monoloss_normalises_every_row_by_itself(kind, tmp_path):
    state = {"b_dec": _t(D), "b_enc": _t(S, scale=0.1), "W_enc": _t(D, S), "W_dec": _t(S, D)}
    mean, spread = X.mean(-1, keepdim=True), X.std(-1, keepdim=True)
    x = (X - mean) / (spread + 1e-5)
    if kind == "jumprelu":
        state["jumprelu.log_threshold"] = _t(S, seed=3)
        z = (x @ state["W_enc"] + state["b_enc"]).relu()
        z = z * (z > state["jumprelu.log_threshold"].exp())
    else:
        z = ((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
    torch.save(state, tmp_path / "autoencoder_final.pt")
    (tmp_path / "training_config.json").write_text(json.dumps({"model_type": kind, "normalize": True}))
    coder = read_published(tmp_path / "autoencoder_final.pt")
    assert coder.config.scale == "rows"
    _same(coder, z, (z @ state["W_dec"] + state["b_dec"]) * spread + mean, tmp_path)


@pytest.mark.parametrize("d_out", [O, D])
def test_matryoshka_transcoders(d_out, tmp_path):
    levels, ks = [8, 16, 32], [2, 3, 4]
    state = {"encoder.0.weight": _t(S, D), "encoder.0.bias": _t(S, scale=0.1)}
    state |= {"encoder.1.gamma": torch.tensor(0.5), "encoder.1.beta": torch.tensor(2.0)}
    for i, m in enumerate(levels):
        state |= {f"decoders.{i}.weight": _t(d_out, m), f"decoders.{i}.bias": _t(d_out, seed=i)}
    config = {
        "input_dim": D,
        "output_dim": d_out,
        "levels": levels,
        "topk_per_level": ks,
        "level_weights": [0.2, 0.3, 0.5],
    }
    torch.save({"model_state_dict": state, "config": config}, tmp_path / "matryoshka_transcoder_1_best.pt")
    z_pre = X @ state["encoder.0.weight"].T + state["encoder.0.bias"]
    z = z_pre.relu() + 2.0 * (z_pre > 0.5)
    blocks = zip([0, *levels], levels, ks, strict=False)
    z = torch.cat([_topk(z[:, a:b], k) for a, b, k in blocks], 1)
    coder = read_published(tmp_path / "matryoshka_transcoder_1_best.pt")
    assert coder.config.target == ("x" if d_out == D else "y") and coder.config.level_weights == (0.2, 0.3, 0.5)
    _same(coder, z, z @ state["decoders.2.weight"].T + state["decoders.2.bias"], tmp_path)
    first = z[:, :8] @ state["decoders.0.weight"].T + state["decoders.0.bias"]
    torch.testing.assert_close(coder(X).y_hats[0], first, rtol=1e-4, atol=1e-4)


def test_matryoshka_transcoders_flat_baseline(tmp_path):
    state = {"encoder.0.weight": _t(S, D), "encoder.0.bias": _t(S, scale=0.1)}
    state |= {"encoder.1.gamma": torch.tensor(1.0), "encoder.1.beta": torch.tensor(1.0)}
    state |= {"decoder.weight": _t(O, S), "decoder.bias": _t(O)}
    torch.save({"model_state_dict": state, "config": {"topk": K}}, tmp_path / "transcoder_best.pt")
    z_pre = X @ state["encoder.0.weight"].T + state["encoder.0.bias"]
    z = _topk(z_pre.relu() + (z_pre > 1).float(), K)
    y_hat = z @ state["decoder.weight"].T + state["decoder.bias"]
    _same(read_published(tmp_path / "transcoder_best.pt"), z, y_hat, tmp_path)


@pytest.mark.parametrize("cleaned", [True, False])
def test_sae_for_clip(cleaned, tmp_path):
    state = {"encoder.weight": _t(S, D), "encoder_bias": _t(S, scale=0.1), "decoder.weight": _t(D, S)}
    saved = {"model_state_dict": state} | (
        {"sae_config": {"k": K}} if cleaned else {"epoch": 1, "metrics": {"l0": 4.0}}
    )
    torch.save(saved, tmp_path / "sae_best.pth")
    z = _topk((X @ state["encoder.weight"].T + state["encoder_bias"]).relu(), K)
    coder = read_published(tmp_path / "sae_best.pth", k=0 if cleaned else K)
    _same(coder, z, z @ state["decoder.weight"].T, tmp_path)


def test_alexnet_transformer(tmp_path):
    state = {"W_enc": _t(D, S), "W_dec": _t(S, D), "b_enc": _t(S, scale=0.1), "b_dec": _t(D)}
    state |= {"theta": _t(S, seed=4).abs(), "epsilon": torch.tensor(0.001)}
    torch.save(state, tmp_path / "sae_block6_jump_relu.pth")
    z_pre = X @ state["W_enc"] + state["b_enc"]
    z = z_pre * (z_pre > state["theta"]).float()
    _same(read_published(tmp_path / "sae_block6_jump_relu.pth"), z, z @ state["W_dec"] + state["b_dec"], tmp_path)
    torch.save(state | {"theta": -state["theta"]}, tmp_path / "below.pth")
    with pytest.raises(ValueError, match="thresholds are below 0"):
        read_published(tmp_path / "below.pth")


class _Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_with_code_is_refused_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": {"theta": torch.zeros(3)}, "metrics": _Evil()}, "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: holds more than tensors and plain values.*nothing of it ran"):
        read_published("evil.pt")
    assert not (tmp_path / "executed").exists()


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("<html>")
    with pytest.raises(ValueError, match=r"text\.pt: (not a readable|holds more)"):
        read_published(tmp_path / "text.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: no known layout; it has fc\.weight"):
        read_published(tmp_path / "other.pt")
    saved = {"model": _msae_state(), "mean_center": 0.0, "scaling_factor": 1.0, "target_norm": 1.0}
    torch.save(saved, tmp_path / "renamed.pt")
    with pytest.raises(ValueError, match="says its settings in its name"):
        read_published(tmp_path / "renamed.pt")
    saved["model"]["encoder"][0, 0] = float("nan")
    torch.save(saved, tmp_path / "32_10_TopKReLU_4_False_False_0.0_x.pt")
    with pytest.raises(ValueError, match="enc holds NaN"):
        read_published(tmp_path / "32_10_TopKReLU_4_False_False_0.0_x.pt")

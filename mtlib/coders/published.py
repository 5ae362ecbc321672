"""The published checkpoints of the five systems as SparseCoder: the same codes, the same reconstructions.

    MSAE                     {model, mean_center, scaling_factor, target_norm}; its settings stand in the file's name
    MonoLoss                 a state dict, or {model_state_dict: ...}; training_config.json lies beside it
    Matryoshka Transcoders   {model_state_dict, config: {input_dim, output_dim, levels, topk_per_level, ...}}
    SAE-for-CLIP             {model_state_dict: {encoder.weight, encoder_bias, decoder.weight}, sae_config: {k}}
    AlexNet-Transformer      a state dict {W_enc, W_dec, b_enc, b_dec, theta, epsilon}

Files are read without running anything in them (run/torch_files.py). A coder so read can be saved with `save_pretrained`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.files import fill
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.run.torch_files import load_tensors

_MSAE_NAME = re.compile(
    r"^(?P<S>\d+)_(?P<D>\d+)_(?P<activation>[A-Za-z0-9]*?)_(?:(?P<k>\d+)_)?(?:(?P<nested>UW|RW)_)?"
    r"(?P<tied>True|False)_(?P<normalize>True|False)(?:_|\.|$)"
)


def read_published(path: str | Path, k: int = 0) -> SparseCoder:
    """A coder from a checkpoint that one of the five systems published or writes.

    Args:
        path: the .pt or .pth file; its layout says which system wrote it.
        k:    latents per row, where the file does not say (SAE-for-CLIP before cleaning; default 500 there).
    Returns: the coder in eval mode. BatchTopK coders come with threshold 0, as their authors evaluate them; set
        one with validate.calibrate.
    Raises: FileNotFoundError; ValueError when the file needs more than tensors and plain values, is of no layout that
        is known here, or holds NaN or infinite weights.
    """
    path = Path(path)
    saved = load_tensors(path)
    state = saved.get("model_state_dict", saved.get("model", saved))
    if not isinstance(state, dict):
        raise ValueError(f"{path.name}: expected a dict of tensors, found {type(state).__name__}")
    if {"model", "mean_center", "scaling_factor"} <= saved.keys():
        settings, tensors = _msae(path.name, saved, state)
    elif "encoder.0.weight" in state:
        settings, tensors = _matryoshka_transcoders(saved.get("config", {}), state)
    elif "encoder_bias" in state:
        settings, tensors = _sae_for_clip(saved.get("sae_config") or {}, state, k)
    elif "theta" in state:
        settings, tensors = _alexnet(path.name, state)
    elif {"b_dec", "W_enc"} <= state.keys() or {"pre_bias", "encoder.weight"} <= state.keys():
        settings, tensors = _monoloss(path, state)
    else:
        raise ValueError(f"{path.name}: no known layout; it has {', '.join(sorted(map(str, state))[:8])}")
    coder = SparseCoder(SparseCoderConfig(**settings))
    fill(coder, coder.state_dict() | {name: value.detach() for name, value in tensors.items()}, path.name)
    return coder.eval()


def _need(name: str, saved: dict, *keys: str) -> list[Tensor]:
    missing = [key for key in keys if not isinstance(saved.get(key), Tensor)]
    if missing:
        raise ValueError(f"{name}: has no tensor {missing[0]}; there are {', '.join(sorted(map(str, saved))[:12])}")
    return [saved[key] for key in keys]


def _msae(name: str, saved: dict, state: dict) -> tuple[dict, dict]:
    """z = act((x - mean) * scaling_factor - pre_bias) @ encoder + latent_bias); x_hat undoes what was done to x."""
    said = _MSAE_NAME.match(name)
    if said is None:
        raise ValueError(
            f"{name}: an MSAE checkpoint says its settings in its name, e.g. 6144_768_TopKReLU_64_RW_False_False_0.0_"
            "<data>.pt; rename it so"
        )
    S, activation, tied = int(said["S"]), said["activation"], said["tied"] == "True"
    encoder, bias, pre_bias = _need(name, state, "encoder", "latent_bias", "pre_bias")
    settings = dict(d_in=encoder.shape[0], d_out=encoder.shape[0], n_latents=S, tied=tied, pre_bias="decoder")
    settings |= dict(centre="mean", scale="rows" if said["normalize"] == "True" else "rms", unit_norm_decoder=True)
    if said["nested"]:
        ks = [int(said["k"] or 64)]
        while ks[-1] < S:
            ks.append(min(2 * ks[-1], S))
        weights = [len(ks) - i for i in range(len(ks))] if said["nested"] == "RW" else [1] * len(ks)
        shares = tuple(w / sum(weights) for w in weights)
        settings |= dict(selection="nested_topk", ks=tuple(ks), decoder="shared", level_weights=shares)
    elif activation == "BatchTopKReLU":
        settings |= dict(selection="batch_topk", ks=(int(said["k"]),))
    elif activation == "TopKReLU":
        settings |= dict(selection="topk", ks=(int(said["k"]),))
    elif activation == "ReLU":
        settings |= dict(selection="none", penalty="l1_sum", penalty_weight=float(f"0.{said['k'] or 0}"))
    else:
        raise ValueError(f"{name}: activation {activation!r} is none of ReLU, TopKReLU, BatchTopKReLU")
    D = settings["d_in"]
    mean = torch.as_tensor(saved["mean_center"], dtype=torch.float32).flatten().expand(D)
    scale = 1 / torch.as_tensor(saved["scaling_factor"], dtype=torch.float32).flatten().expand(D)
    tensors = {"enc": encoder, "enc_bias": bias, "dec_bias.0": pre_bias}
    tensors |= {"x_mean": mean, "x_scale": scale, "y_mean": mean, "y_scale": scale}
    return settings, tensors | ({} if tied else {"dec.0": _need(name, state, "decoder")[0]})


def _monoloss(path: Path, state: dict) -> tuple[dict, dict]:
    """TopKSAE has its own layout; the other three share one, and training_config.json says which of them it is."""
    beside = path.parent / "training_config.json"
    said = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    topk = "encoder.weight" in state
    kind = "topk" if topk else "jumprelu" if "jumprelu.log_threshold" in state else said.get("model_type", "")
    settings = dict(pre_bias="none" if kind == "jumprelu" else "decoder", unit_norm_decoder=True)
    settings |= dict(scale="rows" if said.get("normalize") else "none")
    if topk:
        names = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
        enc, bias, dec, dec_bias = _need(path.name, state, *names)
        k = int(state.get("activation_state_dict", {}).get("k", said.get("topk_k", 64)))
        settings |= dict(selection="topk", ks=(k,))
        tensors = {"enc": enc.T, "enc_bias": bias, "dec.0": dec.T, "dec_bias.0": dec_bias}
    else:
        enc, bias, dec, dec_bias = _need(path.name, state, "W_enc", "b_enc", "W_dec", "b_dec")
        tensors = {"enc": enc, "enc_bias": bias, "dec.0": dec, "dec_bias.0": dec_bias}
        if kind == "jumprelu":
            settings |= dict(activation="jumprelu", selection="none", penalty="l0_rectangle")
            tensors["theta"] = _need(path.name, state, "jumprelu.log_threshold")[0].exp()
        elif kind == "batch_topk":
            settings |= dict(selection="batch_topk", ks=(int(said.get("topk_k", 64)),))
            tensors["enc_bias"] = torch.zeros_like(bias)  # stored, but their encoder does not add it
        elif kind == "vanilla":
            settings |= dict(selection="none", penalty="l1_sum", penalty_weight=float(said.get("l1_coef", 1e-4)))
        else:
            raise ValueError(f"{path.name}: vanilla and batch_topk look alike; put its training_config.json beside it")
    D, S = tensors["enc"].shape
    return settings | dict(d_in=D, d_out=D, n_latents=S), tensors


def _matryoshka_transcoders(config: dict, state: dict) -> tuple[dict, dict]:
    """Encoder Linear and JumpReLU(gamma, beta); one Linear decoder per level, or a single `decoder`."""
    name = "Matryoshka Transcoders checkpoint"
    enc, bias = _need(name, state, "encoder.0.weight", "encoder.0.bias")
    several = sorted(
        (key for key in state if re.fullmatch(r"decoders\.\d+\.weight", key)), key=lambda k: int(k.split(".")[1])
    )
    keys = [key.removesuffix(".weight") for key in several] or ["decoder"]
    decs = [_need(name, state, f"{key}.weight", f"{key}.bias") for key in keys]
    levels = tuple(weight.shape[1] for weight, _ in decs)
    S, D, d_out = enc.shape[0], enc.shape[1], decs[0][0].shape[0]
    settings = dict(d_in=D, d_out=d_out, n_latents=S, target="x" if d_out == D else "y", activation="jumprelu_fixed")
    settings |= dict(gamma=float(state.get("encoder.1.gamma", 1.0)), beta=float(state.get("encoder.1.beta", 1.0)))
    settings |= dict(penalty="l1_mean", penalty_weight=0.01)
    if several:
        ks = config.get("topk_per_level") or [max(1, m // 8) for m in levels]
        settings |= dict(selection="block_topk", levels=levels, ks=tuple(map(int, ks)))
        settings |= dict(level_weights=tuple(config.get("level_weights") or ()))
    else:
        settings |= dict(selection="topk", ks=(int(config.get("topk") or config.get("k") or min(256, S)),))
    tensors = {"enc": enc.T, "enc_bias": bias}
    for i, (weight, dec_bias) in enumerate(decs):
        tensors |= {f"dec.{i}": weight.T, f"dec_bias.{i}": dec_bias}
    return settings, tensors


def _sae_for_clip(config: dict, state: dict, k: int) -> tuple[dict, dict]:
    """TopK after ReLU; the decoder has no bias."""
    enc, bias, dec = _need("SAE-for-CLIP checkpoint", state, "encoder.weight", "encoder_bias", "decoder.weight")
    S, D = enc.shape
    k = int(k or config.get("k") or config.get("model", {}).get("k") or 500)
    settings = dict(d_in=D, d_out=D, n_latents=S, selection="topk", ks=(min(k, S),), decoder_bias=False)
    return settings | dict(unit_norm_decoder=True), {"enc": enc.T, "enc_bias": bias, "dec.0": dec.T}


def _alexnet(name: str, state: dict) -> tuple[dict, dict]:
    """z = z_pre * [z_pre > theta]."""
    enc, bias, dec, dec_bias, theta = _need(name, state, "W_enc", "b_enc", "W_dec", "b_dec", "theta")
    if (theta < 0).any():
        raise ValueError(f"{name}: {int((theta < 0).sum())} thresholds are below 0; codes here are >= 0")
    D, S = enc.shape
    settings = dict(d_in=D, d_out=D, n_latents=S, activation="jumprelu", selection="none", penalty="l0_sigmoid")
    settings |= dict(penalty_weight=1e-3, bandwidth=float(state.get("epsilon", 1e-3)))
    return settings, {"enc": enc, "enc_bias": bias, "dec.0": dec, "dec_bias.0": dec_bias, "theta": theta}

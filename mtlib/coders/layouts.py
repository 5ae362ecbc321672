"""What the five systems write into their checkpoints, and the settings and tensors of SparseCoder that mean the same.

A field that is not listed here is an error that names it: what is not understood may change the codes. What a layout
lists and does not use (optimiser state, counters, paths, logging) has no part in them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mtlib.coders.presets import PRESETS
from mtlib.run.artifacts import json_object


class Layout(NamedTuple):
    """A checkpoint in our words."""

    settings: dict  # of SparseCoderConfig
    tensors: dict[str, Tensor]  # of SparseCoder's state
    reads: str = ""  # the x that it was trained on, in words
    assumed: str = ""  # what the file does not say


def only(file: str, where: str, found: dict, known: str) -> None:
    """Raises: ValueError naming a key of `found` that is not among the words of `known`, or what it is instead of a dict."""
    if not isinstance(found, dict):
        raise ValueError(f"{file}: {where} is of the type {type(found).__name__}; expected a dict")
    for key in found:
        if key not in known.split():
            raise ValueError(f"{file}: {where} holds {key!r}, which is not understood here; known are {known}")


def need(file: str, saved: dict, *keys: str) -> list[Tensor]:
    """The tensors of these names. Raises: ValueError naming the first that is missing."""
    missing = [key for key in keys if not isinstance(saved.get(key), Tensor)]
    if missing:
        raise ValueError(f"{file}: has no tensor {missing[0]}; there are {', '.join(sorted(map(str, saved))[:12])}")
    return [saved[key] for key in keys]


def agree(file: str, field: str, **said: object) -> None:
    """Raises: ValueError when two places (name -> value, None where one says nothing) say different things of a field."""
    whole = {p: int(v) for p, v in said.items() if isinstance(v, float) and v.is_integer()}  # 4.0 is 4
    known = {place: value for place, value in (said | whole).items() if value is not None}
    if len(set(map(str, known.values()))) > 1:
        words = ", ".join(f"{value} in its {place.replace('_', ' ')}" for place, value in known.items())
        raise ValueError(f"{file}: {field} is {words}")


def setting(file: str, where: str, found: dict, field: str, *types: type):
    """A setting of one of these types. Raises: ValueError naming it when it is missing or of another ("False" is true)."""
    if type(found.get(field)) not in types:
        words = " or ".join(t.__name__ for t in types)
        raise ValueError(f"{file}: {where} has {field} = {found.get(field)!r}; expected {words}")
    return found[field]


def numbers(file: str, found: dict, field: str, n: int = 1) -> Tensor:
    """One number, or n of them, as (n,) float32. Raises: ValueError naming it when it is something else."""
    try:
        return torch.as_tensor(found.get(field), dtype=torch.float32).flatten().expand(n)
    except (TypeError, ValueError, RuntimeError):
        many = f", or {n} of them" * (n > 1)
        raise ValueError(f"{file}: {field} = {str(found.get(field))[:60]}; expected a number{many}") from None


MSAE_NAME = re.compile(
    r"^(?P<S>\d+)_(?P<D>\d+)_(?P<activation>[A-Za-z]+)_(?:(?P<k>\d+)_)?(?:(?P<nested>UW|RW)_)?"
    r"(?P<tied>True|False)_(?P<normalize>True|False)_(?P<cap>\d+(?:\.\d+)?)_(?P<data>.*?)(?:\.pth?)?$"
)


def msae(path: Path, saved: dict, k: int) -> Layout:
    """{model, mean_center, scaling_factor, target_norm}; all else stands in the file's name.

    z = cap(act((x - mean) * scaling_factor - pre_bias) @ encoder + latent_bias)); x_hat undoes what was done to x.

    Of nested coders (UW, RW) the name says the smallest k alone. The levels double from it to `k`, by default all latents:
    level 0 is what the authors' sparse evaluation uses, the last what their extraction and their class SAE give.
    """
    file = path.name
    said = MSAE_NAME.match(file)
    if said is None:
        raise ValueError(
            f"{file}: an MSAE checkpoint says its settings in its name, e.g. "
            "6144_768_TopKReLU_64_RW_False_False_0.0_<data>.pth; rename it so"
        )
    only(file, "the file", saved, "model mean_center scaling_factor target_norm config epoch best_val_fvu")
    only(file, "model", saved["model"], "pre_bias encoder latent_bias decoder latents_activation_frequency")
    tied, rows, nested = said["tied"] == "True", said["normalize"] == "True", said["nested"]
    encoder, bias, pre_bias = need(file, saved["model"], "encoder", "latent_bias", "pre_bias")
    agree(file, "its shape", name=f"{said['D']} x {said['S']}", encoder=" x ".join(map(str, encoder.shape)))
    D, S = encoder.shape
    settings = dict(d_in=D, d_out=D, n_latents=S, tied=tied, pre_bias="decoder", unit_norm_decoder=True)
    settings |= dict(centre="mean", scale="rows" if rows else "rms")
    settings |= dict(soft_cap=float(said["cap"]))
    assumed = ""
    if said["activation"].endswith("TopKReLU") and not int(said["k"] or 0):
        raise ValueError(f"{file}: its name has no k >= 1 after {said['activation']}")
    if nested and said["activation"] == "TopKReLU":
        ks = [int(said["k"])]
        while ks[-1] < (k or S):
            ks.append(min(2 * ks[-1], k or S))
        weights = [len(ks) - i for i in range(len(ks))] if nested == "RW" else [1] * len(ks)
        shares = tuple(w / sum(weights) for w in weights)
        settings |= dict(selection="nested_topk", ks=tuple(ks), decoder="shared", level_weights=shares)
        assumed = "" if k else f"its levels, of which the name says the smallest alone, end at all {S} latents"
    elif said["activation"] in ("TopKReLU", "BatchTopKReLU"):
        selection = "topk" if said["activation"] == "TopKReLU" else "batch_topk"
        settings |= dict(selection=selection, ks=(int(said["k"]),))
        settings |= dict(inference="batch") if selection == "batch_topk" else {}  # as its authors use it
    elif said["activation"] == "ReLU":
        settings |= dict(selection="none", penalty="l1_relative", penalty_weight=float(f"0.{said['k'] or 0}"))
    else:
        raise ValueError(f"{file}: activation {said['activation']!r} is none of ReLU, TopKReLU, BatchTopKReLU")
    mean, scale = numbers(file, saved, "mean_center", D), 1 / numbers(file, saved, "scaling_factor", D)
    tensors = {"enc": encoder, "enc_bias": bias, "dec_bias.0": pre_bias}
    tensors |= {"x_mean": mean, "x_scale": scale, "y_mean": mean, "y_scale": scale}
    tensors |= {} if tied else {"dec.0": need(file, saved["model"], "decoder")[0]}
    model = re.search(r"(ViT-[BL]~\d+|RN50)", said["data"])
    reads = f"encoder={model[1].replace('~', '-')} pretrained=openai" if model else ""
    return Layout(settings, tensors, reads, assumed)


MONOLOSS_CONFIG = """train_path val_path test_path exp_name n_latents d_model activation model_type topk_k tied_weights normalize
batch_size num_epochs lr eps max_grad_norm l1_coef bandwidth auxk_coef auxk_k mono_coef mono_period dead_steps_threshold
dead_check_interval wandb_project wandb_name wandb_group device num_workers seed output_dir"""
MONOLOSS_TOPK = """pre_bias latent_bias stats_last_nonzero latents_activation_frequency latents_mean_square encoder.weight
decoder.weight decoder.linear.weight activation activation_state_dict activation.k activation.postact_fn"""
MONOLOSS_KINDS = {"batch_topk": "monoloss_batch_topk", "vanilla": "monoloss_relu", "jumprelu": "monoloss_jumprelu"}
MONOLOSS_ENCODERS = {
    "CLIP-ViT-L-14-DataComp": "encoder=hf-hub:laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    "siglip2-so400m": "encoder=ViT-SO400M-14-SigLIP2-378 pretrained=webli",
    "vit-large-p16-224": "encoder=timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
}


def monoloss(path: Path, saved: dict, k: int) -> Layout:
    """{epoch, step, model_state_dict, optimizer_state_dict, config}, or the state alone with training_config.json beside it.

    Settings are those of the preset of its kind: rows are divided by their norms, as the authors' data set does. TopK (tied,
    rows always standardised) has a state of its own; the other three share one, and the config says which of them it is and
    whether rows are standardised (normalize). BatchTopK lets the rows of a batch compete, as its authors do.
    """
    file, state = path.name, saved.get("model_state_dict", saved)
    inside, beside = saved.get("config") or {}, path.parent / "training_config.json"
    outside = json_object(beside) if beside.is_file() else {}
    if state is not saved:
        only(file, "the file", saved, "epoch step model_state_dict optimizer_state_dict config")
    only(file, "config", inside, MONOLOSS_CONFIG)
    only(beside.name, "the file", outside, MONOLOSS_CONFIG)
    for field in ("model_type", "activation", "topk_k", "normalize", "n_latents", "d_model", "tied_weights"):
        agree(file, field, config=inside.get(field), training_config_json=outside.get(field))
    config = outside | {name: value for name, value in inside.items() if value is not None}
    names = [name for key, name in MONOLOSS_ENCODERS.items() if key in str(config.get("train_path", ""))]
    read = _monoloss_topk if "encoder.weight" in state else _monoloss_other
    settings, tensors = read(file, state, config)
    D, S = tensors["enc"].shape
    agree(file, "n_latents", config=config.get("n_latents"), encoder=S)
    agree(file, "d_model", config=config.get("d_model"), encoder=D)
    settings |= dict(d_in=D, d_out=D, n_latents=S)
    return Layout(settings, tensors, (names or [""])[0])


def _monoloss_topk(file: str, state: dict, config: dict) -> tuple[dict, dict]:
    only(file, "model_state_dict", state, MONOLOSS_TOPK)
    enc, bias, pre_bias = need(file, state, "encoder.weight", "latent_bias", "pre_bias")
    said, inner = state.get("activation"), state.get("activation_state_dict", {})
    only(file, "activation_state_dict", inner, "k postact_fn")
    if said not in ("TopK", "ReLU") or inner.get("postact_fn", "ReLU") != "ReLU":
        raise ValueError(f"{file}: activation {said!r} of {inner} is not understood here; known are TopK and ReLU")
    tied = "decoder.weight" not in state
    settings = PRESETS["monoloss_topk"]["coder"] | dict(tied=tied, selection="none", ks=())
    if said == "TopK":
        k = setting(file, "activation_state_dict", inner, "k", int)
        agree(file, "k", activation_state_dict=k, activation_k=state.get("activation.k"), config=config.get("topk_k"))
        settings |= dict(selection="topk", ks=(k,))
    tensors = {"enc": enc.T, "enc_bias": bias, "dec_bias.0": pre_bias}
    if not tied:
        return settings, tensors | {"dec.0": need(file, state, "decoder.weight")[0].T}
    if "decoder.linear.weight" in state and not torch.equal(state["decoder.linear.weight"], enc):
        raise ValueError(f"{file}: decoder.linear.weight is not encoder.weight, whose transpose a tied decoder is")
    return settings, tensors


def _monoloss_other(file: str, state: dict, config: dict) -> tuple[dict, dict]:
    only(file, "model_state_dict", state, "b_dec b_enc W_enc W_dec jumprelu.log_threshold")
    enc, bias, dec, dec_bias = need(file, state, "W_enc", "b_enc", "W_dec", "b_dec")
    tensors = {"enc": enc, "enc_bias": bias, "dec.0": dec, "dec_bias.0": dec_bias}
    if not {"model_type", "normalize"} <= config.keys():
        raise ValueError(
            f"{file}: has no config that says model_type and normalize; put training_config.json beside it"
        )
    kind = config["model_type"]
    if kind not in MONOLOSS_KINDS:
        raise ValueError(f"{file}: model_type {kind!r} is none of topk, {', '.join(MONOLOSS_KINDS)}")
    if ("jumprelu.log_threshold" in state) != (kind == "jumprelu"):
        raise ValueError(f"{file}: model_type is {kind} in its config, which does not fit its tensors")
    scale = "rows" if setting(file, "config", config, "normalize", bool) else "none"
    settings = PRESETS[MONOLOSS_KINDS[kind]]["coder"] | dict(scale=scale)
    if kind == "batch_topk":
        settings |= dict(ks=(setting(file, "config", config, "topk_k", int),), inference="batch")
        tensors["enc_bias"] = torch.zeros_like(bias)  # stored, but their encoder does not add it
    else:
        settings |= dict(penalty_weight=float(setting(file, "config", config, "l1_coef", float, int)))
    if kind == "jumprelu":
        tensors["theta"] = need(file, state, "jumprelu.log_threshold")[0].exp()
        settings |= dict(bandwidth=float(setting(file, "config", config, "bandwidth", float, int)))
    return settings, tensors


def matryoshka_transcoders(path: Path, saved: dict, k: int) -> Layout:
    """{epoch, model_state_dict, optimizer_state_dict, loss, config}: encoder Linear and JumpReLU(gamma, beta); one Linear
    decoder per level, or a single `decoder`. Autoencoders have no output_dim."""
    file, state, config = path.name, saved.get("model_state_dict", saved), saved.get("config") or {}
    if state is not saved:
        known = "epoch model_state_dict optimizer_state_dict loss level_losses level_losses_history config"
        only(file, "the file", saved, known)
    known = "input_dim output_dim levels topk_per_level level_weights mode latent_dim topk"
    only(file, "config", config, known)
    enc, bias = need(file, state, "encoder.0.weight", "encoder.0.bias")
    nested = "decoder.weight" not in state
    several = sum(bool(re.fullmatch(r"decoders\.\d+\.weight", key)) for key in state)
    names = [f"decoders.{i}" for i in range(several)] if nested else ["decoder"]
    known = ["encoder.0.weight encoder.0.bias encoder.1.gamma encoder.1.beta", *(f"{n}.weight {n}.bias" for n in names)]
    only(file, "model_state_dict", state, " ".join(known))
    decoders = [need(file, state, f"{name}.weight", f"{name}.bias") for name in names]
    (S, D), d_out = enc.shape, decoders[0][0].shape[0]
    levels = [weight.shape[1] for weight, _ in decoders]
    agree(file, "its width", config=config.get("input_dim"), encoder=D)
    agree(file, "the width of its target", config=config.get("output_dim"), decoder=d_out)
    agree(file, "levels", config=config.get("levels"), decoders=levels if nested else None)
    to_y = config.get("output_dim") is not None if config else d_out != D
    settings = dict(d_in=D, d_out=d_out, n_latents=S, target="y" if to_y else "x", activation="jumprelu_fixed")
    settings |= {name: float(numbers(file, state, f"encoder.1.{name}")) for name in ("gamma", "beta")}
    settings |= dict(penalty="l1_mean", penalty_weight=0.01)
    if ("topk_per_level" if nested else "topk") not in config and not k:
        raise ValueError(f"{file}: has no config that says how many latents a row keeps; give k, or the authors' file")
    if nested:
        ks, weights = (setting(file, "config", config, f, list, tuple) for f in ("topk_per_level", "level_weights"))
        settings |= dict(selection="block_topk", levels=tuple(levels), ks=tuple(ks), level_weights=tuple(weights))
    else:
        told = setting(file, "config", config, "topk", int, type(None))
        agree(file, "latent_dim", config=config.get("latent_dim"), encoder=S)
        k = told or k
        settings |= dict(selection="topk", ks=(k,)) if k and k < S else dict(selection="none")
    tensors = {"enc": enc.T, "enc_bias": bias}
    for i, (weight, dec_bias) in enumerate(decoders):
        tensors |= {f"dec.{i}": weight.T, f"dec_bias.{i}": dec_bias}
    return Layout(settings, tensors, "encoder=ViT-L-14 pretrained=openai")


def sae_for_clip(path: Path, saved: dict, k: int) -> Layout:
    """{model_state_dict, ...}; the file of the end and a cleaned one have sae_config, a copy of the authors' YAML; those of
    an epoch, sae_best.pth among them, say no k. TopK after ReLU; the decoder has no bias."""
    file, state = path.name, saved.get("model_state_dict", saved)
    known = "epoch model_state_dict optimizer_state_dict metrics sae_config training_config log_path evr config"
    if state is not saved:
        only(file, "the file", saved, known)
    only(file, "model_state_dict", state, "encoder.weight encoder_bias decoder.weight")
    yaml, metrics = saved.get("sae_config") or saved.get("config") or {}, saved.get("metrics") or {}
    only(file, "sae_config", yaml, "clip sae")
    config, clip = yaml.get("sae") or {}, yaml.get("clip") or {}
    only(file, "sae_config['sae']", config, "d_model expansion_factor k sparsity_coeff")
    only(file, "sae_config['clip']", clip, "model pretrained layer")
    enc, bias, dec = need(file, state, "encoder.weight", "encoder_bias", "decoder.weight")
    S, D = enc.shape
    agree(file, "d_model", sae_config=config.get("d_model"), encoder=D)
    wider = None if config.get("expansion_factor") is None else D * float(numbers(file, config, "expansion_factor"))
    agree(file, "its number of latents", sae_config=wider, metrics=metrics.get("dict_size"), encoder=S)
    agree(file, "k", sae_config=config.get("k"), metrics=metrics.get("target_l0"))
    told = {"k": metrics["target_l0"]} | config if "target_l0" in metrics else config
    assumed = "" if k or "k" in told else "its k, which it does not say, is the authors' default of 500"
    k = setting(file, "sae_config['sae']", {"k": k or 500} | told, "k", int)
    settings = dict(d_in=D, d_out=D, n_latents=S, decoder_bias=False, unit_norm_decoder=True)
    settings |= dict(selection="topk", ks=(k,)) if k < S else dict(selection="none")
    where = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "layer": 11} | clip
    reads = f"encoder={where['model']} pretrained={where['pretrained']} layer={where['layer']}"
    return Layout(settings, {"enc": enc.T, "enc_bias": bias, "dec.0": dec.T}, reads, assumed)


def alexnet(path: Path, saved: dict, k: int) -> Layout:
    """A state dict: z = z_pre * [z_pre > theta]; epsilon is the width of the surrogate in training."""
    file = path.name
    only(file, "the file", saved, "W_enc W_dec b_enc b_dec theta epsilon")
    enc, bias, dec, dec_bias, theta = need(file, saved, "W_enc", "b_enc", "W_dec", "b_dec", "theta")
    if (theta < 0).any():
        raise ValueError(f"{file}: {int((theta < 0).sum())} thresholds are below 0; codes here are >= 0")
    D, S = enc.shape
    settings = dict(d_in=D, d_out=D, n_latents=S, activation="jumprelu", selection="none", penalty="l0_sigmoid")
    settings |= dict(penalty_weight=1e-3, bandwidth=float(numbers(file, {"epsilon": 1e-3} | saved, "epsilon")))
    tensors = {"enc": enc, "enc_bias": bias, "dec.0": dec, "dec_bias.0": dec_bias, "theta": theta}
    return Layout(settings, tensors, "the profile alexnet, whose vision model gives 36 tokens an image")

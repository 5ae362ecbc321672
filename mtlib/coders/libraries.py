"""What two libraries of sparse autoencoders write, and the settings and tensors of SparseCoder that mean the same.

SAELens               sae_weights.safetensors with cfg.json beside it, of the architectures KINDS
dictionary_learning   ae.pt of CLASSES, with config.json beside it where the tensors do not tell the class
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from mtlib.coders.layouts import Layout, agree, need, only, setting
from mtlib.run.artifacts import json_object

SAE_LENS, AE = "sae_weights.safetensors", "ae.pt"
KINDS = ("standard", "topk", "jumprelu")
# what decides the codes, then what version 5 wrote, then what only training reads
CFG = """architecture d_in d_sae k apply_b_dec_to_input normalize_activations rescale_acts_by_decoder_norm activation_fn_str
activation_fn_kwargs reshape_activations dtype device metadata
finetuning_scaling_factor model_name hook_name hook_layer hook_head_index prepend_bos dataset_path dataset_trust_remote_code
context_size sae_lens_training_version neuronpedia_id model_from_pretrained_kwargs seqpos_slice
decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps use_sparse_activations aux_loss_coefficient"""
_PLAIN, _LINEAR = "W_enc b_enc W_dec b_dec", "encoder.weight encoder.bias decoder.weight"
CLASSES = {
    "AutoEncoder": f"{_LINEAR} bias",
    "AutoEncoderNew": f"{_LINEAR} decoder.bias",
    "AutoEncoderTopK": f"{_LINEAR} b_dec k threshold",
    "BatchTopKSAE": f"{_LINEAR} b_dec k threshold",
    "MatryoshkaBatchTopKSAE": f"{_PLAIN} k threshold group_sizes",
    "JumpReluAutoEncoder": f"{_PLAIN} threshold",
    "GatedAutoEncoder": "encoder.weight decoder.weight decoder_bias r_mag gate_bias mag_bias",
}


def classes(saved: dict) -> list[str]:
    """The classes of dictionary_learning that have exactly these tensors."""
    return [name for name, tensors in CLASSES.items() if saved.keys() == set(tensors.split())]


def _autoencoder(weights: list[Tensor], settings: dict, norm: Tensor | float = 1.0) -> tuple[dict, dict]:
    """Settings and tensors of these W_enc (D, S), b_enc, W_dec (S, D) and b_dec, each latent in units of `norm` (S,)."""
    enc, bias, dec, dec_bias = weights
    settings = dict(d_in=len(enc), d_out=len(enc), n_latents=len(bias), selection="none") | settings
    dec = (dec.T / norm).T
    return settings, {"enc": enc * norm, "enc_bias": bias * norm, "dec.0": dec, "dec_bias.0": dec_bias}


def sae_lens(path: Path, saved: dict, k: int) -> Layout:
    """SAELens: z = act(x' @ W_enc + b_enc), x' = x, or x - b_dec if apply_b_dec_to_input; BatchTopK it saves as jumprelu.

    normalize_activations: layer_norm is scale = rows; constant_norm_rescale (rows of norm sqrt(D)) is unit_rows with that root
    in the weights; the others need numbers that stand elsewhere.
    """
    file, beside = path.name, path.parent / "cfg.json"
    if not beside.is_file():
        raise ValueError(f"{file}: a SAELens coder needs cfg.json beside it")
    cfg = json_object(beside)
    kind, activation = cfg.get("architecture"), cfg.get("activation_fn_str", "relu")
    if kind not in KINDS or activation not in ("relu", "topk"):
        read = f"read are {', '.join(KINDS)}, as save_inference_model writes them"
        raise ValueError(f"{file}: a SAELens coder of architecture {kind!r} with activation {activation!r}; {read}")
    only("cfg.json", "the file", cfg, CFG)
    only(file, "the file", saved, _PLAIN + " threshold" * (kind == "jumprelu"))
    enc, bias, dec, dec_bias = need(file, saved, *_PLAIN.split())
    for name, size in zip(("d_in", "d_sae"), enc.shape, strict=True):
        agree(file, name, cfg_json=cfg.get(name), W_enc=size)
    settings = dict(pre_bias="decoder" if setting("cfg.json", "it", cfg, "apply_b_dec_to_input", bool) else "none")
    norm = dec.norm(dim=1) if cfg.get("rescale_acts_by_decoder_norm") else 1.0
    match cfg.get("normalize_activations"):
        case "constant_norm_rescale":
            root, settings["unit_rows"] = math.sqrt(len(enc)), True
            enc, dec, dec_bias = enc * root, dec / root, dec_bias / root
        case "layer_norm":
            settings["scale"] = "rows"
        case other if other not in ("none", None, False):
            raise ValueError(f"{file}: normalize_activations = {other!r} needs numbers that the file does not hold")
    if "topk" in (kind, activation):
        inner = {"k": (cfg.get("activation_fn_kwargs") or {}).get("k")} | cfg
        settings |= dict(selection="topk", ks=(setting("cfg.json", "it", inner, "k", int),))
    settings, tensors = _autoencoder([enc, bias, dec, dec_bias], settings, norm)
    if kind == "jumprelu":  # of relu(z_pre)
        settings["activation"], tensors["theta"] = "jumprelu", need(file, saved, "threshold")[0].relu()
    where = cfg | (cfg.get("metadata") or {})
    return Layout(settings, tensors, " ".join(str(where[n]) for n in ("model_name", "hook_name") if where.get(n)))


def dictionary_learning(path: Path, saved: dict, k: int) -> Layout:
    """dictionary_learning: the codes of its own `encode`, after what its `from_pretrained` does; BatchTopK by its threshold.

    Of config.json only the class, the sizes and k have a part in them.
    """
    file, beside, kinds = path.name, path.parent / "config.json", classes(saved)
    said = json_object(beside).get("trainer", {}) if beside.is_file() else {}
    kind = said.get("dict_class", kinds[0])
    agree(file, "its class", config_json=kind, tensors=kind if kind in kinds else " or ".join(kinds))
    if kind == "GatedAutoEncoder":
        raise ValueError(f"{file}: a gated coder of dictionary_learning, which is none of SparseCoder's family")
    if "dict_class" not in said and len(kinds) > 1:
        raise ValueError(f"{file}: {' or '.join(kinds)} of dictionary_learning; put its config.json beside it")
    names = CLASSES[kind].split()
    enc, bias, dec, dec_bias = (saved[name] for name in names[:4])
    enc, dec = (enc.T, dec.T) if names[0] == "encoder.weight" else (enc, dec)
    for name, size in zip(("activation_dim", "dict_size"), enc.shape, strict=True):
        agree(file, name, config_json=said.get(name), encoder=size)
    settings = dict(pre_bias="none" if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else "decoder")
    if "k" in saved:
        agree(file, "k", config_json=said.get("k"), tensors=int(saved["k"]), argument=k or None)
        settings |= dict(selection="topk" if kind == "AutoEncoderTopK" else "batch_topk", ks=(int(saved["k"]),))
    if "group_sizes" in saved:
        settings |= dict(levels=tuple(saved["group_sizes"].cumsum(0).tolist()), decoder="shared")
    settings, tensors = _autoencoder(
        [enc, bias, dec, dec_bias], settings, dec.norm(dim=1) if kind == "AutoEncoder" else 1.0
    )
    if kind == "JumpReluAutoEncoder":  # of relu(z_pre)
        settings["activation"], tensors["theta"] = "jumprelu", saved["threshold"].relu()
    elif settings["selection"] == "batch_topk":
        tensors["threshold"] = saved["threshold"].expand(len(bias))
    topk = "rows keep k latents: the threshold that it holds too is for other uses, as in its library"
    reads = " ".join(str(said[name]) for name in ("lm_name", "submodule_name", "layer") if said.get(name) is not None)
    return Layout(settings, tensors, reads, topk if kind == "AutoEncoderTopK" else "")

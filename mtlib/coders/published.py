"""Checkpoints of the five systems, and coders of this repo, as SparseCoder: the same codes, the same reconstructions.

    MSAE                     {model, mean_center, scaling_factor, target_norm}; its settings stand in the file's name
    MonoLoss                 {model_state_dict, config, ...}, or a state dict with training_config.json beside it
    Matryoshka Transcoders   {model_state_dict, config: {input_dim, output_dim, levels, topk_per_level, ...}, ...}
    SAE-for-CLIP             {model_state_dict: {encoder.weight, encoder_bias, decoder.weight}, sae_config: {clip, sae}, ...}
    AlexNet-Transformer      a state dict {W_enc, W_dec, b_enc, b_dec, theta, epsilon}

Files are read without running anything in them (run/torch_files.py). A coder so read can be saved with `save_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from mtlib.coders import layouts
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.files import fill
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.run.torch_files import load_tensors

HUB = "hf-hub:"


def open_coder(name: str, k: int = 0) -> SparseCoder:
    """A coder that was trained elsewhere, in eval mode.

    Args:
        name: a checkpoint of one of the five systems, a folder that `save_pretrained` wrote, or "hf-hub:owner/name" of a
            repository with such a folder's files, "hf-hub:owner/name/path/of/file.pth" of a checkpoint in it.
        k:    as in `read_published`.
    Returns: the coder; `recorded["checkpoint"]` says what is known of it: file, reads, assumed.
    Raises: as `read_published` and `SparseCoder.from_pretrained`.
    """
    path = Path(name).expanduser()
    if name.startswith(HUB):
        owner, _, rest = name.removeprefix(HUB).partition("/")
        repository, _, file = rest.partition("/")
        if file:
            return read_published(hf_hub_download(f"{owner}/{repository}", file), k)
        return SparseCoder.from_pretrained(f"{owner}/{repository}")
    return SparseCoder.from_pretrained(path) if path.is_dir() else read_published(path, k)


def read_published(path: str | Path, k: int = 0) -> SparseCoder:
    """A coder from a checkpoint that one of the five systems published or writes.

    Args:
        path: the .pt or .pth file; its layout says which system wrote it.
        k:    latents per row, where the file does not say: SAE-for-CLIP before its end (default 500 there), the largest
            of MSAE's nested k (default all latents).
    Returns: the coder in eval mode; `recorded["checkpoint"]` holds file, reads (the x that it was trained on) and assumed
        (what the file does not say), "" where nothing is to be said.
    Raises: FileNotFoundError; ValueError when the file needs more than tensors and plain values, is of no layout that
        is known here, holds a field that is not understood, contradicts itself, or holds NaN or infinite weights.
    """
    path = Path(path)
    saved = load_tensors(path)
    state = saved.get("model_state_dict", saved.get("model", saved))
    if not isinstance(state, dict):
        raise ValueError(f"{path.name}: expected a dict of tensors, found {type(state).__name__}")
    if {"model", "mean_center", "scaling_factor"} <= saved.keys():
        read = layouts.msae
    elif "encoder.0.weight" in state:
        read = layouts.matryoshka_transcoders
    elif "encoder_bias" in state:
        read = layouts.sae_for_clip
    elif "theta" in state:
        read = layouts.alexnet
    elif {"b_dec", "W_enc"} <= state.keys() or {"pre_bias", "encoder.weight"} <= state.keys():
        read = layouts.monoloss
    else:
        raise ValueError(f"{path.name}: no known layout; it has {', '.join(sorted(map(str, state))[:8])}")
    found = read(path, saved, k)
    try:
        coder = SparseCoder(SparseCoderConfig(**found.settings))
    except ValueError as e:
        raise ValueError(f"{path.name}: {e}") from e
    fill(coder, coder.state_dict() | {name: value.detach() for name, value in found.tensors.items()}, path.name)
    coder.recorded = {"checkpoint": {"file": path.name, "reads": found.reads, "assumed": found.assumed}}
    return coder.eval()

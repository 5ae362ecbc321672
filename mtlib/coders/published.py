"""Checkpoints of the five systems and of two libraries, and coders of this repo, as SparseCoder: the same codes, the same
reconstructions.

    MSAE                     {model, mean_center, scaling_factor, target_norm}; its settings stand in the file's name
    MonoLoss                 {model_state_dict, config, ...}, or a state dict with training_config.json beside it
    Matryoshka Transcoders   {model_state_dict, config: {input_dim, output_dim, levels, topk_per_level, ...}, ...}
    SAE-for-CLIP             {model_state_dict: {encoder.weight, encoder_bias, decoder.weight}, sae_config: {clip, sae}, ...}
    AlexNet-Transformer      a state dict {W_enc, W_dec, b_enc, b_dec, theta, epsilon}
    SAELens                  sae_weights.safetensors and cfg.json; dictionary_learning: ae.pt and config.json (libraries.py)

Files are read without running anything in them (embed/given/torch_files.py). A coder so read can be saved with `save_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from mtlib.coders import layouts, libraries
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.files import fill, read_tensors
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.given.torch_files import load_tensors

HUB = "hf-hub:"
SETTINGS = ("cfg.json", "config.json", "training_config.json")  # files that may stand beside a checkpoint


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
        if not file:
            return _with_k(SparseCoder.from_pretrained(f"{owner}/{repository}"), k, name)
        wanted = [file, *(f"{file}/{name}" for name in (libraries.SAE_LENS, libraries.AE, *SETTINGS))]
        wanted += [f"{file.rpartition('/')[0]}/{name}".lstrip("/") for name in SETTINGS]
        path = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=wanted)) / file
    path = _file(path)
    return _with_k(SparseCoder.from_pretrained(path), k, name) if path.is_dir() else read_published(path, k)


def _with_k(coder: SparseCoder, k: int, name: str) -> SparseCoder:
    """The coder, if its rows keep the k latents that were asked for (0: whatever they do)."""
    S, ks = coder.config.n_latents, coder.config.ks
    if k and min(k, S) != (ks[-1] if ks else S):
        own = f"k = {', '.join(map(str, ks))}" if ks else "no k"
        raise ValueError(f"{name}: k = {k} is asked for, but its own settings say {own}; leave k out")
    return coder


def _file(path: Path) -> Path:
    """The coder's file in a folder of one of the libraries; other paths as they are."""
    return next((path / name for name in (libraries.SAE_LENS, libraries.AE) if (path / name).is_file()), path)


def read_published(path: str | Path, k: int = 0) -> SparseCoder:
    """A coder from a checkpoint that one of the five systems, SAELens or dictionary_learning published or writes.

    Args:
        path: the file, or the folder of one of the libraries; its layout says who wrote it.
        k:    latents per row, where the file does not say: SAE-for-CLIP before its end (default 500 there), the largest
            of MSAE's nested k (default all latents). One that the file contradicts is an error.
    Returns: the coder in eval mode; `recorded["checkpoint"]` holds file, reads (the x that it was trained on) and assumed
        (what the file does not say), "" where nothing is to be said.
    Raises: FileNotFoundError; ValueError when the file needs more than tensors and plain values, is of no layout that
        is known here, holds a field that is not understood, contradicts itself, or holds NaN or infinite weights.
    """
    path = _file(Path(path))
    saved = read_tensors(path) if path.suffix == ".safetensors" else load_tensors(path)
    state = saved.get("model_state_dict", saved.get("model", saved))
    if not isinstance(state, dict):
        raise ValueError(f"{path.name}: expected a dict of tensors, found {type(state).__name__}")
    if {"model", "mean_center", "scaling_factor"} <= saved.keys():
        read = layouts.msae
    elif "encoder.0.weight" in state:
        read = layouts.matryoshka_transcoders
    elif path.name == libraries.SAE_LENS:
        read = libraries.sae_lens
    elif libraries.classes(saved):
        read = libraries.dictionary_learning
    elif "encoder_bias" in state:
        read = layouts.sae_for_clip
    elif "theta" in state:
        read = layouts.alexnet
    elif {"b_dec", "W_enc"} <= state.keys() or {"pre_bias", "encoder.weight"} <= state.keys():
        read = layouts.monoloss
    elif {"cfg", "state_dict"} <= saved.keys():
        raise ValueError(f"{path.name}: a checkpoint of SAELens before version 1; save it again with a newer one")
    else:
        raise ValueError(f"{path.name}: no known layout; it has {', '.join(sorted(map(str, state))[:8])}")
    found = read(path, saved, k)
    try:
        coder = SparseCoder(SparseCoderConfig(**found.settings))
    except ValueError as e:
        raise ValueError(f"{path.name}: {e}") from e
    fill(coder, coder.state_dict() | {name: value.detach() for name, value in found.tensors.items()}, path.name)
    coder.recorded = {"checkpoint": {"file": path.name, "reads": found.reads, "assumed": found.assumed}}
    return _with_k(coder.eval(), k, path.name)

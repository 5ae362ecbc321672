"""A tiny open_clip model with random weights, loaded by the same call as real CLIP."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mtlib.embed.encoders import Encoder

VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def write_tiny_clip(folder: Path, seed: int = 0) -> str:
    """Write the model's folder and return the encoder name for it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_name(tmp_path_factory):
    """Name of a tiny encoder, for Encoder.load."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tiny(tiny_name):
    """The tiny encoder, loaded."""
    return Encoder.load(tiny_name, device="cpu")

"""The embedded demo: small drawn scenes with known physical errors, and a small CLIP trained on them."""

from pathlib import Path

BUNDLED = "demo"  # what the encoder of clip_path() is called


def clip_path():
    """Folder of the bundled encoder, loadable as `open_clip.create_model_and_transforms(f"local-dir:{clip_path()}")`.

    Returns: Path of a folder with open_clip_config.json and open_clip_model.safetensors.
    """
    return Path(__file__).resolve().parent / "clip"

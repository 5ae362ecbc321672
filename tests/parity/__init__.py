"""Every published formula rewritten in plain NumPy, float64, and the items in which this repo's coders are held to it.

A system is a file whose ITEMS maps an item's name to a function that returns (ours, published), two arrays.
"""

import importlib

import numpy as np

SYSTEMS = ("matryoshka_transcoders", "msae", "monoloss", "sae_for_clip", "alexnet", "alexnet_model")
LIMIT, LIMIT_FLOAT32 = 1e-9, 1e-3


def items():
    """Every (system, item, function)."""
    for system in SYSTEMS:
        for name, function in importlib.import_module(f"tests.parity.{system}").ITEMS.items():
            yield system, name, function


def limit(item: str) -> float:
    """Largest relative difference that an item may show; runs in float32 say so in their name."""
    return LIMIT_FLOAT32 if "float32" in item else LIMIT


def difference(ours: np.ndarray, published: np.ndarray) -> float:
    """max |ours - published| / max |published|; infinite for other shapes, or numbers that are not finite."""
    ours, published = np.asarray(ours, dtype=np.float64), np.asarray(published, dtype=np.float64)
    if ours.shape != published.shape or not (np.isfinite(ours).all() and np.isfinite(published).all()):
        return np.inf
    assert published.any(), "an item of zeros compares nothing"
    return float(np.abs(ours - published).max() / np.abs(published).max())

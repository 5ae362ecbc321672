"""Torch files of other people. They are pickles, and pickles can run code: read here, they make tensors and plain values
only, and everything else is refused unexecuted."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch.serialization import safe_globals

# MSAE's target_norm is a float64 of NumPy, pickled by this function under the name that it had in NumPy 1 or has in 2
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBER = [(_SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
_NUMBER += [np.dtype, type(np.dtype(np.float64))]


def load_torch(path: Path):
    """What a torch file holds: tensors and plain values. Raises: FileNotFoundError, ValueError; runs no code."""
    try:
        with safe_globals(_NUMBER):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as e:
        found = re.search(r"GLOBAL ([\w.]+)", str(e)) or re.search(r"Unsupported \w+ ?([\w.]*)", str(e))
        what = f" ({found[1]})" if found and found[1] else ""
        raise ValueError(
            f"{path.name}: holds more than tensors and plain values{what}; refused, nothing of it ran"
        ) from e
    except (RuntimeError, EOFError, KeyError, UnicodeDecodeError) as e:
        said = (str(e).splitlines() or ["empty, or cut off"])[0][:200]
        raise ValueError(f"{path.name}: not a readable torch file ({said})") from e


def load_tensors(path: Path) -> dict:
    """The dict in a torch file, see `load_torch`."""
    saved = load_torch(path)
    if not isinstance(saved, dict):
        raise ValueError(f"{path.name}: expected a dict, found {type(saved).__name__}")
    return saved

"""Feature files as other systems publish them, each seen as one .npy of rows.

x.npy                                              as numpy writes it
cc3m_ViT-L~14_train_image_2905936_768.npy          MSAE's: plain float32, rows and width in the name; a header wins over it
x.npz                                              one two-dimensional array (or the one named x, features, embeddings)
clip_image_features.lmdb/                          MonoLoss's: keys __len__, __shape__, "0", "1" ... (extra `data`)
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np

from mtlib.embed.data import InputError
from mtlib.embed.imports import extra
from mtlib.run.artifacts import atomic

NAMED = re.compile(r"_(\d+)_(\d+)\.npy$")
SUFFIXES = (".npy", ".npz", ".lmdb", ".mdb")
NPZ_NAMES = ("x", "features", "embeddings")


def is_features(path: Path) -> bool:
    """Whether a path names a feature file, not images."""
    return path.suffix in SUFFIXES or (path / "data.mdb").is_file()


def as_npy(path: Path, scratch: Path, parameter: str = "embeddings") -> Path:
    """The path of a .npy with the rows of a feature file: itself when it is one, else a copy, scratch/<parameter>.npy.

    Raises: InputError when the file is none of the kinds above, or is not what its name or header says.
    """
    path = Path(path)
    target = scratch / f"{parameter}.npy"
    if path.is_dir() or path.suffix == ".mdb":
        return _write(target, *_lmdb(path if path.is_dir() else path.parent, parameter))
    if path.suffix == ".npz":
        x = _npz(path, parameter)
        return _write(target, x.shape, iter([x]))
    declared = NAMED.search(path.name)
    if not declared or not path.is_file() or _has_header(path):
        return path
    shape, size = (int(declared[1]), int(declared[2])), path.stat().st_size
    needed = 4 * shape[0] * shape[1]
    if size != needed:
        raise InputError(f"{parameter} = {path}: {size} bytes, but float32 {shape} of its name needs {needed}")
    x = np.memmap(path, "<f4", "r", shape=shape)
    return _write(target, shape, (x[i : i + 65536] for i in range(0, len(x), 65536)))


def _has_header(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(6) == b"\x93NUMPY"


def _write(target: Path, shape: tuple[int, int], parts) -> Path:
    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    with atomic(target) as tmp, open(tmp, "wb") as f:
        np.lib.format.write_array_header_1_0(f, header)
        for part in parts:
            f.write(np.ascontiguousarray(part, "<f4").data)
    return target


def _npz(path: Path, parameter: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [n for n in NPZ_NAMES if n in file.files] or [n for n in file.files if file[n].ndim == 2]
            if len(names) != 1:
                raise InputError(
                    f"{parameter} = {path}: {len(names)} arrays may be meant; name one of them x ({file.files})"
                )
            x = file[names[0]]
    except (OSError, ValueError, EOFError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{parameter} = {path}: no readable .npz ({e})") from e
    if x.ndim != 2 or x.dtype.kind != "f":
        raise InputError(f"{parameter} = {path}: {x.dtype} {x.shape}, expected two-dimensional floating-point numbers")
    return x


def _lmdb(folder: Path, parameter: str):
    """(shape, parts) of a feature data base; values are raw float32, never unpickled."""
    lmdb = extra("lmdb", "data")
    where = f"{parameter} = {folder}"
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, create=False, max_readers=1)
    except lmdb.Error as e:
        raise InputError(f"{where}: no LMDB data base ({e})") from e
    with environment.begin() as read:
        length, shape = read.get(b"__len__"), read.get(b"__shape__")
        try:
            n, one = int(length), ast.literal_eval(shape.decode("ascii"))
            width = int(np.prod(one))
        except (TypeError, ValueError, AttributeError, SyntaxError) as e:
            environment.close()
            raise InputError(f"{where}: no readable __len__ and __shape__") from e

    def parts():
        with environment, environment.begin() as read:
            for i in range(n):
                value = read.get(str(i).encode("ascii"))
                if value is None or len(value) != 4 * width:
                    found = "missing" if value is None else f"{len(value)} bytes"
                    raise InputError(f"{where}: entry {i} is {found}, expected {4 * width} bytes (float32 {one})")
                yield np.frombuffer(value, "<f4")

    return (n, width), parts()

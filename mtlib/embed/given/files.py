"""Feature files as other systems publish them, each seen as one .npy of rows:

x.npy                                              as numpy writes it
cc3m_ViT-L~14_train_image_2905936_768.npy          MSAE's: plain float32, rows and width in the name; a header wins over it
x.npz                                              one two-dimensional array (or the one named x, features, embeddings)
activations_xyz.npz                                Matryoshka Transcoders': x, the classifier's hidden layer y, its probability z
clip_image_features.lmdb/                          MonoLoss's: keys __len__, __shape__, "0", "1" ... (extra `data`)
imagenet_clip.json                                 MonoLoss's: train_path, val_path, test_path of such files
activation_dataset_block6_resid/                   AlexNet-Transformer's: a .pt of (tokens, D) for each image, by name
img_emb/                                           clip-retrieval's: img_emb_0.npy, img_emb_1.npy ... of the rows one after another
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtlib.embed.datasets import extra
from mtlib.embed.manifest import InputError
from mtlib.embed.store import open_array, write_rows

SIZES = re.compile(r"_(\d+)_(\d+)\.npy$")  # in the name of a file without a header
SUFFIXES = (".npy", ".npz", ".lmdb", ".mdb")
NPZ_NAMES = ("x", "features", "embeddings")
OF_SPLITS = {"train": "embeddings", "val": "val_embeddings", "test": "test_embeddings"}  # split -> its parameter


def is_features(path: Path) -> bool:
    """Whether a path names a feature file, not images."""
    return path.suffix in SUFFIXES or (path / "data.mdb").is_file() or bool(tensors(path) or arrays(path))


def as_npy(path: Path, scratch: Path, parameter: str = "embeddings") -> Path:
    """The path of a .npy with the rows of a feature file: itself when it is one, else a copy, scratch/<parameter>.npy.

    Raises: InputError when the file is none of the kinds above, or is not what its name or header says.
    """
    path, target = Path(path), scratch / f"{parameter}.npy"
    declared = SIZES.search(path.name)
    if files := tensors(path):
        first = _tensor(files[0], parameter)
        shape, parts = (len(files) * len(first), first.shape[1]), (_tensor(p, parameter, first.shape) for p in files)
    elif files := arrays(path):
        shape, parts = _joined(files, f"{parameter} = {path}")
    elif path.is_dir() or path.suffix == ".mdb":
        shape, parts = _lmdb(path if path.is_dir() else path.parent, parameter)
    elif path.suffix == ".npz":
        x = _npz(path, parameter)
        shape, parts = x.shape, [x]
    elif not declared or not path.is_file() or _has_header(path):
        return path
    else:
        shape, size = (int(declared[1]), int(declared[2])), path.stat().st_size
        needed = 4 * shape[0] * shape[1]
        if size != needed:
            raise InputError(f"{parameter} = {path}: {size} bytes, but float32 {shape} of its name needs {needed}")
        x = np.memmap(path, "<f4", "r", shape=shape)
        parts = (x[i : i + 65536] for i in range(0, len(x), 65536))
    write_rows(target, shape, parts)
    return target


def tensors(path: Path) -> list[Path]:
    """The .pt files of a folder, by name."""
    return sorted(path.glob("*.pt")) if path.is_dir() else []


def arrays(path: Path) -> list[Path]:
    """The .npy files of a folder that holds nothing else, in the order of the numbers at the end of their names."""
    found = sorted(path.iterdir()) if path.is_dir() else []
    npy = all(p.suffix == ".npy" for p in found)
    return sorted(found, key=lambda p: int(re.search(r"\d*$", p.stem)[0] or -1)) if npy else []


def _joined(files: list[Path], where: str) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
    """(shape, parts) of the arrays of a folder."""
    names = [re.fullmatch(r"(.*?)(\d+)", p.stem) or [p.stem, p.stem, -1] for p in files]
    if [(names[0][1], int(names[0][2]) + i) for i in range(len(files))] != [(m[1], int(m[2])) for m in names]:
        has = f"{', '.join(p.name for p in files[:4])} and {max(0, len(files) - 4)} more"
        raise InputError(
            f"{where}: expected parts of one array, name_0.npy, name_1.npy, ..., without a gap; it has {has}"
        )
    opened = [open_array(p, 2) for p in files]
    for path, x in zip(files, opened, strict=True):
        if x.dtype.kind != "f" or x.shape[1] != opened[0].shape[1]:
            first = f"{files[0].name} {opened[0].dtype} {opened[0].shape}"
            raise InputError(f"{where}: {path.name} holds {x.dtype} {x.shape}, {first}")
    parts = (x[i : i + 65536] for x in opened for i in range(0, len(x), 65536))
    return (sum(map(len, opened)), opened[0].shape[1]), parts


def n_tokens(path: Path) -> int:
    """Rows of each image in a feature file."""
    return len(_tensor(tensors(path)[0], "embeddings")) if tensors(path) else 1


def _tensor(path: Path, parameter: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """(T, D) float32 of a .pt file; of a saved view its own numbers, whose storage may hold a whole batch."""
    import torch

    from mtlib.embed.given.torch_files import load_torch

    where = f"{parameter} = {path.parent}"
    try:
        saved = load_torch(path)
    except ValueError as e:
        raise InputError(f"{where}: {e}") from e
    if not isinstance(saved, torch.Tensor) or saved.ndim != 2 or not saved.is_floating_point():
        found = f"{saved.dtype} {tuple(saved.shape)}" if isinstance(saved, torch.Tensor) else type(saved).__name__
        raise InputError(f"{where}: {path.name} holds {found}, expected a floating-point tensor (tokens, D)")
    if shape is not None and tuple(saved.shape) != shape:
        raise InputError(f"{where}: {path.name} has shape {tuple(saved.shape)}, the first file {shape}")
    return saved.to(torch.float32, copy=True).numpy()


def _has_header(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(6) == b"\x93NUMPY"


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


def _lmdb(folder: Path, parameter: str) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
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


def named_in(path: Path, given: dict[str, str]) -> dict[str, str]:
    """What a JSON of MonoLoss names, as parameters; and train_labels, val_labels, test_labels, which are ours."""
    where = f"embeddings = {path}"
    if further := [name for name in OF_SPLITS.values() if given[name] and name != "embeddings"]:
        raise InputError(f"{where}: names the file of every split; {further[0]} = {given[further[0]]} belongs into it")
    try:
        named = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise InputError(f"{where}: no readable JSON ({e})") from e
    if not isinstance(named, dict) or not named.get("train_path"):
        raise InputError(f"{where}: expected {{train_path: FILE}}, and val_path, test_path where there are")
    keys = {f"{split}_path": name for split, name in OF_SPLITS.items()} | {
        f"{s}_labels": f"{s}_labels" for s in OF_SPLITS
    }
    for key, value in named.items():
        if key not in keys or not isinstance(value, str | None):
            raise InputError(f"{where}: {key} = {value!r} is not understood; there are {', '.join(keys)}")
    return {name: named.get(key) or "" for key, name in keys.items()}


def classified(path: Path, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """y (N, O) and logits (N,) beside the n rows of x in a .npz of Matryoshka Transcoders, whose z are probabilities; None elsewhere.

    Raises: InputError when they do not fit x.
    """
    if path.suffix != ".npz":
        return None
    with np.load(path, allow_pickle=False) as file:
        if not {"x", "y", "z"} <= set(file.files):
            return None
        y, z = file["y"].astype(np.float32), np.squeeze(file["z"]).astype(np.float64)
    if y.ndim != 2 or len(y) != n or z.shape != (n,):
        raise InputError(
            f"embeddings = {path}: y {y.shape} and z {z.shape} for {n} rows of x; expected (N, O) and (N,)"
        )
    if not (np.isfinite(y).all() and ((z >= 0) & (z <= 1)).all()):
        raise InputError(f"embeddings = {path}: y must be finite and z a probability from 0 to 1")
    z = z.clip(1e-7, 1 - 1e-7)
    return y, np.log(z / (1 - z)).astype(np.float32)

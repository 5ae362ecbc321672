"""Embeddings that were made elsewhere: arrays instead of images, words instead of pictures.

Feature files as other systems publish them, each seen as one .npy of rows:

x.npy                                              as numpy writes it
cc3m_ViT-L~14_train_image_2905936_768.npy          MSAE's: plain float32, rows and width in the name; a header wins over it
x.npz                                              one two-dimensional array (or the one named x, features, embeddings)
clip_image_features.lmdb/                          MonoLoss's: keys __len__, __shape__, "0", "1" ... (extra `data`)
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.datasets import extra
from mtlib.embed.manifest import COLUMNS, LISTED, InputError, complete
from mtlib.embed.store import open_array, write_rows

SIZES = re.compile(r"_(\d+)_(\d+)\.npy$")  # in the name of a file without a header
SUFFIXES = (".npy", ".npz", ".lmdb", ".mdb")
NPZ_NAMES = ("x", "features", "embeddings")


def checked(path: Path, parameter: str, scratch: Path) -> np.ndarray:
    """The rows of a feature file, memory-mapped: two-dimensional, floating point, every value finite.

    Args: path; parameter: that named it; scratch: folder for a copy of what is no plain .npy.
    Raises: InputError or ArtifactError naming the parameter, the file and the first bad row.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{parameter} = {path}: no such file")
    x = open_array(as_npy(path, scratch, parameter), 2)
    if x.dtype.kind != "f":
        raise InputError(f"{parameter} = {path}: {x.dtype}, expected floating-point numbers")
    for start in range(0, len(x), 8192):
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported
            finite = np.isfinite(np.asarray(x[start : start + 8192], np.float32)).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{parameter} = {path}: row {start + int(np.argmin(finite))} holds NaN or infinity (as float32)"
            )
    return x


def lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, without line ends. Raises: InputError when it is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8") from e


def names_beside(path: Path, n: int, exclude: tuple[Path, ...] = ()) -> Path | None:
    """The one .txt beside `path` that has `n` lines; None if there is none, and then those with other numbers are said.

    Raises: InputError if there are several.
    """
    path, out = Path(path), {e.resolve() for e in exclude}
    texts = [p for p in sorted(path.parent.glob("*.txt")) if p.is_file() and p.resolve() not in out]
    count = {p: len(lines(p)) for p in texts}
    fitting = [p for p in texts if count[p] == n]
    if texts and not fitting:
        found = ", ".join(f"{p.name} has {count[p]} lines" for p in texts[:5]) + ", ..." * (len(texts) > 5)
        print(f"{path.name} has {n} rows; no text file beside it names them: {found}")
    if len(fitting) > 1:
        raise InputError(
            f"{path}: {len(fitting)} text files beside it have {n} lines ({', '.join(p.name for p in fitting)})"
        )
    return fitting[0] if fitting else None


def read_vocabulary(vocabulary: Path, names: str, d_in: int, scratch: Path) -> tuple[np.ndarray, pd.DataFrame, Path]:
    """Text embeddings with their words.

    Args:
        vocabulary: feature file of (V, D).
        names:      text file with V lines, or "" for the one sibling that has as many.
        d_in:       D of the embeddings.
        scratch:    as for `checked`.
    Returns: ((V, D) float32, frame of the vocabulary's columns, the text file).
    Raises: InputError when widths differ, or no or several text files fit.
    """
    v = checked(vocabulary, "vocabulary", scratch)
    if v.shape[1] != d_in:
        raise InputError(f"vocabulary = {vocabulary}: shape {v.shape}, the embeddings are {d_in} wide")
    path = Path(names) if names else names_beside(vocabulary, len(v))
    if path is None:
        raise InputError(
            f"vocabulary = {vocabulary}: no .txt beside it has {len(v)} lines; give vocabulary_names=<file>"
        )
    if not path.is_file():
        raise InputError(f"vocabulary_names = {path}: no such file")
    words = lines(path)
    if len(words) != len(v):
        raise InputError(f"vocabulary_names = {path}: {len(words)} lines for {len(v)} rows of {vocabulary}")
    again = pd.Series(words).groupby(words).cumcount()  # another sense of the same word: "bow (2)"
    phrases = [f"{word} ({n + 1})" if n else word for word, n in zip(words, again, strict=True)]
    return np.asarray(v, np.float32), pd.DataFrame({"phrase": phrases, "kind": "word", "family": "", "cause": ""}), path


def rows_manifest(x: np.ndarray, embeddings: Path, exclude: tuple[Path, ...], fractions, seed: int) -> pd.DataFrame:
    """The manifest of rows of embeddings.

    Args:
        x:          (N, D).
        embeddings: the file that was given; a .txt beside it with N lines, if there is one, names the rows.
        exclude:    text files that name something else.
        fractions, seed: of the splits; equal rows share their group.
    Returns: path is the row's word (with its number where it repeats), class_name the word; labels are unknown.
    """
    file = names_beside(embeddings, len(x), exclude)
    words = pd.Series(lines(file) if file else [""] * len(x), dtype=str)
    number = pd.Series([f"row {i}" for i in range(len(x))])
    path = words.where(words != "", number)
    path = path.where(~path.duplicated(keep=False), path + " (" + number + ")")
    listing = pd.DataFrame({"path": path, "status": LISTED, "label": pd.array([pd.NA] * len(x), dtype="Int64")})
    listing["row"] = listing["label"]
    listing[[name for name in COLUMNS if name not in listing]] = ""
    hashes = [hashlib.sha256(np.ascontiguousarray(row)).hexdigest() for row in x]
    outcomes = pd.DataFrame({"status": "ok", "detail": "", "sha256": hashes})
    return complete(listing, outcomes, fractions, seed).assign(class_name=words)


def is_features(path: Path) -> bool:
    """Whether a path names a feature file, not images."""
    return path.suffix in SUFFIXES or (path / "data.mdb").is_file()


def as_npy(path: Path, scratch: Path, parameter: str = "embeddings") -> Path:
    """The path of a .npy with the rows of a feature file: itself when it is one, else a copy, scratch/<parameter>.npy.

    Raises: InputError when the file is none of the kinds above, or is not what its name or header says.
    """
    path, target = Path(path), scratch / f"{parameter}.npy"
    declared = SIZES.search(path.name)
    if path.is_dir() or path.suffix == ".mdb":
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

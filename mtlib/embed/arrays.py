"""Embeddings that were made elsewhere: arrays instead of images, words instead of pictures.

The files that hold them are read by given/files.py. Beside them may stand one class per row: a .txt, a .npy of whole
numbers or texts, or a column of a .csv or .parquet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.given import files
from mtlib.embed.given.folders import LABEL_FOLDERS
from mtlib.embed.given.tables import LABEL_WORDS, TABLES, named, read_csv
from mtlib.embed.manifest import COLUMNS, LISTED, InputError, complete
from mtlib.embed.store import open_array

LABEL_COLUMNS = ("class_name", "class", "label", "labels", "target")
PLAUSIBILITY = LABEL_FOLDERS | {name: value for name, value in LABEL_WORDS.items() if name.isalpha()}


def checked(path: Path, parameter: str, scratch: Path) -> np.ndarray:
    """The rows of a feature file, memory-mapped: two-dimensional, floating point, every value finite.

    Args: path; parameter: that named it; scratch: folder for a copy of what is no plain .npy.
    Raises: InputError or ArtifactError naming the parameter, the file and the first bad row.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{parameter} = {path}: no such file")
    x = open_array(files.as_npy(path, scratch, parameter), 2)
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
    """The .txt beside `path` that has `n` lines, the one of its own name before all others; None if there is none, and then
    those with other numbers are said.

    Raises: InputError if there are several of other names.
    """
    path, out = Path(path), {e.resolve() for e in exclude}
    texts = [p for p in sorted(path.parent.glob("*.txt")) if p.is_file() and p.resolve() not in out]
    count = {p: len(lines(p)) for p in texts}
    fitting = [p for p in texts if count[p] == n]
    if texts and not fitting:
        found = ", ".join(f"{p.name} has {count[p]} lines" for p in texts[:5]) + ", ..." * (len(texts) > 5)
        print(f"{path.name} has {n} rows; no text file beside it names them: {found}")
    if (own := path.with_suffix(".txt")) in fitting:
        return own
    if len(fitting) > 1:
        found = ", ".join(p.name for p in fitting)
        raise InputError(f"{path}: {len(fitting)} text files beside it have {n} lines ({found}); call one {own.name}")
    return fitting[0] if fitting else None


def read_vocabulary(vocabulary: Path, names: str, scratch: Path) -> tuple[np.ndarray, pd.DataFrame, Path]:
    """Text embeddings with their words.

    Args:
        vocabulary: feature file of (V, D).
        names:      text file with V lines, or "" for the one sibling that has as many.
        scratch:    as for `checked`.
    Returns: ((V, D) float32, frame of the vocabulary's columns, the text file).
    Raises: InputError when no or several text files fit.
    """
    v = checked(vocabulary, "vocabulary", scratch)
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


@dataclass(frozen=True)
class Part:
    """The rows of one file: split ("": divided here), x (n * T, D), T rows per image, a name and a class for each image
    ("" where it has none), and what is to be said of all of them."""

    split: str
    x: np.ndarray
    tokens: int
    names: Sequence[str]
    classes: Sequence[str]
    remark: str = ""


def read_parts(given: dict[str, str], root: Path, scratch: Path, exclude: tuple[Path, ...] = ()) -> list[Part]:
    """The rows that parameters name: one file, or train, val and test.

    Args:
        given:   embeddings (a feature file, or a JSON that names several), val_embeddings, test_embeddings, and labels (of the
                 rows of all of them, in this order; of a file that is given twice, once).
        root:    folder that relative paths start from. scratch: as for `checked`.
        exclude: text files that name something else than rows.
    Raises: InputError naming the file and what does not fit.
    """
    labels = root / given["labels"] if given["labels"] else None
    if given["embeddings"].endswith(".json"):
        given, root = files.named_in(root / given["embeddings"], given), (root / given["embeddings"]).parent
    alone, parts, seen = not (given["val_embeddings"] or given["test_embeddings"]), [], {}
    for split, parameter in files.OF_SPLITS.items():
        name, file = given[parameter], given.get(f"{split}_labels", "")
        if file and not name:
            raise InputError(f"{split}_labels = {file}: there is no {split}_path to label")
        if not name:
            continue
        path = root / name
        first = seen.setdefault(path.resolve(), split)
        x = checked(path, parameter, scratch) if first == split else next(p.x for p in parts if p.split == first)
        remark = "" if first == split else f"the same file as {first}"
        if remark:
            print(f"{split} and {first} are the same file, {path.name}: what is chosen on {first} is not held out")
        tokens = files.n_tokens(path)
        n = len(x) // tokens
        classes = read_labels(root / file, f"{split}_labels", n) if file else [""] * n
        names = [p.name for p in files.tensors(path)]
        if not names:
            beside = names_beside(path, n, (*exclude, root / file, labels or path))
            names = lines(beside) if beside else [""] * n
        parts.append(Part("" if alone else split, x, tokens, names, classes, remark))
    for part in parts[1:]:
        if (part.x.shape[1], part.tokens) != (parts[0].x.shape[1], parts[0].tokens):
            shapes = [f"{p.tokens} x {p.x.shape[1]}" for p in (parts[0], part)]
            raise InputError(
                f"{files.OF_SPLITS[part.split]}: {shapes[1]} numbers per image, embeddings has {shapes[0]}"
            )
    if labels:
        classes = iter(read_labels(labels, "labels", sum(len(p.names) for p in parts if not p.remark)))
        own = {id(p.x): [next(classes) for _ in p.names] for p in parts if not p.remark}
        parts = [replace(p, classes=own[id(p.x)]) for p in parts]
    return parts


def read_labels(path: Path, parameter: str, n: int) -> list[str]:
    """The class of each of n images; "" unknown (an empty text, a negative number).

    Raises: InputError naming the file when it cannot be read, holds no classes or another number of them.
    """
    where, path = f"{parameter} = {path}", Path(path)
    if not path.is_file():
        raise InputError(f"{where}: no such file")
    try:
        if path.suffix == ".npy":
            values = pd.Series(np.load(path, allow_pickle=False).tolist())
        elif path.suffix == ".parquet":
            values = _column(pd.read_parquet(path), where)
        elif path.suffix in TABLES:
            values = _column(read_csv(path), where)
        else:
            values = pd.Series(lines(path), dtype=str)
    except InputError:
        raise
    except Exception as e:  # several libraries' errors; all mean that it cannot be read
        raise InputError(f"{where}: not readable ({type(e).__name__}: {str(e).splitlines()[0][:200]})") from e
    if not values.map(lambda v: v is None or isinstance(v, (str, int))).all():
        raise InputError(
            f"{where}: holds {type(values.iloc[0]).__name__}; one whole number or text per row is its class"
        )
    if len(values) != n:
        raise InputError(f"{where}: {len(values)} labels for {n} rows")
    return ["" if v is None or re.fullmatch(r"\s*-\d+\s*", str(v)) else str(v).strip() for v in values]


def _column(table: pd.DataFrame, where: str) -> pd.Series:
    table = named(table, LABEL_COLUMNS, where) if table.shape[1] > 1 else table
    found = [c for c in LABEL_COLUMNS if c in table] or (list(table) if table.shape[1] == 1 else [])
    if not found:
        raise InputError(f"{where}: no column {', '.join(LABEL_COLUMNS)}; it has {', '.join(map(str, table.columns))}")
    return table[found[0]].astype(object).where(table[found[0]].notna(), None)


def rows_manifest(parts: Sequence[Part], fractions, seed: int) -> tuple[pd.DataFrame, str]:
    """The manifest of rows of embeddings, and what kind of labels they have: "none", "classes" or "plausibility".

    Labels are plausibility where they say so ("plausible", "implausible"; "human_correct", "human_error"). Without labels
    class_name is the row's name. Equal rows share their group, but for a file that was given to two splits.

    Args: fractions, seed: of the splits that are divided here.
    Raises: InputError when every row has the same label.
    """
    listing = pd.concat([_listed(part) for part in parts], ignore_index=True)
    names, classes = set(listing["class_name"]) - {""}, listing["class_name"]
    if len(names) == 1:
        raise InputError(f"labels: every row is {names.pop()!r}; at least two classes are needed")
    kind = "none" if not names else "plausibility" if names <= set(PLAUSIBILITY) else "classes"
    if kind == "plausibility":
        listing["label"] = classes.map(PLAUSIBILITY).astype("Int64")
        listing["class_name"] = ""
    hashes = [
        hashlib.sha256(part.remark.encode() + np.ascontiguousarray(part.x[i : i + part.tokens]).tobytes()).hexdigest()
        for part in parts
        for i in range(0, len(part.x), part.tokens)
    ]
    detail = [part.remark for part in parts for _ in part.names]
    manifest = complete(listing, pd.DataFrame({"status": "ok", "detail": detail, "sha256": hashes}), fractions, seed)
    words = [name for part in parts for name in part.names]
    return (manifest.assign(class_name=words) if kind == "none" else manifest), kind


def _listed(part: Part) -> pd.DataFrame:
    words = pd.Series(list(part.names), dtype=str)
    number = pd.Series([f"row {i}" for i in range(len(words))])
    path = words.where(words != "", number)
    path = path.where(~path.duplicated(keep=False), path + " (" + number + ")")
    listing = pd.DataFrame({"path": f"{part.split}/" * bool(part.split) + path, "status": LISTED})
    listing["row"] = listing["label"] = pd.array([pd.NA] * len(path), dtype="Int64")
    listing["class_name"], listing["split"] = list(part.classes), part.split
    listing[[name for name in COLUMNS if name not in listing]] = ""
    return listing

"""A list of images as a table: CSV or Parquet with a column `path`, and what is known about each image.

    path        relative to the table's folder (may lead into a .tar)
    label       0 plausible, 1 implausible, empty unknown
    class       (or class_name) name of its class, or of the kind of error
    split       train | val | test | unlabelled, empty: assigned here; val and test are cut out of train where none is given
    group       images that belong together, e.g. of one person or scene
    generator   the model that drew it; such images stay unlabelled
Other columns (attributes) are kept in the manifest as they are.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from mtlib.embed import archives
from mtlib.embed.names import escape

SUFFIXES = (".csv", ".parquet")
SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "unlabelled": "unlabelled",
}
LABELS = {"0": 0, "1": 1, "plausible": 0, "implausible": 1, "0.0": 0, "1.0": 1}
KNOWN = ("path", "label", "class_name", "split", "group", "generator")
RESERVED = ("row", "status", "detail", "sha256", "duplicate_of", "size", "mtime_ns", "token")


class TableError(ValueError):
    """A table that cannot be used; the message names the file, the line and the mend."""


def read_table(path: Path) -> pd.DataFrame:
    """The table with the columns KNOWN first (text, "" when empty; label Int64), then its own; sorted by path.

    Raises: TableError.
    """
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except Exception as e:  # several libraries' errors; all mean that it is no table
        raise TableError(
            f"images = {path}: no readable table ({type(e).__name__}: {str(e).splitlines()[0][:200]})"
        ) from e
    if "class_name" not in table and "class" in table:
        table = table.rename(columns={"class": "class_name"})
    if "path" not in table:
        raise TableError(f"images = {path}: no column path; it has {', '.join(map(str, table.columns))}")
    if not len(table):
        raise TableError(f"images = {path}: no rows")
    if taken := [c for c in table.columns if c in RESERVED]:
        raise TableError(f"images = {path}: column {taken[0]} is written here; rename it")
    for name in KNOWN:
        given = table[name].astype(object) if name in table else pd.Series("", index=table.index, dtype=object)
        table[name] = given.where(given.notna(), "").map(str).str.strip()
    table["label"] = pd.array(_known(path, table["label"], LABELS, "label"), dtype="Int64")
    table["split"] = [s or "" for s in _known(path, table["split"], SPLITS, "split")]
    table["path"] = [p[2:] if p.startswith("./") else p for p in table["path"]]
    line = table["path"].duplicated()
    if line.any():
        raise TableError(f"images = {path}: line {_line(line)}: {table['path'][line].iloc[0]} is listed twice")
    if (empty := table["path"] == "").any():
        raise TableError(f"images = {path}: line {_line(empty)}: empty path")
    order = sorted(range(len(table)), key=lambda i: os.fsencode(table["path"].iloc[i]))
    return table.iloc[order].reset_index(drop=True)[[*KNOWN, *(c for c in table.columns if c not in KNOWN)]]


def stat_lines(root: Path, paths: list[str]) -> list[tuple[str, str, str, int, int]]:
    """(stored path, status, detail, size, mtime_ns) of each path, without opening it; status "" for a regular file."""
    return [_stat(root, path) for path in paths]


def _stat(root: Path, path: str) -> tuple[str, str, str, int, int]:
    stored = escape(path)
    if os.path.isabs(path) or ".." in path.split("/"):
        return stored, "outside", "only paths below the table's folder are read", 0, 0
    try:
        if place := archives.split(root / path):
            info = os.stat(place[0])
            found = archives._index(place[0], info.st_mtime_ns, info.st_size).get(place[1])
            size = found[1] if found else 0
            return stored, "" if found else "missing", "" if found else "not in the archive", size, info.st_mtime_ns
        info = os.lstat(root / path)
    except (FileNotFoundError, NotADirectoryError):
        return stored, "missing", "no such file", 0, 0
    except PermissionError:
        return stored, "permission", "not readable", 0, 0
    if os.path.islink(root / path):
        return stored, "symlink", "not followed", info.st_size, info.st_mtime_ns
    regular = os.path.isfile(root / path)
    return stored, "" if regular else "special file", "" if regular else "no file", info.st_size, info.st_mtime_ns


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _known(path: Path, values: pd.Series, names: dict, column: str) -> list:
    lower = values.str.lower()
    wrong = (lower != "") & ~lower.isin(list(names))
    if wrong.any():
        raise TableError(
            f"images = {path}: line {_line(wrong)}: {column} = {values[wrong].iloc[0]!r} is not one of {', '.join(names)}"
        )
    return [names.get(value) for value in lower]


def _line(where: pd.Series) -> int:
    return int(where.to_numpy().argmax()) + 2  # line 1 holds the names

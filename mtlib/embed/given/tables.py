"""Tables that a user brings: one way to read the text of a .csv, and one to find its columns.

What spreadsheets and other systems write is read as it is meant: another separator, spaces and capitals in the names of
columns, an empty last field, paths with back slashes. A name that is only nearly one of ours is refused, since a column
that is silently left out costs every label.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import TextIO

import pandas as pd
import pyarrow as pa

from mtlib.embed.manifest import ALL_SPLITS, InputError

TABLES = (".csv", ".tsv", ".parquet")
SEPARATORS = ",;\t|"
SPLIT_WORDS = {name: name for name in ALL_SPLITS} | {"valid": "val", "validation": "val"}
LABEL_WORDS = {"0": 0, "1": 1, "plausible": 0, "implausible": 1, "0.0": 0, "1.0": 1}
KNOWN = ("path", "label", "class_name", "split", "group", "generator")
ALIASES = {"class": "class_name"}
PATHS = ("file", "filename", "filepath", "image", "images", "imagepath", "img", "uri", "url")  # what others call it
RESERVED = ("row", "status", "detail", "sha256", "duplicate_of", "size", "mtime_ns", "token")
NEAR = 0.8  # of difflib's ratio: "labels" and "lable" are near "label"; "tag" is not


def read_csv(path: Path, column: str = "") -> pd.DataFrame:
    """A .csv or .tsv as text, "" where a field is empty ("NA" and "null" are names like others).

    Args: column: one that the table should have; it tells which separator is meant.
    Raises: InputError naming the file, and the line whose number of fields is not that of the first.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            names, lines = _fields(f, column)
            rows = [_fitted(path, lines, names, fields) for fields in lines if fields]
    except (csv.Error, UnicodeDecodeError) as e:
        raise InputError(f"{path}: no readable table ({e}); save it as .csv in UTF-8") from e
    return pd.DataFrame(rows, columns=names, dtype=str)


def _fields(f: TextIO, column: str):
    """The names in the first line, and a reader of the others."""
    head = f.readline()
    meant = (s for s in SEPARATORS if column in [_plain(name) for name in next(csv.reader([head], delimiter=s), [])])
    found = next(meant, max(SEPARATORS, key=head.count))  # the comma where there is none
    f.seek(0)
    lines = csv.reader(f, delimiter=found, skipinitialspace=True, strict=True)
    names = next(lines, [])
    while names and not names[-1].strip():
        names.pop()
    return names, lines


def _fitted(path: Path, lines, names: list[str], fields: list[str]) -> list[str]:
    if len(fields) < len(names) or any(field.strip() for field in fields[len(names) :]):
        raise InputError(
            f"{path}: line {lines.line_num}: {len(fields)} fields, the first line has {len(names)} "
            "(a field that holds the separator needs quotes)"
        )
    return fields[: len(names)]


def _plain(name: object) -> str:
    return str(name).strip().casefold()


def named(
    table: pd.DataFrame, known: tuple[str, ...], where: str, aliases: dict[str, str] | None = None
) -> pd.DataFrame:
    """The table with the columns that are known under their plain names, whatever their spaces and capitals; others as they are.

    Args: known: plain names. where: the file, for messages. aliases: other plain name -> the known one that it stands for.
    Raises: InputError when two columns have one name, or when one is nearly a name that no column has.
    """
    aliases, plain = aliases or {}, {c: _plain(c) for c in table.columns}
    # `class` beside `class_name` is a column of its own
    stand_ins = {a: name for a, name in aliases.items() if name not in plain.values()}
    meant = {c: stand_ins.get(name, name) for c, name in plain.items()}
    for name, n in Counter(meant.values()).items():
        if n > 1 and name in known:
            raise InputError(f"{where}: {n} columns are called {name}")
    wanted = [name for name in (*known, *aliases) if aliases.get(name, name) not in meant.values()]
    for c in (c for c, name in meant.items() if name not in known):
        refuse_near(f"{where}: column", str(c), wanted)
    return table.rename(columns={c: name if name in known else str(c) for c, name in meant.items()})


def refuse_near(what: str, name: str, wanted: Iterable[str]) -> None:
    """Raises: InputError when a name, whatever its spaces and capitals, is nearly a wanted one. Args: what: it is, for the message."""
    if near := difflib.get_close_matches(_plain(name), list(wanted), 1, NEAR):
        raise InputError(f"{what} {name[:40]!r} is nearly {near[0]!r}; rename it to that, or to something else")


def read_table(path: Path) -> pd.DataFrame:
    """A table of images: the columns KNOWN first (text, "" when empty; label Int64), then its own; sorted by path.

    Raises: InputError naming the file, the line and the mend.
    """
    where = f"images = {path}"
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path, "path")
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{where}: no readable table ({str(e).splitlines()[0][:200]})") from e
    has = ", ".join(map(str, table.columns))
    table = named(table, (*KNOWN, *RESERVED), where, ALIASES)
    if "path" not in table:
        other = [str(c) for c in table.columns if re.sub("[ _-]", "", _plain(c)) in PATHS]
        raise InputError(f"{where}: no column path; it has {has}" + f" (rename {other[0]} to path)" * bool(other))
    if not len(table):
        raise InputError(f"{where}: no rows")
    if taken := [c for c in table.columns if c in RESERVED]:
        raise InputError(f"{where}: column {taken[0]} is written here; rename it")
    for name in KNOWN:
        given = table[name].astype(object) if name in table else pd.Series("", index=table.index, dtype=object)
        table[name] = given.where(given.notna(), "").map(str).str.strip()
    for name, words in (("label", LABEL_WORDS), ("split", SPLIT_WORDS)):
        lower = table[name].str.lower()
        wrong = (lower != "") & ~lower.isin(list(words))
        mend = "; the name of a class goes into a column class" if name == "label" else ""
        _refuse(where, wrong, name + " = " + table[name].map(repr) + " is not one of " + ", ".join(words) + mend)
        table[name] = lower.map(words)
    table["label"] = table["label"].astype("Int64")
    both = table["label"].notna() & (table["generator"] != "")
    mend = (
        "images of a generator stay unlabelled; leave one of the two empty, or give the column generator another name"
    )
    _refuse(where, both, "label and generator of " + table["path"] + f": {mend}")
    table["split"] = table["split"].astype(object).fillna("")
    table["path"] = [_beside(path.parent, name).removeprefix("./") for name in table["path"]]
    _refuse(where, table["path"].duplicated(), table["path"] + " is listed twice")
    _refuse(where, table["path"] == "", table["path"] + "empty path")
    order = sorted(range(len(table)), key=lambda i: os.fsencode(table["path"].iloc[i]))
    return table.iloc[order].reset_index(drop=True)[[*KNOWN, *(c for c in table.columns if c not in KNOWN)]]


def _beside(root: Path, name: str) -> str:
    """A path as it starts at the table's folder: a full one below it without that folder, back slashes as slashes unless a
    file here has them in its name."""
    if os.path.isabs(name) and Path(os.path.normpath(name)).is_relative_to(root.absolute()):
        return os.path.relpath(name, root.absolute())
    if "\\" not in name or PureWindowsPath(name).drive or os.path.lexists(root / name):
        return name
    return name.replace("\\", "/")


def below(name: str) -> bool:
    """Whether a path stays below the table's folder."""
    return not (os.path.isabs(name) or PureWindowsPath(name).drive or ".." in name.split("/"))


def _refuse(where: str, wrong: pd.Series, say: pd.Series) -> None:
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        raise InputError(f"{where}: line {at + 2}: {say.iloc[at]}")  # line 1 holds the names

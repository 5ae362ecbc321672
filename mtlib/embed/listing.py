"""What is in a folder or table of images: one line per file found, labels from the names of folders.

folder/human_correct/[category/]x.jpg, folder/human_error/[category/]x.jpg   labels "plausibility" (0, 1)
folder/generators/<name>/x.jpg                                                new images of a generator, unlabelled
folder/<class>/x.jpg, at least two classes                                    labels "classes"
anything else                                                                 labels "none"
A .tar file counts as a folder of its members (see archives.py). Instead of a folder a table may be given, .csv or .parquet:

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
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mtlib.embed import archives
from mtlib.embed.images import SUFFIXES
from mtlib.embed.manifest import COLUMNS, LISTED, InputError, attributes, escape

LABEL_FOLDERS = {"human_correct": 0, "human_error": 1}
TABLES = (".csv", ".parquet")
SPLITS = {name: name for name in ("train", "val", "test", "unlabelled")} | {"valid": "val", "validation": "val"}
LABELS = {"0": 0, "1": 1, "plausible": 0, "implausible": 1, "0.0": 0, "1.0": 1}
KNOWN = ("path", "label", "class_name", "split", "group", "generator")
LINE = ("path", "status", "detail", "size", "mtime_ns", "class_name")  # what is known of a file that is not opened
OUTSIDE = ("", "outside", "only paths below the table's folder are read; put the table beside the images", 0, 0, "")
RESERVED = ("row", "status", "detail", "sha256", "duplicate_of", "size", "mtime_ns", "token")


def find_images(images: Path) -> tuple[pd.DataFrame, str]:
    """List every file below a folder, or of a table, without opening any image; links are not followed.

    Args:
        images: a folder, a .tar file, or a table of images (.csv, .parquet).
    Returns: (frame, labels): one line per file, sorted by the bytes of its path, with the manifest's columns (COLUMNS; status
        is LISTED, or the reason for which the file is not read) and size, mtime_ns, then the attributes of a table; labels
        is "plausibility", "classes" or "none".
    Raises: InputError when the folder or table is missing, unreadable or empty, or has only one of the two labels.
    """
    images = Path(images)
    if not images.exists():
        raise InputError(f"images = {images}: no such file or folder")
    if not os.access(images, os.R_OK | os.X_OK if images.is_dir() else os.R_OK):
        raise InputError(f"images = {images}: permission denied")
    if images.suffix.lower() in TABLES and images.is_file():
        frame, labels = _of_table(images)
    elif images.is_dir() or archives.is_archive(images.name):
        frame, labels = _of_folder(images)
    else:
        raise InputError(f"images = {images}: not a folder, a table (.csv, .parquet) or an archive (.tar)")
    frame["row"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    frame[["sha256", "duplicate_of"]] = ""
    return frame[[*COLUMNS, "size", "mtime_ns", *attributes(frame)]], labels


def _of_folder(images: Path) -> tuple[pd.DataFrame, str]:
    raw = os.fsencode(images)
    lines = _walk(raw, b"") if images.is_dir() else _members(raw, os.fsencode(images.name))
    frame = pd.DataFrame(sorted(lines, key=lambda line: line[0]), columns=list(LINE))
    if frame.empty:
        raise InputError(f"images = {images}: the folder holds no files")
    frame["path"] = [escape(os.fsdecode(path)) for path in frame["path"]]
    inside = frame["path"].map(archives.inside)
    parts = [path.split("/") for path in inside]
    top = pd.Series([p[0] if len(p) > 1 else "" for p in parts], dtype=str)
    below = pd.Series([p[1] if len(p) > 2 else "" for p in parts], dtype=str)
    given = frame["class_name"] != ""
    frame[["group", "split", "generator"]] = ""
    frame["label"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    if frame.loc[given, "class_name"].nunique() < 2 and top.isin(list(LABEL_FOLDERS)).any():
        for name in LABEL_FOLDERS:
            if name not in set(top):
                raise InputError(
                    f"images = {images}: {name}/ is missing or empty; both {' and '.join(LABEL_FOLDERS)} are needed"
                )
        frame["label"] = top.map(LABEL_FOLDERS).astype("Int64")
        frame["generator"] = below.where(top == "generators", "")
        frame["class_name"] = frame["class_name"].where(given, below.where(frame["generator"] == "", ""))
        return frame, "plausibility"
    frame["class_name"] = frame["class_name"].where(given, top)
    of = top[inside.str.lower().str.endswith(SUFFIXES)]
    classes = frame.loc[given, "class_name"].nunique() > 1 or (of.nunique() > 1 and (of != "").all())
    return frame, "classes" if classes else "none"


def _walk(root: bytes, below: bytes) -> Iterator[tuple]:
    """The LINE of everything below root/below that is no folder."""
    try:
        entries = list(os.scandir(os.path.join(root, below)))
    except PermissionError:
        yield below, "permission", "folder not readable", 0, 0, ""
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path)
        elif archives.is_archive(entry.name) and entry.is_file(follow_symlinks=False):
            yield from _members(entry.path, path)
        else:
            yield _file(root, path)


def _members(archive: bytes, path: bytes) -> Iterator[tuple]:
    """The LINE of each of an archive's members."""
    mtime_ns = os.stat(archive).st_mtime_ns
    try:
        for name, status, detail, size, class_name, _ in archives.members(os.fsdecode(archive)):
            place = os.path.join(path, os.fsencode(name)) if name else path
            yield place, status or LISTED, detail, size, mtime_ns, class_name
    except PermissionError:
        yield path, "permission", "not readable", 0, mtime_ns, ""


def _file(root: bytes, path: bytes) -> tuple[bytes, str, str, int, int, str]:
    """The LINE of a path, which is not opened."""
    full = os.path.join(root, path)
    try:
        if place := archives.split(os.fsdecode(full)):
            info = os.stat(place[0])
            found = archives.index(place[0], info.st_mtime_ns, info.st_size).get(place[1])
            status, detail = (LISTED, "") if found else ("missing", "not in the archive")
            return path, status, detail, found[1] if found else 0, info.st_mtime_ns, ""
        info = os.lstat(full)
    except (FileNotFoundError, NotADirectoryError):
        return path, "missing", "no such file", 0, 0, ""
    except PermissionError:
        return path, "permission", "not readable", 0, 0, ""
    status, detail = (LISTED, "") if stat.S_ISREG(info.st_mode) else ("special file", "folder, pipe, socket or device")
    if stat.S_ISLNK(info.st_mode):
        status, detail = "symlink", "not followed"
    return path, status, detail, info.st_size, info.st_mtime_ns, ""


def _of_table(path: Path) -> tuple[pd.DataFrame, str]:
    frame, root = read_table(path), os.fsencode(path.parent)
    lines = [_file(root, os.fsencode(name)) if _below(name) else OUTSIDE for name in frame["path"]]
    for i, name in enumerate(LINE[1:5], start=1):
        frame[name] = [line[i] for line in lines]
    frame["path"] = frame["path"].map(escape)
    frame.loc[frame["generator"] != "", "label"] = pd.NA
    known = frame["label"].dropna()
    if known.nunique() == 1:
        raise InputError(f"images = {path}: every label is {known.iloc[0]}; both 0 and 1 are needed")
    named = frame["class_name"].replace("", None).nunique() > 1
    return frame, "plausibility" if len(known) else "classes" if named else "none"


def _below(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in name.split("/")


def read_table(path: Path) -> pd.DataFrame:
    """The table with the columns KNOWN first (text, "" when empty; label Int64), then its own; sorted by path.

    Raises: InputError naming the file, the line and the mend.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as e:  # several libraries' errors; all mean that it is no table
        raise InputError(
            f"images = {path}: no readable table ({type(e).__name__}: {str(e).splitlines()[0][:200]})"
        ) from e
    if "class_name" not in table and "class" in table:
        table = table.rename(columns={"class": "class_name"})
    if "path" not in table:
        raise InputError(f"images = {path}: no column path; it has {', '.join(map(str, table.columns))}")
    if not len(table):
        raise InputError(f"images = {path}: no rows")
    if taken := [c for c in table.columns if c in RESERVED]:
        raise InputError(f"images = {path}: column {taken[0]} is written here; rename it")
    for name in KNOWN:
        given = table[name].astype(object) if name in table else pd.Series("", index=table.index, dtype=object)
        table[name] = given.where(given.notna(), "").map(str).str.strip()
    for name, words in (("label", LABELS), ("split", SPLITS)):
        lower = table[name].str.lower()
        wrong = (lower != "") & ~lower.isin(list(words))
        _refuse(path, wrong, name + " = " + table[name].map(repr) + " is not one of " + ", ".join(words))
        table[name] = lower.map(words)
    table["label"] = table["label"].astype("Int64")
    table["split"] = table["split"].astype(object).fillna("")
    table["path"] = table["path"].str.removeprefix("./")
    _refuse(path, table["path"].duplicated(), table["path"] + " is listed twice")
    _refuse(path, table["path"] == "", table["path"] + "empty path")
    order = sorted(range(len(table)), key=lambda i: os.fsencode(table["path"].iloc[i]))
    return table.iloc[order].reset_index(drop=True)[[*KNOWN, *(c for c in table.columns if c not in KNOWN)]]


def _refuse(path: Path, wrong: pd.Series, say: pd.Series) -> None:
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        raise InputError(f"images = {path}: line {at + 2}: {say.iloc[at]}")  # line 1 holds the names

"""What is in a folder or table of images: one line per file found, labels from the names of folders.

folder/human_correct/[category/]x.jpg, folder/human_error/[category/]x.jpg   labels "plausibility" (0, 1)
folder/generators/<name>/x.jpg                                                new images of a generator, unlabelled
folder/<class>/x.jpg, at least two classes                                    labels "classes"
anything else                                                                 labels "none"
A .tar file counts as a folder of its members (see archives.py); instead of a folder a table may be given (see tables.py).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pandas as pd

from mtlib.embed import archives, tables
from mtlib.embed.data import COLUMNS, LISTED, InputError, attributes
from mtlib.embed.images import SUFFIXES
from mtlib.embed.names import escape

LABEL_FOLDERS = {"human_correct": 0, "human_error": 1}


def root_of(images: Path) -> Path:
    """The folder that the manifest's paths start from: of a folder itself, of a table or a single archive its folder."""
    return Path(images) if Path(images).is_dir() else Path(images).parent


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
    if images.suffix.lower() in tables.SUFFIXES and images.is_file():
        return _find_listed(images)
    if not images.is_dir() and not archives.is_archive(images.name):
        raise InputError(f"images = {images}: not a folder, a table (.csv, .parquet) or an archive (.tar)")
    walk = _walk(images, b"") if images.is_dir() else _members(os.fsencode(images), os.fsencode(images.name), 0)
    found = sorted(walk, key=lambda line: line[0])
    if not found:
        raise InputError(f"images = {images}: the folder holds no files")
    frame = pd.DataFrame(found, columns=["raw", "status", "detail", "size", "mtime_ns", "class_name"])
    frame.insert(0, "path", [escape(os.fsdecode(raw)) for raw in frame.pop("raw")])
    given = frame["class_name"] != ""
    labels = "classes" if frame.loc[given, "class_name"].nunique() > 1 else _labels(frame["path"])
    if labels == "plausibility":
        for name in LABEL_FOLDERS:
            if not frame["path"].map(archives.inside).str.startswith(f"{name}/").any():
                raise InputError(
                    f"images = {images}: {name}/ is missing or empty; both {' and '.join(LABEL_FOLDERS)} are needed"
                )
    places = [_place(archives.inside(path), labels) for path in frame["path"]]
    frame["label"] = pd.array([p[0] for p in places], dtype="Int64")
    frame["class_name"] = frame["class_name"].where(given, [p[1] for p in places])
    frame["generator"] = [p[2] for p in places]
    for name in ("group", "split"):
        frame[name] = ""
    return _listing(frame), labels


def _find_listed(path: Path) -> tuple[pd.DataFrame, str]:
    """As `find_images`, of a table."""
    try:
        frame = tables.read_table(path)
    except tables.TableError as e:
        raise InputError(str(e)) from e
    lines = tables.stat_lines(path.parent, frame["path"].tolist())
    for i, name in enumerate(("path", "status", "detail", "size", "mtime_ns")):
        frame[name] = [line[i] for line in lines]
    frame["status"] = frame["status"].replace("", LISTED)
    frame.loc[frame["generator"] != "", "label"] = pd.NA
    known = frame["label"].dropna()
    if len(known) and known.nunique() < 2:
        raise InputError(f"images = {path}: every label is {known.iloc[0]}; both 0 and 1 are needed")
    named = frame["class_name"].replace("", None).nunique() >= 2
    return _listing(frame), "plausibility" if len(known) else "classes" if named else "none"


def _listing(frame: pd.DataFrame) -> pd.DataFrame:
    frame["row"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    for name in ("sha256", "duplicate_of"):
        frame[name] = ""
    return frame[[*COLUMNS, "size", "mtime_ns", *attributes(frame)]]


def _walk(folder: Path, below: bytes):
    """(path as bytes, status, detail, size, mtime_ns, class) of everything below folder/below that is no folder."""
    here = os.path.join(os.fsencode(folder), below)
    try:
        entries = list(os.scandir(here))
    except PermissionError:
        yield below, "permission", "folder not readable", 0, 0, ""
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            yield path, "changed", "deleted while the folder was listed", 0, 0, ""
            continue
        size_time = (info.st_size, info.st_mtime_ns)
        if stat.S_ISLNK(info.st_mode):
            yield path, "symlink", "not followed", *size_time, ""
        elif stat.S_ISDIR(info.st_mode):
            yield from _walk(folder, path)
        elif not stat.S_ISREG(info.st_mode):
            yield path, "special file", "pipe, socket or device", *size_time, ""
        elif archives.is_archive(entry.name):
            yield from _members(entry.path, path, info.st_mtime_ns)
        else:
            yield path, LISTED, "", *size_time, ""


def _members(archive: bytes, path: bytes, mtime_ns: int):
    """The same of an archive's members."""
    mtime_ns = mtime_ns or os.stat(archive).st_mtime_ns
    for name, status, detail, size, class_name in archives.members(Path(os.fsdecode(archive))):
        yield (
            os.path.join(path, os.fsencode(name)) if name else path,
            status or LISTED,
            detail,
            size,
            mtime_ns,
            class_name,
        )


def _labels(paths: pd.Series) -> str:
    paths = paths.map(archives.inside)
    top = paths.str.split("/").str[0]
    if top[paths.str.contains("/")].isin(list(LABEL_FOLDERS)).any():
        return "plausibility"
    images = paths[paths.str.lower().str.endswith(SUFFIXES)]
    inside = images.str.contains("/")
    return "classes" if len(images) and inside.all() and images.str.split("/").str[0].nunique() >= 2 else "none"


def _place(path: str, labels: str) -> tuple[object, str, str]:
    """(label, class_name, generator) that a path says."""
    parts = path.split("/")
    below = parts[1] if len(parts) > 2 else ""
    if labels == "plausibility":
        if parts[0] == "generators" and below:
            return pd.NA, "", below
        return LABEL_FOLDERS.get(parts[0], pd.NA) if len(parts) > 1 else pd.NA, below, ""
    return pd.NA, parts[0] if len(parts) > 1 else "", ""

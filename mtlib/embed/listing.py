"""What is in a folder or table of images: one line per file found, labels from the names of folders.

folder/human_correct/[category/]x.jpg, folder/human_error/[category/]x.jpg   labels "plausibility" (0, 1)
folder/generators/<name>/x.jpg                                                new images of a generator, unlabelled
folder/<class>/x.jpg, at least two classes                                    labels "classes"
anything else                                                                 labels "none"
Folders train/, val/ and test/ above or below these are splits (given/folders.py). A .tar file counts as a folder of its members
(archives.py); names that start with a dot, and what archives and file browsers leave beside images (__MACOSX), are "hidden".
Instead of a folder a table may be given, .csv, .tsv or .parquet (given/tables.py):

    path        relative to the table's folder (may lead into a .tar)
    label       0 plausible, 1 implausible, empty unknown
    class       (or class_name) name of its class, or of the kind of error
    split       train | val | test | unlabelled, empty: assigned here; val and test are cut out of train where none is given
    group       images that belong together, e.g. of one person or scene
    generator   the model that drew it; such images stay unlabelled, a label is refused
Other columns (attributes) are kept in the manifest as they are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mtlib.embed import archives
from mtlib.embed.given.folders import read_folders
from mtlib.embed.given.tables import TABLES, below, read_table
from mtlib.embed.manifest import COLUMNS, LISTED, InputError, attributes, escape

HIDDEN = r"(?:^|/)(?:\.(?!\.?/)|__MACOSX/|@eaDir/|Thumbs\.db$|desktop\.ini$)"  # of editors, archives and file browsers
LINE = ("path", "status", "detail", "size", "mtime_ns", "class_name")  # what is known of a file that is not opened
OUTSIDE = ("", "outside", "only paths below the table's folder are read; put the table beside the images", 0, 0, "")


def find_images(images: Path, read_names: bool = True) -> tuple[pd.DataFrame, str]:
    """List every file below a folder, or of a table, without opening any image; links are not followed.

    Args:
        images: a folder, a .tar file, or a table of images (.csv, .tsv, .parquet).
        read_names: whether folders say label, class and split.
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
        frame, labels = _of_folder(images, read_names)
    else:
        raise InputError(f"images = {images}: not a folder, a table (.csv, .tsv, .parquet) or an archive (.tar)")
    frame["row"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    frame[["sha256", "duplicate_of"]] = ""
    return frame[[*COLUMNS, "size", "mtime_ns", *attributes(frame)]], labels


def _of_folder(images: Path, read_names: bool) -> tuple[pd.DataFrame, str]:
    raw = os.fsencode(images)
    lines = _walk(raw, b"") if images.is_dir() else _members(raw, os.fsencode(images.name))
    frame = pd.DataFrame(sorted(lines, key=lambda line: line[0]), columns=list(LINE))
    if frame.empty:
        raise InputError(f"images = {images}: the folder holds no files")
    frame["path"] = [escape(os.fsdecode(path)) for path in frame["path"]]
    inside = frame["path"].map(archives.inside)
    hidden = frame["path"].str.contains(HIDDEN) & (frame["status"] != "outside")
    frame.loc[hidden, ["status", "detail"]] = ["hidden", "made by a program beside the images"]
    frame[["group", "split", "generator"]] = ""
    frame["label"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    labels = read_folders(images, frame, inside) if read_names else "none"
    frame.loc[hidden, ["label", "class_name", "split", "generator"]] = [pd.NA, "", "", ""]
    return frame, labels


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
    lines = [_file(root, os.fsencode(name)) if below(name) else OUTSIDE for name in frame["path"]]
    for i, name in enumerate(LINE[1:5], start=1):
        frame[name] = [line[i] for line in lines]
    frame["path"] = frame["path"].map(escape)
    known = frame["label"].dropna()
    if known.nunique() == 1:
        raise InputError(f"images = {path}: every label is {known.iloc[0]}; both 0 and 1 are needed")
    named = frame["class_name"].replace("", None).nunique() > 1
    return frame, "plausibility" if len(known) else "classes" if named else "none"

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
RESERVED = ("row", "status", "detail", "sha256", "duplicate_of", "size", "mtime_ns", "token")


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
    if images.suffix.lower() in TABLES and images.is_file():
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
    frame = read_table(path)
    lines = [_stat(path.parent, name) for name in frame["path"]]
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
        place = os.path.join(path, os.fsencode(name)) if name else path
        yield place, status or LISTED, detail, size, mtime_ns, class_name


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
    table["label"] = pd.array(_known(path, table["label"], LABELS, "label"), dtype="Int64")
    table["split"] = [s or "" for s in _known(path, table["split"], SPLITS, "split")]
    table["path"] = [p[2:] if p.startswith("./") else p for p in table["path"]]
    line = table["path"].duplicated()
    if line.any():
        raise InputError(f"images = {path}: line {_line(line)}: {table['path'][line].iloc[0]} is listed twice")
    if (empty := table["path"] == "").any():
        raise InputError(f"images = {path}: line {_line(empty)}: empty path")
    order = sorted(range(len(table)), key=lambda i: os.fsencode(table["path"].iloc[i]))
    return table.iloc[order].reset_index(drop=True)[[*KNOWN, *(c for c in table.columns if c not in KNOWN)]]


def _stat(root: Path, path: str) -> tuple[str, str, str, int, int]:
    """(stored path, status, detail, size, mtime_ns) of a path, without opening it; status "" for a regular file."""
    stored = escape(path)
    if os.path.isabs(path) or ".." in path.split("/"):
        return stored, "outside", "only paths below the table's folder are read", 0, 0
    try:
        if place := archives.split(root / path):
            info = os.stat(place[0])
            found = archives.index(place[0], info.st_mtime_ns, info.st_size).get(place[1])
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


def _known(path: Path, values: pd.Series, names: dict, column: str) -> list:
    lower = values.str.lower()
    wrong = (lower != "") & ~lower.isin(list(names))
    if wrong.any():
        raise InputError(
            f"images = {path}: line {_line(wrong)}: {column} = {values[wrong].iloc[0]!r} is not one of {', '.join(names)}"
        )
    return [names.get(value) for value in lower]


def _line(where: pd.Series) -> int:
    return int(where.to_numpy().argmax()) + 2  # line 1 holds the names

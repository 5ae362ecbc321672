"""Images inside .tar files (webdataset shards): listed like a folder, read in place, never unpacked.

An archive's members have paths below it, "shards/00000.tar/000042.jpg". An uncompressed tar holds each member's bytes in one
piece, so one `seek` finds any of them. Annotations (000042.cls beside 000042.jpg) give the class.
"""

from __future__ import annotations

import functools
import os
import posixpath
import tarfile
from collections.abc import Iterator

SUFFIX = ".tar"
ANNOTATIONS = (".cls", ".txt", ".json", ".cap", ".caption", ".npy", ".pyd", ".index", ".id")


def is_archive(path: str | bytes) -> bool:
    """Whether a path names an archive that is read as a folder."""
    return os.fsdecode(path).lower().endswith(SUFFIX)


def inside(path: str) -> str:
    """A path without the archives in it: "train/00.tar/cat/1.jpg" -> "train/cat/1.jpg"."""
    *folders, name = path.split("/")
    return "/".join([f for f in folders if not is_archive(f)] + [name])


def member_name(name: str) -> str:
    """A member's name as it is listed and found, "./cat//0.png" (of `tar -cf x.tar .`) -> "cat/0.png".

    Returns: "" for a name that leads out of the archive: absolute, or with a "..".
    """
    return "" if name.startswith("/") or ".." in name.split("/") else posixpath.normpath(name)


def members(path: str | os.PathLike) -> Iterator[tuple[str, str, str, int, str, int]]:
    """(name, status, detail, size, class, offset) of every member that is no folder, in the archive's order.

    status is "" for a file that may be an image. An archive that ends early or is none gives a last line with name "".
    Names are those of `member_name`; one that leads out of the archive is "outside", and never read.
    Raises: PermissionError.
    """
    classes, found, seen, end = {}, [], set(), None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # tarfile keeps every member it has seen
                if member.isdir():
                    continue
                name, status, detail = member_name(member.name), "", ""
                stem, suffix = os.path.splitext(name)
                if not name:
                    name = member.name.lstrip("/")
                    status, detail = "outside", f"{member.name!r} leads out of the archive"
                elif name in seen:
                    status, detail = "special file", "the archive has this name twice"
                elif not member.isreg():
                    status = "symlink" if member.issym() or member.islnk() else "special file"
                    detail = "link or device in an archive"
                elif suffix.lower() in ANNOTATIONS:
                    status = "annotation"
                    if suffix.lower() == ".cls" and member.size < 256:
                        classes[stem] = tar.extractfile(member).read().decode("utf-8", "replace").strip()
                found.append((name, status, detail, member.size, member.offset_data))
                if status != "outside":
                    seen.add(name)
            if not _ends(path):
                end = ("truncated", "the archive has no end mark")
    except PermissionError:
        raise
    except (tarfile.TarError, OSError, EOFError) as e:
        end = ("truncated" if found else "not an image", f"tar archive: {e}"[:200])
    for name, status, detail, size, offset in found:
        yield name, status, detail, size, classes.get(os.path.splitext(name)[0], ""), offset
    if end:
        yield "", *end, 0, "", 0


def _ends(path: str | os.PathLike) -> bool:
    """Whether the archive ends with a block of zeros, as every whole one does."""
    with open(path, "rb") as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - tarfile.BLOCKSIZE))
        return not any(f.read())


def split(path: str | os.PathLike) -> tuple[str, str] | None:
    """(archive, member) of a path that leads into an archive; None for others."""
    parts = os.fspath(path).split(os.sep)
    for i, part in enumerate(parts[:-1]):
        if is_archive(part) and os.path.isfile(os.sep.join(parts[: i + 1])):
            return os.sep.join(parts[: i + 1]), "/".join(parts[i + 1 :])
    return None


def read(path: str | os.PathLike, max_bytes: int) -> tuple[bytes, int, int]:
    """(bytes, size, mtime_ns of the archive) of a member; at most max_bytes + 1 bytes are read.

    Raises: FileNotFoundError when there is no such member.
    """
    archive, name = split(path) or ("", "")
    if not archive:
        raise FileNotFoundError(path)
    info = os.stat(archive)
    place = index(archive, info.st_mtime_ns, info.st_size).get(name)
    if place is None:
        raise FileNotFoundError(path)
    with open(archive, "rb") as f:
        f.seek(place[0])
        return f.read(min(place[1], max_bytes + 1)), place[1], info.st_mtime_ns


@functools.lru_cache(maxsize=64)
def index(archive: str, mtime_ns: int, size: int) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, size) of the regular files; of an archive that is cut short, of those before the cut."""
    found = members(archive)
    return {name: (at, n) for name, status, _, n, _, at in found if status in ("", "annotation")}

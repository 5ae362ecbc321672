"""Artifacts: write-once folders that are complete or absent, and are checked when they are read.

A stage (one notebook) writes into a working folder. `Stage.finish` hashes every file, writes `meta.json`
last, and from then on the folder is an artifact: `verify` recomputes every hash. The pipeline renames the folder to
its final name; in an interactive session the folder keeps a name of its own, `<stage>-interactive`. What is kept for a resumed
stage (trained coders, copied data) is such a folder inside it. Records are JSON that holds its own sha256.

    runs/<run>/stages.json                  which folder holds each stage's current artifact, and its meta.json's sha256
    runs/<run>/published.json               what the report's files were when they were written
    runs/<run>/02_classify-1a2b3c4d/        an artifact: meta.json, its files, figures/, tables/
    runs/<run>/02_classify-1a2b3c4d.part/   the same while it is being written (interrupted work resumes here)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from mtlib.run.params import nearest

ROOT = Path(__file__).resolve().parents[2]
META, NOTEBOOKS, SEAL = "meta.json", "notebooks", "sha256"  # SEAL: a record's key
MEND = "delete it and run the profile again: finished stages are found where they are"
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # kinds of characters that do something instead of being seen
JOINERS = "\u200c\u200d"  # within words of Persian and within emoji; they do no harm
COLOUR = re.compile(r"\x1b\[[\d;]*m")
VERSIONED = ("torch", "open_clip_torch", "numpy", "scipy", "scikit-learn", "pandas", "pillow")
OPTIONAL = ("numba",)  # results depend on it where it is installed


class ArtifactError(RuntimeError):
    """An artifact is missing, incomplete or damaged; the message says which file and what to do."""


class StageFailed(RuntimeError):
    """A notebook did not end as it should; the message names the stage, the cell and the reason."""


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def one_line(text) -> str:
    """The text on one line: what a terminal, a spreadsheet or a browser would act on (control characters, line ends, changes of
    direction, halves of characters) becomes a visible escape ("\\n"), nothing else changes."""
    seen = (c if unicodedata.category(c) not in UNSEEN or c in JOINERS else repr(c)[1:-1] for c in str(text))
    return str(text) if str(text).isprintable() else "".join(seen)


def visible(text: str) -> str:
    """A text of several lines as a terminal, a log or a page may have it: colours go, each line and field is as `one_line`."""
    return re.sub(r"[^\n\t]+", lambda part: one_line(part[0]), COLOUR.sub("", text))


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield tmp
        _fsync(tmp)
        os.replace(tmp, path)
        _fsync(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text (UTF-8) atomically."""
    with atomic(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Write JSON atomically: sorted keys, NaN refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def json_hash(value) -> str:
    """Hex sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(record: dict) -> dict:
    """A record as it is read back, with the hash of all of it."""
    plain = json.loads(json.dumps(record))
    return plain | {SEAL: json_hash(plain)}


def unsealed(record: dict) -> dict:
    """The record that was `sealed`. Raises: ValueError when it is another one."""
    plain = {k: v for k, v in record.items() if k != SEAL}
    if record.get(SEAL) != json_hash(plain):
        raise ValueError("sha256 mismatch")
    return plain


def write_record(path: Path, record: dict) -> None:
    """Write a record, `sealed`, atomically."""
    write_json(path, sealed(record))


def read_record(path: Path, mend: str) -> dict:
    """A record that `write_record` wrote. Raises: ArtifactError with what to do when it is another one, or none."""
    try:
        return unsealed(read_json(path, mend))
    except ValueError as e:
        raise ArtifactError(f"{e}: {path}; {mend}") from None


def hash_files(folder: Path, parts: Iterable[str] = (".",)) -> dict[str, str]:
    """sha256 of every file of `folder` (of some files and folders in it) except its meta.json, by POSIX relative path."""
    found = (p for part in parts for p in (folder / part, *(folder / part).rglob("*")))
    files = sorted(p for p in found if p.is_file() and p != folder / META)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def digest(meta: dict) -> str:
    """One hash for a finished artifact: of its files' hashes and its facts, never of times, the commit or what a notebook showed."""
    files = {name: hashed for name, hashed in meta["files"].items() if not name.startswith(f"{NOTEBOOKS}/")}
    return json_hash([files, meta["facts"]])


def json_object(path: Path) -> dict:
    """The JSON object in a file (UTF-8). Raises: OSError; ValueError naming the file when it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise ValueError(f"{path}: not valid JSON ({e})") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object")
    return found


def read_json(path: Path, mend: str) -> dict:
    """`json_object` of a file that was written here. Raises: ArtifactError with what to do when it is none."""
    try:
        return json_object(path)
    except (OSError, ValueError) as e:
        raise ArtifactError(f"{e}; {mend}") from e


def close(folder: Path, record: Path | None = None, parts: Iterable[str] = (".",), **facts) -> None:
    """Write what is known of a folder, with the hashes of its files (of some `parts`): its meta.json, or a record elsewhere."""
    write_record(record or folder / META, facts | {"files": hash_files(folder, parts)})


def read_meta(folder: Path) -> dict:
    """The meta.json of an artifact. Raises ArtifactError when the folder is not a finished artifact."""
    path, mend = Path(folder) / META, f"delete {folder} and run the stage again"
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {META}, so the stage that writes it did not finish; run it again")
    meta, recorded = read_record(path, mend), dict(_stages(path.parents[1]).values())
    if recorded.get(path.parent.name) not in (None, sha256(path)):
        raise ArtifactError(f"sha256 mismatch: {path} is not the one in stages.json; {mend}")
    return meta


def verify(folder: Path, record: Path | None = None, mend: str = "") -> dict:
    """The meta.json of an artifact that is as recorded, or its `record` elsewhere, which tells nothing of further files.

    Raises: ArtifactError naming the first file that is not.
    """
    folder = Path(folder)
    mend = mend or f"artifacts are write-once, delete {folder} and run the stage again"
    meta = read_meta(folder) if record is None else read_record(record, mend)
    found = hash_files(folder, (".",) if record is None else meta["files"])
    for name, _ in sorted(meta["files"].items() ^ found.items()):
        known = "sha256 mismatch" if name in found else "missing file"
        fault = known if name in meta["files"] else "unexpected file"
        raise ArtifactError(f"{fault}: {folder / name}; {mend}")
    return meta


def standing(folder: Path, else_: str, record: Path | None = None) -> dict:
    """What `verify` returns; {} where nothing is recorded, or something is damaged, which is said with what happens `else_`."""
    try:
        return verify(folder, record) if (record or folder / META).is_file() else {}
    except ArtifactError as e:
        print(f"{visible(str(e).split(';')[0])}; {else_}")
        return {}


def taken(folder: Path) -> str:
    """Link the files of an equal stage that another run has finished, whole and verified, into `folder`.

    Args: folder: runs/<run>/<stage>-<hash>; equal is what has that hash. Returns: the other run's name; "" where there is none.
    """
    new = folder.with_name(f"{folder.name}.taken")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed within the next lines
    for other in sorted(folder.parent.parent.glob(f"*/{folder.name}")):
        meta = standing(other, "it is not taken") if other.parent != folder.parent else {}
        if not meta or meta["facts"].get("nothing") or folder.with_name(f"{folder.name}.part").exists():
            continue
        try:
            shutil.copytree(other, new, copy_function=os.link)
        except OSError:  # another file system, or one without links
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(other, new)
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        os.replace(new, folder)
        return other.parent.name
    return ""


def _stages(run_dir: Path) -> dict[str, list[str]]:
    """Stage -> [folder name, sha256 of its meta.json]."""
    path = Path(run_dir) / "stages.json"
    return read_record(path, MEND) if path.is_file() else {}


def current(run_dir: Path) -> dict[str, str]:
    """Folder name of each finished stage of a run, e.g. {"01_embed": "01_embed-1a2b3c4d"}."""
    return {stage: name for stage, (name, _) in _stages(run_dir).items()}


def open_run(run_dir: str | Path, needed: Iterable[str] = ()) -> dict[str, Path]:
    """Verified folders of the stages that a run has finished: how the viewer, the labeler and other readers open it.

    Args: run_dir: e.g. "runs/demo", from the repository's root. needed: stages that must be there.
    Raises: ArtifactError naming the stage that is missing, or the file that is damaged.
    """
    run_dir = ROOT / run_dir
    names = current(run_dir)
    if missing := [stage for stage in needed if stage not in names]:
        raise ArtifactError(f"{run_dir}: no artifact of {missing[0]} yet; run notebook {missing[0]} first")
    if not names:
        raise ArtifactError(f"{run_dir}: no finished stage here; run ./run_all.sh or the notebooks first")
    for name in names.values():
        verify(run_dir / name)
    return {stage: run_dir / name for stage, name in names.items()}


def finished_runs(run_dir: str | Path = "") -> list[Path]:
    """Runs that have features to show (05), the newest first.

    Args: run_dir: one that must be among them, e.g. "runs/demo", from the repository's root; the others lie beside it. "": all of runs/.
    Raises: ArtifactError when that one is none of them, or there are none.
    """
    wanted = ROOT / (run_dir or "runs/")
    records = (wanted.parent if run_dir else wanted).glob("*/stages.json")
    records = sorted(records, key=lambda path: -path.stat().st_mtime)
    runs = [path.parent for path in records if any(path.parent.glob("05_features-*"))]
    if not runs:
        raise ArtifactError("no run has features yet; ./run_all.sh makes one")
    if run_dir and wanted not in runs:
        raise ArtifactError(f"{wanted.name}: no finished run; {nearest(wanted.name, [run.name for run in runs])}")
    return runs


def set_current(run_dir: Path, stage: str, folder_name: str | None) -> None:
    """Record that `folder_name` now holds the artifact of `stage`; None: that it has none."""
    before, run_dir = _stages(run_dir), Path(run_dir)
    after = {s: f for s, f in before.items() if s != stage}
    after |= {stage: [folder_name, sha256(run_dir / folder_name / META)]} if folder_name else {}
    if after != before:
        write_record(run_dir / "stages.json", after)


def git_commit() -> str:
    """The commit that is checked out, or "" outside a git checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    names = (*VERSIONED, *filter(find_spec, OPTIONAL))
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}

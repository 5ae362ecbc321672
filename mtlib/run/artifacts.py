"""Artifacts: write-once folders that are complete or absent, and are checked when they are read.

A stage (one notebook) writes into a working folder. `Stage.finish` hashes every file, writes `meta.json`
last, and from then on the folder is an artifact: `verify` recomputes every hash. The pipeline renames the folder to
its final name; in an interactive session the folder keeps a name of its own, `<stage>-interactive`.

    runs/<run>/stages.json                  which folder holds each stage's current artifact
    runs/<run>/02_classify-1a2b3c4d/        an artifact: meta.json, its files, figures/, tables/
    runs/<run>/02_classify-1a2b3c4d.part/   the same while it is being written (interrupted work resumes here)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

META = "meta.json"
MEND = "delete it and run the profile again: finished stages are found where they are"
SCRATCH = ("checkpoint", "shards")  # folders for resuming, removed when a stage finishes
VERSIONED = ("torch", "open_clip_torch", "numpy", "scipy", "scikit-learn", "pandas", "pillow")


class ArtifactError(RuntimeError):
    """An artifact is missing, incomplete or damaged; the message says which file and what to do."""


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if sys.version_info >= (3, 11) else _sha256_chunks(f)


def _sha256_chunks(f) -> str:
    digest = hashlib.sha256()
    while chunk := f.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, else removed.

    Example:
        with atomic(folder / "x.npy") as tmp:
            np.save(open(tmp, "wb"), x)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield tmp
        fd = os.open(tmp, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(tmp, path)
        _fsync_dir(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text (UTF-8) atomically."""
    with atomic(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Write JSON atomically: sorted keys, NaN refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def _fsync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder` except its meta.json, by POSIX relative path, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / META)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def digest(folder: Path) -> str:
    """One hash for a finished artifact: of its files' hashes and its facts, never of times or the commit."""
    meta = read_meta(folder)
    body = json.dumps([meta["files"], meta["facts"]], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


def read_meta(folder: Path) -> dict:
    """The meta.json of an artifact. Raises ArtifactError when the folder is not a finished artifact."""
    path = Path(folder) / META
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {META}, so the stage that writes it did not finish; run it again")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ArtifactError(f"{path}: not valid JSON ({e}); delete {folder} and run the stage again") from e


def verify(folder: Path) -> dict:
    """Check every file of an artifact against its recorded sha256 and return its meta.

    Raises: ArtifactError naming the first file that is missing, added or changed.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    found = hash_files(folder)
    for name, expected in meta["files"].items():
        if name not in found:
            raise ArtifactError(f"missing file: {folder / name}; delete {folder} and run the stage again")
        if found[name] != expected:
            raise ArtifactError(f"sha256 mismatch: {folder / name}; delete {folder} and run the stage again")
    extra = sorted(set(found) - set(meta["files"]))
    if extra:
        raise ArtifactError(f"unexpected file: {folder / extra[0]}; artifacts are write-once, delete the folder")
    return meta


def current(run_dir: Path) -> dict[str, str]:
    """Folder name of each finished stage of a run, e.g. {"01_embed": "01_embed-1a2b3c4d"}.

    Raises: ArtifactError when stages.json is damaged.
    """
    path = Path(run_dir) / "stages.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise ArtifactError(f"{path}: not valid JSON ({e}); {MEND}") from e
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: no list of stages by name; {MEND}")
    return found


def set_current(run_dir: Path, stage: str, folder_name: str) -> None:
    """Record that `folder_name` now holds the artifact of `stage`."""
    write_json(Path(run_dir) / "stages.json", current(run_dir) | {stage: folder_name})


def git_commit() -> str:
    """The commit that is checked out, or "" outside a git checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in VERSIONED}


def prefix(stage: str) -> str:
    """What the names of a stage's figures and tables start with: its number, or the whole name where it has none."""
    return stage.split("_")[0] if stage[:1].isdigit() else stage


class Stage:
    """One notebook's place on disk: verified inputs, an output folder, and its record.

    Args:
        name:      the notebook's name, e.g. "02_classify".
        run_dir:   folder of the run, e.g. "runs/demo"; relative paths are taken from the repository root.
        stage_dir: working folder that the pipeline prepared; "" in an interactive session.
        params:    this notebook's parameters, recorded in meta.json.
    """

    def __init__(self, name: str, run_dir: str, stage_dir: str = "", params: dict | None = None):
        self.name = name
        self.number = prefix(name)
        self.root = Path(__file__).resolve().parents[2]
        self.run_dir = self.root / run_dir
        self.interactive = not stage_dir
        self.out = self.root / stage_dir if stage_dir else self.run_dir / f"{name}-interactive"
        self.params = params or {}
        self.inputs: dict[str, str] = {}
        if self.interactive and (self.out / META).exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / META).unlink(missing_ok=True)

    def input(self, stage: str) -> Path:
        """Folder of an earlier stage's artifact, verified; recorded as an input of this one."""
        name = current(self.run_dir).get(stage)
        if name is None:
            raise ArtifactError(f"{self.run_dir.name}: no artifact of {stage} yet; run notebook {stage} first")
        folder = self.run_dir / name
        if stage not in self.inputs:
            verify(folder)
            self.inputs[stage] = digest(folder)
        return folder

    def facts(self, stage: str) -> dict:
        """What an earlier stage recorded about its artifact (d_in, class names, ...)."""
        return read_meta(self.input(stage))["facts"]

    def finish(self, **facts) -> None:
        """Close the stage: hash every file, write meta.json last. Facts must be JSON values without NaN."""
        for name in SCRATCH:
            shutil.rmtree(self.out / name, ignore_errors=True)
        for left in self.out.rglob(".*.tmp*"):  # of a process that was killed within `atomic`
            left.unlink()
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        meta = {
            "stage": self.name,
            "params": self.params,
            "inputs": self.inputs,
            "facts": facts,
            "files": hash_files(self.out),
            "versions": versions(),
            "git_commit": git_commit(),
            "peak_mb": round(usage / (1024 if sys.platform != "darwin" else 1024**2)),
        }
        write_json(self.out / META, meta)
        if self.interactive:
            set_current(self.run_dir, self.name, self.out.name)

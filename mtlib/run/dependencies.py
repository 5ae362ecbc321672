"""What a stage's result depends on, found without importing anything.

    stage hash = notebook source + sources of the mtlib modules it reaches + its parameters
               + digests of the earlier artifacts it reads + fingerprints of the user's files that parameters name

Never the commit, the time or the run's name: an unchanged stage is not run again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import re
from pathlib import Path

from mtlib.run import artifacts

NAMED = ("hf:", "torchvision:", "wordfreq")  # values that name something else than a path
INPUT_KEYS = ("images", "embeddings", "vocabulary", "vocabulary_names", "label_images")  # must exist when given
INPUT_KEYS += ("second_data", "second_text", "zero_shot_images")
FILE_KEYS = (*INPUT_KEYS, "encoder", "pretrained")  # may name a file or folder, by any name
ARRAYS = (".npy", ".npz", ".mdb", ".lmdb")  # whose rows a .txt beside them may name
DOTTED = re.compile(r"^\w+(\.\w+)+$")


@functools.lru_cache(maxsize=512)
def _parse(path: Path, mtime_ns: int) -> tuple[frozenset, frozenset]:
    """(dotted names that a file imports or spells out, its other text constants)."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    imported, texts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            imported |= {(node.level, base)} | {(node.level, f"{base}.{alias.name}".strip(".")) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
            if DOTTED.match(node.value):
                imported.add((0, node.value))  # importlib.import_module("mtlib.x"), resources.files("mtlib.x")
    return frozenset(imported), frozenset(texts)


def _names(path: Path) -> tuple[frozenset, frozenset]:
    return _parse(path, path.stat().st_mtime_ns)


def modules(notebook: Path, package: Path) -> dict[str, Path]:
    """Files of `package` (a folder, e.g. mtlib/) that a notebook reaches through imports, by dotted name.

    Packages count with their `__init__.py`; of every folder that is reached, its data files count too (weights,
    phrases, prompts), because modules read them from beside themselves.
    """
    found: dict[str, Path] = {}
    todo = [(notebook, "")]
    while todo:
        path, importer = todo.pop()
        for level, name in sorted(_names(path)[0]):
            for dotted, file in _resolve(name, level, importer, path, package):
                if dotted not in found:
                    found[dotted] = file
                    todo.append((file, dotted))
    for folder in sorted({p.parent for p in found.values()} - {package}):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                found[file.relative_to(package.parent).as_posix()] = file
    return dict(sorted(found.items()))


def _resolve(name: str, level: int, importer: str, path: Path, package: Path):
    """(dotted name, file) of a package module and of the packages around it; nothing for other libraries."""
    if level:
        parts = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
        name = ".".join(parts[: len(parts) - level + 1] + ([name] if name else []))
    if name.split(".")[0] != package.name:
        return
    folder, dotted = package.parent, []
    for part in name.split("."):
        dotted.append(part)
        folder = folder / part
        if (folder / "__init__.py").is_file():
            yield ".".join(dotted), folder / "__init__.py"
        elif folder.with_suffix(".py").is_file():
            yield ".".join(dotted), folder.with_suffix(".py")
            return
        elif not folder.is_dir():
            return


def stages_read(notebook: Path, package: Path, earlier: list[str]) -> list[str]:
    """Earlier stages whose name is spelled out in the notebook or in a module it reaches, e.g. `"01_embed"`."""
    files = [notebook] + [p for p in modules(notebook, package).values() if p.suffix == ".py"]
    texts = set().union(*(_names(path)[1] for path in files))
    return [stage for stage in earlier if stage in texts]


def fingerprint(path: Path) -> str:
    """A short hash of a user's file (its bytes) or folder (names, sizes, modification times).

    Of a feature file or data base, the text files beside it count too.
    """
    lines = []
    if path.is_dir():
        for folder, folders, names in os.walk(path):  # links are not followed
            folders.sort()
            for name in sorted(names):
                stat = os.lstat(os.path.join(folder, name))
                relative = os.path.relpath(os.path.join(folder, name), path)
                lines.append(f"{os.fsencode(relative).hex()} {stat.st_size} {stat.st_mtime_ns}")
    else:
        lines = [f"{path.name} {artifacts.sha256(path)}"]
    if path.suffix in ARRAYS or (path / "data.mdb").is_file():
        beside = sorted(p for p in path.parent.glob("*.txt") if p.is_file())
        lines += [f"{p.name} {artifacts.sha256(p)}" for p in beside]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def external_inputs(params: dict, root: Path) -> dict[str, str]:
    """Fingerprints of the files and folders outside the run that parameters name, by value.

    Any text of FILE_KEYS may name one; of other parameters, a text that looks like a path.
    """
    images = _texts([params.get("images"), params.get("zero_shot_images")])
    any_name = _texts([params.get(key) for key in FILE_KEYS])
    found = {}
    for value in sorted(any_name | {v for v in _texts(params) if "/" in v or "." in v}):
        path = _path(value, root)
        if path != root and _is_there(path):
            found[value] = fingerprint(path)
            if value in images and path.is_file():  # a table or an archive: what it lists lies beside it
                found[value] += fingerprint(path.parent)
    return found


def _path(value: str, root: Path) -> Path:
    """The path that a text may name: "local-dir:", "alexnet:" and "hf:" before it, and a data set's ":<split>" after it, left out."""
    name = value.split(":")[1] if value.startswith("hf:") else value.removeprefix("local-dir:").removeprefix("alexnet:")
    return root / os.path.expanduser(name)  # unlike Path's, it takes a text that begins with "~5"


def _is_there(path: Path) -> bool:
    """Whether a text names a file; one that is too long for a name does not."""
    try:
        return path.exists()
    except OSError:
        return False


def _texts(value) -> set[str]:
    if isinstance(value, str):
        return {value} if len(value) < 4096 and "\0" not in value else set()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_texts, values)) if values else set()


def check_inputs(params: dict, root: Path) -> None:
    """Refuse, before anything runs, an input that is not there or a folder without a file.

    Raises: FileNotFoundError or PermissionError with the parameter, the path and the mend.
    """
    for key in INPUT_KEYS:
        for value in sorted(_texts(params.get(key))):
            if value and not value.startswith(NAMED) and (key, value) != ("images", "scenes"):  # scenes are drawn
                _check_path(key, value, root)


def _check_path(key: str, value: str, root: Path) -> None:
    path = _path(value, root)
    if not path.exists():
        raise FileNotFoundError(f"{key} = {value}: no such file or folder (looked for {path})")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{key} = {value}: not readable; check its permissions")
    if path.is_dir() and not any(names for _, _, names in os.walk(path)):
        raise FileNotFoundError(f"{key} = {value}: the folder holds no file")


def stage_hash(
    notebook: Path,
    package: Path,
    params: dict,
    inputs: dict[str, str],
    root: Path,
    needs: dict[str, bool] | None = None,
) -> str:
    """Eight hex digits for the folder's name.

    Args:
        inputs: earlier stage -> `artifacts.digest` of the artifact that will be read.
        needs:  what its cells need -> whether that is met.
    """
    body = {
        "notebook": artifacts.sha256(notebook),
        "modules": {name: artifacts.sha256(path) for name, path in modules(notebook, package).items()},
        "params": params,
        "inputs": inputs,
        "external": external_inputs(params, root),
        "needs": needs or {},
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]

"""What a stage's result depends on, found without importing anything.

    stage hash = notebook source + sources of the mtlib modules it reaches + its parameters
               + digests of the earlier artifacts it reads + fingerprints of the user's files that parameters name

Never the commit, the time or the run's name: an unchanged stage is not run again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
from importlib.util import resolve_name
from pathlib import Path

from mtlib.run import artifacts
from mtlib.run.params import ParamsError

NAMED = ("hf:", "hf-hub:", "torchvision:", "wordfreq")  # values that name something else than a path
INPUT_KEYS = ("images", "embeddings", "vocabulary", "vocabulary_names", "label_images")  # must exist when given
INPUT_KEYS += ("second_data", "second_text", "zero_shot_images", "checkpoint", "classifier")
INPUT_KEYS += ("vision_checkpoint", "labels", "val_embeddings", "test_embeddings", "explanations")
FILE_KEYS = (*INPUT_KEYS, "encoder", "pretrained")  # may name a file or folder, by any name
IMAGE_KEYS = ("images", "label_images", "zero_shot_images", "second_data")  # of their folders no pipe is opened
ARRAYS = (".npy", ".npz", ".mdb", ".lmdb")  # whose rows a .txt beside them may name
CHECKPOINTS = (".pt", ".pth", ".safetensors")  # whose settings a .json beside them may hold
DOTTED = re.compile(r"^\w+(\.\w+)+$")


@functools.lru_cache(maxsize=512)
def _names(path: Path, root: Path, mtime_ns: int) -> tuple[set[str], set[str]]:
    """(dotted names that a file below `root` imports or spells out, its text constants)."""
    imported, texts, around = set(), set(), ".".join(path.parent.relative_to(root).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), around)
            imported |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    spelled = {t for t in texts if DOTTED.match(t)}  # importlib.import_module("mtlib.x"), resources.files("mtlib.x")
    return imported | spelled, texts


def modules(notebook: Path, package: Path) -> dict[str, Path]:
    """Files of `package` (a folder, e.g. mtlib/) that a notebook reaches through imports, by path from beside it; and the
    data files beside them (weights, phrases, prompts), because modules read them from there.
    """
    root, found, todo = package.parent, set(), [notebook]
    while todo:
        path = todo.pop()
        for name in _names(path, root, path.stat().st_mtime_ns)[0]:
            parts = name.split(".") if name.split(".")[0] == package.name else []
            for base in (root.joinpath(*parts[: i + 1]) for i in range(len(parts))):
                for file in (base / "__init__.py", base.with_suffix(".py")):
                    if file.is_file() and file not in found:
                        found.add(file)
                        todo.append(file)
    for folder in {file.parent for file in found} - {package}:
        found |= {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    return {file.relative_to(root).as_posix(): file for file in sorted(found)}


def stages_read(notebook: Path, package: Path, earlier: list[str]) -> list[str]:
    """Earlier stages whose name is spelled out in the notebook or in a module it reaches, e.g. `"01_embed"`."""
    files = [notebook] + [p for p in modules(notebook, package).values() if p.suffix == ".py"]
    texts = set().union(*(_names(path, package.parent, path.stat().st_mtime_ns)[1] for path in files))
    return [stage for stage in earlier if stage in texts]


def fingerprint(path: Path) -> str:
    """A short hash of a user's file (its bytes) or folder (names, sizes, times); of arrays, also the text files beside them, of
    a checkpoint the JSON files. Raises: ParamsError for a device or pipe."""
    _check_ends(path, "")
    lines = [] if path.is_dir() else [f"{path.name} {artifacts.sha256(path)}"]
    for folder, folders, names in os.walk(path):  # links are not followed
        folders.sort()
        for file in (os.path.join(folder, name) for name in sorted(names)):
            stat = os.lstat(file)
            lines.append(f"{os.fsencode(os.path.relpath(file, path)).hex()} {stat.st_size} {stat.st_mtime_ns}")
    beside = "*.txt" if path.suffix in ARRAYS or (path / "data.mdb").is_file() else ""
    beside = "*.json" if path.suffix in CHECKPOINTS else beside
    if beside:
        lines += [f"{p.name} {artifacts.sha256(p)}" for p in sorted(path.parent.glob(beside)) if p.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def external_inputs(params: dict, root: Path) -> dict[str, str]:
    """Fingerprints of the files and folders that parameters name, by value: FILE_KEYS by any text, others by one with / or ."""
    images = _texts([params.get("images"), params.get("zero_shot_images")])
    found = {}
    for value in sorted({v for key, v in _named(params) if key in FILE_KEYS or "/" in v or "." in v}):
        path = _path(value, root)
        if path != root and os.path.exists(path):  # unlike Path's, of a text that is too long for a name it says no
            found[value] = fingerprint(path)
            if value in images and path.is_file():  # a table or an archive: what it lists lies beside it
                found[value] += fingerprint(path.parent)
            if value == params.get("embeddings") and path.suffix == ".json":  # the files that it names are read
                named = sorted(path.parent / text for text in _texts(artifacts.read_json(path, "it names embeddings")))
                found[value] += "".join(map(fingerprint, filter(os.path.exists, named)))
    return found


def _path(value: str, root: Path) -> Path:
    """The path that a text may name: "local-dir:", "alexnet:" and "hf:" before it, and a data set's ":<split>" after it, left out."""
    name = value.split(":")[1] if value.startswith("hf:") else value.removeprefix("local-dir:").removeprefix("alexnet:")
    return root / os.path.expanduser(name)  # unlike Path's, it takes a text that begins with "~5"


def _named(params: dict) -> set[tuple[str, str]]:
    """(key, text) of all texts in the parameters; those in a list of dicts stand under their own keys, too."""
    lists = [value for value in params.values() if isinstance(value, list)]
    lines = [params, *(line for value in lists for line in value if isinstance(line, dict))]
    return {(key, text) for line in lines for key, value in line.items() for text in _texts(value)}


def _texts(value) -> set[str]:
    if isinstance(value, str):
        return {value} - {""} if "\0" not in value else set()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_texts, values))


def _check_ends(path: Path, said: str) -> None:
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ParamsError(f"{said}{path}: a device or pipe may never end; give a file or folder")


def check_inputs(params: dict, root: Path) -> None:
    """Refuse, before anything runs, an input that is not there or a folder without a file: FileNotFoundError, PermissionError;
    and a device or pipe under any name, or in a folder whose files are opened: ParamsError."""
    for key, value in sorted(_named(params)):
        path = _path(value, root)
        pictures = key in IMAGE_KEYS and not value.startswith("hf:")
        inside = os.walk(path) if key in FILE_KEYS and not pictures and path != root else ()
        for file in (path, *(Path(folder, name) for folder, _, names in inside for name in names)):
            _check_ends(file, f"{key} = ")
        if key not in INPUT_KEYS or value.startswith(NAMED) or (key, value) == ("images", "scenes"):  # scenes are drawn
            continue
        if not os.path.exists(path):
            raise FileNotFoundError(f"{key} = {value}: no such file or folder (looked for {path})")
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{key} = {value}: not readable; check its permissions")
        if path.is_dir() and not any(names for _, _, names in os.walk(path)):
            raise FileNotFoundError(f"{key} = {value}: the folder holds no file")


def stage_hash(
    notebook: Path, package: Path, params: dict, inputs: dict[str, str], root: Path, needs: dict[str, bool]
) -> str:
    """Eight hex digits for the folder's name. Args: inputs: stage -> `artifacts.digest`; needs: -> whether it is met."""
    body = {
        "notebook": artifacts.sha256(notebook),
        "modules": {name: artifacts.sha256(path) for name, path in modules(notebook, package).items()},
        "params": params,
        "inputs": inputs,
        "external": external_inputs(params, root),
        "needs": needs,
    }
    return artifacts.json_hash(body)[:8]

"""Data sets that other libraries hold: copied once into .tar shards of the artifact, with a table of what is known.

    hf:<folder or name>[:<split>]     a Hugging Face data set (extra `data`), from a local folder or, by name, the hub
    torchvision:<class>               e.g. torchvision:CIFAR10, Food101, Imagenette; downloaded where there is a network

Encoded images keep their bytes; decoded ones are stored as PNG. From then on they are read like any other shards.
The splits train, validation and test are kept; a part under another name, or one that was asked for alone, is split here,
and what a data set does not bring (torchvision's have no validation part) is cut out of train.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mtlib.embed.given.folders import split_of
from mtlib.embed.manifest import InputError
from mtlib.run import artifacts

SCHEMES = ("hf:", "torchvision:")
CLASS_COLUMNS = ("label", "labels", "class", "class_name", "classes", "category", "target", "fine_label")
SHARD_BYTES = 256 * 2**20
Sample = tuple[str, bytes, str]  # split, encoded image, class name


def import_images(source: str, folder: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Copy a data set into folder/<split>-00000.tar ... and folder/images.parquet, unless that is done already.

    Args:
        source: see the module.
        folder: receives shards and table; equal sources give equal bytes.
    Returns: path of the table, for `find_images`.
    Raises: InputError when the data set cannot be had or holds no image.
    """
    table = folder / "images.parquet"
    if artifacts.standing(folder, "the images are copied again").get("source") == source:
        return table
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scheme, _, name = source.partition(":")
    samples = _hugging_face(name) if scheme == "hf" else _torchvision(name)
    lines: list[dict] = []
    try:
        _write(samples, folder, shard_bytes, lines)
    except (OSError, RuntimeError, ValueError, ConnectionError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"images = {source}: cannot be read ({type(e).__name__}: {str(e)[:300]})") from e
    if not lines:
        raise InputError(f"images = {source}: no image in it")
    with artifacts.atomic(table) as tmp:
        pd.DataFrame(lines).to_parquet(tmp, index=False)
    artifacts.close(folder, source=source)
    return table


def _write(samples: Iterator[Sample], folder: Path, shard_bytes: int, lines: list[dict]) -> None:
    split, written, tar = None, 0, None
    shards: Counter[str] = Counter()  # of each split, whose parts need not follow one another
    with contextlib.ExitStack() as still_open:
        for i, (of, data, class_name) in enumerate(samples):
            if tar is None or of != split or written >= shard_bytes:
                still_open.close()
                split, written = of, 0
                path = folder / f"{split or 'images'}-{shards[of]:05d}.tar"
                shards[of] += 1
                tar = still_open.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
            member = tarfile.TarInfo(f"{i:08d}.{_suffix(data)}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            written += len(data)
            lines.append({"path": f"{path.name}/{member.name}", "class_name": class_name, "split": of})


def _suffix(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg" if data.startswith(b"\xff\xd8") else "img"


def extra(module: str, name: str):
    """An optional library. Raises: InputError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InputError(
            f"{module} is not installed; it comes with the extra `{name}`: pip install -e '.[{name}]'"
        ) from e


def _hugging_face(name: str) -> Iterator[Sample]:
    datasets = extra("datasets", "data")
    where, _, split = name.partition(":")
    if Path(where).is_dir() and any((Path(where) / f).is_file() for f in ("state.json", "dataset_dict.json")):
        found = datasets.load_from_disk(where)
    else:
        found = datasets.load_dataset(where)
    parts = dict(found) if isinstance(found, dict) else {"": found}
    if split and split not in parts:
        raise InputError(f"images = hf:{name}: no split {split}; there are {', '.join(parts) or 'none'}")
    for key in [split] if split else list(parts):
        image = _image_column(datasets, parts[key].features, f"images = hf:{name}")
        column = _class_column(datasets, parts[key].features, f"images = hf:{name}")
        names = getattr(parts[key].features[column], "names", None) if column else None
        for row in parts[key].cast_column(image, datasets.Image(decode=False)):
            stored = row[image] or {}
            encoded = stored.get("bytes") or (Path(stored["path"]).read_bytes() if stored.get("path") else b"")
            of = "" if split else split_of(key)
            yield of, encoded, _class_name(row[column], names) if column else ""


def _image_column(datasets, features, where: str) -> str:
    """The column of images: declared so, or bytes, alone or in a struct with a path, as files that were written plainly hold."""

    def stored(f) -> bool:
        f = f.get("bytes") if isinstance(f, dict) else f
        return getattr(f, "dtype", "") in ("binary", "large_binary")

    found = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    found = found or [c for c, f in features.items() if stored(f)]
    if not found:
        raise InputError(f"{where}: no column of images among {', '.join(features)}")
    named = [c for c in ("image", "img", "picture") if c in found]
    if len(found) > 1:
        print(f"{where}: columns {', '.join(found)} hold images; {(named or found)[0]} is taken")
    return (named or found)[0]


def _class_column(datasets, features, where: str) -> str:
    """The column of one class per image: declared so, or called so; "" when there is none. What it is not is said."""
    declared = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    called = [c for c in features if c.strip().casefold() in CLASS_COLUMNS]
    kinds = {c: str(getattr(features[c], "dtype", "")) for c in called}
    usable = [c for c in called if re.fullmatch(r"u?int\d+|(large_)?string|bool", kinds[c])]
    column = next(iter(declared + usable), "")
    if left := [c for c in dict.fromkeys(declared + called) if c != column]:
        taken = f"{column} gives the classes" if column else "no column gives one class per image"
        print(f"{where}: {taken}; not used: {', '.join(f'{c} ({features[c]})'[:80] for c in left)}")
    return column


def _class_name(value: object, names: list[str] | None) -> str:
    """Empty for an unknown class: no value, or a number below 0."""
    if value is None or (isinstance(value, int) and value < 0):
        return ""
    return str(names[value]) if names else str(value).strip()


def _torchvision(name: str) -> Iterator[Sample]:
    import torch
    import torchvision

    kind = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise InputError(f"images = torchvision:{name}: torchvision has no such data set of images")
    known = inspect.signature(kind).parameters
    options = {"root": str(Path(torch.hub.get_dir()) / "datasets")} | (
        {"download": True} if "download" in known else {}
    )
    if "train" in known:
        parts = [("train", {"train": True}), ("test", {"train": False})]
    else:
        held = "val" if name in ("Imagenette", "ImageNet") else "test"
        parts = [("train", {"split": "train"}), ("test", {"split": held})] if "split" in known else [("", {})]
    for of, chosen in parts:
        data = kind(**options, **chosen)
        classes = getattr(data, "classes", [])
        for image, label in (data[i] for i in range(len(data))):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            found = classes[label] if label < len(classes) else str(label)
            yield of, buffer.getvalue(), found if isinstance(found, str) else found[0]

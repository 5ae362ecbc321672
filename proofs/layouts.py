"""What is understood of folders and tables as people have them: labels, classes, splits, what is left out; or why it stops.

    ./run_all.sh prove layouts

The same list is a test (tests/embed/test_layouts.py). No image is embedded.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
from PIL import Image

from mtlib.embed.listing import find_images
from mtlib.embed.manifest import LISTED, InputError
from mtlib.report.text import markdown_table
from proofs import conclude

MAC = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)  # what an archive made on a Mac holds beside every file
CAT_DOG = {"cat": 3, "dog": 3}
IMG = {"img": 4}


def splits(*names: str, below: dict[str, int] = CAT_DOG) -> dict[str, int]:
    return {f"{name}/{folder}": n for name in names for folder, n in below.items()}


def of(labels: str, classes: str = "", given: str = "", skipped: str = "") -> str:
    """What is expected, or found, in one line."""
    splits, left = given or "divided here", skipped or "none"
    return f"labels {labels}; classes {classes or 'none'}; splits {splits}; left out {left}"


def table(head: str, *lines: str) -> dict:
    return {"img": 4, "list.csv": "\n".join([head, *lines]) + "\n"}


PLAIN = [f"img/{i}.png" for i in range(4)]
HALF = "plausible 2, implausible 2"
CLASSES = of("classes", "cat 3, dog 3")
THREE = of("classes", "cat 9, dog 9", "test 6, train 6, val 6")
LABELS = of("plausibility", given="")
# name, what is in the folder ({path of a folder: number of pictures, or of a file: its text}), what is right
CASES: list[tuple[str, dict, str]] = [
    ("class folders", CAT_DOG, CLASSES),
    ("label folders", {"human_correct": 2, "human_error": 2}, LABELS),
    ("label folders with kinds", {"human_correct/hand": 2, "human_error/hand": 2}, of("plausibility", "hand 4")),
    ("one folder above", {"data/cat": 3, "data/dog": 3}, CLASSES),
    ("two folders above", {"data/images/cat": 3, "data/images/dog": 3}, CLASSES),
    ("one folder above labels", {"data/human_correct": 2, "data/human_error": 2}, LABELS),
    ("a stray picture", CAT_DOG | {"preview.png": ""}, CLASSES),
    ("a stray picture and a folder above", {"data/cat": 3, "data/dog": 3, "preview.png": ""}, CLASSES),
    ("train, val, test", splits("train", "val", "test"), THREE),
    ("train, valid, test", splits("train", "valid", "test"), THREE),
    ("Training, validation, TEST", splits("Training", "validation", "TEST"), THREE),
    ("training_set, dev, test2017", splits("training_set", "dev", "test2017"), THREE),
    ("train, test", splits("train", "test"), of("classes", "cat 6, dog 6", "test 6, train 6")),
    ("splits and one folder above", splits("data/train", "data/val", "data/test"), THREE),
    ("splits and a folder below", splits("train/images", "val/images", "test/images"), THREE),
    ("splits below the classes", {f"{c}/{s}": 3 for c in CAT_DOG for s in ("train", "val", "test")}, THREE),
    ("splits, a stray picture", splits("train", "val", "test") | {"preview.png": "", "train/a.png": ""}, THREE),
    ("splits of labels", splits("train", "test", below={"human_correct": 2, "human_error": 2}), of("plausibility", given="test 4, train 4")),
    ("splits without classes", {"train": 3, "test": 2}, of("none", given="test 2, train 3")),
    ("train alone", splits("train"), CLASSES),
    ("a class called train", {"train": 3, "truck": 3}, of("classes", "train 3, truck 3")),
    ("classes called test and cat, one split", {"test": 3, "cat": 3}, of("classes", "cat 3, test 3")),
    ("annotations beside", {"images/cat": 3, "images/dog": 3, "labels/0.txt": "x"}, CLASSES),
    ("one class", {"cat": 3}, of("none", "cat 3")),
    ("no folder", {"0.png": "", "1.png": ""}, of("none")),
    ("mostly no folder", {f"{i}.png": "" for i in range(9)} | {"a": 1, "b": 1}, of("none", "a 1, b 1")),
    ("no suffix", {f"{c}/{i}": "" for c in CAT_DOG for i in range(3)}, CLASSES),
    ("suffix jfif", {f"{c}/{i}.jfif": "" for c in CAT_DOG for i in range(3)}, CLASSES),
    ("names NA, null, nan, 01, 1", dict.fromkeys(("NA", "null", "nan", "01", "1"), 2), of("classes", "01 2, 1 2, NA 2, nan 2, null 2")),
    (".ipynb_checkpoints", CAT_DOG | {".ipynb_checkpoints": 2}, of("classes", "cat 3, dog 3", skipped="hidden 2")),
    (".git and .DS_Store", CAT_DOG | {".git/objects/ab": "x", "cat/.DS_Store": "x"}, of("classes", "cat 3, dog 3", skipped="hidden 2")),
    ("__MACOSX", CAT_DOG | {f"__MACOSX/{c}/._{i}.png": "mac" for c in CAT_DOG for i in range(3)}, of("classes", "cat 3, dog 3", skipped="hidden 6")),
    ("Thumbs.db, @eaDir", CAT_DOG | {"cat/Thumbs.db": "x", "dog/@eaDir/0.jpg": "x"}, of("classes", "cat 3, dog 3", skipped="hidden 2")),
    ("only hidden in human_error", {"human_correct": 2, "human_error/.DS_Store": "x"}, "stops: human_error/ is missing or empty"),
    ("human_errors", {"human_correct": 2, "human_errors": 2}, "stops: human_errors/ is nearly human_error/"),
    ("Human-Correct, Human-Error", {"Human-Correct": 2, "Human-Error": 2}, "stops: Human-Correct/ is nearly human_correct/"),
    ("generator for generators", {"human_correct": 2, "human_error": 2, "generator/a": 2}, "stops: generator/ is nearly generators/"),
    ("one label only", {"data/human_error": 2}, "stops: human_correct/ is missing or empty"),
    ("splits and another folder", splits("train", "test") | {"extra": 2}, "stops: test and train look like splits, but extra stands beside"),
    ("a split and its neighbour", splits("train", "holdout"), "stops: train look like splits, but holdout stands beside"),
    ("Cat in train, cats in test", {"train/Cat": 2, "train/dog": 2, "test/cats": 2, "test/dog": 2}, "stops: class 'Cat' stands only in train"),
    ("table", table("path,label", *(f"{p},{i % 2}" for i, p in enumerate(PLAIN))), LABELS),
    ("table, blank after the comma", table("path, label", *(f"{p}, {i % 2}" for i, p in enumerate(PLAIN))), LABELS),
    ("table, Label", table("Path,LABEL ", *(f"{p},{i % 2}" for i, p in enumerate(PLAIN))), LABELS),
    ("table, semicolons", table("path;label", *(f"{p};{i % 2}" for i, p in enumerate(PLAIN))), LABELS),
    ("table, tabs", table("path\tlabel", *(f"{p}\t{i % 2}" for i, p in enumerate(PLAIN))), LABELS),
    ("table, back slashes", table("path,label", *(f"{p},{i % 2}".replace("/", "\\") for i, p in enumerate(PLAIN))), LABELS),
    ("table, comma at the end", table("path,label", *(f"{p},{i % 2}," for i, p in enumerate(PLAIN))), LABELS),
    ("table, comma at every end", table("path,label,", *(f"{p},{i % 2}," for i, p in enumerate(PLAIN))), LABELS),
    ("table, Class and Split", table("path,Class,Split", *(f"{p},{'NA' if i % 2 else 'null'},{'test' if i > 1 else 'train'}" for i, p in enumerate(PLAIN))), of("classes", "NA 2, null 2", "test 2, train 2")),
    ("table, labels", table("path,labels", *(f"{p},{i % 2}" for i, p in enumerate(PLAIN))), "stops: column 'labels' is nearly 'label'"),
    ("table, classes", table("path,Classes", *(f"{p},{i % 2}" for i, p in enumerate(PLAIN))), "stops: column 'Classes' is nearly 'class'"),
    ("table, splits", table("path,splits", *(f"{p},train" for p in PLAIN)), "stops: column 'splits' is nearly 'split'"),
    ("table, file_name", table("file_name,label", *(f"{p},{i % 2}" for i, p in enumerate(PLAIN))), "stops: no column path; it has file_name, label (rename file_name to path)"),
    ("table, names in label", table("path,label", *(f"{p},cat" for p in PLAIN)), "stops: the name of a class goes into a column class"),
    ("table, a comma in a path", table("path,person", *(f"{p},a" for p in PLAIN), "img/a,b.png,c"), "stops: line 6: 3 fields, the first line has 2"),
    ("table, a line cut off", table("path,label", *(f"{p},{i % 2}" for i, p in enumerate(PLAIN)), "img/"), "stops: line 6: 1 fields, the first line has 2"),
    ("table, label and Label", table("path,label,Label", *(f"{p},0,1" for p in PLAIN)), "stops: 2 columns are called label"),
    ("table, a drive's path", table("path", *(f"C:\\{p}" for p in PLAIN)), of("none", skipped="outside 4")),
]  # fmt: skip


def write(root: Path, files: dict) -> Path:
    """Put the files there; returns what a run is given: the folder, or the table in it."""
    at, given = 0, root
    for name, what in files.items():
        path = root / name
        pictures = [path / f"{i}.png" for i in range(what)] if isinstance(what, int) else [path]
        for picture in pictures:
            picture.parent.mkdir(parents=True, exist_ok=True)
            if what == "mac":
                picture.write_bytes(MAC)
            elif what and isinstance(what, str):
                picture.write_text(what, encoding="utf-8")
            else:
                Image.new("RGB", (4, 4), (at, 0, 0)).save(picture, "PNG")
            at += 1
        given = path if path.suffix == ".csv" else given
    return given


def found(given: Path) -> str:
    """What is understood, as `of`; "stops: ..." where a run would stop."""
    try:
        frame, labels = find_images(given)
    except InputError as e:
        return f"stops: {str(e).removeprefix(f'images = {given}: ').removeprefix(f'{given}: ')}"
    listed = frame[frame["status"] == LISTED]

    def counts(values) -> str:
        return ", ".join(f"{name} {n}" for name, n in sorted(Counter(v for v in values if v).items()))

    left = counts(s for s in frame["status"] if s != LISTED)
    return of(labels, counts(listed["class_name"]), counts(listed["split"]), left)


def right(expected: str, got: str) -> bool:
    """Whether what was found is what is right; of a stop its words so far as they are given."""
    return got.startswith("stops: ") and expected[7:] in got if expected.startswith("stops: ") else got == expected


def main() -> int:
    lines = []
    for name, files, expected in CASES:
        with tempfile.TemporaryDirectory(prefix="layout-") as tmp:
            got = found(write(Path(tmp), files))
        said = "yes" if right(expected, got) else f"no: {expected}"
        lines.append({"layout": name, "understood as": got, "right": said})
    table = pd.DataFrame(lines)
    wrong = int((table["right"] != "yes").sum())
    text = f"# Layouts\n\n{markdown_table(table, max_rows=len(table))}\n\n"
    text += f"{len(table)} layouts, {wrong} not understood as they are meant.\n"
    return conclude("layouts", text, not wrong)


if __name__ == "__main__":
    sys.exit(main())

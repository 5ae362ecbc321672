"""What the names of folders mean: splits, labels, classes; and a table of what was understood.

Read in this order, each from the top: one folder around everything is stepped into; folders that are all called like splits
(train, val, test, valid, training_set ...) are the splits; then human_correct/ and human_error/ are labels, two or more other
folders classes. Splits may also stand below the classes (cat/train/0.png). Single pictures beside the folders have no class.
Names that are only nearly right stop the run: a guess would silently cost the labels, or hold nothing out.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from mtlib.embed.manifest import LISTED, InputError, attributes, claims_image

LABEL_FOLDERS = {"human_correct": 0, "human_error": 1}
GENERATORS = "generators"
SPLIT = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev|eval(?:uation)?)|(?P<test>test(?:ing)?)|"
    r"(?P<unlabelled>unlabell?ed))"
    r"(?:[ _-]?(?:set|data|images|split))?[ _-]?\d*",
    re.IGNORECASE,
)
SHOWN = 12  # names or paths in a line of `understood`


def split_of(folder: str) -> str:
    """The split that a folder's name says: train, val, test, unlabelled; "" for another name."""
    found = SPLIT.fullmatch(folder)
    return found.lastgroup if found else ""


def read_folders(images: Path, frame: pd.DataFrame, inside: pd.Series) -> str:
    """Set label, class_name, split and generator of every line, by the folders of its path; returns labels (see listing.py).

    Args: frame: path, status, and class_name where an annotation gave it; inside: the paths without archives.
    Raises: InputError where names are nearly right, or one of the two labels is missing.
    """
    where, folders = f"images = {images}", [path.split("/")[:-1] for path in inside]
    counted = ((frame["status"] == LISTED) & claims_image(inside)).to_numpy().nonzero()[0]
    split, given, last = [""] * len(frame), frame["class_name"] != "", ""
    by_annotation = frame.loc[given, "class_name"].nunique() > 1
    while tops := _tops(folders, counted):
        words = {top: split_of(top) for top in tops if split_of(top)}
        if len(words) == len(tops) > 1 and not any(split):
            split = [split_of(parts[0]) if parts else "" for parts in folders]
        elif len(tops) == 1 and not tops & {*LABEL_FOLDERS, GENERATORS}:
            last = next(iter(tops))
        else:
            _refuse_near(where, folders, counted, tops, words if not any(split) else {})
            break
        folders = [parts[1:] if parts and parts[0] in tops else [] for parts in folders]
    if not any(split):
        split, folders = _splits_below(folders, counted)
    top = pd.Series([parts[0] if parts else "" for parts in folders], dtype=str)
    below = pd.Series([parts[1] if len(parts) > 1 else "" for parts in folders], dtype=str)
    frame["split"] = split
    if not by_annotation and top.isin(list(LABEL_FOLDERS)).any():
        for name in LABEL_FOLDERS:
            if name not in set(top[frame["status"] == LISTED]):
                both = " and ".join(LABEL_FOLDERS)
                raise InputError(f"{where}: {name}/ is missing or empty; both {both} are needed")
        frame["label"] = top.map(LABEL_FOLDERS).astype("Int64")
        frame["generator"] = below.where(top == GENERATORS, "")
        frame["class_name"] = frame["class_name"].where(given, below.where(frame["generator"] == "", ""))
        frame.loc[frame["label"].isna(), "split"] = ""
        return "plausibility"
    classes = by_annotation or len(_tops(folders, counted)) > 1
    frame["class_name"] = frame["class_name"].where(given, top if classes or not last else top.replace("", last))
    if not classes:
        return "none"
    frame.loc[frame["class_name"] == "", "split"] = ""  # held for no split, like every image without a class
    _refuse_two_spellings(where, frame.iloc[counted])
    return "classes"


def _tops(folders: list[list[str]], counted) -> set[str]:
    """The first folders of the images; none where most images lie in no folder."""
    first = [folders[i][0] for i in counted if folders[i]]
    return set(first) if 2 * len(first) >= len(counted) else set()


def _splits_below(folders: list[list[str]], counted) -> tuple[list[str], list[list[str]]]:
    """Splits that stand below the classes, where all images that lie in a folder are in one."""
    of = [split_of(parts[1]) if len(parts) > 1 else "" for parts in folders]
    found = {of[i] for i in counted if folders[i][:1] not in ([], [GENERATORS])}
    if "" in found or len(found) < 2:
        return [""] * len(folders), folders
    return of, [[parts[0], *parts[2:]] if word else parts for word, parts in zip(of, folders, strict=True)]


def _refuse_near(where: str, folders: list[list[str]], counted, tops: set[str], words: dict[str, str]) -> None:
    """Names that are nearly splits, labels or generators. `words`: those of `tops` that are called like a split."""
    below = defaultdict(set)
    for i in counted:
        below[folders[i][0] if folders[i] else ""] |= set(folders[i][1:2])
    others = sorted(tops - set(words))
    alike = set().union(*(below[t] for t in words)) & set().union(*(below[t] for t in others))
    if others and (len(words) > 1 or alike):  # one alone may be a class: trains are things too
        raise InputError(
            f"{where}: {' and '.join(sorted(words))} look like splits, but {others[0]} stands beside; move or "
            "rename it, or say what is what in a table (.csv with the columns path, class, split)"
        )
    wanted = [*LABEL_FOLDERS, GENERATORS] if tops & set(LABEL_FOLDERS) else list(LABEL_FOLDERS)
    for name in sorted(tops - {*LABEL_FOLDERS, GENERATORS}):
        near = difflib.get_close_matches(re.sub(r"[^a-z]+", "_", name.lower()).strip("_"), wanted, 1, 0.85)
        if near:
            raise InputError(f"{where}: {name}/ is nearly {near[0]}/; rename it to that, or to something else")


def _refuse_two_spellings(where: str, frame: pd.DataFrame) -> None:
    """One class under two names in different splits ("Cat" of train, "cats" of test): it would be learned but never tested."""
    spelled = defaultdict(dict)
    for (name, split), _ in frame[frame["split"] != ""].groupby(["class_name", "split"]):
        spelled[re.sub(r"[\W_]+", "", name.casefold()).removesuffix("s")].setdefault(name, set()).add(split)
    for names in spelled.values():
        (a, of_a), *others = names.items()
        for b, of_b in others:
            if not of_a & of_b:
                raise InputError(
                    f"{where}: class {a!r} stands only in {', '.join(sorted(of_a))} and {b!r} only in "
                    f"{', '.join(sorted(of_b))}; if they are one class, give it one name"
                )


def understood(frame: pd.DataFrame, labels: str) -> pd.DataFrame:
    """What `find_images` made of the names, before any image is opened: what, count, which (names with counts, first paths)."""
    listed = frame[frame["status"] == LISTED]
    images = listed[claims_image(listed["path"])]
    lines = [("images", len(images), "")]
    label = images["label"].map({0: "plausible", 1: "implausible"})
    name, generator, given = (images[c].replace("", None).dropna() for c in ("class_name", "generator", "split"))
    if labels != "classes":
        lines.append(_counts("labels", label.dropna()) if labels == "plausibility" else ("labels", 0, "none"))
    lines += [_counts("classes", name)] if len(name) else []
    unknown = label.isna() & (images["generator"] == "") if labels == "plausibility" else images["class_name"] == ""
    without = images.loc[unknown, "path"] if labels != "none" else []
    lines += [_paths(f"without a {'label' if labels == 'plausibility' else 'class'}", without)] if len(without) else []
    lines += [_counts("generators", generator)] if len(generator) else []
    lines.append(_counts("splits", given) if len(given) else ("splits", 0, "none given: divided here"))
    if own := attributes(frame):
        lines.append(("other columns", len(own), _first(own)))
    other = listed.loc[~claims_image(listed["path"]), "path"]
    lines += [_paths("other files", other)] if len(other) else []
    left = frame[frame["status"] != LISTED].groupby("status")["path"]
    lines += [_paths(f"not read: {reason}", paths) for reason, paths in left]
    return pd.DataFrame(lines, columns=["what", "count", "which"])


def _counts(what: str, names: pd.Series) -> tuple[str, int, str]:
    counts = Counter(names)
    return what, len(counts), _first([f"{name} {counts[name]}" for name in sorted(counts)])


def _paths(what: str, paths: pd.Series) -> tuple[str, int, str]:
    return what, len(paths), _first(list(paths), 3)


def _first(names: list[str], n: int = SHOWN) -> str:
    return ", ".join(names[:n]) + f" and {len(names) - n} more" * (len(names) > n)

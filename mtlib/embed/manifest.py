"""The manifest: which files are used, which repeat another, what belongs together, and the splits by group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mtlib.embed.images import SUFFIXES

COLUMNS = (
    *("path", "row", "status", "detail", "sha256", "duplicate_of"),
    *("label", "class_name", "group", "split", "generator"),
)
SPLITS = ("train", "val", "test")
ALL_SPLITS = (*SPLITS, "unlabelled")
LISTED = "listed"  # status of a file that is not yet read
NOT_READ = ("not sampled", "annotation", "hidden")  # statuses that are no fault of the file


class InputError(ValueError):
    """The input cannot be used; the message names the path and what to do."""


def claims_image(paths: pd.Series) -> pd.Series:
    """Whether a file's name says that it is an image: by its suffix, or by having none."""
    name = paths.str.lower().str.rsplit("/", n=1).str[-1]
    return name.str.endswith(SUFFIXES) | ~name.str.contains(".", regex=False)


def attributes(frame: pd.DataFrame) -> list[str]:
    """Columns that a table brought along."""
    return [name for name in frame.columns if name not in (*COLUMNS, "size", "mtime_ns")]


def sample(frame: pd.DataFrame, max_images: int, seed: int) -> pd.DataFrame:
    """Mark all but `max_images` listed files as "not sampled", evenly over labels and classes; 0 keeps all."""
    listed = np.flatnonzero(frame["status"] == LISTED)
    if not max_images or len(listed) <= max_images:
        return frame
    part = frame.iloc[listed]
    order = _shuffled(part["path"], _strata(part), seed)
    keep = np.diff(np.floor(np.arange(len(listed) + 1) * max_images / len(listed))) > 0
    out = frame.copy()
    out.loc[out.index[listed[order[~keep]]], ["status", "detail"]] = ["not sampled", f"max_images = {max_images}"]
    return out


def complete(frame: pd.DataFrame, outcomes: pd.DataFrame, fractions: Sequence[float], seed: int) -> pd.DataFrame:
    """The manifest: what embedding found of each listed file joined to the listing, rows numbered, duplicates, groups, splits.

    Args:
        frame:    listing of `find_images`; a non-empty `group` (scene) is kept, other files are groups of their own. A
            non-empty `split` is kept too; where one group was given several, all of it goes to the first of train, val, test.
            Where train has rows but val (or test) has none of its own, that is cut out of train, and said in print.
            Equal bytes under two labels (without labels: two classes) have none, which is said too.
        outcomes: status, detail, sha256 of the listed files, in order.
        fractions, seed: as `assign_splits`.
    Returns: frame with COLUMNS.
    """
    out = frame.copy()
    listed = out["status"] == LISTED
    for name in ("status", "detail", "sha256"):
        out.loc[listed, name] = outcomes[name].to_numpy()
    ok = (out["status"] == "ok").to_numpy()
    out.loc[ok, "row"] = np.arange(ok.sum())
    _drop_contradictions(out, ok)
    # labelled files come first, so that a generator's copy, or one without a label, is the duplicate
    rated = (out["generator"] == "").to_numpy()
    for told in (out["label"].notna().to_numpy(), (out["class_name"] != "").to_numpy()):
        if told[ok].any():  # of images: a folder with a checkpoint beside them is no class
            rated = rated & told
            break
    order = np.lexsort((np.arange(len(out)), ~rated))
    order = order[ok[order]]
    first = out.iloc[order].groupby("sha256", sort=False)["path"].transform("first")
    out.loc[first.index, "duplicate_of"] = np.where(first == out.loc[first.index, "path"], "", first)
    out["group"] = np.where((out["group"] == "") & ok, "sha256-" + out["sha256"].str[:16], out["group"])
    out.loc[ok, "group"] = merge_groups(out.loc[ok, "group"].to_numpy(), out.loc[ok, "sha256"].to_numpy())
    rated = rated & ok
    given = out["split"].where(ok & (out["split"] != ""))
    out["split"] = np.where(ok, "unlabelled", "")
    if given.notna().any():
        rank = given.map({name: i for i, name in enumerate(ALL_SPLITS)})
        first = rank.groupby(out["group"].where(ok)).transform("min")  # of the whole group
        out["split"] = np.where(ok & first.notna(), [ALL_SPLITS[int(i)] if i == i else "" for i in first], out["split"])
        moved = given.notna() & (given != out["split"])
        out.loc[moved, "detail"] = "given to " + given[moved] + ", moved to the split of its group"
        for name, n in given[moved].value_counts().items():
            why = "moved to an earlier split, where their bytes or their group are, too"
            print(f"{n} of {(given == name).sum()} images given to {name}: {why}")
        rated = rated & first.isna().to_numpy()
    if rated.any():
        out.loc[rated, "split"] = assign_splits(out.loc[rated, "group"], _strata(out[rated]), fractions, seed)
    if (given == "train").any():
        _cut_out_of_train(out, fractions, seed)
    return out[[*COLUMNS, *attributes(out)]]


def _drop_contradictions(out: pd.DataFrame, ok: np.ndarray) -> None:
    """Take the label (without labels: the class) from files with the same bytes as one that has another; it is said in print."""
    name = "label" if out["label"].notna().any() else "class_name"
    known = out[name].replace("", None).where(ok)
    by_bytes = known.groupby(out["sha256"].where(ok))
    wrong = known.notna() & (by_bytes.transform("nunique") > 1)
    if not wrong.any():
        return
    if (wrong | known.isna()).all():
        raise InputError(f"every image with a {name} has the same bytes as one with another {name}")
    paths = out.loc[wrong, "path"]
    out.loc[wrong, "detail"] = f"no {name}: the same bytes have another one too"
    out.loc[wrong, name] = pd.NA if name == "label" else ""
    shown = ", ".join(paths[:3])
    print(f"{len(paths)} images have the same bytes as one with another {name}; they count as without: {shown}")


def _cut_out_of_train(out: pd.DataFrame, fractions: Sequence[float], seed: int) -> None:
    """Move whole groups from train into val and test, those of them that have no row (given none, or copies of train only)."""
    have = set(out["split"]) - {"train"}
    shares = np.array([0.0 if name in have else share for name, share in zip(SPLITS, fractions, strict=True)])
    if missing := [name for name, share in zip(SPLITS[1:], shares[1:], strict=True) if share]:
        train = out["split"] == "train"
        out.loc[train, "split"] = _divide(out.loc[train, "group"], _strata(out[train]), shares / shares.sum(), seed)
        print(f"no image of its own is in {' or '.join(missing)}: cut out of the train images, whole groups at a time")


def merge_groups(groups: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(n,) group names in which rows that share `same` also share their group (the first name of each union)."""
    _, a = np.unique(groups.astype(str), return_inverse=True)
    _, b = np.unique(same.astype(str), return_inverse=True)
    n = a.max(initial=-1) + 1
    size = n + b.max(initial=-1) + 1
    _, part = connected_components(coo_array((np.ones(len(a)), (a, n + b)), shape=(size, size)), directed=False)
    frame = pd.DataFrame({"part": part[a], "group": groups})
    return frame.groupby("part")["group"].transform("min").to_numpy()


def assign_splits(groups: Sequence[str], strata: Sequence[str], fractions: Sequence[float], seed: int) -> np.ndarray:
    """Split whole groups into train, val and test, evenly over strata.

    Groups are ordered by stratum (the union of their rows' strata), then by a hash of seed and name; walking along them,
    each goes to the split that is furthest behind its share, so every stratum is divided alike to within one group.

    Args:
        groups:    (n,) group of each row.
        strata:    (n,) what to spread evenly, e.g. label and class.
        fractions: train, val, test shares; positive train and test, sum 1.
        seed:      int.
    Returns: (n,) str array of "train" | "val" | "test".
    Raises: ValueError if the fractions are no shares.
    """
    return _divide(groups, strata, check_shares(fractions), seed)


def check_shares(fractions: Sequence[float]) -> np.ndarray:
    """(3,) shares of train, val and test. Raises: ValueError if the fractions are none."""
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or shares[0] == 0 or shares[2] == 0 or abs(shares.sum() - 1) > 1e-9:
        raise ValueError(
            f"splits = {list(fractions)}: three shares (train, val, test) that sum to 1, train and test above 0"
        )
    return shares


def _divide(groups: Sequence[str], strata: Sequence[str], shares: np.ndarray, seed: int) -> np.ndarray:
    """As `assign_splits`, for any shares (3,) of train, val and test that sum to 1."""
    frame = pd.DataFrame({"group": np.asarray(groups, str), "stratum": np.asarray(strata, str)})
    union = frame.drop_duplicates().sort_values(["group", "stratum"]).groupby("group")["stratum"].agg("|".join)
    order = _shuffled(union.index, union, seed)
    given, split = np.zeros(3), {}
    for i, at in enumerate(order):
        best = int(np.argmax(shares * (i + 1) - given - (shares == 0)))
        given[best] += 1
        split[union.index[at]] = SPLITS[best]
    return frame["group"].map(split).to_numpy(dtype=str)


def _strata(frame: pd.DataFrame) -> pd.Series:
    return frame["label"].fillna(-1).astype(int).astype(str) + "/" + frame["class_name"] + "/" + frame["generator"]


def _shuffled(names: Sequence[str], strata: Sequence[str], seed: int) -> np.ndarray:
    """Order by stratum, then by a hash of seed and name."""
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names]
    return np.lexsort((np.asarray(keys), np.asarray(strata, str)))


def check_bad_fraction(manifest: pd.DataFrame, max_bad_fraction: float, folder: str = "images") -> int:
    """Number of bad files; files that do not even claim to be images (by suffix) are listed but not held against the folder.

    Raises: InputError when more than `max_bad_fraction` of the others are bad, or when none is left.
    """
    used = manifest[~manifest["status"].isin(NOT_READ)]
    bad = used["status"] != "ok"
    counts = used.loc[bad, "status"].value_counts()
    text = ", ".join(f"{n} {reason}" for reason, n in counts.items())
    if bad.all():
        why = "; ".join(used["detail"].mode()[:1]) if "detail" in used else ""
        raise InputError(f"{folder}: none of {len(used)} files can be used ({text})" + f": {why}" * bool(why))
    counted = claims_image(used["path"]) | ~bad
    share = (bad & counted).sum() / counted.sum()
    if share > max_bad_fraction:
        raise InputError(
            f"{folder}: {share:.1%} of {counted.sum()} files are bad, more than {max_bad_fraction:.1%} ({text})"
        )
    return int(bad.sum())


def escape(name: str) -> str:
    """A file name as stored: bytes that are not UTF-8 as \\xNN, a backslash doubled; everything else literally."""
    raw = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def unescape(stored: str) -> str:
    """The inverse of `escape`: the name to hand to the file system."""
    out, rest = b"", stored.encode("utf-8")
    while (at := rest.find(b"\\")) >= 0:
        if rest[at + 1 : at + 2] == b"x":
            out, rest = out + rest[:at] + bytes([int(rest[at + 2 : at + 4], 16)]), rest[at + 4 :]
        else:
            out, rest = out + rest[:at] + b"\\", rest[at + 2 :]
    return (out + rest).decode("utf-8", "surrogateescape")


def image_classes(manifest: pd.DataFrame, tokens: int = 1) -> tuple[np.ndarray | None, list[str]]:
    """What a latent's images can be pure in: (N,) the class of every row, -1 where it has no name, and the names in order.

    A class is the folder below the label's folder (of rendered scenes their family), or what a table of the images says.
    It is never the label itself: how many of a latent's images are implausible is its error ratio.
    Args: tokens: rows of each image.
    Returns: (None, []) for fewer than two classes, or where nearly every image has one of its own (words of an array).
    """
    name = manifest["class_name"].fillna("").to_numpy(str)
    names = sorted(set(name) - {""})
    if not 2 <= len(names) < len(name) / tokens / 2:
        return None, []
    return np.where(name == "", -1, np.searchsorted(names, name)), names

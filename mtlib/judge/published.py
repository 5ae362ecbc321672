"""The published records and table of names and verdicts, written and read with care.

feature_analysis.jsonl  {feature_num, explanation, num_samples}
error_analysis.jsonl    {feature_num, commonality, error_analysis, num_samples}

Reading: a line that is no JSON object (torn by a kill) is set aside and told, and the records around it are kept. The
same record twice counts once: the first line wins. Two different records of one key are a conflict: an error. NaN and
infinity are refused, when writing and when reading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mtlib.ask.ledger import dump
from mtlib.features.choice import by_activity
from mtlib.judge.verdicts import RULED
from mtlib.run.artifacts import write_text

FEATURE_ANALYSIS = ("feature_num", "explanation", "num_samples")
ERROR_ANALYSIS = ("feature_num", "commonality", "error_analysis", "num_samples")
NO_ERROR = "No common errors"
WITHOUT_PICTURES = 100
INTERPRETATIONS = ["feature_rank", "feature_id", "collage_path", "activation_mean", "activation_max", "num_images"]
INTERPRETATIONS += ["interpretation", "method"]


class RecordError(ValueError):
    """A file of records that must not be used as it is; the message names file, line and mend."""


@dataclass(frozen=True)
class Records:
    """What was read: records in file order, and the lines set aside as (line number from 1, first 80 characters)."""

    records: list[dict]
    set_aside: list[tuple[int, str]]


def write_records(folder: Path, verdicts: pd.DataFrame, n_images: dict[int, int]) -> None:
    """Write both files of one judge into `folder`, and read them back. Raises: RecordError if that says anything else."""
    named, ruled = records(verdicts, n_images)
    for name, fields, found in (
        ("feature_analysis.jsonl", FEATURE_ANALYSIS, named),
        ("error_analysis.jsonl", ERROR_ANALYSIS, ruled),
    ):
        write_text(folder / name, "".join(dump(r) + "\n" for r in found))
        if read(folder / name, fields) != Records(found, []):
            raise RecordError(f"{folder / name}: it does not say what was written; run the stage again")


def write_all(
    folder: Path, verdicts: dict[str, pd.DataFrame], tops: dict[str, pd.DataFrame], judge: str, n_images: int
) -> pd.DataFrame:
    """Both files of every method, of one judge. Returns: frame of method, names, verdicts, errors: records written.

    Args: n_images: a model was shown at most so many; the keyless judge looks at all.
    """
    lines = []
    for method, frame in verdicts.items():
        shown = tops[method].query("split == 'val'").groupby("feature").size()
        own = frame[frame["judge"] == judge]
        write_records(folder / method, own, (shown.clip(upper=n_images) if judge == "lmm" else shown).to_dict())
        counts = {
            "names": int((own["phrase"].fillna("") != "").sum()),
            "verdicts": int(own["verdict"].isin(RULED).sum()),
        }
        lines.append({"method": method} | counts | {"errors": int((own["verdict"] == "error").sum())})
    return pd.DataFrame(lines)


def read(path: Path, fields: Sequence[str] = ()) -> Records:
    """Read a file of records; the module says what happens to damaged, repeated and conflicting lines.

    Args: fields: every record must have these.
    Raises: RecordError naming the file and the lines.
    """
    kept: dict[object, tuple[int, dict]] = {}
    aside = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        record = _parse(path, number, line)
        if record is None:
            aside.append((number, line[:80].decode("utf-8", "replace")))
            continue
        if missing := [f for f in ("feature_num", *fields) if f not in record]:
            raise RecordError(f"{path}: line {number} has no {missing[0]!r}; it is no record of this kind")
        feature = record["feature_num"]
        first, same = kept.setdefault(json.dumps(feature, sort_keys=True), (number, record))
        if same != record:
            told = f"lines {first} and {number} say different things of feature_num = {feature!r}"
            raise RecordError(f"{path}: {told}; delete one")
    return Records([record for _, record in kept.values()], aside)


def _parse(path: Path, number: int, line: bytes) -> dict | None:
    """The object of a line, or None when it is torn."""

    def refuse(text: str):
        raise RecordError(f"{path}: line {number} holds {text}; numbers must be finite")

    try:
        record = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def records(verdicts: pd.DataFrame, n_images: dict[int, int]) -> tuple[list[dict], list[dict]]:
    """feature_analysis and error_analysis records of one judge; a model's errors are told in its own words.

    Features without a phrase have no name. Refused, failed and skipped ones have no verdict: left out, never "no error".

    Args: verdicts: one judge's verdicts. n_images: feature -> images that were looked at.
    """
    named, ruled = [], []
    for line in verdicts.itertuples():
        head, n = {"feature_num": int(line.feature)}, {"num_samples": int(n_images.get(int(line.feature), 0))}
        if pd.notna(line.phrase) and line.phrase != "":
            named.append(head | {"explanation": str(line.phrase)} | n)
        if line.verdict in RULED:
            words = line.detail if line.judge == "lmm" else line.phrase
            said = f"{line.category or 'error'}: {words}" if line.verdict == "error" else NO_ERROR
            ruled.append(head | {"commonality": str(line.phrase), "error_analysis": said} | n)
    return named, ruled


def interpretations(
    features: dict[str, pd.DataFrame],
    verdicts: dict[str, pd.DataFrame],
    tops: dict[str, pd.DataFrame],
    judge: str,
    pictured: dict[str, set[int]],
) -> pd.DataFrame:
    """The published table of interpretations: the features that have a collage (of a run without any: the hundred most active).

    Args: method -> features.parquet, verdicts, top_images.parquet, features with a collage. judge: whose names.
    Returns: frame of feature_rank (1 the most active, by mean activation x density), feature_id, collage_path (in the
        report; "" where none was drawn), activation_mean, activation_max (over the test rows on which it fires), num_images
        (top val images that were looked at), interpretation, method.
    """
    frames = []
    for method, table in features.items():
        ranked = by_activity(table)
        ranked = ranked.assign(feature_rank=range(1, len(ranked) + 1))
        drawn = pictured.get(method, set())
        shown = ranked[ranked["feature"].isin(drawn)] if drawn else ranked[ranked["density"] > 0].head(WITHOUT_PICTURES)
        own = verdicts[method].query("judge == @judge").set_index("feature")["phrase"]
        n = tops[method].query("split == 'val'").groupby("feature").size()
        path = [f"collages/{method}/{f}.jpg" if f in drawn else "" for f in shown["feature"]]
        frame = pd.DataFrame(
            {"feature_rank": shown["feature_rank"], "feature_id": shown["feature"], "collage_path": path}
        )
        frame["activation_mean"], frame["activation_max"] = shown["mean_activation"], shown["max_activation"]
        frame["num_images"] = n.reindex(shown["feature"], fill_value=0).to_numpy()
        frame["interpretation"] = own.reindex(shown["feature"]).fillna("").to_numpy()
        frames.append(frame.assign(method=method))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=INTERPRETATIONS)

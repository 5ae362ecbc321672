"""Records as lines of JSON: the published formats, written whole or appended one by one, and read with care.

feature_analysis.jsonl  {feature_num, explanation, num_samples}
error_analysis.jsonl    {feature_num, commonality, error_analysis, num_samples}

Reading: a line that is no JSON object (torn by a kill) is set aside and told, and the records around it are kept. The
same record twice counts once: the first line wins. Two different records of one key are a conflict: an error. NaN and
infinity are refused, when writing and when reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mtlib.run.artifacts import write_text

FEATURE_ANALYSIS = ("feature_num", "explanation", "num_samples")
ERROR_ANALYSIS = ("feature_num", "commonality", "error_analysis", "num_samples")
NO_ERROR = "No common errors"


class RecordError(ValueError):
    """A file of records that must not be used as it is; the message names file, line and mend."""


@dataclass(frozen=True)
class Records:
    """What was read: records in file order, and the lines set aside as (line number from 1, first 80 characters)."""

    records: list[dict]
    set_aside: list[tuple[int, str]]


def dump(record: dict) -> str:
    """One line of JSON, keys in the order given. Raises: ValueError for NaN and infinity."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def write(path: Path, records: Iterable[dict]) -> None:
    """Write a file of records atomically."""
    write_text(Path(path), "".join(dump(r) + "\n" for r in records))


def read(path: Path, fields: Sequence[str] = (), key: str | Sequence[str] = "feature_num") -> Records:
    """Read a file of records; the module says what happens to damaged, repeated and conflicting lines.

    Args:
        path:   the file.
        fields: every record must have these, all of them counted when two records are compared.
        key:    field, or fields, that name a record.
    Raises: RecordError naming the file and the lines.
    """
    path, keys = Path(path), (key,) if isinstance(key, str) else tuple(key)
    kept: dict[tuple, tuple[int, dict]] = {}
    aside = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        record = _parse(path, number, line)
        if record is None:
            aside.append((number, line[:80].decode("utf-8", "replace")))
            continue
        if missing := [f for f in (*keys, *fields) if f not in record]:
            raise RecordError(f"{path}: line {number} has no {missing[0]!r}; it is no record of this kind")
        name = tuple(json.dumps(record[k], sort_keys=True) for k in keys)
        first = kept.setdefault(name, (number, record))
        if first[1] != record:
            what = ", ".join(f"{k} = {record[k]!r}" for k in keys)
            raise RecordError(f"{path}: lines {first[0]} and {number} say different things of {what}; delete one")
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


class Appender:
    """Append records one by one; each is on disk when `add` returns. A second writer of the file is refused.

    A line torn by an earlier kill is closed with a line break first, so that the next record stands on a line of its own.

    Raises: RecordError when another process, or another Appender, writes the file.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "ab+")  # noqa: SIM115 (closed by close)
        self._lock()
        self.file.seek(0, os.SEEK_END)
        if self.file.tell():
            self.file.seek(-1, os.SEEK_END)
            if self.file.read(1) != b"\n":
                self.file.write(b"\n")

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no advisory locks on this system
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self.file.close()
            raise RecordError(f"{self.path}: another process is writing it; wait for it or stop it") from e

    def add(self, record: dict) -> None:
        """Append one record and sync it. Raises: ValueError for NaN and infinity; nothing is then written."""
        self.file.write(dump(record).encode("utf-8") + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Release the file."""
        self.file.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def feature_analysis(verdicts: pd.DataFrame, n_images: dict[int, int]) -> list[dict]:
    """Published records of what each feature fires on; features without a phrase are left out.

    Args:
        verdicts: one judge's verdicts. n_images: feature -> images that were looked at.
    """
    named = verdicts[verdicts["phrase"].fillna("") != ""]
    return [
        {"feature_num": int(f), "explanation": str(p), "num_samples": int(n_images.get(int(f), 0))}
        for f, p in zip(named["feature"], named["phrase"], strict=True)
    ]


def error_analysis(verdicts: pd.DataFrame, n_images: dict[int, int]) -> list[dict]:
    """Published records of the error verdicts; refused, failed and skipped features are left out, never "no error"."""
    ruled = verdicts[verdicts["verdict"].isin(["error", "no_error"])]
    return [
        {
            "feature_num": int(line.feature),
            "commonality": str(line.phrase),
            "error_analysis": f"{line.category or 'error'}: {line.phrase}" if line.verdict == "error" else NO_ERROR,
            "num_samples": int(n_images.get(int(line.feature), 0)),
        }
        for line in ruled.itertuples()
    ]

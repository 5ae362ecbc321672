"""The ledger: every answer that was ever paid for, on disk before it counts, and replayed instead of being asked again.

    runs/<run>/answers/<model>-<hash8>.jsonl            answers and refusals: append-only, one JSON object per line
    runs/<run>/answers/<model>-<hash8>.attempts.jsonl   failed attempts: for reading only, never replayed

It lives beside the stage folders, not in one, since those are write-once and made anew when a stage runs again; each
stage keeps a copy of the answers it used (`Ledger.export`). A line that is torn or is no record is set aside; of two
lines with one key the last counts: a question is asked again only when its recorded answer can no longer be read. Records hold no times and no keys of endpoints.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from mtlib.ask import records
from mtlib.ask.endpoint import Endpoint, Question

RECORDED = ("answered", "refused")
FIELDS = {"key": str, "status": str, "text": str, "reason": str, "usage": dict, "model": str}


def key(endpoint: Endpoint, question: Question) -> str:
    """Hex sha256 of everything an answer depends on; the question's id is no part of it.

    Model, base_url, prompt version, system, text, schema, the pictures' hashes in order, max_tokens, temperature and
    json_schema.
    """
    body = {
        "model": endpoint.model,
        "endpoint": endpoint.base_url.rstrip("/"),
        "prompt_version": question.prompt_version,
        "system": question.system,
        "text": question.text,
        "schema": question.schema,
        "pictures": [p.sha256 for p in question.pictures],
        "parameters": [endpoint.max_tokens, float(endpoint.temperature), endpoint.json_schema],
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def place(run_dir: Path, endpoint: Endpoint) -> Path:
    """Where a run keeps the answers of one model at one endpoint."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", endpoint.model).strip("-.")[:60]
    mark = hashlib.sha256(f"{endpoint.base_url.rstrip('/')} {endpoint.model}".encode()).hexdigest()[:8]
    return Path(run_dir) / "answers" / f"{name}-{mark}.jsonl"


class Ledger:
    """Answers by key, in memory and on disk. Reading needs no lock; the first `open` for writing takes it.

    Attributes: records (key -> record), set_aside ((line number, its first 80 characters) of lines that are no records).
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.records: dict[str, dict] = {}
        self.set_aside: list[tuple[int, str]] = []
        self._answers: records.Appender | None = None
        self._attempts: records.Appender | None = None
        self._read()

    def _read(self) -> None:
        self.records, self.set_aside = {}, []
        if not self.path.is_file():
            return
        with open(self.path, "rb") as f:
            for number, line in enumerate(f, start=1):
                record = _parse(line)
                if record is not None:
                    self.records[record["key"]] = record
                elif line.strip():
                    self.set_aside.append((number, line[:80].decode("utf-8", "replace")))

    def open(self) -> None:
        """Lock the ledger for writing; what another process added until now is read. Raises: RecordError if it is locked."""
        if self._answers is None:
            self._answers = records.Appender(self.path)
            self._attempts = records.Appender(self.path.with_suffix(".attempts.jsonl"))
            self._read()

    def add(self, record: dict) -> None:
        """Keep an answer or a refusal; it is on disk when this returns. The same record is kept once."""
        if _parse(records.dump(record).encode()) is None:
            raise ValueError(f"no record of an answer: {sorted(record)}")
        if record != self.records.get(record["key"]):
            self._answers.add(record)
            self.records[record["key"]] = record

    def log(self, attempt: dict) -> None:
        """Note a failed attempt beside the answers."""
        self._attempts.add(attempt)

    def export(self, path: Path, keys: Iterable[str]) -> int:
        """Write the records of these keys, in this order, each once, atomically. Returns their number."""
        found = [self.records[k] for k in dict.fromkeys(keys) if k in self.records]
        records.write(path, found)
        return len(found)

    def close(self) -> None:
        """Release the lock."""
        for appender in (self._answers, self._attempts):
            if appender is not None:
                appender.close()
        self._answers = self._attempts = None


def _parse(line: bytes) -> dict | None:
    """The record of a line, or None for anything else (torn, not finite, fields missing)."""
    try:
        record = json.loads(line, parse_constant=lambda text: 1 / 0)
        good = isinstance(record, dict) and all(isinstance(record.get(k), t) for k, t in FIELDS.items())
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return record if good and record["status"] in RECORDED and re.fullmatch(r"[0-9a-f]{64}", record["key"]) else None

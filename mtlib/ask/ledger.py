"""The ledger: every answer that was ever paid for, on disk before it counts, and replayed instead of being asked again.

    runs/<run>/answers/answers.sqlite     answers: one line per answer or refusal, only ever added to
                                          attempts: what failed, for reading only, never replayed
    runs/<run>/answers/*.jsonl            ledgers of earlier versions, or a stage's copy: taken over once

It lives beside the stage folders, not in one, since those are write-once and made anew when a stage runs again; each
stage keeps a copy of the answers it used (`Ledger.export`). An answer is on disk, whole, when `add` returns. Of two answers
to one question the last counts: a question is asked again only when its recorded answer can no longer be read. Records
hold no times and no keys of endpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from mtlib.ask.endpoint import Endpoint, Question
from mtlib.run.artifacts import sha256, write_text

RECORDED = ("answered", "refused")
FIELDS = {"key": str, "status": str, "text": str, "reason": str, "usage": dict, "model": str}
WAIT_S = 0.5  # for another process that is only reading
SETTINGS = (  # one process alone; every answer is synced to a log of changes, kept short so that its place is reused
    "locking_mode=EXCLUSIVE",
    "journal_mode=WAL",
    "synchronous=FULL",
    "wal_autocheckpoint=100",
)
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS attempts (number INTEGER PRIMARY KEY, key TEXT, question TEXT, reason TEXT)",
    "CREATE TABLE IF NOT EXISTS taken_over (sha256 TEXT PRIMARY KEY, name TEXT)",
)


class LedgerError(RuntimeError):
    """The ledger cannot be used as it is; the message names the file and the mend."""


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


def place(run_dir: Path) -> Path:
    """Where a run keeps its answers, of all models and endpoints."""
    return Path(run_dir) / "answers" / "answers.sqlite"


class Ledger:
    """Answers by key, in memory and on disk. While it is open for writing, no other process can use the file.

    Attributes: records (key -> record), set_aside ((file name, line number, its first 80 characters) of lines of a JSONL
        ledger that are no records).
    Raises: LedgerError when another process has it open; OSError when it cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.records: dict[str, dict] = {}
        self.set_aside: list[tuple[str, int, str]] = []
        self._db: sqlite3.Connection | None = None
        if self.path.is_file() or self._earlier():
            self.open()
            self.close()

    def open(self) -> None:
        """Lock the ledger for writing; what another process added until now is read."""
        if self._db is not None:
            return
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            for setting in SETTINGS:
                self._db.execute(f"PRAGMA {setting}")
            for table in TABLES:
                self._db.execute(table)
            self._take_over()
            lines = self._db.execute("SELECT record FROM answers ORDER BY number")
            self.records = {r["key"]: r for r in map(json.loads, (line for (line,) in lines))}

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors in our words; the ledger is closed after one."""
        try:
            yield
        except sqlite3.Error as e:
            self.close()
            if "locked" in str(e):
                raise LedgerError(f"{self.path}: another process is writing it; wait for it or stop it") from None
            if isinstance(e, sqlite3.OperationalError):
                raise OSError(f"{self.path}: {e}") from None
            raise LedgerError(f"{self.path}: {e}; move the file away, the answers in it are asked again") from None

    def _earlier(self) -> list[Path]:
        """Ledgers of earlier versions: a file of JSON lines per model."""
        return sorted(p for p in self.path.parent.glob("*.jsonl") if not p.name.endswith(".attempts.jsonl"))

    def _take_over(self) -> None:
        """Add the answers of JSONL ledgers that were never read, unless there is one to the same question already.

        Of two lines with one key the last counts; lines that are torn or no records are set aside.
        """
        known = {mark for (mark,) in self._db.execute("SELECT sha256 FROM taken_over")}
        for path in self._earlier():
            if (mark := sha256(path)) in known:
                continue
            found = {}
            for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
                if (record := as_record(line)) is not None:
                    found[record["key"]] = record
                elif line.strip():
                    self.set_aside.append((path.name, number, line[:80].decode("utf-8", "replace")))
            have = {k for (k,) in self._db.execute("SELECT key FROM answers")}
            self._db.execute("BEGIN")
            new = [(k, dump(r)) for k, r in found.items() if k not in have]
            self._db.executemany("INSERT INTO answers (key, record) VALUES (?, ?)", new)
            self._db.execute("INSERT INTO taken_over VALUES (?, ?)", (mark, path.name))
            self._db.execute("COMMIT")

    def add(self, record: dict) -> None:
        """Keep an answer or a refusal; it is on disk when this returns. The same record is kept once."""
        if as_record(dump(record).encode()) is None:
            raise ValueError(f"no record of an answer: {sorted(record)}")
        if record != self.records.get(record["key"]):
            with self._told():
                self._db.execute("INSERT INTO answers (key, record) VALUES (?, ?)", (record["key"], dump(record)))
            self.records[record["key"]] = record

    def log(self, key: str, question: str, reason: str) -> None:
        """Note a failed attempt."""
        with self._told():
            line = (key, question, reason)
            self._db.execute("INSERT INTO attempts (key, question, reason) VALUES (?, ?, ?)", line)

    def export(self, path: Path, keys: Iterable[str]) -> int:
        """Write the records of these keys as JSON lines, in this order, each once, atomically. Returns their number."""
        found = [self.records[k] for k in dict.fromkeys(keys) if k in self.records]
        write_text(Path(path), "".join(dump(r) + "\n" for r in found))
        return len(found)

    def close(self) -> None:
        """Release the file; at rest it is one plain file, without a log of changes beside it."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.close()
            self._db = None


def dump(record: dict) -> str:
    """One line of JSON, keys in the order given. Raises: ValueError for NaN and infinity."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def as_record(line: bytes) -> dict | None:
    """The record of a line, or None for anything else (torn, not finite, fields missing)."""
    try:
        record = json.loads(line, parse_constant=lambda text: 1 / 0)
        good = isinstance(record, dict) and all(isinstance(record.get(k), t) for k, t in FIELDS.items())
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return record if good and record["status"] in RECORDED and re.fullmatch(r"[0-9a-f]{64}", record["key"]) else None

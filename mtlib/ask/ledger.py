"""The ledger: every answer that was ever paid for, on disk before it counts, and replayed instead of being asked again.

    runs/<run>/answers/answers.sqlite     answers: one line per answer or refusal, only ever added to
                                          attempts: what failed, for reading only, never replayed

It lives beside the stage folders, since those are made anew when a stage runs again; each stage keeps a copy of the answers
it used (`Ledger.export`). Of two answers to one question the last counts: a question is asked again only when its recorded
answer can no longer be read. Records hold no times and no keys of endpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from mtlib.ask.endpoint import Endpoint, Question
from mtlib.run.artifacts import write_text

RECORDED = ("answered", "refused")
WAIT_S = 0.5  # for another process that is only reading
SETUP = (  # one process alone; every answer is synced to a log of changes, kept short so that its place is reused
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA wal_autocheckpoint=100",
    "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS attempts (number INTEGER PRIMARY KEY, key TEXT, question TEXT, reason TEXT)",
)


class LedgerError(RuntimeError):
    """The ledger cannot be used as it is; the message names the file and the mend."""


def key(endpoint: Endpoint, question: Question) -> str:
    """Hex sha256 of everything an answer depends on; the question's id is no part of it."""
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

    Raises: LedgerError when another process has it open; OSError when it cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.records: dict[str, dict] = {}
        self._db: sqlite3.Connection | None = None
        if self.path.is_file():
            self.open()
            self.close()

    def open(self) -> None:
        """Lock the ledger for writing; what another process added until now is read."""
        if self._db is not None:
            return
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            for command in SETUP:
                self._db.execute(command)
            lines = self._db.execute("SELECT key, record FROM answers ORDER BY number")
            self.records = {key: json.loads(record) for key, record in lines}

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

    def add(self, record: dict) -> None:
        """Keep an answer or a refusal; it is on disk, whole, when this returns. The same record is kept once."""
        if record.get("status") not in RECORDED:
            raise ValueError(f"no record of an answer: {sorted(record)}")
        if record != self.records.get(record["key"]):
            with self._told():
                self._db.execute("INSERT INTO answers (key, record) VALUES (?, ?)", (record["key"], dump(record)))
            self.records[record["key"]] = record

    def log(self, key: str, question: str, reason: str) -> None:
        """Note a failed attempt."""
        with self._told():
            self._db.execute("INSERT INTO attempts VALUES (NULL, ?, ?, ?)", (key, question, reason))

    def export(self, path: Path, keys: Iterable[str]) -> None:
        """Write the records of these keys as JSON lines, in this order, each once, atomically."""
        found = [self.records[k] for k in dict.fromkeys(keys) if k in self.records]
        write_text(Path(path), "".join(dump(r) + "\n" for r in found))

    def close(self) -> None:
        """Release the file; at rest it is one plain file, without a log of changes beside it."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.close()
            self._db = None


def dump(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)

"""The ledger: every answer that was ever paid for, on disk before it counts, and replayed instead of being asked again.

    runs/<run>/answers/answers.sqlite     answers: one line per answer or refusal with its sha256, only ever added to
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
from mtlib.run.artifacts import json_hash, write_text

RECORDED = ("answered", "refused")
WAIT_S = 0.5  # for another process that is only reading
SETUP = (  # one process alone; every answer is synced to a log of changes, kept short so that its place is reused
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA wal_autocheckpoint=100",
    "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL, sha256 TEXT)",
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

    Raises: LedgerError when another process has it open, or an answer is not as it was written; OSError when it cannot be read
        or written.
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
            self._db.text_factory = bytes  # what is damaged may be no text
            for command in SETUP:
                self._db.execute(command)
            if (found := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != b"ok":
                raise sqlite3.DatabaseError(found.decode())
            if b"sha256" not in [column[1] for column in self._db.execute("PRAGMA table_info(answers)")]:
                self._db.execute("ALTER TABLE answers ADD COLUMN sha256 TEXT")  # answers from before stay without
            self.records = dict(map(_read, self._db.execute("SELECT * FROM answers ORDER BY number")))

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
                values = record["key"], dump(record)
                self._db.execute("INSERT INTO answers VALUES (NULL, ?, ?, ?)", (*values, json_hash(values)))
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


def _read(line: tuple) -> tuple[str, dict]:
    """Key and record of a line of answers. Raises: sqlite3.DatabaseError when it is not as it was written."""
    number, *values, known = line
    with contextlib.suppress(ValueError, AttributeError):
        key, record = (value.decode() for value in values)
        if known is None or known.decode() == json_hash([key, record]):
            return key, json.loads(record)
    raise sqlite3.DatabaseError(
        f"sha256 mismatch in answer {number} (DELETE FROM answers WHERE number = {number} drops it)"
    )


def dump(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)

"""Questions, a strict parser and quick bounds, for the tests that ask the local server."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from mtlib.ask.endpoint import Endpoint, Malformed, Picture, Question, Refused
from tests.ask.hostile import DEADLINE, REFUSAL, RETRIES
from tests.ask.lmm_server import MODEL, LmmServer

KEY = "sk-canary-7f3a91c2d4e8"
JPEG = b"\xff\xd8\xff\xe0 as far as the client looks"
SCHEMA = {"type": "object", "properties": {"phrase": {"type": "string"}}, "required": ["phrase"]}


def parse(question: Question, text: str) -> dict:
    """As strict as a parser can be."""
    if text == REFUSAL:
        raise Refused(text)
    if not text.startswith("{"):
        raise Malformed("no JSON object")
    return json.loads(text)


def endpoint(server: LmmServer, **changes) -> Endpoint:
    quick = {"timeout_s": DEADLINE, "max_retries": RETRIES, "backoff_s": 0.01, "retry_after_cap_s": 0.6}
    if "retry after a date" in changes.pop("of", ""):
        quick["retry_after_cap_s"] = 3
        quick["timeout_s"] = 4
    return Endpoint(**({"base_url": server.base_url, "model": MODEL} | quick | changes))


def question(n: int = 0, **changes) -> Question:
    fields = {"id": f"q/{n}", "prompt_version": "1", "text": f"What do these share? {n}", "schema": SCHEMA}
    return Question(**(fields | {"pictures": (Picture("ab" * 32, lambda: JPEG, (64, 64)),)} | changes))


def contents(path: Path) -> bytes:
    """A file's bytes; of a data base, every value in plain, since pages may cut a text in two."""
    data = path.read_bytes()
    if data.startswith(b"SQLite"):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        data += "\n".join(db.iterdump()).encode()
        db.close()
    return data


@pytest.fixture
def key(monkeypatch) -> str:
    """A key in the environment, and no other."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    return KEY

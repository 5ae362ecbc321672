"""The ledger: replay without calls, one writer, the last answer counts, runs that are killed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from mtlib.ask import ledger
from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import Malformed
from mtlib.ask.ledger import Ledger, LedgerError
from tests.ask.asked import KEY, contents, endpoint, key, parse, question  # noqa: F401 (key is a fixture)
from tests.ask.hostile import GOOD, REFUSAL, status
from tests.ask.lmm_server import LmmServer

pytestmark = pytest.mark.usefixtures("key")


def test_second_writer_is_refused_while_the_first_one_asks(tmp_path):
    with LmmServer(lambda ask: GOOD) as server:
        first, second, third = (Asker(endpoint(server), tmp_path / "a.sqlite", parse) for _ in range(3))
        asked = first.ask(question(n) for n in range(50))
        next(asked)
        with pytest.raises(LedgerError, match="another process"):
            list(second.ask([question(60)]))
        asked.close()
        assert [a.status for a in second.ask([question(60)])] == ["answered"]
        before = server.n_asks
        assert [a.replayed for a in third.ask([question(0), question(60)])] == [True, True]
        assert server.n_asks == before
        for asker in (first, second, third):
            asker.close()


def test_second_run_replays_answers_and_refusals_and_asks_failures_again(tmp_path):
    def answer(ask):
        n = int(ask.text.split()[-1])
        return GOOD if n < 4 else REFUSAL if n < 6 else status(404)

    with LmmServer(answer) as server:
        runs = []
        for _ in range(2):
            with Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
                runs.append(list(asker.ask(question(n) for n in range(8))))
                u = asker.usage
                assert (u.answered, u.refused, u.failed) == (4, 2, 2)
        assert server.n_asks == 8 + 2 and [a.replayed for a in runs[1]] == [True] * 6 + [False] * 2
        bare = [dataclasses.replace(a, replayed=False) for a in runs[1]]
        assert bare == runs[0]
    db = sqlite3.connect(tmp_path / "a.sqlite")
    attempts = list(db.execute("SELECT question, reason FROM attempts ORDER BY number"))
    assert (
        [q for q, _ in attempts].count("q/6") == 2 and all("HTTP 404" in r for _, r in attempts) and len(attempts) == 4
    )
    assert db.execute("SELECT count(*) FROM answers").fetchone() == (6,), "errors are no answers"
    db.close()
    assert KEY.encode() not in contents(tmp_path / "a.sqlite")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.sqlite"]


@pytest.mark.parametrize(
    "changes",
    [{"prompt_version": "2"}, {"text": "else"}, {"system": "s"}, {"schema": None}, {"pictures": ()}],
    ids=lambda c: next(iter(c)),
)
def test_key_depends_on_everything_that_is_asked(changes):
    e = endpoint(type("Server", (), {"base_url": "http://localhost:1/v1"}))
    same = ledger.key(e, question(id="another id"))
    assert same == ledger.key(e, question()) != ledger.key(e, question(**changes))
    others = [{"model": "m"}, {"base_url": "http://localhost:2/v1"}, {"max_tokens": 7}, {"temperature": 1.0}]
    assert len({ledger.key(e.with_(**o), question()) for o in [*others, {}]}) == 5
    assert ledger.key(e.with_(concurrency=9, max_calls=5, timeout_s=3), question()) == same


def test_equal_questions_make_one_request(tmp_path):
    def slow(ask):
        time.sleep(0.1)
        return GOOD

    with LmmServer(slow) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        answers = list(asker.ask(question(id=f"f{n}") for n in range(6)))
    assert server.n_asks == 1 and [a.question_id for a in answers] == [f"f{n}" for n in range(6)]
    assert [a.replayed for a in answers] == [False] + [True] * 5


def test_of_two_answers_on_record_the_last_counts(tmp_path):
    book, record = Ledger(tmp_path / "a.sqlite"), {"key": "ab" * 32, "status": "answered", "reason": "", "model": ""}
    book.open()
    for text in ("first", "second", "second"):
        book.add(record | {"text": text, "usage": {}})
    with pytest.raises(ValueError, match="no record of an answer"):
        book.add(record | {"text": "x", "usage": {}, "status": "failed"})
    book.close()
    assert [r["text"] for r in Ledger(tmp_path / "a.sqlite").records.values()] == ["second"]
    db = sqlite3.connect(tmp_path / "a.sqlite")
    assert db.execute("SELECT count(*) FROM answers").fetchone() == (2,), "nothing that was paid for is lost"
    db.close()


def test_an_answer_is_there_whole_or_not_at_all(tmp_path):
    """The files as a kill leaves them, the log of changes cut at every place: some of the answers, each of them whole."""
    book, record = Ledger(tmp_path / "a.sqlite"), {"status": "answered", "reason": "", "model": "", "usage": {}}
    book.open()
    for n in range(4):
        book.add(record | {"key": f"{n:064x}", "text": f"{n}" * 5000})
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    book.close()
    found = []
    log = files["a.sqlite-wal"]
    for end in (*range(0, len(log), 1500), len(log)):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "a.sqlite").write_bytes(files["a.sqlite"])
        (folder / "a.sqlite-wal").write_bytes(log[:end])
        kept = Ledger(folder / "a.sqlite").records
        assert list(kept) == [f"{n:064x}" for n in range(len(kept))]
        assert [r["text"] for r in kept.values()] == [f"{n}" * 5000 for n in range(len(kept))]
        found.append(len(kept))
        shutil.rmtree(folder)
    assert found == sorted(found) and set(found) == {0, 1, 2, 3, 4}


def test_a_flipped_answer_is_never_replayed_and_answers_without_a_hash_are(tmp_path):
    book, record = Ledger(tmp_path / "a.sqlite"), {"status": "answered", "text": "two of these", "usage": {}}
    book.open()
    for n in range(3):
        book.add(record | {"key": f"{n:064x}"})
    book.close()
    whole, places = (tmp_path / "a.sqlite").read_bytes(), []
    while (at := whole.find(b"two of these", places[-1] + 1 if places else 0)) >= 0:
        places.append(at)
    for at in places:
        for bit in range(8):
            (tmp_path / "a.sqlite").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(
                LedgerError, match=r"a\.sqlite: sha256 mismatch in answer \d .DELETE FROM answers WHERE"
            ):
                Ledger(tmp_path / "a.sqlite")
    assert len(places) == 3
    db = sqlite3.connect(tmp_path / "old.sqlite")  # as it was before answers had a hash
    db.execute("CREATE TABLE answers (number INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL)")
    db.execute("INSERT INTO answers VALUES (1, ?, ?)", ("ab", json.dumps(record | {"key": "ab"})))
    db.commit()
    db.close()
    old = Ledger(tmp_path / "old.sqlite")
    old.open()
    old.add(record | {"key": "cd"})
    old.close()
    assert list(Ledger(tmp_path / "old.sqlite").records) == ["ab", "cd"]


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"something else" * 500)
    with pytest.raises(LedgerError, match=r"a\.sqlite: .*; move the file away"):
        Ledger(tmp_path / "a.sqlite")


def test_replay_parses_again_and_asks_only_what_can_no_longer_be_read(tmp_path):
    def stricter(question, text):
        if "new" not in text:
            raise Malformed("too old")
        return parse(question, text)

    said = [GOOD]
    with LmmServer(lambda ask: said[0]) as server:

        def ask(parser) -> tuple:
            with Asker(endpoint(server), tmp_path / "a.sqlite", parser) as asker:
                planned = asker.plan([question(0)])["calls"]
                (answer,) = asker.ask([question(0)])
                return planned, answer.status, answer.replayed

        assert ask(parse) == (1, "answered", False) and ask(parse) == (0, "answered", True)
        assert ask(stricter) == (1, "failed", False), "the server still gives the old words"
        n = server.n_asks
        assert ask(parse) == (0, "answered", True) and server.n_asks == n, "the old answer is still there"
        said[0] = '{"phrase": "a new one"}'
        assert ask(stricter) == (1, "answered", False) and ask(stricter) == (0, "answered", True)
        assert server.n_asks == n + 1


def test_export_keeps_the_used_answers_in_their_order(tmp_path):
    copy = tmp_path / "copy.jsonl"
    with LmmServer(lambda ask: GOOD) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        answers = list(asker.ask(question(n) for n in range(4)))
        asker.ledger.export(copy, [a.key for a in answers[:0:-1] + [answers[3]]])
    found = [json.loads(line) for line in copy.read_text().splitlines()]
    assert [line["question"] for line in found] == ["q/3", "q/2", "q/1"]
    names = ["key", "question", "prompt_version", "endpoint", "asked", "model", "status", "text", "reason", "usage"]
    assert list(found[0]) == names and copy.read_text().startswith(json.dumps(found[0], ensure_ascii=False) + "\n")


def test_ledger_that_cannot_be_written_ends_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with LmmServer(lambda ask: GOOD) as server:
        with Asker(endpoint(server), tmp_path / "file" / "a.sqlite", parse) as asker, pytest.raises(OSError):
            list(asker.ask([question(0)]))
        assert server.n_asks == 0


def test_place_is_one_file_per_run(tmp_path):
    assert ledger.place(tmp_path) == tmp_path / "answers" / "answers.sqlite"


ASK_ALL = """
import sys
from pathlib import Path
from mtlib.ask.asker import Asker
from tests.ask.asked import endpoint, parse, question
server = type("Server", (), {"base_url": sys.argv[1]})
with Asker(endpoint(server), Path(sys.argv[2]), parse) as asker:
    for answer in asker.ask(question(n) for n in range(int(sys.argv[3]))):
        print(answer.question_id, answer.status, answer.value, flush=True)
"""


def test_killed_run_repeats_at_most_what_was_in_flight(tmp_path, repo):
    """SIGKILL, then to the end: every answer on disk is kept, at most 4 requests are repeated (20 kills: prove kills_judge)."""
    n = 40

    def slow(ask):
        time.sleep(0.02)
        return GOOD

    with LmmServer(slow) as server:
        command = [sys.executable, "-c", ASK_ALL, server.base_url, str(tmp_path / "a.sqlite"), str(n)]
        process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, text=True)
        for _ in range(8):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = dict(Ledger(tmp_path / "a.sqlite").records)
        assert 8 <= len(kept) < n
        with Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
            answers = list(asker.ask(question(i) for i in range(n)))
        assert [(a.question_id, a.value) for a in answers] == [(f"q/{i}", json.loads(GOOD)) for i in range(n)]
        assert sum(a.replayed for a in answers) == len(kept)
        assert n <= server.n_asks <= n + 4
    found = Ledger(tmp_path / "a.sqlite").records
    assert len(found) == n and {k: found[k] for k in kept} == kept

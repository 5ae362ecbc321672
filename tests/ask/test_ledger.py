"""The ledger: replay without calls, torn lines, last of duplicates, one writer, and runs that are killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mtlib.ask import ledger, records
from mtlib.ask.answers import Asker, Malformed
from tests.ask.asked import KEY, endpoint, key, parse, question  # noqa: F401 (key is a fixture)
from tests.ask.hostile import GOOD, REFUSAL, status
from tests.ask.lmm_server import LmmServer

pytestmark = pytest.mark.usefixtures("key")


def test_second_writer_is_refused_while_the_first_one_asks(tmp_path):
    with LmmServer(lambda ask: GOOD) as server:
        first, second, third = (Asker(endpoint(server), tmp_path / "a.jsonl", parse) for _ in range(3))
        asked = first.ask(question(n) for n in range(50))
        next(asked)
        with pytest.raises(records.RecordError, match="another process"):
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
        return GOOD if n < 4 else REFUSAL if n < 6 else status(400)

    with LmmServer(answer) as server:
        runs = []
        for _ in range(2):
            with Asker(endpoint(server), tmp_path / "a.jsonl", parse) as asker:
                runs.append(list(asker.ask(question(n) for n in range(8))))
                u = asker.usage
                assert (u.answered, u.refused, u.failed) == (4, 2, 2)
        assert server.n_asks == 8 + 2 and [a.replayed for a in runs[1]] == [True] * 6 + [False] * 2
        bare = [dataclasses.replace(a, replayed=False) for a in runs[1]]
        assert bare == runs[0]
    log = (tmp_path / "a.attempts.jsonl").read_text()
    assert log.count("HTTP 400") == 4 and "q/6" in log and KEY not in log


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
    assert len({ledger.key(dataclasses.replace(e, **o), question()) for o in [*others, {}]}) == 5
    assert ledger.key(dataclasses.replace(e, concurrency=9, max_calls=5, timeout_s=3), question()) == same


def test_equal_questions_make_one_request(tmp_path):
    def slow(ask):
        time.sleep(0.1)
        return GOOD

    with LmmServer(slow) as server, Asker(endpoint(server), tmp_path / "a.jsonl", parse) as asker:
        answers = list(asker.ask(question(id=f"f{n}") for n in range(6)))
    assert server.n_asks == 1 and [a.question_id for a in answers] == [f"f{n}" for n in range(6)]
    assert [a.replayed for a in answers] == [False] + [True] * 5


def test_torn_and_false_lines_are_set_aside_and_the_last_of_duplicates_wins(tmp_path):
    path = tmp_path / "a.jsonl"
    with LmmServer(lambda ask: GOOD) as server:
        with Asker(endpoint(server), path, parse) as asker:
            (answer,) = asker.ask([question(0)])
        record = json.loads(path.read_text())
        bad = [record | {"text": '{"phrase": "second"}'}, record | {"key": "ab"}, record | {"status": "failed"}]
        lines = [json.dumps(r) for r in bad] + ["{}", "[1]", '{"key": NaN}', "", "\x00\x00", path.read_text()[:50]]
        path.write_text(path.read_text() + "\n".join(lines))
        with Asker(endpoint(server), path, parse) as asker:
            again, new = asker.ask([question(0), question(1)])
            assert len(asker.ledger.set_aside) == 7
        assert answer.value != again.value == {"phrase": "second"} and again.replayed and not new.replayed
        assert len(ledger.Ledger(path).records) == 2 and server.n_asks == 2
        assert new.key in path.read_text().splitlines()[-1]


def test_replay_parses_again_and_asks_only_what_can_no_longer_be_read(tmp_path):
    def stricter(question, text):
        if "new" not in text:
            raise Malformed("too old")
        return parse(question, text)

    said = [GOOD]
    with LmmServer(lambda ask: said[0]) as server:

        def ask(parser) -> tuple:
            with Asker(endpoint(server), tmp_path / "a.jsonl", parser) as asker:
                planned = asker.plan([question(0)]).calls
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
    with LmmServer(lambda ask: GOOD) as server:
        with Asker(endpoint(server), tmp_path / "a.jsonl", parse) as asker:
            answers = list(asker.ask(question(n) for n in range(4)))
            assert asker.export(tmp_path / "copy.jsonl", answers[:0:-1] + [answers[3]]) == 3
        with Asker(endpoint(server), tmp_path / "copy.jsonl", parse) as copy:
            assert copy.plan(question(n) for n in range(4)).calls == 1
    found = [json.loads(line)["question"] for line in (tmp_path / "copy.jsonl").read_text().splitlines()]
    assert found == ["q/3", "q/2", "q/1"]


def test_ledger_that_cannot_be_written_ends_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with LmmServer(lambda ask: GOOD) as server:
        with Asker(endpoint(server), tmp_path / "file" / "a.jsonl", parse) as asker, pytest.raises(OSError):
            list(asker.ask([question(0)]))
        assert server.n_asks == 0


def test_place_is_one_file_per_model_and_endpoint(tmp_path):
    e = endpoint(type("Server", (), {"base_url": "http://localhost:1/v1"}), model="../a b/cl\nip:7b")
    path = ledger.place(tmp_path, e)
    assert path.parent == tmp_path / "answers" and path.name.startswith("a-b-cl-ip-7b-")
    assert path != ledger.place(tmp_path, dataclasses.replace(e, base_url="http://localhost:2/v1"))


ASK_ALL = """
import sys
from pathlib import Path
from mtlib.ask.answers import Asker
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
        command = [sys.executable, "-c", ASK_ALL, server.base_url, str(tmp_path / "a.jsonl"), str(n)]
        process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, text=True)
        for _ in range(8):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = dict(ledger.Ledger(tmp_path / "a.jsonl").records)
        assert 8 <= len(kept) < n
        with Asker(endpoint(server), tmp_path / "a.jsonl", parse) as asker:
            answers = list(asker.ask(question(i) for i in range(n)))
        assert [(a.question_id, a.value) for a in answers] == [(f"q/{i}", json.loads(GOOD)) for i in range(n)]
        assert sum(a.replayed for a in answers) == len(kept)
        assert n <= server.n_asks <= n + 4
    found = ledger.Ledger(tmp_path / "a.jsonl").records
    assert len(found) == n and {k: found[k] for k in kept} == kept

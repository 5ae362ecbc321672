"""Asking over real HTTP: what hostile servers get away with (nothing), order, stops, pictures and follow-ups."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import openai.resources.chat  # noqa: F401 (loaded here, so that no measured time contains it)
import pytest

from mtlib.ask import ledger
from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import Endpoint, Picture
from tests.ask.asked import JPEG, KEY, SCHEMA, contents, endpoint, key, parse, question  # noqa: F401 (key is a fixture)
from tests.ask.hostile import CASES, GOOD, Case, serve, status
from tests.ask.lmm_server import MODEL, LmmServer

pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hostile_reply_becomes_its_outcome_within_the_deadline(case: Case, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with serve(case) as server:
        e = endpoint(server, of=case.name)
        with Asker(e, tmp_path / "answers.sqlite", parse) as asker:
            start = time.monotonic()
            (answer,) = asker.ask([question()])
            seconds = time.monotonic() - start
            assert (answer.status, server.n_asks) == (case.status, case.requests), answer.reason
            assert case.reason in answer.reason
            assert case.waits <= seconds <= e.timeout_s + 1.0
            assert asker.stopped.startswith(case.stops) and bool(asker.stopped) == bool(case.stops)
            assert asker.usage.calls == case.requests
            assert list(asker.ledger.records) == ([answer.key] if case.status in ("answered", "refused") else [])
    if case.status == "answered":
        assert answer.value == json.loads(GOOD)
    found = "".join(contents(p).decode("utf-8", "replace") for p in tmp_path.rglob("*") if p.is_file())
    found += caplog.text + "".join(capfd.readouterr()) + repr(answer)
    assert KEY[: len(KEY) // 2] not in found and KEY[len(KEY) // 2 :] not in found


def test_hostile_cases_are_at_least_thirty_and_cover_every_outcome():
    assert len(CASES) >= 30 and {c.status for c in CASES} == {"answered", "refused", "failed"}


def test_hostile_replies_together_record_no_false_answer(tmp_path):
    """All cases at one server at once, twice: only the good ones are answers, and only the failed are asked again."""
    slow = {"dripping", "silent", "endless body", "retry after a date"}
    cases = [c for c in CASES if not c.stops and c.name not in slow]
    turns: dict[str, int] = {}

    def answer(ask):
        case = cases[int(ask.text.split()[-1])]
        turns[case.name] = turns.get(case.name, -1) + 1
        reply = case.replies[min(turns[case.name], len(case.replies) - 1)]
        return reply(ask) if getattr(reply, "wants_ask", False) else reply

    with LmmServer(answer) as server:
        e = endpoint(server, concurrency=8, timeout_s=20, retry_after_cap_s=0.05, give_up_after=0)
        for replayed in (False, True):
            with Asker(e, tmp_path / "answers.sqlite", parse) as asker:
                answers = list(asker.ask(question(n) for n in range(len(cases))))
            assert [a.question_id for a in answers] == [f"q/{n}" for n in range(len(cases))]
            for case, a in zip(cases, answers, strict=True):
                assert a.status == case.status, (case.name, a)
                assert (a.value == json.loads(GOOD)) == (a.status == "answered")
                assert a.replayed == (replayed and a.status != "failed")
            assert asker.usage.answered + asker.usage.refused + asker.usage.failed == len(cases)
    stored = ledger.Ledger(tmp_path / "answers.sqlite").records.values()
    assert {r["text"] for r in stored if r["status"] == "answered"} == {GOOD}


@pytest.mark.parametrize("code", [401, 402, 403])
def test_key_and_credit_errors_stop_within_the_concurrency(code, tmp_path):
    def answer(ask):
        time.sleep(0.02)
        return GOOD if ask.number < 6 else status(code, "stop that")

    with LmmServer(answer) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        answers = list(asker.ask(question(n) for n in range(60)))
        assert server.n_asks <= 6 + asker.endpoint.concurrency
        counted = asker.usage.answered + asker.usage.failed + asker.usage.unasked
    assert counted == 60 and asker.usage.answered == 6 and asker.usage.unasked >= 60 - 6 - 4
    assert {a.reason for a in answers if a.status == "unasked"} == {asker.stopped}


def test_unreachable_server_stops_after_failures_in_a_row(tmp_path):
    with LmmServer(lambda ask: GOOD) as server:
        e = endpoint(server, give_up_after=5, max_retries=0)
    with Asker(e, tmp_path / "a.sqlite", parse) as asker:
        answers = list(asker.ask(question(n) for n in range(40)))
    assert asker.stopped.startswith("failures: 5 questions in a row")
    assert asker.usage.failed <= 5 + e.concurrency and asker.usage.unasked == 40 - asker.usage.failed
    assert asker.usage.usd == 0 and "no reply (ConnectError)" in answers[0].reason


def test_no_key_for_a_distant_server_stops_before_any_request(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    e = Endpoint(base_url="https://model.invalid/v1", model=MODEL)
    with Asker(e, tmp_path / "a.sqlite", parse) as asker:
        (answer,) = asker.ask([question()])
    assert answer.status == "failed" and asker.stopped == "key: none found: set OPENROUTER_API_KEY or OPENAI_API_KEY"


def test_key_echoed_in_headers_reaches_no_log(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)

    def answer(ask):
        return status(500, x_request_id=ask.key, retry_after=ask.key)

    with LmmServer(answer) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        (answer,) = asker.ask([question()])
    assert server.n_asks == 4 and "HTTP 500" in answer.reason and KEY not in caplog.text


def test_redirect_to_another_host_is_not_followed(tmp_path):
    with LmmServer(lambda ask: GOOD) as other:
        away = status(307, location=other.base_url.replace("127.0.0.1", "localhost") + "/chat/completions")
        with LmmServer(lambda ask: away) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
            list(asker.ask([question()]))
            assert [a.key for a in server.asks] == [KEY]
        assert other.n_asks == 0


def test_retry_after_holds_back_everyone(tmp_path):
    """The others wait, too: nothing arrives between the 429 and the end of its Retry-After."""

    def answer(ask):
        return status(429, retry_after="0.5") if ask.number == 0 else GOOD

    with LmmServer(answer) as server, Asker(endpoint(server, concurrency=1), tmp_path / "a.sqlite", parse) as asker:
        assert [a.status for a in asker.ask(question(n) for n in range(3))] == ["answered"] * 3
        assert server.asks[1].started - server.asks[0].started >= 0.5


def test_asking_works_while_an_event_loop_runs(tmp_path):
    """As in Jupyter."""

    async def cell(asker):
        return [a.status for a in asker.ask([question()])]

    with LmmServer(lambda ask: GOOD) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        assert asyncio.run(cell(asker)) == ["answered"]


def test_questions_are_pulled_lazily_and_answers_keep_their_order(tmp_path):
    pulled = []

    def source():
        for n in range(200):
            pulled.append(n)
            yield question(n)

    def answer(ask):
        time.sleep(0.03 * (ask.number % 3 == 0))
        return json.dumps({"n": int(ask.text.split()[-1])})

    with LmmServer(answer) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        answers = asker.ask(source())
        assert [next(answers).value["n"] for _ in range(3)] == [0, 1, 2]
        assert len(pulled) <= 3 + 16 and server.most_at_once <= 4
        answers.close()
        assert server.n_asks < 60


def test_follow_up_comes_right_behind_its_question(tmp_path):
    def then(q, a):
        return question(int(q.id[2:]) + 100) if int(q.id[2:]) < 100 and a.status == "answered" else None

    with LmmServer(lambda ask: GOOD) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        ids = [a.question_id for a in asker.ask([question(1), question(2)], then)]
    assert ids == ["q/1", "q/101", "q/2", "q/102"]


def test_pictures_travel_as_data_urls_and_unreadable_ones_are_not_asked(tmp_path):
    def broken():
        raise OSError("truncated")

    bad = question(1, pictures=(Picture("cd" * 32, lambda: JPEG + b"x"), Picture("ef" * 32, broken)))
    with LmmServer(lambda ask: GOOD) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        good, failed = asker.ask([question(0, system="Be brief."), bad])
        assert server.n_asks == 1 and server.asks[0].images == [JPEG] and server.asks[0].system == "Be brief."
        assert server.asks[0].schema == SCHEMA and server.asks[0].key == KEY
    assert good.status == "answered" and failed.status == "failed" and "truncated" in failed.reason

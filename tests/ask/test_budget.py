"""Requests and tokens per minute, max_calls and max_usd."""

from __future__ import annotations

import itertools
import time

import pytest

from mtlib.ask.asker import Asker
from tests.ask.asked import endpoint, key, parse, question  # noqa: F401 (key is a fixture)
from tests.ask.hostile import GOOD, status
from tests.ask.lmm_server import LmmServer, completion

pytestmark = pytest.mark.usefixtures("key")


def gaps(server: LmmServer) -> list[float]:
    """Seconds between arrivals, the first left out: the client loads its parts with the first request."""
    starts = [a.started for a in server.asks[1:]]
    return [b - a for a, b in itertools.pairwise(starts)]


def test_requests_per_minute_space_the_requests_without_a_busy_wait(tmp_path):
    with LmmServer(lambda ask: GOOD) as server:
        e = endpoint(server, requests_per_minute=300)
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            list(asker.ask([question(0)]))
            start, before = time.monotonic(), time.process_time()
            list(asker.ask(question(n) for n in range(1, 6)))
            seconds, used = time.monotonic() - start, time.process_time() - before
    assert min(gaps(server)) >= 0.17 and seconds >= 0.8 and used < 0.5 * seconds


def test_tokens_per_minute_follow_the_reported_usage(tmp_path):
    """By hand: 60 tokens in a reply at 18000 tokens per minute is 0.2 s, however high the estimate was."""

    def answer(ask):
        return completion(GOOD, usage={"prompt_tokens": 50, "completion_tokens": 10})

    with LmmServer(answer) as server:
        e = endpoint(server, tokens_per_minute=18_000, concurrency=1)
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            assert [a.status for a in asker.ask(question(n) for n in range(6))] == ["answered"] * 6
            assert (asker.usage.tokens_in, asker.usage.tokens_out) == (300, 60)
    assert all(0.15 < gap < 0.6 for gap in gaps(server)), gaps(server)


def test_max_calls_stops_cleanly_and_the_next_run_goes_on(tmp_path):
    with LmmServer(lambda ask: status(500) if ask.number == 2 else GOOD) as server:
        outcomes = []
        for _ in range(3):
            with Asker(endpoint(server, max_calls=5), tmp_path / "a.sqlite", parse) as asker:
                outcomes.append([a.status for a in asker.ask(question(n) for n in range(12))].count("answered"))
                assert asker.usage.calls <= 5
                assert bool(asker.stopped) == (outcomes[-1] < 12)
        assert outcomes == [4, 9, 12] and server.n_asks == 13


def test_max_usd_is_never_passed(tmp_path):
    """By hand: the server reports 1000 tokens in and 20 out; at 1 and 5 USD per million a call costs 0.0011 USD."""
    prices = {"usd_per_million": [1.0, 5.0], "max_tokens": 20, "max_usd": 0.01}
    with LmmServer(lambda ask: GOOD) as server:
        e = endpoint(server, **prices)
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            answers = list(asker.ask(question(n) for n in range(30)))
            assert asker.stopped.startswith("max_usd = 0.01 would be passed")
            assert 8 <= asker.usage.calls <= 9 and asker.usage.usd == pytest.approx(0.0011 * asker.usage.calls)
            assert [a.status for a in answers].count("unasked") == 30 - asker.usage.calls


def test_reported_cost_counts_before_prices(tmp_path):
    reply = completion(GOOD, usage={"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.25})
    with LmmServer(lambda ask: reply) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        list(asker.ask([question()]))
        assert asker.usage.usd == 0.25

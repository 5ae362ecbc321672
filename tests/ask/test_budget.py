"""Requests and tokens per minute, max_calls and max_usd."""

from __future__ import annotations

import itertools
import time

import pytest

from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import USUAL_USD, Endpoint, connect
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
    assert seconds >= 0.8 and used < 0.5 * seconds  # gaps between arrivals would also tell of a busy machine


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


UNBELIEVABLE = [
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0},
    {"prompt_tokens": 1, "completion_tokens": 1},
    {"prompt_tokens": -5, "completion_tokens": "many", "cost": -1},
    {"prompt_tokens": 10**9, "completion_tokens": 0, "cost": 1e-9},
    None,
    {},
]


@pytest.mark.parametrize("usage", UNBELIEVABLE, ids=str)
def test_usage_that_cannot_be_is_replaced_by_our_own_count_and_max_usd_holds(usage, tmp_path):
    """On a server of one's own, reached by http on this machine. By hand: 10 calls in 0.0105 USD, 20 tokens at 50 USD per million."""
    reply = completion(GOOD, usage=usage)
    prices = {"usd_per_million": [0.0, 50.0], "max_tokens": 20, "max_usd": 0.0105}
    with LmmServer(lambda ask: reply) as server:
        e = connect(endpoint(server, **prices))
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            answers = list(asker.ask(question(n) for n in range(120)))
            assert asker.stopped.startswith("max_usd = 0.0105 would be passed") and server.n_asks == 10
            assert asker.usage.usd == pytest.approx(0.01)
            assert answers[0].usage["tokens_out"] == 20 and answers[0].usage["tokens_in"] == question(0).tokens


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "gpu-box:8000"])
def test_what_is_given_holds_for_a_server_of_ones_own(host):
    local = {"base_url": f"http://{host}/v1", "model": "llava"}
    given = connect(Endpoint(**local, max_usd=0.01, usd_per_million=[1.0, 2.0]))
    assert given.max_usd == 0.01 and given.usd(1e6, 1e6) == 3
    with pytest.raises(ValueError, match="needs prices"):
        Endpoint(**local, max_usd=0.01)
    free = connect(Endpoint(**local, max_usd=USUAL_USD))  # the notebook's own limit, and no prices
    assert not free.priced


def test_known_prices_are_for_the_known_model_alone():
    assert Endpoint(max_usd=USUAL_USD).usd(1e6, 1e6) == 1.5
    assert Endpoint(usd_per_million=[1.0, 1.0]).usd(1e6, 1e6) == 2, "what is given counts"
    for other in ({"model": "gpt-4o"}, {"base_url": "https://example.org/v1"}):
        with pytest.raises(ValueError, match="needs prices"):
            Endpoint(**other, max_usd=USUAL_USD)


def test_believable_usage_is_believed(tmp_path):
    """Discounts, dear pictures and thoughts are all real."""
    usage = {"prompt_tokens": 20 * question(0).tokens, "completion_tokens": 900, "cost": 0.004}
    with LmmServer(lambda ask: completion(GOOD, usage=usage)) as server:
        e = endpoint(server, usd_per_million=[1.0, 10.0])
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            (answer,) = asker.ask([question()])
            assert (asker.usage.usd, answer.usage["tokens_out"]) == (0.004, 900)
            assert answer.usage["tokens_in"] == 20 * question(0).tokens

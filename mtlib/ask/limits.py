"""The bounds that all questions of an Asker share: requests and tokens per minute, calls, money, and what was used of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

from mtlib.ask.endpoint import Endpoint, Question
from mtlib.ask.replies import Reply

MOST_CHARS_PER_TOKEN = 10  # no text has fewer tokens than one for so many characters: fewer are not believed
MOST_TIMES = 100  # nor more tokens in than so many times the estimate: pictures cost some models 30 times it


@dataclass
class Usage:
    """Totals of one Asker: requests sent (retries included), questions by outcome, tokens and US dollars."""

    calls: int = 0
    retries: int = 0
    replayed: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    unasked: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0


class Limits:
    """Paces requests, first come, first served, and holds them to the budget; waiting costs no processor time.

    A request starts when those before it have used up their share of time: 60 / requests_per_minute seconds each, and
    60 / tokens_per_minute for each token, estimated at first and corrected when its usage is known. Nothing is saved up
    while idle, so no minute ever sees more than its limit and one request.

    A call is reserved at its highest price before it starts, and settled at its real one afterwards. That price is an
    estimate, raised by the largest factor by which a server has exceeded one so far; so max_usd can be passed only by
    what the very first requests in flight cost beyond their estimates.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.usage, self.stopped = endpoint, Usage(), ""  # or why no further request may start
        self._per_request = 60 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
        self._per_token = 60 / endpoint.tokens_per_minute if endpoint.tokens_per_minute else 0.0
        self._next_request = self._next_token = self._held = 0.0  # times on time.monotonic()
        self._line, self._ended = asyncio.Lock(), asyncio.Event()  # the lock is first in, first out
        self._reserved, self._factor = 0.0, 1.0

    def stop(self, reason: str) -> None:
        """Start no further request and wake everyone who waits; the first reason stands."""
        self.stopped = self.stopped or reason
        self._ended.set()

    async def turn(self, tokens: int) -> None:
        """Return when a request of so many tokens may start, or at once after `stop`."""
        async with self._line:
            while (wait := max(self._next_request, self._next_token, self._held) - time.monotonic()) > 0:
                await self.nap(wait)
                if self.stopped:
                    return
            now = time.monotonic()
            self._next_request = now + self._per_request
            self._next_token = max(now, self._next_token) + tokens * self._per_token

    async def nap(self, seconds: float) -> None:
        """Sleep, but not beyond `stop`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def hold(self, seconds: float) -> None:
        """Start nothing for so long: the server asked for it."""
        self._held = max(self._held, time.monotonic() + seconds)

    def reserve(self, tokens_in: int, max_tokens: int) -> float | None:
        """US dollars reserved for one call, which counts from now on; None, after a `stop`, when there must be none."""
        e, used, most = self.endpoint, self.usage, self._factor * self.endpoint.usd(tokens_in, max_tokens)
        if e.max_calls and used.calls >= e.max_calls:
            return self.stop(f"max_calls = {e.max_calls} reached")
        if e.max_usd and used.usd + self._reserved + most > e.max_usd:
            return self.stop(f"max_usd = {e.max_usd:g} would be passed ({used.usd + self._reserved:.4f} spent)")
        used.calls += 1
        self._reserved += most
        return most

    def settle(self, reserved: float, estimate: tuple[int, int], reply: Reply | None, charged: bool) -> None:
        """What a call of so many estimated tokens in and out really took, as its reply (`counted`) reports; without one, that estimate
        where it may be charged."""
        e, used = self.endpoint, self.usage
        spent = (reply.tokens_in, reply.tokens_out) if reply else estimate if charged else (0, 0)
        usd = e.usd(*spent) if reply is None or reply.usd is None else reply.usd
        self._reserved -= reserved
        if (expected := e.usd(*estimate)) > 0:
            self._factor = max(self._factor, usd / expected)
        self._next_token += (sum(spent) - sum(estimate)) * self._per_token
        used.tokens_in, used.tokens_out = used.tokens_in + spent[0], used.tokens_out + spent[1]
        used.usd += usd


def counted(reply: Reply, question: Question, max_tokens: int, endpoint: Endpoint) -> Reply:
    """The reply with our own count in place of a usage that cannot be: none, or too little for the words that went and came.

    Our count is the estimate of the request, and all of max_tokens for the answer, since a model may have thought unseen. A
    cost of nothing is not believed where prices are known.
    """
    into, out, words = reply.tokens_in or 0, reply.tokens_out or 0, len(question.text) + len(question.system)
    into = into if words / MOST_CHARS_PER_TOKEN <= into <= MOST_TIMES * question.tokens and into else question.tokens
    out = out if len(reply.text) / MOST_CHARS_PER_TOKEN <= out and out else max_tokens
    least = endpoint.usd(into, out) / MOST_TIMES
    usd = reply.usd if reply.usd is not None and reply.usd >= least else None
    return replace(reply, tokens_in=into, tokens_out=out, usd=usd)

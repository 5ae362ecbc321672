"""How fast and how far to ask: requests and tokens per minute, a number of calls and a sum of money."""

from __future__ import annotations

import asyncio
import contextlib
import time

from mtlib.ask.endpoint import Endpoint


class Pace:
    """Evenly spaced requests: first come, first served; waiting costs no processor time.

    A request starts when those before it have used up their share of time: 60 / requests_per_minute seconds each, and
    60 / tokens_per_minute for each token, estimated at first and corrected when its usage is known. Nothing is saved up
    while idle, so no minute ever sees more than its limit and one request.
    """

    def __init__(self, endpoint: Endpoint):
        self.per_request = 60 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
        self.per_token = 60 / endpoint.tokens_per_minute if endpoint.tokens_per_minute else 0.0
        self.next_request = self.next_token = self.held = 0.0  # times on time.monotonic()
        self.line = asyncio.Lock()  # first in, first out
        self.ended = asyncio.Event()

    async def turn(self, tokens: int) -> None:
        """Return when a request of so many tokens may start, or at once after `end`."""
        async with self.line:
            while (wait := max(self.next_request, self.next_token, self.held) - time.monotonic()) > 0:
                await self.nap(wait)
                if self.ended.is_set():
                    return
            now = time.monotonic()
            self.next_request = now + self.per_request
            self.next_token = max(now, self.next_token) + tokens * self.per_token

    def correct(self, estimated: int, used: int) -> None:
        """Give back, or charge, the difference between the estimate and the tokens really used."""
        self.next_token += (used - estimated) * self.per_token

    def hold(self, seconds: float) -> None:
        """Start nothing for so long: the server asked for it."""
        self.held = max(self.held, time.monotonic() + seconds)

    async def nap(self, seconds: float) -> None:
        """Sleep, but not beyond `end`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)

    def end(self) -> None:
        """Wake everyone who waits."""
        self.ended.set()


class Budget:
    """Calls and money. A call is reserved at its highest price before it starts, and settled at its real one afterwards.

    The price of a request is an estimate, raised by the largest factor by which a server has exceeded one so far; so
    max_usd can be passed only by what the very first requests in flight cost beyond their estimates.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.calls, self.spent, self.reserved, self.factor = 0, 0.0, 0.0, 1.0

    def take(self, tokens_in: int) -> tuple[float, str]:
        """(US dollars reserved for one call, ""), or (0, why there must be none)."""
        e, most = self.endpoint, self.factor * self.endpoint.usd(tokens_in, self.endpoint.max_tokens)
        if e.max_calls and self.calls >= e.max_calls:
            return 0.0, f"max_calls = {e.max_calls} reached"
        if e.max_usd and self.spent + self.reserved + most > e.max_usd:
            return 0.0, f"max_usd = {e.max_usd:g} would be passed ({self.spent + self.reserved:.4f} spent)"
        self.calls += 1
        self.reserved += most
        return most, ""

    def settle(self, reserved: float, tokens_in: int, usd: float) -> None:
        """The call that had so much reserved, for a request of so many estimated tokens, cost so much."""
        self.reserved -= reserved
        self.spent += usd
        if self.endpoint.priced:
            self.factor = max(self.factor, usd / self.endpoint.usd(tokens_in, self.endpoint.max_tokens))

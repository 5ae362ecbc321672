"""One question until it has an answer: bounded retries under one deadline, paced, paid for, and checked by the parser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable

from mtlib.ask.client import Client
from mtlib.ask.endpoint import Answer, Endpoint, Malformed, Question, Refused, Usage
from mtlib.ask.replies import Reply, Trouble, one_line

Parse = Callable[[Question, str], dict]


def checked(parse: Parse, question: Question, text: str) -> tuple[str, dict | None, str]:
    """(status, value, reason) of a model's words: answered, refused, or failed when they are no answer."""
    try:
        value = parse(question, text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # what cannot be kept is no answer
    except Refused as e:
        return "refused", None, one_line(str(e))
    except Malformed as e:
        return "failed", None, f"malformed: {one_line(str(e))}"
    except Exception as e:  # a parser that breaks on hostile words must not end a run, nor pass for an answer
        return "failed", None, f"malformed: {type(e).__name__} while parsing"
    return ("answered", value, "") if isinstance(value, dict) else ("failed", None, "malformed: not parsed to a dict")


class Attempts:
    """What all questions of an Asker share while they are asked: client, pace, budget, totals, and whether to go on.

    Attributes: stopped ("" or why no further request may start).
    """

    def __init__(self, endpoint: Endpoint, parse: Parse, usage: Usage):
        self.endpoint, self.parse, self.usage, self.stopped = endpoint, parse, usage, ""
        self.client, self.pace, self.budget = Client(endpoint), Pace(endpoint), Budget(endpoint)
        self._in_a_row = 0  # failed questions

    def stop(self, reason: str) -> None:
        """Start no further request; the first reason stands."""
        self.stopped = self.stopped or reason
        self.pace.end()

    async def turn(self, question: Question) -> None:
        """Wait until the rate limits let this question through, or all has stopped."""
        await self.pace.turn(question.tokens + self.endpoint.max_tokens)

    async def ask(self, question: Question, messages: list[dict], log: Callable[[str], None]) -> Answer:
        """Requests until there is an answer, or no more reason, time or budget for another one.

        Args:
            log: called with the reason of every attempt that failed.
        """
        seen: list[str] = []

        def note(reason: str) -> None:
            seen.append(reason)
            log(reason)

        try:
            answer = await asyncio.wait_for(self._attempts(question, messages, note), self.endpoint.timeout_s)
        except asyncio.TimeoutError:
            before = f"; before: {seen[-1]}" if seen else ""
            note(f"no answer within {self.endpoint.timeout_s:g} s{before}")
            answer = Answer(question.id, "failed", reason=seen[-1])
        self._count(answer)
        return answer

    def _count(self, answer: Answer) -> None:
        """Stop when there is nothing but failures."""
        if answer.status != "unasked":
            self._in_a_row = self._in_a_row + 1 if answer.status == "failed" else 0
        if 0 < self.endpoint.give_up_after <= self._in_a_row:
            self.stop(f"failures: {self._in_a_row} questions in a row failed, the last: {answer.reason}")

    async def _attempts(self, question: Question, messages: list[dict], note: Callable[[str], None]) -> Answer:
        e, now = self.endpoint, asyncio.get_running_loop().time
        ends, tries, reason = now() + e.timeout_s, 0, ""
        while True:
            reserved, limit = self.budget.take(question.tokens)
            if limit:
                self.stop(limit)
                return Answer(question.id, "failed" if reason else "unasked", reason=reason or limit)
            try:
                return await self._attempt(question, messages, reserved)
            except Trouble as trouble:
                kind, reason = trouble.kind, one_line(self.client.clean(trouble.reason))
                if kind == "refused":
                    return self._answer(question, trouble.reply, "refused", None, reason)
                note(reason)
                if kind in ("key", "credit"):
                    self.stop(f"{kind}: {reason}")
                if kind == "plain":  # not the question's fault: sent again in its turn, and only once
                    await self.turn(question)
                    continue
                wait = self._wait(trouble, tries)
            if kind != "again" or tries == e.max_retries or self.stopped:
                return Answer(question.id, "failed", reason=reason)
            if now() + wait >= ends:
                return Answer(question.id, "failed", reason=f"{reason}; no time left to wait {wait:.1f} s")
            tries, self.usage.retries = tries + 1, self.usage.retries + 1
            await self.pace.nap(wait)
            await self.turn(question)
            if self.stopped:
                return Answer(question.id, "failed", reason=reason)

    def _wait(self, trouble: Trouble, tries: int) -> float:
        """Seconds before the next try: what the server asked for, which then holds for everyone, or ever longer."""
        cap = self.endpoint.retry_after_cap_s
        if trouble.wait is None:
            return min(self.endpoint.backoff_s * 2**tries, cap)
        self.pace.hold(min(trouble.wait, cap))
        return min(trouble.wait, cap)

    async def _attempt(self, question: Question, messages: list[dict], reserved: float) -> Answer:
        """One request, its reply judged, its cost settled. Raises: Trouble."""
        estimate = (question.tokens, self.endpoint.max_tokens)
        self.usage.calls += 1
        spent, usd = estimate, self.endpoint.usd(*estimate)  # stands for a request that broke off: it may be charged
        try:
            reply = await self.client.send(question, messages)
            spent, usd = self._cost(reply, estimate)
        except Trouble as trouble:
            if trouble.reply is not None:
                spent, usd = self._cost(trouble.reply, estimate)
            elif not trouble.charged:
                spent, usd = (0, 0), 0.0
            raise
        finally:
            self.budget.settle(reserved, question.tokens, usd)
            self.pace.correct(sum(estimate), sum(spent))
            self.usage.tokens_in += spent[0]
            self.usage.tokens_out += spent[1]
            self.usage.usd += usd
        status, value, reason = checked(self.parse, question, reply.text)
        if self.client.leaks(reply.text, value):
            raise Trouble("fail", "the answer repeats the key")
        if status == "failed":
            raise Trouble("again", reason)
        return self._answer(question, reply, status, value, reason)

    def _cost(self, reply: Reply, estimate: tuple[int, int]) -> tuple[tuple[int, int], float]:
        """((tokens in, out), US dollars) of a reply: as reported, estimated where nothing is."""
        tokens_in = estimate[0] if reply.tokens_in is None else reply.tokens_in
        tokens_out = estimate[1] if reply.tokens_out is None else reply.tokens_out
        usd = self.endpoint.usd(tokens_in, tokens_out) if reply.usd is None else reply.usd
        return (tokens_in, tokens_out), usd

    def _answer(self, question: Question, reply: Reply, status: str, value: dict | None, reason: str) -> Answer:
        clean = self.client.clean
        usage = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        usage |= {"request_id": clean(reply.request_id), "finish_reason": clean(reply.finish_reason)}
        return Answer(question.id, status, value, clean(reply.text), clean(reason), clean(reply.model), usage)


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

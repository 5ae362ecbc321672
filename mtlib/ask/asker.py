"""Asking a multimodal model, over any OpenAI-compatible endpoint: nothing lost, nothing invented, nothing overspent.

    with Asker(endpoint, ledger.place(run_dir), parse) as asker:
        print(asker.plan(questions))
        for answer in asker.ask(questions):
            ...

A reply counts only when `replies.read` and the caller's `parse` both accept it, and only after it is in the ledger. Other
replies are tried again within max_retries and one deadline, then the question has failed; failures are noted, never
replayed, and asked again by the next run. A key or a credit that the server refuses, a limit of the budget, or nothing
but failures, stop everything: requests in flight end, no other one starts. Why it stopped is in `Asker.stopped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mtlib.ask.client import Client
from mtlib.ask.endpoint import Answer, Endpoint, Malformed, Question, Refused
from mtlib.ask.ledger import RECORDED, Ledger
from mtlib.ask.ledger import key as ledger_key
from mtlib.ask.limits import Limits, counted
from mtlib.ask.manner import Put
from mtlib.ask.replies import Trouble, one_line

Parse = Callable[[Question, str], dict]
Then = Callable[[Question, Answer], Question | None]


class Asker(contextlib.AbstractContextManager):
    """Asks questions with bounded concurrency, rates, time and money, and keeps every answer in a ledger.

    Works inside Jupyter: its event loop runs in a thread of its own. The ledger is locked only while answers are being
    asked for. Use as a context manager, or call `close`, to end the connections.

    Args:
        ledger_path: file of answers, see `ledger.place`; answers found there are replayed without a request.
        parse:       (question, text) -> value; raises Refused or Malformed.
    """

    def __init__(self, endpoint: Endpoint, ledger_path: Path, parse: Parse):
        self.endpoint, self.parse = endpoint, parse
        self.ledger, self.client, self.limits = Ledger(ledger_path), Client(endpoint), Limits(endpoint)
        self.usage = self.limits.usage
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._ready = asyncio.Semaphore(2 * endpoint.concurrency)  # questions whose pictures are in memory
        self._same: dict[str, asyncio.Event] = {}  # keys of questions that are being asked
        self._failures = 0  # in a row
        self._open = 0  # iterators of `ask` that are not at their end
        self._disk = ThreadPoolExecutor(1, "ledger")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def stopped(self) -> str:
        """ "" or why asking ended early: "max_calls ...", "max_usd ...", "key: ...", "credit: ...", "failures: ..."."""
        return self.limits.stopped

    @property
    def told(self) -> list[str]:
        """What is unusual about the server and was adapted to, one sentence each."""
        return self.client.manner.told

    def plan(self, questions: Iterable[Question]) -> dict:
        """What asking these would take, at most and without retries; touches neither the network nor the pictures' bytes.

        Returns: calls, replayed, tokens_in, tokens_out, usd (NaN where prices are unknown).
        """
        new, seen = [], set()
        for question in questions:
            key = ledger_key(self.endpoint, question)
            if key not in seen and self._recorded(question, key) is None:
                new.append(question.tokens)
            seen.add(key)
        tokens = {"tokens_in": sum(new), "tokens_out": len(new) * self.endpoint.max_tokens}
        usd = self.endpoint.usd(**tokens) if self.endpoint.priced else float("nan")
        return {"calls": len(new), "replayed": len(seen) - len(new)} | tokens | {"usd": usd}

    def ask(self, questions: Iterable[Question], then: Then | None = None) -> Iterator[Answer]:
        """Answers in the order of the questions, which are pulled lazily.

        Args:
            then: called with a question and its answer, may return a follow-up: its answer is yielded right behind, and
                `then` is called for it, too. It must be quick.
        Yields: one Answer per question; "unasked" after a stop (see `stopped`).
        Raises: ledger.LedgerError when another process writes the ledger; OSError when it cannot be written.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="asker", daemon=True)
            self._thread.start()
        source, window, waiting = iter(questions), max(16, 4 * self.endpoint.concurrency), deque()
        self._open += 1
        try:
            while True:
                while len(waiting) < window and (question := next(source, None)) is not None:
                    waiting.append(asyncio.run_coroutine_threadsafe(self._chain(question, then), self._loop))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            self._open -= 1
            if not self._open and not sys.is_finalizing():  # a program that ends must not wait for a thread
                asyncio.run_coroutine_threadsafe(self._quiet(), self._loop).result()

    def close(self) -> None:
        """End the event loop; requests in flight are dropped."""
        if self._loop is not None:
            for last in (self._quiet(), self.client.close()):
                asyncio.run_coroutine_threadsafe(last, self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None
        self._disk.shutdown()

    def __exit__(self, *_) -> None:
        self.close()

    def _recorded(self, question: Question, key: str) -> Answer | None:
        """The recorded words, parsed again: a better parser needs no new calls. None: the question is to be asked."""
        if (record := self.ledger.records.get(key)) is None:
            return None
        status, value, reason = record["status"], None, record["reason"]
        if status == "answered":
            status, value, reason = self._checked(question, record["text"])
            if status not in RECORDED:
                return None
        return Answer(question.id, status, value, record["text"], reason, record["model"], record["usage"], True, key)

    def _checked(self, question: Question, text: str) -> tuple[str, dict | None, str]:
        """(status, value, reason) of a model's words: answered, refused, or failed when they are no answer."""
        try:
            value = self.parse(question, text)
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # what cannot be kept is no answer
        except Refused as e:
            return "refused", None, one_line(str(e))
        except Malformed as e:
            return "failed", None, f"malformed: {one_line(str(e))}"
        except Exception as e:  # a parser that breaks on hostile words must not end a run, nor pass for an answer
            return "failed", None, f"malformed: {type(e).__name__} while parsing"
        if not isinstance(value, dict):
            return "failed", None, "malformed: not parsed to a dict"
        return "answered", value, ""

    # --- below: in the thread of the event loop ----------------------------------------------------------------------

    async def _quiet(self) -> None:
        """Drop what is still asked, and release the ledger once everything answered is in it."""
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._disk, self.ledger.close)

    async def _chain(self, question: Question | None, then: Then | None) -> list[Answer]:
        """The answer of a question, and those of its follow-ups."""
        answers = []
        while question is not None:
            answer = await self._answer(question)
            setattr(self.usage, answer.status, getattr(self.usage, answer.status) + 1)
            self.usage.replayed += answer.replayed
            answers.append(answer)
            question = then(question, answer) if then else None
        return answers

    async def _answer(self, question: Question) -> Answer:
        """Replay or ask; equal questions at the same time make one request."""
        key = ledger_key(self.endpoint, question)
        while key in self._same:
            await self._same[key].wait()
        if (answer := self._recorded(question, key)) is not None:
            return answer
        self._same[key] = asyncio.Event()
        try:
            async with self._ready:
                return replace(await self._ask(question, key), key=key)
        finally:
            self._same.pop(key).set()

    async def _ask(self, question: Question, key: str) -> Answer:
        """Prepare, wait for a place, ask, record. The place is held until the answer is on disk."""
        if not self.stopped:
            self.ledger.open()
            if (answer := self._recorded(question, key)) is not None:  # another process added it before us
                return answer
            put = Put(self.client.manner, question)
            try:
                await self.client.build(put)
            except Trouble as trouble:
                self.ledger.log(key, question.id, trouble.reason)
                return Answer(question.id, "failed", reason=trouble.reason)
        async with self._slots:
            if not self.stopped:
                await self.limits.turn(put.asked.tokens + put.max_tokens)
            if self.stopped:
                return Answer(question.id, "unasked", reason=self.stopped)
            answer = await self._in_time(put, functools.partial(self.ledger.log, key, question.id))
            if answer.status in RECORDED:
                record = {"key": key, "question": question.id, "prompt_version": question.prompt_version}
                record |= {"endpoint": self.endpoint.base_url, "asked": self.endpoint.model}
                record |= {name: getattr(answer, name) for name in ("model", "status", "text", "reason", "usage")}
                await asyncio.get_running_loop().run_in_executor(self._disk, self.ledger.add, record)
            return answer

    async def _in_time(self, put: Put, log: Callable[[str], None]) -> Answer:
        """The answer within the deadline; stops all when there is nothing but failures. `log` is told of each of them."""
        e, reasons = self.endpoint, []
        try:
            answer = await asyncio.wait_for(self._attempts(put, log, reasons), e.timeout_s)
        except asyncio.TimeoutError:
            reason = f"no answer within {e.timeout_s:g} s" + (f"; before: {reasons[-1]}" if reasons else "")
            log(reason)
            answer = Answer(put.question.id, "failed", reason=reason)
        if answer.status != "unasked":
            self._failures = self._failures + 1 if answer.status == "failed" else 0
        if 0 < e.give_up_after <= self._failures:
            self.limits.stop(f"failures: {self._failures} questions in a row failed, the last: {answer.reason}")
        return answer

    async def _attempts(self, put: Put, log: Callable[[str], None], reasons: list[str]) -> Answer:
        """Requests until there is an answer, or no more reason, time or budget for another one."""
        e, limits, question, tries = self.endpoint, self.limits, put.question, 0
        ends = time.monotonic() + e.timeout_s
        while (reserved := limits.reserve(put.asked.tokens, put.max_tokens)) is not None:
            try:
                return await self._attempt(put, reserved)
            except Trouble as trouble:
                kind, asked_for, reason = trouble.kind, trouble.wait, one_line(self.client.clean(trouble.reason))
                changed = put.after(trouble, last=tries == e.max_retries)
            reasons.append(reason)
            log(f"{reason}; asked again, as if {changed}" if changed else reason)
            wait = min(e.backoff_s * 2**tries if asked_for is None else asked_for, e.retry_after_cap_s)
            if asked_for is not None:  # it holds for everyone
                limits.hold(wait)
            if kind in ("key", "credit"):
                limits.stop(f"{kind}: {reason}")
            if changed:  # sent again in its turn
                wait = wait if asked_for else 0.0
            elif kind != "again" or tries == e.max_retries:
                break
            else:
                tries, self.usage.retries = tries + 1, self.usage.retries + 1
            if time.monotonic() + wait >= ends:
                return Answer(question.id, "failed", reason=f"{reason}; no time left to wait {wait:.1f} s")
            await limits.nap(wait)
            await limits.turn(put.asked.tokens + put.max_tokens)
            if self.stopped:
                break
        if not reasons:
            return Answer(question.id, "unasked", reason=self.stopped)
        return Answer(question.id, "failed", reason=reasons[-1])

    async def _attempt(self, put: Put, reserved: float) -> Answer:
        """One request, its cost settled, its reply judged. Raises: Trouble."""
        reply, charged = None, True  # a request that broke off may be charged
        asked, estimate, question, adapted = put.asked, (put.asked.tokens, put.max_tokens), put.question, put.changes
        try:
            await self.client.build(put)
            reply = await self.client.send(put)
        except Trouble as trouble:
            reply, charged = trouble.reply, trouble.charged
            raise
        finally:
            reply = reply and counted(reply, asked, estimate[1], self.endpoint)
            self.limits.settle(reserved, estimate, reply, charged)
        status, value, reason = self._checked(question, reply.text)
        if reply.refusal:
            status, value, reason = "refused", None, one_line(reply.refusal)
        if self.client.leaks(json.dumps(value)):  # the parser may have put it together
            raise Trouble("fail", "the answer repeats the key")
        if status == "failed":
            raise Trouble("again", reason)
        usage = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        usage |= {"request_id": reply.request_id, "finish_reason": reply.finish_reason}
        usage |= {"adapted": sorted(adapted)} if adapted else {}
        return Answer(question.id, status, value, reply.text, self.client.clean(reason), reply.model, usage)

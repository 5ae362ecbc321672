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
import functools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mtlib.ask.attempts import Attempts, Parse, checked
from mtlib.ask.endpoint import Answer, Endpoint, Plan, Question, Usage
from mtlib.ask.ledger import RECORDED, Ledger
from mtlib.ask.ledger import key as ledger_key

Then = Callable[[Question, Answer], Question | None]


class Asker:
    """Asks questions with bounded concurrency, rates, time and money, and keeps every answer in a ledger.

    Args:
        endpoint:    whom to ask, and the bounds.
        ledger_path: file of answers, see `ledger.place`; answers found there are replayed without a request.
        parse:       (question, text) -> value; raises Refused or Malformed.

    Works inside Jupyter: its event loop runs in a thread of its own. The ledger is locked only while answers are being
    asked for. Use as a context manager, or call `close`, to end the connections.

    Attributes: usage (Usage totals); ledger.
    """

    def __init__(self, endpoint: Endpoint, ledger_path: Path, parse: Parse):
        self.endpoint, self.parse = endpoint, parse
        self.ledger, self.usage = Ledger(ledger_path), Usage()
        self._attempts = Attempts(endpoint, parse, self.usage)
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._ready = asyncio.Semaphore(2 * endpoint.concurrency)  # questions whose pictures are in memory
        self._same: dict[str, asyncio.Event] = {}  # keys of questions that are being asked
        self._open = 0  # iterators of `ask` that are not at their end
        self._disk = ThreadPoolExecutor(1, "ledger")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def stopped(self) -> str:
        """ "" or why asking ended early: "max_calls ...", "max_usd ...", "key: ...", "credit: ...", "failures: ..."."""
        return self._attempts.stopped

    def plan(self, questions: Iterable[Question]) -> Plan:
        """What asking these would take; touches neither the network nor the pictures' bytes."""
        seen, calls, tokens = set(), 0, 0
        for question in questions:
            key = ledger_key(self.endpoint, question)
            if key not in seen and self._recorded(question, key) is None:
                calls, tokens = calls + 1, tokens + question.tokens
            seen.add(key)
        out = calls * self.endpoint.max_tokens
        usd = self.endpoint.usd(tokens, out) if self.endpoint.priced else None
        return Plan(calls, len(seen) - calls, tokens, out, usd)

    def ask(self, questions: Iterable[Question], then: Then | None = None) -> Iterator[Answer]:
        """Answers in the order of the questions, which are pulled lazily.

        Args:
            then: called with a question and its answer, may return a follow-up: its answer is yielded right behind, and
                `then` is called for it, too. It must be quick.
        Yields: one Answer per question; "unasked" after a stop (see `stopped`).
        Raises: ledger.LedgerError when another process writes the ledger; OSError when it cannot be written.
        """
        loop, source, window = self._start(), iter(questions), max(16, 4 * self.endpoint.concurrency)
        waiting: deque = deque()
        self._open += 1
        try:
            while True:
                while len(waiting) < window and (question := next(source, None)) is not None:
                    waiting.append(asyncio.run_coroutine_threadsafe(self._chain(question, then), loop))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            self._open -= 1
            if not self._open and not sys.is_finalizing():  # a program that ends must not wait for a thread
                asyncio.run_coroutine_threadsafe(self._quiet(), loop).result()

    def export(self, path: Path, answers: Iterable[Answer]) -> int:
        """Write the ledger's records of these answers, in their order: the replayable copy that a stage keeps."""
        return self.ledger.export(path, (a.key for a in answers))

    def close(self) -> None:
        """End the event loop; requests in flight are dropped."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None
        self._disk.shutdown()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="asker", daemon=True)
            self._thread.start()
        return self._loop

    # --- below: in the thread of the event loop ----------------------------------------------------------------------

    async def _quiet(self) -> None:
        """Drop what is still asked, and release the ledger once everything answered is in it."""
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._disk, self.ledger.close)

    async def _end(self) -> None:
        await self._quiet()
        await self._attempts.client.close()

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
            return replace(await self._ask(question, key), key=key)
        finally:
            self._same.pop(key).set()

    def _recorded(self, question: Question, key: str) -> Answer | None:
        """The recorded words, parsed again: a better parser needs no new calls. None where there are none, or none that
        can be read now: then the question is asked again.
        """
        record = self.ledger.records.get(key)
        if record is None:
            return None
        status, value, reason = record["status"], None, record["reason"]
        if status == "answered":
            status, value, reason = checked(self.parse, question, record["text"])
            if status not in RECORDED:
                return None
        return Answer(question.id, status, value, record["text"], reason, record["model"], record["usage"], True, key)

    async def _ask(self, question: Question, key: str) -> Answer:
        """Prepare, wait for a place, ask, record. The place is held until the answer is on disk."""
        attempts = self._attempts
        async with self._ready:
            if not attempts.stopped:
                self.ledger.open()
                if (answer := self._recorded(question, key)) is not None:  # another process added it before us
                    return answer
                try:
                    build, quick = attempts.client.messages, attempts.client.at_hand(question)
                    messages = build(question) if quick else await asyncio.to_thread(build, question)
                except Exception as e:  # whatever a picture's callable raises
                    reason = f"a picture cannot be read, not asked: {type(e).__name__}: {e}"
                    self.ledger.log(key, question.id, reason)
                    return Answer(question.id, "failed", reason=reason)
            async with self._slots:
                if not attempts.stopped:
                    await attempts.turn(question)
                if attempts.stopped:
                    return Answer(question.id, "unasked", reason=attempts.stopped)
                log = functools.partial(self.ledger.log, key, question.id)
                answer = await attempts.ask(question, messages, log)
                if answer.status in RECORDED:
                    record = self._record(question, key, answer)
                    await asyncio.get_running_loop().run_in_executor(self._disk, self.ledger.add, record)
                return answer

    def _record(self, question: Question, key: str, answer: Answer) -> dict:
        asked = {"key": key, "question": question.id, "prompt_version": question.prompt_version}
        asked |= {"endpoint": self.endpoint.base_url, "asked": self.endpoint.model, "model": answer.model}
        return asked | {"status": answer.status, "text": answer.text, "reason": answer.reason, "usage": answer.usage}

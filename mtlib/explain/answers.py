"""Asking a multimodal model, over any OpenAI-compatible endpoint: nothing lost, nothing invented, nothing overspent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mtlib.explain.endpoint import Answer, Endpoint, Malformed, Picture, Plan, Question, Refused, Usage

__all__ = ["Answer", "Asker", "Endpoint", "Malformed", "Picture", "Plan", "Question", "Refused", "Usage"]


class Asker:
    """Asks questions with bounded concurrency, rates, time and money, and keeps every answer in a ledger.

    Args:
        endpoint:    whom to ask, and the bounds.
        ledger_path: file of answers, `runs/<run>/answers/<...>.jsonl`; see `ledger.place`. Answers found there are replayed.
        parse:       (question, text) -> value; raises Refused or Malformed.

    Use as a context manager, or call `close`. Works inside Jupyter: its event loop runs in a thread of its own.
    Attributes: usage (Usage totals); stopped ("" or why asking ended early: "max_calls ...", "max_usd ...",
        "credit ...", "key ...", "failures ...").
    """

    def __init__(self, endpoint: Endpoint, ledger_path: Path, parse: Callable[[Question, str], dict]):
        self.endpoint, self.path, self.parse = endpoint, Path(ledger_path), parse
        self.usage, self.stopped = Usage(), ""

    def plan(self, questions: Iterable[Question]) -> Plan:
        """What asking these would take; touches neither the network nor the pictures' bytes."""
        raise NotImplementedError

    def ask(
        self, questions: Iterable[Question], then: Callable[[Question, Answer], Question | None] | None = None
    ) -> Iterator[Answer]:
        """Answers in the order of the questions, which are pulled lazily.

        Args:
            then: called with a question and its answer, may return a follow-up (its answer is yielded right behind, and
                `then` is called for it, too); must be quick.
        Yields: one Answer per question; "unasked" after a stop (see `stopped`).
        Raises: records.RecordError when another process writes the ledger; OSError when it cannot be written.
        """
        raise NotImplementedError

    def export(self, path: Path, answers: Iterable[Answer]) -> None:
        """Write the ledger's records of these answers, in their order, as `explanations/<method>/answers.jsonl`."""
        raise NotImplementedError

    def close(self) -> None:
        """End the event loop and release the ledger; running requests are cancelled."""

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

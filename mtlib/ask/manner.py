"""How requests are put to one server: what it refuses is left out or changed by trying, remembered for the run, and told.

A refused request says why in a hundred ways. Words that are understood choose the change (CHANGES); a refusal in other words
of a question that this server has never answered is met by leaving out the schema, then the temperature, then both. Each
change is tried once per question, and only one that led to a reply is kept.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from mtlib.ask.endpoint import Endpoint, Question
from mtlib.ask.replies import Reply, Trouble
from mtlib.ask.shown_images import on_one_sheet

MORE_TOKENS = 8  # times max_tokens, for a model that thinks before it answers
MAX_TOLD = 10  # different sentences: a server may use a new name in every reply
CHANGES = {  # name: in which words the server asks for it, and what is told; every one is tried only where it changes something
    "new_limit": (r"max_completion_tokens", "it takes max_completion_tokens in place of max_tokens"),
    "no_temperature": (r"temperature|sampling param", "it takes no temperature but its own"),
    "no_schema": (
        r"response_format|json.?schema|response.?schema|structured|grammar|guided|additionalProperties|schema",
        "it takes no JSON schema; the prompt alone says which fields are wanted",
    ),
    "one_sheet": (
        r"(?=.*(image|picture|photo|multi-?modal|attachment))"
        r"(?=.*(at most|up to|only|single|\bone\b|\b1\b|limit|too many|maximum|more than|exceed))|HTTP 413",
        "it takes one image at most, so the images of a question are shown on one sheet",
    ),
    "more_tokens": (r"(?!)", f"its answers do not end within max_tokens, so they may take {MORE_TOKENS} times as many"),
}
REFUSED = re.compile(r"(?:error in a 200 reply: )?HTTP (0|400|404|413|415|422)\b")  # 0: an error without a number
BROKEN = re.compile(r"(?:error in a 200 reply: )?HTTP 5\d\d\b")
UNCLEAR = re.compile(r"(?:error in a 200 reply: )?HTTP (400|422)\b(?!: \(its text repeats the key)")
GUESSES = ({"no_schema"}, {"no_temperature"}, {"no_schema", "no_temperature"})


class Manner:
    """What is known of a server. Attribute: told, sentences for the reader of a run."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.told = endpoint, []
        self.changes = frozenset() if endpoint.json_schema else frozenset({"no_schema"})
        self.answered: set[str] = set()  # kinds of questions that it has answered

    def tell(self, sentences) -> None:
        self.told += [s for s in dict.fromkeys(sentences) if s not in self.told][: MAX_TOLD - len(self.told)]


class Put:
    """One question as it is put to a server; `after` a refusal differently, until nothing is left to try."""

    def __init__(self, manner: Manner, question: Question):
        self.manner, self.question = manner, question
        self.own: frozenset[str] = frozenset()  # changes beyond those that are known to be wanted
        self._named: frozenset[str] = frozenset()  # those of them that the server's words asked for
        self._tried: set[frozenset[str]] = set()
        self.messages, self.made_of = "", None  # as they are sent, and the question that they were made of
        self._sent: frozenset[str] = frozenset()  # the changes of the last request

    @property
    def changes(self) -> frozenset[str]:
        return self.manner.changes | self.own

    @property
    def asked(self) -> Question:
        """The question, or the same one with its images on one sheet."""
        return self._sheet if "one_sheet" in self.changes and len(self.question.pictures) > 1 else self.question

    @functools.cached_property
    def _sheet(self) -> Question:
        return on_one_sheet(self.question)

    @property
    def max_tokens(self) -> int:
        return self.manner.endpoint.max_tokens * (MORE_TOKENS if "more_tokens" in self.changes else 1)

    def body(self) -> dict:
        """The request without its messages."""
        e = self.manner.endpoint
        self._sent = changes = self.changes
        body = {"model": e.model, "max_completion_tokens" if "new_limit" in changes else "max_tokens": self.max_tokens}
        body |= {} if "no_temperature" in changes else {"temperature": e.temperature}
        if self.question.schema is not None and "no_schema" not in changes:
            form = {"name": "answer", "strict": True, "schema": self.question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def after(self, trouble: Trouble, last: bool) -> str:
        """What is changed for the next request, in words; "" where nothing is left to try.

        Args: last: no further try is left for a server that breaks down.
        """
        if learned := self.manner.changes - self._sent:  # by another question meanwhile
            return "; ".join(_told(learned))
        for named, changes in self._candidates(trouble, last):
            if changes - self.manner.changes and changes | self.manner.changes not in self._tried:
                self._tried.add(changes | self.manner.changes)
                self._named |= named
                self.own = changes
                return "; ".join(_told(changes - self.manner.changes))
        return ""

    def _candidates(self, trouble: Trouble, last: bool) -> Iterator[tuple[frozenset, frozenset]]:
        """(of them named by the server, changes beyond the known ones), the likeliest first."""
        can = self._changeable(self.changes)
        if trouble.kind == "cut" and "more_tokens" in can:
            yield frozenset({"more_tokens"}), self.own | {"more_tokens"}
        refused, broken = REFUSED.match(trouble.reason), BROKEN.match(trouble.reason)
        for name, (words, _) in CHANGES.items() if refused or broken else ():
            meant = re.search(words, trouble.reason, re.IGNORECASE | re.DOTALL)
            if name in can and meant and (refused or name != "one_sheet"):  # "image ... limit": it may be of the rate
                yield frozenset({name}), self.own | {name}
        if self.question.kind in self.manner.answered:
            return
        can = self._changeable(self.manner.changes | self._named)
        gave_up = last and trouble.reason.startswith("HTTP 500")
        for guess in GUESSES if UNCLEAR.match(trouble.reason) else GUESSES[:1] if gave_up else ():
            if guess <= can:
                yield frozenset(), self._named | guess

    def _changeable(self, changes: frozenset[str]) -> set[str]:
        """What may be changed in a request that has these changes."""
        asked, can = self.question, set(CHANGES) - changes
        if asked.schema is None or self.manner.endpoint.json_schema != "auto":
            can -= {"no_schema"}
        return can if len(asked.pictures) > 1 else can - {"one_sheet"}

    def worked(self, reply: Reply) -> None:
        """A reply came: what it took is remembered and told."""
        self.manner.answered.add(self.question.kind)
        self.manner.changes |= self.own
        self.manner.tell([*_told(self.own), *reply.notes])
        self.own = frozenset()


def _told(changes: frozenset[str]) -> list[str]:
    return [told for name, (_, told) in CHANGES.items() if name in changes]

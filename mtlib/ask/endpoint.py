"""What is asked of which model, and what comes back: the plain data of the multimodal judge.

The key is in none of these: it is read from the environment when the first request is made, and lives in the client only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

STATUSES = ("answered", "refused", "failed", "unasked")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
VENDORS = {"OPENROUTER_API_KEY": "openrouter.ai"}  # variables whose key is for one host alone
PIXELS_PER_TOKEN, MIN_PICTURE_TOKENS = 750, 85  # as vision models charge, roughly; corrected by the usage they report
CHARS_PER_TOKEN = 4


class Refused(Exception):
    """Raised by `parse`: the model declined; the message says in which words."""


class Malformed(Exception):
    """Raised by `parse`: these words are no answer to the question; the message says why. The question is asked again."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server, the model asked there, and the bounds of asking. Raises ValueError: field, value, range.

    base_url:            as the openai client takes it, e.g. http://localhost:11434/v1; without name, password or query.
    model:               as the server calls it.
    also_named:          other names under which the server may report this model (llama.cpp: a file name). A date or
                         version after the name ("-20240307") and a vendor before it ("anthropic/") are always accepted.
    key_env:             environment variables that may hold the key; `key` says which goes where.
    concurrency:         requests in flight at most.
    requests_per_minute: 0: no limit. tokens_per_minute: in and out together; 0: no limit.
    timeout_s:           one deadline for a question from its first request on, retries and waits included.
    max_retries:         further requests for one question after a failure that may pass.
    retry_after_cap_s:   longest wait that a server may ask for (Retry-After); longer ones are cut to it.
    backoff_s:           first wait where the server names none; doubled each time, at most retry_after_cap_s.
    max_calls, max_usd:  stop cleanly before more is spent; 0: no limit. Counted per Asker, replayed answers are free.
    usd_per_million_in, usd_per_million_out: prices, for the plan and for max_usd; 0: unknown.
    max_tokens:          of one answer. temperature: 0 to 2.
    json_schema:         True: send the question's schema. False: never. "auto": send it until the server refuses it.
    give_up_after:       stop when so many questions in a row failed; 0: never.
    """

    base_url: str = "https://openrouter.ai/api/v1"
    model: str = "anthropic/claude-3-haiku"
    also_named: tuple[str, ...] = ()
    key_env: tuple[str, ...] = ("OPENROUTER_API_KEY", "OPENAI_API_KEY")
    concurrency: int = 4
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    timeout_s: float = 120.0
    max_retries: int = 4
    retry_after_cap_s: float = 60.0
    backoff_s: float = 1.0
    max_calls: int = 0
    max_usd: float = 0.0
    usd_per_million_in: float = 0.0
    usd_per_million_out: float = 0.0
    max_tokens: int = 500
    temperature: float = 0.0
    json_schema: bool | str = "auto"
    give_up_after: int = 20

    def __post_init__(self):
        self._check_url()
        if not isinstance(self.model, str) or not self.model.strip():
            raise ValueError(f"Endpoint.model = {self.model!r}: must be the name of a model")
        for name, least in (("concurrency", 1), ("max_tokens", 1), ("max_retries", 0), ("max_calls", 0)):
            self._number(name, least, whole=True)
        self._number("give_up_after", 0, whole=True)
        for name in ("requests_per_minute", "tokens_per_minute", "max_usd", "retry_after_cap_s", "backoff_s"):
            self._number(name, 0)
        for name in ("usd_per_million_in", "usd_per_million_out", "temperature"):
            self._number(name, 0)
        self._number("timeout_s", 0)
        if self.timeout_s == 0:
            raise ValueError("Endpoint.timeout_s = 0: must be above 0")
        if self.temperature > 2:
            raise ValueError(f"Endpoint.temperature = {self.temperature}: must be 0 to 2")
        if self.concurrency > 256:
            raise ValueError(f"Endpoint.concurrency = {self.concurrency}: must be 1 to 256")
        if self.json_schema is not True and self.json_schema is not False and self.json_schema != "auto":
            raise ValueError(f'Endpoint.json_schema = {self.json_schema!r}: must be True, False or "auto"')
        if self.max_usd and not self.priced:
            raise ValueError("Endpoint.max_usd needs prices: set usd_per_million_in and usd_per_million_out")

    def _check_url(self) -> None:
        try:
            url = urlsplit(self.base_url)
            good = url.scheme in ("http", "https") and url.hostname and (url.port or True)
        except (ValueError, AttributeError, TypeError):
            raise ValueError("Endpoint.base_url: not an address; give one like https://host/v1") from None
        if not good:
            raise ValueError("Endpoint.base_url: must start with http:// or https:// and name a host")
        if "@" in url.netloc or url.query or url.fragment:  # never echoed: it may hold a key
            raise ValueError("Endpoint.base_url: must hold no name, password or query; the key comes from key_env")

    def _number(self, name: str, least: float, whole: bool = False) -> None:
        value = getattr(self, name)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or value < least:
            raise ValueError(f"Endpoint.{name} = {value!r}: must be a {'whole ' if whole else ''}number >= {least}")

    @property
    def priced(self) -> bool:
        """Whether costs can be told."""
        return self.usd_per_million_in > 0 or self.usd_per_million_out > 0

    @property
    def host(self) -> str:
        """Host name of base_url."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def own(self) -> bool:
        """Whether it is a server of one's own, on this machine or reached by plain http: it may want no key."""
        return self.host in LOOPBACK or urlsplit(self.base_url).scheme == "http"

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars of so many tokens; 0 where prices are unknown."""
        return (tokens_in * self.usd_per_million_in + tokens_out * self.usd_per_million_out) / 1e6

    def key(self) -> str:
        """The key from the environment that may go to this server; "" when there is none.

        A vendor's own variable (`VENDORS`) goes to that vendor alone, over https. OPENAI_API_KEY, which every compatible
        client reads, goes to the server that base_url names, but in clear (http) only to this machine. Any other variable in
        key_env was named for this server and goes to it.
        """
        names = sorted(self.key_env, key=lambda name: name not in VENDORS)
        return next((os.environ[n].strip() for n in names if self._may_have(n) and os.environ.get(n, "").strip()), "")

    def _may_have(self, name: str) -> bool:
        in_clear = urlsplit(self.base_url).scheme == "http"
        if name in VENDORS:
            return not in_clear and f".{self.host}".endswith(f".{VENDORS[name]}")
        return not in_clear or name != "OPENAI_API_KEY" or self.host in LOOPBACK


@dataclass(frozen=True)
class Picture:
    """One image of a question.

    sha256: names the picture *as sent*: when the treatment of a file changes (its largest side, a collage), so must this.
    data:   gives the JPEG bytes; called only when the question is really asked, so that memory stays flat. May raise.
    size:   (width, height) in pixels, for the estimate of tokens.
    """

    sha256: str
    data: Callable[[], bytes] = field(compare=False, repr=False)
    size: tuple[int, int] = (800, 800)

    @property
    def tokens(self) -> int:
        """Estimated tokens: one per 750 pixels, at least 85."""
        return max(MIN_PICTURE_TOKENS, math.ceil(self.size[0] * self.size[1] / PIXELS_PER_TOKEN))


@dataclass(frozen=True)
class Question:
    """One question to a model.

    id:             of the caller's choosing, e.g. "sae/12/commonality"; no part of the ledger's key.
    prompt_version: changes whenever the wording does, so that old answers are not replayed.
    text:           the user's words, sent before the pictures. system: the instruction above them, "" for none.
    schema:         JSON schema of the answer, or None for free text.
    """

    id: str
    prompt_version: str
    text: str
    pictures: tuple[Picture, ...] = ()
    schema: dict | None = None
    system: str = ""

    @property
    def tokens(self) -> int:
        """Estimated tokens of the request, pictures included."""
        words = len(self.text) + len(self.system) + (len(str(self.schema)) if self.schema else 0)
        return math.ceil(words / CHARS_PER_TOKEN) + sum(p.tokens for p in self.pictures) + 10


@dataclass(frozen=True)
class Answer:
    """What became of a question.

    status:   answered (value is set), refused, failed (asked, no usable answer), or unasked (the run stopped before it).
    value:    what `parse` made of the text; None unless answered.
    text:     the model's words, "" when there are none. reason: why not answered, "" when answered.
    model:    as the server reported it. usage: {"tokens_in", "tokens_out", "request_id", "finish_reason"} of its reply.
    replayed: taken from the ledger, no request made. key: the ledger's key of the question.
    """

    question_id: str
    status: str
    value: dict | None = None
    text: str = ""
    reason: str = ""
    model: str = ""
    usage: dict = field(default_factory=dict)
    replayed: bool = False
    key: str = ""

    def __post_init__(self):
        if self.status not in STATUSES or (self.value is None) == (self.status == "answered"):
            raise ValueError(f"Answer.status = {self.status!r} with value {self.value!r}")


@dataclass(frozen=True)
class Plan:
    """What asking would take, at most and without retries; nothing was asked. usd is None where prices are unknown."""

    calls: int
    replayed: int
    tokens_in: int
    tokens_out: int
    usd: float | None

    def __str__(self) -> str:
        cost = "cost unknown (no prices given)" if self.usd is None else f"at most about {self.usd:.2f} USD"
        return (
            f"{self.calls} calls to make, {self.replayed} answers replayed; about {self.tokens_in} tokens in, "
            f"at most {self.tokens_out} out; {cost}"
        )


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

"""Who is asked what, and what comes back: the plain data of the multimodal judge.

The key is in none of these: it is read from the environment when the first request is made, and lives in the client only.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, StringConstraints, field_validator, model_validator

from mtlib.run.params import Settings

STATUSES = ("answered", "refused", "failed", "unasked")
VENDORS = {"OPENROUTER_API_KEY": "openrouter.ai"}  # variables whose key is for one host alone
PIXELS_PER_TOKEN, MIN_PICTURE_TOKENS = 750, 85  # as vision models charge, roughly; corrected by the usage they report
CHARS_PER_TOKEN = 4
KNOWN_PRICES = {"anthropic/claude-3-haiku": [0.25, 1.25]}  # of the notebook's own model, at VENDORS; others are given
USUAL_USD = 5.0  # the notebook's max_usd: a server of one's own without prices is not held to it, nor refused for it


class Refused(Exception):
    """Raised by `parse`: the model declined; the message says in which words."""


class Malformed(Exception):
    """Raised by `parse`: these words are no answer to the question; the message says why. The question is asked again."""


class Endpoint(Settings):
    """An OpenAI-compatible server, the model asked there, and the bounds of asking; 0 is no bound.

    max_calls and max_usd stop cleanly before more is spent; they are counted per Asker, and replayed answers are free. They
    hold for every server, one of one's own too, and so do prices that are given.
    """

    base_url: str = Field("https://openrouter.ai/api/v1", repr=False)
    model: Annotated[str, StringConstraints(pattern=r"\S")] = "anthropic/claude-3-haiku"
    also_named: list[str] = []  # under which a hub may report this model, too
    key_env: tuple[str, ...] = ("OPENROUTER_API_KEY", "OPENAI_API_KEY")  # may hold the key; `key` says which goes where
    concurrency: int = Field(4, ge=1, le=256)  # requests in flight at most
    requests_per_minute: float = Field(0.0, ge=0)
    tokens_per_minute: float = Field(0.0, ge=0)  # in and out together
    timeout_s: float = Field(120.0, gt=0)  # of a question from its first request on, retries and waits included
    max_retries: int = Field(4, ge=0)  # further requests for one question after failures that may pass
    retry_after_cap_s: float = Field(60.0, ge=0)  # longer waits that a server asks for (Retry-After) are cut to it
    backoff_s: float = Field(1.0, ge=0)  # first wait where the server names none; doubled each time, cut alike
    max_calls: int = Field(0, ge=0)
    max_usd: float = Field(0.0, ge=0)
    usd_per_million: list[NonNegativeFloat] = Field([0.0, 0.0], min_length=2, max_length=2)  # in, out; 0: see `prices`
    max_tokens: int = Field(500, ge=1)  # of one answer; more where an answer does not end within it (see `manner`)
    temperature: float = Field(0.0, ge=0, le=2)
    json_schema: bool | Literal["auto"] = "auto"  # send the question's schema; "auto": until the server refuses it
    give_up_after: int = Field(20, ge=0)  # stop when so many questions in a row failed

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, address: str) -> str:
        try:
            url = urlsplit(address)
            good = url.scheme in ("http", "https") and url.hostname and (url.port or True)
        except ValueError:
            good = False
        if not good or "@" in url.netloc or url.query or url.fragment:  # never echoed: it may hold a key
            raise ValueError(
                "it must start with http:// or https:// and name a host, and it must hold no name, password or query; "
                "the key comes from the environment"
            )
        return address

    @model_validator(mode="after")
    def _prices_are_known(self) -> Endpoint:
        free = self.own and self.max_usd == USUAL_USD
        if self.max_usd and not self.priced and not free:
            raise ValueError(f"max_usd = {self.max_usd:g} needs prices: give usd_per_million, or max_usd = 0")
        return self

    @property
    def prices(self) -> list[float]:
        """US dollars per million tokens in and out: those given, or the known ones; 0 where neither is."""
        known = KNOWN_PRICES.get(self.model) if self.host in VENDORS.values() else None
        return self.usd_per_million if any(self.usd_per_million) or not known else known

    @property
    def priced(self) -> bool:
        return any(self.prices)

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def own(self) -> bool:
        """Whether it is a server of one's own, on this machine or reached by plain http: it may want no key."""
        return self.loopback or urlsplit(self.base_url).scheme == "http"

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars of so many tokens; 0 where prices are unknown."""
        return (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6

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
        return not in_clear or name != "OPENAI_API_KEY" or self.loopback


def connect(endpoint: Endpoint, dry_run: bool = False) -> Endpoint:
    """The endpoint as it is asked: with a key, unless nothing will be (dry_run). A server of one's own needs none."""
    if not endpoint.own and not dry_run and not endpoint.key():
        names = " or ".join(endpoint.key_env)
        raise ValueError(
            f'judge = "lmm" asks {endpoint.model} at {endpoint.host}, which needs a key: set {names} in the environment '
            '(never in a file), or give a server of your own, e.g. base_url = "http://localhost:11434/v1"; '
            'judge = "keyless" needs none'
        )
    return endpoint


@dataclass(frozen=True)
class Picture:
    """One image of a question."""

    sha256: str  # names it *as sent*: when the treatment of a file changes (its largest side, a collage), so must this
    data: Callable[[], bytes] = field(compare=False, repr=False)  # -> JPEG; called only when asked, may raise
    size: tuple[int, int] = (800, 800)  # (width, height) in pixels, for the estimate of tokens


@dataclass(frozen=True)
class Question:
    """One question to a model."""

    id: str  # of the caller's choosing, e.g. "sae/12/commonality"; no part of the ledger's key
    prompt_version: str  # changes whenever the wording does, so that old answers are not replayed
    text: str  # sent before the pictures
    pictures: tuple[Picture, ...] = ()
    schema: dict | None = None  # JSON schema of the answer, or None for free text
    system: str = ""  # the instruction above the text
    kind: str = ""  # which of `questions` it is
    n_images: int = 0  # that it shows (on one picture, where they are a collage)

    @property
    def tokens(self) -> int:
        """Estimated tokens of the request; a picture has one per 750 pixels, at least 85."""
        words = len(self.text) + len(self.system) + (len(str(self.schema)) if self.schema else 0)
        pixels = [width * height for width, height in (p.size for p in self.pictures)]
        pictures = sum(max(MIN_PICTURE_TOKENS, math.ceil(n / PIXELS_PER_TOKEN)) for n in pixels)
        return math.ceil(words / CHARS_PER_TOKEN) + pictures + 10


@dataclass(frozen=True)
class Answer:
    """What became of a question."""

    question_id: str
    status: str  # answered, refused, failed (asked, no usable answer), or unasked (the run stopped before it)
    value: dict | None = None  # what `parse` made of the text; None unless answered
    text: str = ""  # the model's words
    reason: str = ""  # why not answered
    model: str = ""  # as the server reported it
    # tokens_in, tokens_out, request_id, finish_reason, adapted (see `manner`)
    usage: dict = field(default_factory=dict)
    replayed: bool = False  # taken from the ledger, no request made
    key: str = ""  # the ledger's

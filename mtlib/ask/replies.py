"""What a server sent back, read strictly: HTTP 200 is not success, and what is no answer must not look like one."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from dataclasses import dataclass, replace

from mtlib.ask.endpoint import Endpoint

MAX_BODY = 2**20  # bytes of a reply; read no further
MAX_USAGE = 10_000_000  # tokens; a server that reports more is not believed
CHARS_PER_TOKEN = 20  # a text longer than this for each of max_tokens is no answer to what was asked
AGAIN = (408, 409, 425, 429)  # and 5xx: worth another try
STOPS = {401: "key", 402: "credit", 403: "key"}
NO_CREDIT = re.compile(r"insufficient_quota|insufficient credit|billing_hard_limit", re.IGNORECASE)
VERSION = re.compile(r"[-@:]v?\d[\d.-]*")


@dataclass(eq=False)
class Trouble(Exception):
    """No usable reply."""

    kind: str  # "again" (may pass), "fail" (will not), "key" or "credit" (stop), "plain" (the server takes no schema)
    reason: str
    wait: float | None = None  # seconds that the server asked for
    reply: Reply | None = None  # what could be read of it, for the account of tokens
    charged: bool = True  # False where the request surely cost nothing


@dataclass(frozen=True)
class Reply:
    """A delivered reply. tokens and usd are None where the server reports none that can be believed."""

    text: str
    model: str = ""
    finish_reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    usd: float | None = None
    request_id: str = ""
    refusal: str = ""  # in which words the model or its provider declined


def read(body: bytes, endpoint: Endpoint) -> Reply:
    """The reply of an HTTP 200 body: one complete chat completion of the model that was asked, or its refusal.

    Raises: Trouble for everything else: an error object, not one choice, another finish_reason than "stop", no content, or
        more than max_tokens.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        start = body[:60].decode("utf-8", "replace")
        what = "HTML" if start.lstrip().lower().startswith(("<!doctype", "<html")) else "no JSON"
        raise Trouble("again", f"{what}: {start!r}" if body.strip() else "empty reply") from None
    if not isinstance(data, dict):
        raise Trouble("again", f"a JSON {type(data).__name__}, not an object")
    reply = Reply("", _text(data.get("model")), "", *_usage(data.get("usage")), _text(data.get("id")))
    if data.get("error"):
        raise _provider(data["error"], reply)
    choices = data.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        found = f"{len(choices)} choices" if isinstance(choices, list) else f"choices is {json.dumps(choices)[:40]}"
        raise Trouble("again", f"{found}, one expected", reply=reply)
    if choices[0].get("error"):
        raise _provider(choices[0]["error"], reply)
    if reply.model and not same_model(reply.model, endpoint):
        raise Trouble("fail", f"answered by another model: {reply.model[:80]!r}", reply=reply)
    return _content(choices[0], reply, endpoint)


def _content(choice: dict, reply: Reply, endpoint: Endpoint) -> Reply:
    finish, message = choice.get("finish_reason"), choice.get("message")
    message = message if isinstance(message, dict) else {}
    content, refusal = message.get("content"), message.get("refusal")
    reply = replace(reply, text=content if isinstance(content, str) else "", finish_reason=_text(finish))
    if isinstance(refusal, str) and refusal.strip():
        return replace(reply, refusal=refusal.strip()[:500])
    if finish == "content_filter":
        return replace(reply, refusal="stopped by the provider's content filter")
    if finish == "length":
        raise Trouble("fail", f"cut off at max_tokens = {endpoint.max_tokens}", reply=reply)
    if finish != "stop":
        raise Trouble("again", f"finish_reason {json.dumps(finish)[:40]}", reply=reply)
    if not reply.text.strip():
        raise Trouble("again", f"content is {'empty' if content == '' else json.dumps(content)[:40]}", reply=reply)
    if len(content) > CHARS_PER_TOKEN * max(endpoint.max_tokens, 100):
        raise Trouble("fail", f"{len(content)} characters for max_tokens = {endpoint.max_tokens}", reply=reply)
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise Trouble("again", "the text holds half a character (a lone surrogate)", reply=reply) from None
    return reply


def _provider(error, reply: Reply) -> Trouble:
    """The trouble that an error object in a 200 reply stands for."""
    error = error if isinstance(error, dict) else {"message": error}
    code = str(error.get("code"))
    code = int(code) if code.isdecimal() and len(code) < 6 else 0
    trouble = of_status(code, f"{_text(error.get('message'))} {_text(error.get('type'))}".strip(), {})
    known = trouble.kind != "fail" or 400 <= code < 500
    return Trouble(trouble.kind if known else "again", f"error in a 200 reply: {trouble.reason}", reply=reply)


def of_status(status: int, words: str, headers) -> Trouble:
    """The trouble that an HTTP status stands for; `words` is the body, of which the start is kept."""
    reason = f"HTTP {status}: {words.strip()[:300]}".rstrip(": ")
    if status in STOPS:
        return Trouble(STOPS[status], reason, charged=False)
    if status == 429 and NO_CREDIT.search(words):
        return Trouble("credit", reason, charged=False)
    again = status in AGAIN or status >= 500
    wait = retry_after(headers.get("retry-after")) if again else None
    return Trouble("again" if again else "fail", reason, wait, charged=False)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None for anything that is neither, or is past."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def same_model(name: str, endpoint: Endpoint) -> bool:
    """Whether a server's name for the model means the one that was asked: one of `endpoint.also_named`, or equal but for case,
    a vendor ("anthropic/"), a variant (":free") and a date or version ("-20240307", "@001"). "gpt-4o-mini" is not "gpt-4o".
    """

    def plain(model: str) -> str:
        return re.sub(r":[a-z]+$", "", model.strip().lower().rsplit("/", 1)[-1])

    asked, got = plain(endpoint.model), plain(name)
    if name in endpoint.also_named or got == asked:
        return True
    return got.startswith(asked) and VERSION.fullmatch(got[len(asked) :]) is not None


def _usage(usage) -> tuple[int | None, int | None, float | None]:
    """(tokens in, tokens out, US dollars) as reported, None for what is missing or absurd."""
    if not isinstance(usage, dict):
        return None, None, None

    def number(value, most):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if fits and 0 <= value <= most else None

    tokens = [number(usage.get(k), MAX_USAGE) for k in ("prompt_tokens", "completion_tokens")]
    cost = number(usage.get("cost"), 1e6)
    return *(None if t is None else int(t) for t in tokens), None if cost is None else float(cost)


def _text(value) -> str:
    """A short text of what should be one."""
    return value[:300] if isinstance(value, str) else "" if value is None else json.dumps(value)[:300]


def one_line(words: str) -> str:
    """Printable words on one line, at most 500 characters: a server's text is shown in tables and terminals."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())[:500]

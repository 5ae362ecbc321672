"""What a server sent back, read strictly: HTTP 200 is not success, and what is no answer must not look like one."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from dataclasses import dataclass, replace

from mtlib.ask.endpoint import Endpoint
from mtlib.run import artifacts

MAX_BODY = 2**20  # bytes of a reply; read no further
MAX_USAGE = 10_000_000  # tokens; a server that reports more is not believed
TOO_LONG = 20  # characters for each of max_tokens: more are no answer to what was asked
# How servers say that an answer is complete, cut off, or withheld. Other words are believed of a whole JSON object only.
COMPLETE = (
    *("stop", "eos", "eos_token", "end", "end_turn", "end_of_turn", "stop_sequence"),
    *("complete", "completed", "finished"),
)
CUT = ("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "model_length")
WITHHELD = ("content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content")
BROKEN_OFF = ("error", "abort", "aborted", "cancelled", "canceled", "timeout", "tool_calls", "function_call")
AGAIN = (408, 409, 425, 429)  # and 5xx: worth another try
STOPS = {401: "key", 402: "credit", 403: "key"}
NO_CREDIT = re.compile(r"insufficient_quota|insufficient credit|billing_hard_limit", re.IGNORECASE)
VERSION = re.compile(r"[-@:]v?\d[\d.-]*")


@dataclass(eq=False)
class Trouble(Exception):
    """No usable reply."""

    kind: str  # "again" (may pass), "fail" (will not), "cut" (by max_tokens), "key" or "credit" (stop)
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
    notes: tuple[str, ...] = ()  # what is unusual about the server, for the reader of a run


def read(body: bytes, endpoint: Endpoint, max_tokens: int) -> Reply:
    """The reply of an HTTP 200 body: one complete chat completion of the model that was asked, or its refusal.

    A server of one's own may call its model as it likes; others only as `same_model` allows.

    Raises: Trouble for everything else: an error object, not one choice, another model, an answer that was cut off or is not
        complete, no content, or more than max_tokens (asked for).
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
        if not endpoint.own:
            mend = f"if it is the one that you mean: also_named = {json.dumps([reply.model[:80]])}"
            raise Trouble("fail", f"answered by another model: {reply.model[:80]!r}; {mend}", reply=reply)
        reply = replace(reply, notes=(f"it calls its model {reply.model[:80]!r}",))
    return _content(choices[0], reply, max_tokens)


def _content(choice: dict, reply: Reply, max_tokens: int) -> Reply:
    finish, message = choice.get("finish_reason"), choice.get("message")
    message = message if isinstance(message, dict) else {}
    said, refusal = message.get("content"), message.get("refusal")
    content, declined = _joined(said)
    reply, finished = replace(reply, text=content, finish_reason=_text(finish)), _text(finish).lower()
    refusal = refusal.strip() if isinstance(refusal, str) and refusal.strip() else declined
    if refusal:
        return replace(reply, refusal=refusal[:500])
    if finished in WITHHELD:
        return replace(reply, refusal="stopped by the provider's content filter")
    if finished in CUT or (finished != "stop" and (reply.tokens_out or 0) >= max_tokens):
        raise Trouble("cut", f"cut off at max_tokens = {max_tokens}; more may be given", reply=reply)
    if finished not in COMPLETE and (
        finished in BROKEN_OFF or not isinstance(finish, str | None) or not _whole(content)
    ):
        raise Trouble("again", f"finish_reason {json.dumps(finish)[:40]}", reply=reply)
    if not content.strip():
        raise Trouble("again", f"content is {'empty' if said == '' else json.dumps(said)[:40]}", reply=reply)
    if len(content) > TOO_LONG * max(max_tokens, 100):
        raise Trouble("fail", f"{len(content)} characters for max_tokens = {max_tokens}", reply=reply)
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise Trouble("again", "the text holds half a character (a lone surrogate)", reply=reply) from None
    unusual = [] if finish == "stop" else [f"it ends its answers with finish_reason {json.dumps(finish)[:40]}"]
    unusual += [] if isinstance(said, str) else ["it sends its answers in parts"]
    return replace(reply, notes=(*reply.notes, *unusual))


def _joined(content) -> tuple[str, str]:
    """(text, refusal) of a message's content: text, or a list of parts, of which those that are neither are left out."""
    if isinstance(content, str):
        return content, ""
    parts = [p for p in content if isinstance(p, dict)] if isinstance(content, list) else []
    texts = [p["text"] for p in parts if p.get("type") in ("text", "output_text") and isinstance(p.get("text"), str)]
    refusals = [p["refusal"].strip() for p in parts if isinstance(p.get("refusal"), str)]
    return "".join(texts), " ".join(refusals)


def _whole(text: str) -> bool:
    """Whether a text is one JSON object, perhaps in a code fence: then it was not cut off, whatever the server says."""
    text = re.sub(r"\A\s*```\w*\n(.*)\n\s*```\s*\Z", r"\1", text, flags=re.DOTALL)
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


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
    """Words on one line, at most 500 characters: a server's text is shown in tables and terminals."""
    return artifacts.one_line(" ".join(words.split()))[:500]

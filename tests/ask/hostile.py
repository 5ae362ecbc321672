"""What a server can send instead of an answer, and what must become of it: (name, replies in turn, outcome, requests).

The last reply of a case repeats for ever. GOOD is the only text in these cases that is an answer.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import time
from dataclasses import dataclass

from tests.ask.lmm_server import MODEL, Ask, LmmServer, Raw, completion

GOOD = '{"phrase": "a striped cat"}'
REFUSAL = "I'm sorry, I cannot help with that."
RETRIES = 2  # of the endpoint in the tests, so a failure that may pass is asked 3 times
EVERY = RETRIES + 1
DEADLINE = 1.5  # seconds


@dataclass(frozen=True)
class Case:
    """Replies in turn (each as LmmServer takes it, or a function of the Ask), what becomes of the question, requests made.

    waits: seconds that the question must take at least. stops: what `Asker.stopped` starts with.
    """

    name: str
    replies: tuple
    status: str
    requests: int
    reason: str = ""
    waits: float = 0.0
    stops: str = ""

    def answer(self, ask: Ask):
        reply = self.replies[min(ask.number, len(self.replies) - 1)]
        return reply(ask) if getattr(reply, "wants_ask", False) else reply


def of_ask(function):
    """Marks a reply as a function of the Ask."""
    function.wants_ask = True
    return function


def status(code: int, words: str = "no", **headers: str) -> Raw:
    body = json.dumps({"error": {"message": words, "code": code}}).encode()
    return Raw(code, body, {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()})


def choice(**changes) -> dict:
    """A completion whose only choice is changed; None removes the field."""
    body = completion(GOOD)
    body["choices"][0] |= changes
    return body


def text(body: bytes, kind: str = "application/json", **headers: str) -> Raw:
    return Raw(200, body, {"content-type": kind} | {k.replace("_", "-"): v for k, v in headers.items()})


def hang_up(handler) -> None:
    """No reply at all: a reset connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    handler.connection.close()


def break_off(handler) -> None:
    """Half of a good reply."""
    body = json.dumps(completion(GOOD)).encode()
    handler.send_response(200)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])


def drip(handler) -> None:
    """A byte now and then: no read ever times out."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)


def silent(handler) -> None:
    time.sleep(2 * DEADLINE)


def no_http(handler) -> None:
    handler.wfile.write(b"200 everything is fine\r\n\r\n" + GOOD.encode())


def endless(handler, code: int = 200) -> None:
    handler.send_response(code)
    handler.send_header("content-type", "application/json")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(400):
            handler.wfile.write(b'{"a": "' + b"x" * 2**16)


def endless_error(handler) -> None:
    endless(handler, 500)


@of_ask
def echo_key(ask: Ask) -> str:
    return json.dumps({"phrase": f"your key is {ask.key}"})


@of_ask
def echo_key_escaped(ask: Ask) -> Raw:
    body = json.dumps(completion(GOOD) | {"id": ask.key})
    return Raw(200, body.replace(ask.key, f"\\u{ord(ask.key[0]):04x}{ask.key[1:]}").encode())


@of_ask
def echo_key_as_finish(ask: Ask) -> dict:
    return completion(GOOD, finish_reason=f"because of {ask.key}")


@of_ask
def echo_key_in_error(ask: Ask) -> Raw:
    return status(400, f"Authorization: Bearer {ask.key} is not welcome")


@of_ask
def echo_key_where_errors_are_cut(ask: Ask) -> Raw:
    return status(400, "x" * (265 - len(ask.key) // 2) + ask.key)


@of_ask
def no_schemas(ask: Ask):
    return status(400, "response_format json_schema is not supported") if ask.schema else GOOD


@of_ask
def newer_limit(ask: Ask):
    words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    return status(400, words) if "max_tokens" in ask.body else GOOD


@of_ask
def own_temperature(ask: Ask):
    words = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
    return status(400, words) if "temperature" in ask.body else GOOD


def soon(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@of_ask
def after_a_date(ask: Ask) -> Raw:
    return status(429, retry_after=soon(2.0)) if ask.number == 0 else GOOD  # a date has whole seconds: 1 to 2 from now


DEEP = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NULL_USAGE = {"prompt_tokens": None, "completion_tokens": "many", "cost": -1}
STREAM = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n'

CASES = [
    Case("good", (GOOD,), "answered", 1),
    Case("usage missing", (completion(GOOD, usage=None),), "answered", 1),
    Case("usage absurd", (completion(GOOD, usage=NULL_USAGE),), "answered", 1),
    Case("model with a date", (completion(GOOD, model=f"{MODEL}-20240307"),), "answered", 1),
    Case("model with a vendor", (completion(GOOD, model=f"acme/{MODEL}:free"),), "answered", 1),
    Case("no schemas here", (no_schemas,), "answered", 2),
    Case("max_completion_tokens", (newer_limit,), "answered", 2),
    Case("no temperature", (own_temperature,), "answered", 2),
    Case("500 first", (status(500), GOOD), "answered", 2),
    Case("503 and 408 first", (status(503), status(408), GOOD), "answered", 3),
    Case("dropped first", (hang_up, GOOD), "answered", 2),
    Case("broken off first", (break_off, GOOD), "answered", 2),
    Case("null content first", (completion(None), GOOD), "answered", 2),
    Case("retry after a second", (status(429, retry_after="0.4"), GOOD), "answered", 2, waits=0.4),
    Case("retry after a date", (after_a_date,), "answered", 2, waits=0.5),
    Case("retry after nan", (status(429, retry_after="nan"), GOOD), "answered", 2),
    Case("retry after -5", (status(429, retry_after="-5"), GOOD), "answered", 2),
    Case("retry after words", (status(429, retry_after="a while"), GOOD), "answered", 2),
    Case("retry after over the cap", (status(429, retry_after="86400"), GOOD), "answered", 2, waits=0.6),
    Case("429 for ever", (status(429),), "failed", EVERY, "HTTP 429"),
    Case("500 for ever", (status(500),), "failed", EVERY + 1, "HTTP 500"),
    Case("502 for ever", (status(502),), "failed", EVERY, "HTTP 502"),
    Case("400", (status(400),), "failed", 4, "HTTP 400"),
    Case("404", (status(404),), "failed", 1, "HTTP 404"),
    Case("413", (status(413),), "failed", 1, "HTTP 413"),
    Case("204", (Raw(204),), "failed", EVERY, "empty reply"),
    Case("error object", ({"error": {"message": "overloaded", "code": 502}},), "failed", EVERY, "overloaded"),
    Case("error beside choices", (completion(GOOD, error={"message": "half"}),), "failed", EVERY, "half"),
    Case("error in a choice", (choice(error={"code": 502, "message": "gone"}),), "failed", EVERY, "gone"),
    Case("error text", ({"error": "rate"},), "failed", EVERY, "rate"),
    Case("html", (text(b"<!DOCTYPE html><h1>hi</h1>", "text/html"),), "failed", EVERY, "HTML"),
    Case("empty", (text(b""),), "failed", EVERY, "empty reply"),
    Case("truncated json", (text(json.dumps(completion(GOOD)).encode()[:-9]),), "failed", EVERY, "no JSON"),
    Case("json list", (text(b"[1, 2]"),), "failed", EVERY, "JSON list"),
    Case("deep json", (text(DEEP),), "failed", EVERY, "no JSON"),
    Case("not utf-8", (text(b"\xff\xfe" + GOOD.encode()),), "failed", EVERY, "no JSON"),
    Case("a stream", (text(STREAM, "text/event-stream"),), "failed", EVERY, "no JSON"),
    Case("false gzip", (text(b"abc", content_encoding="gzip"),), "failed", EVERY, "no reply"),
    Case("no choices", (completion(GOOD, choices=[]),), "failed", EVERY, "0 choices"),
    Case("choices null", (completion(GOOD, choices=None),), "failed", EVERY, "choices is null"),
    Case("two choices", (completion(GOOD, choices=completion(GOOD)["choices"] * 2),), "failed", EVERY, "2 choices"),
    Case("choice a text", (completion(GOOD, choices=["hi"]),), "failed", EVERY, "one expected"),
    Case("message null", (choice(message=None),), "failed", EVERY, "content is null"),
    Case("content null", (completion(None),), "failed", EVERY, "content is null"),
    Case("content empty", (completion(""),), "failed", EVERY, "content is empty"),
    Case("content of parts", (completion([{"type": "text", "text": GOOD}]),), "answered", 1),
    Case("content of other parts", (completion([{"type": "image", "text": GOOD}]),), "failed", EVERY, "content is"),
    Case("refusal in a part", (completion([{"type": "refusal", "refusal": "No."}]),), "refused", 1, "No."),
    Case("half a character", (completion('{"phrase": "\ud800"}'),), "failed", EVERY, "half a character"),
    Case("half a character, escaped", (completion('{"phrase": "\\ud800"}'),), "failed", EVERY, "UnicodeEncodeError"),
    Case("not finite", (completion('{"phrase": "a", "confidence": NaN}'),), "failed", EVERY, "ValueError"),
    Case("finish length", (completion(GOOD, finish_reason="length"),), "failed", 2, "cut off at max_tokens = 4000"),
    Case("finish max_tokens", (completion("", finish_reason="MAX_TOKENS"),), "failed", 2, "cut off"),
    Case("finish safety", (completion("", finish_reason="SAFETY"),), "refused", 1, "content filter"),
    Case("finish error", (completion(GOOD, finish_reason="error"),), "failed", EVERY, "finish_reason"),
    Case("finish null, half", (completion(GOOD[:-1], finish_reason=None),), "failed", EVERY, "finish_reason"),
    Case("finish null, prose", (completion("Error: six fing", finish_reason=None),), "failed", EVERY, "finish_reason"),
    Case("finish tool_calls", (completion(GOOD, finish_reason="tool_calls"),), "failed", EVERY, "finish_reason"),
    Case("300 kB of text", (completion('{"phrase": "' + "very " * 60_000 + 'long"}'),), "failed", 1, "characters"),
    Case("endless body", (endless,), "failed", 1, "more than"),
    Case("endless error", (endless_error,), "failed", EVERY + 1, "HTTP 500"),
    Case("redirect", (Raw(302, b"", {"location": "/v1/elsewhere"}),), "failed", 1, "HTTP 302"),
    Case("prose", ("There is a cat in some of them.",), "failed", EVERY, "malformed"),
    Case("dropped for ever", (hang_up,), "failed", EVERY, "no reply"),
    Case("broken off for ever", (break_off,), "failed", EVERY, "no reply"),
    Case("no http", (no_http,), "failed", EVERY, "no reply"),
    Case("dripping", (drip,), "failed", 1, "no answer within"),
    Case("silent", (silent,), "failed", 1, "no answer within"),
    Case("key in the answer", (echo_key,), "failed", 1, "repeats the key"),
    Case("key in the id, escaped", (echo_key_escaped,), "failed", 1, "repeats the key"),
    Case("key as finish_reason", (echo_key_as_finish,), "failed", 1, "repeats the key"),
    Case("key in an error", (echo_key_in_error,), "failed", 1, "repeats the key"),
    Case("key where errors are cut", (echo_key_where_errors_are_cut,), "failed", 1, "repeats the key"),
    Case("refusal in words", (REFUSAL,), "refused", 1, "sorry"),
    Case("refusal field", (choice(message={"content": None, "refusal": "I will not."}),), "refused", 1, "I will not."),
    Case("content filter", (completion("", finish_reason="content_filter"),), "refused", 1, "content filter"),
    Case("401", (status(401, "bad key"),), "failed", 1, "bad key", stops="key: HTTP 401"),
    Case("402", (status(402, "no money"),), "failed", 1, "no money", stops="credit: HTTP 402"),
    Case("403", (status(403, "not you"),), "failed", 1, "not you", stops="key: HTTP 403"),
    Case(
        "402 in a 200",
        ({"error": {"code": 402, "message": "pay"}},),
        "failed",
        1,
        "pay",
        stops="credit: error in a 200",
    ),
    Case("quota in a 429", (status(429, "insufficient_quota"),), "failed", 1, "insufficient_quota", stops="credit"),
]


def serve(case: Case) -> LmmServer:
    """A server that plays one case to its first question."""
    return LmmServer(case.answer)

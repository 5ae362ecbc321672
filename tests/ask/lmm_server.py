"""A local OpenAI-compatible server, over real HTTP: answers by a function of the question, well, slowly, wrongly or not at all.

    def answer(ask: Ask) -> str: ...          # looks at ask.text and ask.images, returns the model's words
    with LmmServer(answer) as server:
        Endpoint(base_url=server.base_url, model="test-model", ...)

The function may return, instead of words: a dict (body of a 200 reply, see `completion`), a `Raw` (any status, headers and
bytes), or a callable that gets the request handler and writes to the socket itself. It runs in the thread of its request.

    python -m tests.ask.lmm_server --delay 0.05 --log asks.txt      # in a process of its own; prints its base_url
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "test-model"


@dataclass(frozen=True)
class Ask:
    """One request: its number from 0, the words and pictures in it, and how it came."""

    number: int
    body: dict
    headers: dict
    path: str
    started: float  # time.monotonic()

    @property
    def key(self) -> str:
        """The API key that was sent."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def system(self) -> str:
        return "".join(m["content"] for m in self.body["messages"] if m["role"] == "system")

    @property
    def parts(self) -> list[dict]:
        """Parts of the user's message."""
        content = self.body["messages"][-1]["content"]
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        return "\n".join(p["text"] for p in self.parts if p["type"] == "text")

    @property
    def images(self) -> list[bytes]:
        """Bytes of the pictures, in order."""
        urls = [p["image_url"]["url"] for p in self.parts if p["type"] == "image_url"]
        return [base64.b64decode(u.split(",", 1)[1]) for u in urls]

    @property
    def schema(self) -> dict | None:
        return self.body.get("response_format", {}).get("json_schema", {}).get("schema")


@dataclass(frozen=True)
class Raw:
    """A reply as bytes."""

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)


def completion(text, model: str = MODEL, finish_reason="stop", number: int = 0, **more) -> dict:
    """The body of a chat completion; `more` replaces top-level fields."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "finish_reason": finish_reason, "message": message}]
    body = {"id": f"ask-{number}", "object": "chat.completion", "created": 0, "model": model, "choices": choices}
    return body | {"usage": usage} | more


class LmmServer:
    """Serves until the `with` block ends.

    Args:
        answer:  Ask -> words, dict, Raw, or callable(handler).
        delay_s: time an answer takes, thinking included.
        keep:    keep all requests in `asks` (a long run should not).
        model:   name reported in replies made of words.
    Attributes: base_url; asks (in order of arrival); n_asks; most_at_once (requests in flight at the same time).
    """

    def __init__(self, answer: Callable[[Ask], object], delay_s: float = 0.0, keep: bool = True, model: str = MODEL):
        self.answer, self.delay_s, self.keep, self.model = answer, delay_s, keep, model
        self.asks: list[Ask] = []
        self.n_asks = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.lmm = self
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> LmmServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def arrived(self, body: dict, headers: dict, path: str, started: float) -> Ask:
        with self.lock:
            ask = Ask(self.n_asks, body, headers, path, started)
            self.n_asks += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if self.keep:
                self.asks.append(ask)
        return ask

    def left(self) -> None:
        with self.lock:
            self.at_once -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):  # a client that hangs up is part of the tests
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        raw, started = self.rfile.read(int(self.headers.get("content-length", 0))), time.monotonic()
        lmm: LmmServer = self.server.lmm
        ask = lmm.arrived(json.loads(raw), {k.lower(): v for k, v in self.headers.items()}, self.path, started)
        try:
            reply = lmm.answer(ask)
            time.sleep(max(0.0, lmm.delay_s - (time.monotonic() - ask.started)))
            if isinstance(reply, str):
                reply = completion(reply, lmm.model, number=ask.number)
        finally:
            lmm.left()
        if callable(reply):
            self.close_connection = True
            reply(self)
        elif isinstance(reply, Raw):
            self.send(reply)
        else:
            self.send(Raw(200, json.dumps(reply).encode(), {"content-type": "application/json"}))

    do_GET = do_POST

    def send(self, raw: Raw) -> None:
        self.send_response(raw.status)
        for name, value in ({"content-length": str(len(raw.body))} | raw.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw.body)

    def log_message(self, *_):
        pass


def digest(text: str, images: list[bytes]) -> str:
    """16 hex digits of what was asked: an answer that can be checked without a model."""
    h = hashlib.sha256(text.encode())
    for image in images:
        h.update(hashlib.sha256(image).digest())
    return h.hexdigest()[:16]


def main() -> None:
    """Answers {"digest": ..., "n": pictures} to everything; notes every question's digest in a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    log = open(args.log, "a", encoding="utf-8", buffering=1) if args.log else None  # noqa: SIM115 (ends with the process)

    def answer(ask: Ask) -> str:
        mark = digest(ask.text, ask.images)
        if log:
            log.write(f"{mark}\n")
        return json.dumps({"digest": mark, "n": len(ask.images)})

    with LmmServer(answer, args.delay, keep=False) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

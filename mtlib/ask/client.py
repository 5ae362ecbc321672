"""One request to an OpenAI-compatible server: pictures as data URLs, the key from the environment, the reply read strictly.

The `openai` client makes the request; its own retries are off (see `asking`), and no exception of it leaves this module,
since it carries the request with its headers. It is loaded with the first question: that takes seconds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import threading
from collections import OrderedDict
from urllib.parse import quote

from mtlib.ask import replies
from mtlib.ask.endpoint import Endpoint, Picture, Question
from mtlib.ask.replies import Reply, Trouble

CACHE = 32 * 2**20  # characters of encoded pictures kept: the same images come back in the next question
MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
NO_SCHEMA = re.compile(r"^HTTP (400|422): .*(response_format|json_schema|structured output)", re.IGNORECASE | re.DOTALL)
NEW_LIMIT = re.compile(r"^HTTP (400|422): .*max_completion_tokens", re.IGNORECASE | re.DOTALL)
MAX_WORDS = 20_000  # bytes of an error that are read
LOGGERS = (
    "openai",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
)  # their debug logs hold headers, which may echo the key
SHORTEST_KEY = 8  # characters; shorter ones are placeholders of local servers


class Client:
    """Sends questions. The key is read by `load`; `clean` takes it out of any text.

    Attributes: schema (whether schemas are sent; with "auto" it turns False when the server refuses one);
        limit (the name under which max_tokens is sent; it turns to the newer one when the server asks for that).
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.schema, self.limit = bool(endpoint.json_schema), "max_tokens"
        self._key, self._loaded = "", False
        self._openai = self._create = None
        self._cache: OrderedDict[str, str] = OrderedDict()
        self._cached, self._lock = 0, threading.Lock()

    def messages(self, question: Question) -> list[dict]:
        """The question as chat messages. Raises: whatever a picture's callable raises; ValueError if it is no picture."""
        parts = [{"type": "text", "text": question.text}]
        parts += [{"type": "image_url", "image_url": {"url": self._url(p)}} for p in question.pictures]
        system = [{"role": "system", "content": question.system}] if question.system else []
        return [*system, {"role": "user", "content": parts if question.pictures else question.text}]

    def _url(self, picture: Picture) -> str:
        with self._lock:
            if picture.sha256 in self._cache:
                self._cache.move_to_end(picture.sha256)
                return self._cache[picture.sha256]
        data = picture.data()
        media = next((m for magic, m in MEDIA.items() if data.startswith(magic)), None)
        if media is None:
            raise ValueError("a picture must be JPEG or PNG bytes")
        url = f"data:{media};base64,{base64.b64encode(data).decode()}"
        with self._lock:
            if picture.sha256 not in self._cache:
                self._cache[picture.sha256] = url
                self._cached += len(url)
            while self._cached > CACHE:
                self._cached -= len(self._cache.popitem(last=False)[1])
        return url

    @property
    def loaded(self) -> bool:
        """Whether `load` has been called, or found no key."""
        return self._loaded

    def at_hand(self, question: Question) -> bool:
        """Whether `messages` is quick: every picture of the question is in memory."""
        return all(p.sha256 in self._cache for p in question.pictures)

    def load(self) -> None:
        """Load the `openai` library and make the client, before any deadline runs; without a key `send` will say so."""
        with self._lock:
            if not self._loaded:
                import openai

                for name in LOGGERS:
                    logging.getLogger(name).setLevel(logging.WARNING)
                e, key = self.endpoint, self.endpoint.key()
                self._key = key if len(key) >= SHORTEST_KEY else ""
                if key or e.own:
                    http = openai.DefaultAsyncHttpxClient(
                        event_hooks={"response": [self._refuse]}, follow_redirects=False
                    )
                    settings = {"base_url": e.base_url, "timeout": e.timeout_s, "max_retries": 0, "http_client": http}
                    self._openai = openai.AsyncOpenAI(api_key=key or "none", **settings)
                    self._create = self._openai.chat.completions.with_streaming_response.create
                self._loaded = True

    async def send(self, question: Question, messages: list[dict]) -> Reply:
        """One request and its reply; `load` comes first. Raises: Trouble, and nothing else."""
        if self._openai is None:
            raise Trouble("key", f"none found: set {' or '.join(self.endpoint.key_env)}", charged=False)
        e, limit = self.endpoint, self.limit
        body = {"messages": messages, limit: e.max_tokens, "temperature": e.temperature}
        with_schema = self.schema and question.schema is not None
        if with_schema:
            form = {"name": "answer", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            reply = await self._post(body)
            if self._repeated(reply.decode("utf-8", "replace")):
                raise Trouble("fail", "the reply repeats the key")
            return replies.read(reply, e)
        except Trouble as trouble:
            if with_schema and e.json_schema == "auto" and NO_SCHEMA.search(trouble.reason):
                self.schema = False
                raise Trouble("plain", "the server takes no schema; asked again without", charged=False) from None
            if limit == "max_tokens" and NEW_LIMIT.search(trouble.reason):
                self.limit = "max_completion_tokens"
                raise Trouble("plain", f"the server asks for {self.limit}; asked again so", charged=False) from None
            raise trouble from None

    async def _post(self, body: dict) -> bytes:
        """The bytes of the reply. The body goes as `extra_body`, since the client walks through all else piece by piece.

        Raises: Trouble, whatever the client raised.
        """
        reply = bytearray()
        try:
            async with self._create(model=self.endpoint.model, messages=[], extra_body=body) as response:
                async for piece in response.iter_bytes():
                    reply += piece
                    if len(reply) > replies.MAX_BODY:
                        raise Trouble("fail", f"a reply of more than {replies.MAX_BODY} bytes")
            return bytes(reply)
        except Exception as error:  # the client and the libraries below it have many names for a broken connection
            if isinstance(error, Trouble) or isinstance(error.__cause__, Trouble):
                raise (error if isinstance(error, Trouble) else error.__cause__) from None
            cause = type(error.__cause__ or error).__name__
            raise Trouble("again", f"no reply ({cause})", charged=cause != "ConnectError") from None

    async def _refuse(self, response) -> None:
        """Called by the HTTP client with every response: of all but successes only the start is read. Raises: Trouble."""
        if not response.is_success:
            words = bytearray()
            with contextlib.suppress(Exception):  # an error whose text cannot be read is still that error
                async for piece in response.aiter_bytes():
                    words += piece
                    if len(words) > MAX_WORDS:
                        break
            text = words[:MAX_WORDS].decode("utf-8", "replace")
            text = "(its text repeats the key)" if self._repeated(text) else text
            raise replies.of_status(response.status_code, text, response.headers)

    def _repeated(self, text: str) -> bool:
        """Whether a body holds the key, also when it is spelled with JSON's escapes."""
        if not self._key:
            return False
        with contextlib.suppress(ValueError, RecursionError):
            text += json.dumps(json.loads(text), ensure_ascii=False)
        return self.clean(text) != text

    def clean(self, text: str) -> str:
        """The text without the key, in any of its usual spellings."""
        if self._key:
            for form in (self._key, quote(self._key, safe=""), base64.b64encode(self._key.encode()).decode()):
                text = text.replace(form, "[key]")
        return text

    def leaks(self, text: str, value: dict | None) -> bool:
        """Whether an answer repeats the key."""
        return bool(self._key) and self.clean(said := text + json.dumps(value, ensure_ascii=False)) != said

    async def close(self) -> None:
        """Close the connections."""
        if self._openai is not None:
            await self._openai.close()

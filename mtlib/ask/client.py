"""One request to an OpenAI-compatible server: pictures as data URLs, the key from the environment, the reply read strictly.

The `openai` client makes the request; its own retries are off (see `asker`), and no exception of it leaves this module,
since it carries the request with its headers. It is loaded with the first question: that takes seconds. What a server will
not take (a schema, a temperature, max_tokens by its old name) is changed once and told.
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
MAX_WORDS = 20_000  # bytes of an error that are read
SHORTEST_KEY = 8  # characters; shorter ones are placeholders of local servers
LOGGERS = (
    "openai",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
)  # their debug logs hold headers, which may echo the key
TAKES_NO = {  # what a server can refuse: in which words of an HTTP 400 or 422, and what is told
    "schema": ("response_format|json_schema|structured output", "the server takes no schema; asked again without"),
    "max_tokens": ("max_completion_tokens", "the server asks for max_completion_tokens; asked again so"),
    "temperature": ("temperature", "the server takes no other temperature than its own; asked again without"),
}


class Client:
    """Sends questions. The key is read when the first one is prepared; `clean` takes it out of any text.

    Attributes: refused (keys of TAKES_NO that this server has refused).
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.refused: set[str] = set() if endpoint.json_schema else {"schema"}
        self._key = ""
        self._openai = self._create = None
        self._cache: OrderedDict[str, str] = OrderedDict()
        self._cached, self._lock = 0, threading.Lock()

    def at_hand(self, question: Question) -> bool:
        """Whether `messages` is quick: every picture of the question is in memory."""
        return self._openai is not None and all(p.sha256 in self._cache for p in question.pictures)

    def messages(self, question: Question) -> list[dict]:
        """The question as chat messages. Raises: whatever a picture's callable raises; ValueError if it is no picture."""
        self._open()
        parts = [{"type": "text", "text": question.text}]
        parts += [{"type": "image_url", "image_url": {"url": self._url(p)}} for p in question.pictures]
        system = [{"role": "system", "content": question.system}] if question.system else []
        return [*system, {"role": "user", "content": parts if question.pictures else question.text}]

    def _open(self) -> None:
        with self._lock:
            if self._openai is None:
                import openai

                for name in LOGGERS:
                    logging.getLogger(name).setLevel(logging.WARNING)
                e, self._key = self.endpoint, self.endpoint.key()
                http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._refuse]}, follow_redirects=False)
                settings = {"base_url": e.base_url, "timeout": e.timeout_s, "max_retries": 0, "http_client": http}
                self._openai = openai.AsyncOpenAI(api_key=self._key or "none", **settings)
                self._create = self._openai.chat.completions.with_streaming_response.create  # loads what it needs

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

    async def send(self, question: Question, messages: list[dict]) -> Reply:
        """One request and its reply; `messages` comes first. Raises: Trouble, and nothing else."""
        e, refused = self.endpoint, set(self.refused)
        if not self._key and not e.own:
            raise Trouble("key", f"none found: set {' or '.join(e.key_env)}", charged=False)
        body = {"model": e.model, "messages": messages}
        body |= {"max_completion_tokens" if "max_tokens" in refused else "max_tokens": e.max_tokens}
        body |= {} if "temperature" in refused else {"temperature": e.temperature}
        if question.schema is not None and "schema" not in refused:
            form = {"name": "answer", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            return replies.read(await self._post(body), e)
        except Trouble as trouble:
            for name, (words, told) in TAKES_NO.items():
                sent = (
                    "response_format" in body and e.json_schema == "auto" if name == "schema" else name not in refused
                )
                if sent and re.match(rf"HTTP (400|422): .*({words})", trouble.reason, re.IGNORECASE | re.DOTALL):
                    self.refused.add(name)
                    raise Trouble("plain", told, charged=False) from None
            raise trouble from None

    async def _post(self, body: dict) -> bytes:
        """The bytes of a successful reply. The body goes as `extra_body`, since the client walks through all else piece by
        piece. Raises: Trouble, whatever the client raised.
        """
        reply = bytearray()
        try:
            async with self._create(model=self.endpoint.model, messages=[], extra_body=body) as response:
                async for piece in response.iter_bytes():
                    reply += piece
                    if len(reply) > replies.MAX_BODY:
                        raise Trouble("fail", f"a reply of more than {replies.MAX_BODY} bytes")
        except Exception as error:  # the client and the libraries below it have many names for a broken connection
            if isinstance(error, Trouble) or isinstance(error.__cause__, Trouble):
                raise (error if isinstance(error, Trouble) else error.__cause__) from None
            cause = type(error.__cause__ or error).__name__
            raise Trouble("again", f"no reply ({cause})", charged=cause != "ConnectError") from None
        if self._repeated(reply.decode("utf-8", "replace")):
            raise Trouble("fail", "the reply repeats the key")
        return bytes(reply)

    async def _refuse(self, response) -> None:
        """Called by the HTTP client with every response: of all but successes only the start is read. Raises: Trouble."""
        if response.is_success:
            return
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
        if len(self._key) < SHORTEST_KEY:
            return False
        with contextlib.suppress(ValueError, RecursionError):
            text += json.dumps(json.loads(text), ensure_ascii=False)
        return self.clean(text) != text

    def clean(self, text: str) -> str:
        """The text without the key, in any of its usual spellings."""
        if len(self._key) >= SHORTEST_KEY:
            for form in (self._key, quote(self._key, safe=""), base64.b64encode(self._key.encode()).decode()):
                text = text.replace(form, "[key]")
        return text

    def leaks(self, text: str, value: dict | None) -> bool:
        """Whether an answer repeats the key."""
        return self.clean(said := text + json.dumps(value, ensure_ascii=False)) != said

    async def close(self) -> None:
        """Close the connections."""
        if self._openai is not None:
            await self._openai.close()

"""One request to an OpenAI-compatible server: pictures as data URLs, the key from the environment, the reply read strictly.

The `openai` client makes the request; its own retries are off (see `asker`), and no exception of it leaves this module,
since it carries the request with its headers. It is loaded with the first question: that takes seconds. What a server will
not take is changed once and told (see `manner`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import threading
from collections import OrderedDict
from urllib.parse import quote

from pydantic import model_validator

from mtlib.ask import replies
from mtlib.ask.endpoint import Endpoint, Picture, Question
from mtlib.ask.manner import Manner, Put
from mtlib.ask.replies import Reply, Trouble

CACHE = 32 * 2**20  # characters of encoded pictures kept: the same images come back in the next question
MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
MAX_WORDS = 20_000  # bytes of an error that are read
SHORTEST_KEY = 8  # characters; shorter ones are placeholders of local servers
# Their debug logs hold headers, which may echo the key.
LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
CONNECTIONS = 512  # more than `concurrency` can be


class Reached(Endpoint):
    """The settings of a run, tried before its first stage: whether a model could be asked from here. Nothing is sent."""

    judge: str = "keyless"
    dry_run: bool = False

    @model_validator(mode="after")
    def _a_way(self) -> Reached:
        if self.judge == "lmm" and not self.dry_run:
            http_client(self)
        return self


class Client:
    """Sends questions. The key is read when the first one is prepared; `clean` takes it out of any text."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.manner = endpoint, Manner(endpoint)
        self._key, self._openai = "", None
        self._cache: OrderedDict[str, str] = OrderedDict()
        self._cached, self._lock = 0, threading.Lock()

    def at_hand(self, question: Question) -> bool:
        """Whether `messages` is quick: every picture of the question is in memory."""
        return self._openai is not None and all(p.sha256 in self._cache for p in question.pictures)

    def messages(self, question: Question) -> str:
        """The question as chat messages, in JSON. Raises: what a picture's callable raises; ValueError if it is no picture."""
        self._open()
        parts = [{"type": "text", "text": question.text}]
        parts += [{"type": "image_url", "image_url": {"url": self._url(p)}} for p in question.pictures]
        system = [{"role": "system", "content": question.system}] if question.system else []
        return json.dumps([*system, {"role": "user", "content": parts if question.pictures else question.text}])

    def _open(self) -> None:
        with self._lock:
            if self._openai is None:
                import openai

                for name in LOGGERS:
                    logging.getLogger(name).setLevel(logging.WARNING)
                e, self._key = self.endpoint, self.endpoint.key()
                try:
                    http = http_client(e, self._refuse)
                except ValueError as error:
                    raise Trouble("fail", str(error), charged=False) from None
                settings = {"base_url": e.base_url, "timeout": e.timeout_s, "max_retries": 0, "http_client": http}
                self._openai = openai.AsyncOpenAI(api_key=self._key or "none", **settings)

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

    async def build(self, put: Put) -> None:
        """Make the messages of a question as it is put now. Raises: Trouble where a picture cannot be read."""
        asked = put.asked
        if put.made_of is not asked:
            try:
                quick = self.at_hand(asked)
                put.messages = self.messages(asked) if quick else await asyncio.to_thread(self.messages, asked)
            except Trouble:
                raise
            except Exception as e:  # whatever a picture's callable raises
                reason = f"a picture cannot be read, not asked: {type(e).__name__}: {e}"
                raise Trouble("fail", reason, charged=False) from None
            put.made_of = asked

    async def send(self, put: Put) -> Reply:
        """One request and its reply; `build` comes first. Raises: Trouble, and nothing else."""
        e, max_tokens = self.endpoint, put.max_tokens
        if not self._key and not e.own:
            raise Trouble("key", f"none found: set {' or '.join(e.key_env)}", charged=False)
        content = f'{json.dumps(put.body())[:-1]}, "messages": {put.messages}}}'.encode()
        reply = replies.read(await self._post(content), e, max_tokens)
        put.worked(reply)
        return reply

    async def _post(self, content: bytes) -> bytes:
        """The bytes of a successful reply. Raises: Trouble, whatever the client raised."""
        import httpx2  # the openai client's own

        try:
            # made by hand: `chat.completions.create` would walk through all parts of the pictures
            asked = self._openai.post("/chat/completions", content=content, cast_to=httpx2.Response, stream=True)
            async with contextlib.aclosing(await asked) as response:
                reply = await _start(response, replies.MAX_BODY + 1)
        except Exception as error:  # the client and the libraries below it have many names for a broken connection
            cause = error.__cause__ or error
            if isinstance(cause, Trouble):
                raise cause from None
            name = type(cause).__name__
            untrusted = "CERTIFICATE_VERIFY" in str(cause)
            why = ", its certificate is not trusted: SSL_CERT_FILE may name one" if untrusted else ""
            raise Trouble("again", f"no reply ({name}{why})", charged=name != "ConnectError") from None
        if len(reply) > replies.MAX_BODY:
            raise Trouble("fail", f"a reply of more than {replies.MAX_BODY} bytes")
        if self.leaks(reply.decode("utf-8", "replace")):
            raise Trouble("fail", "the reply repeats the key")
        return reply

    async def _refuse(self, response) -> None:
        """Called by the HTTP client with every response: of all but successes only the start is read. Raises: Trouble."""
        if response.is_success:
            return
        words = b""
        with contextlib.suppress(Exception):  # an error whose text cannot be read is still that error
            words = await _start(response, MAX_WORDS)
        text = words.decode("utf-8", "replace")
        text = "(its text repeats the key)" if self.leaks(text) else text
        raise replies.of_status(response.status_code, text, response.headers)

    def leaks(self, text: str) -> bool:
        """Whether a text holds the key, also when it is spelled with JSON's escapes."""
        with contextlib.suppress(ValueError, RecursionError):
            text += json.dumps(json.loads(text), ensure_ascii=False)
        return self.clean(text) != text

    def clean(self, text: str) -> str:
        """The text without the key, in any of its usual spellings."""
        if len(self._key) >= SHORTEST_KEY:
            for form in (self._key, quote(self._key, safe=""), base64.b64encode(self._key.encode()).decode()):
                text = text.replace(form, "[key]")
        return text

    async def close(self) -> None:
        if self._openai is not None:
            await self._openai.close()


def http_client(endpoint: Endpoint, refuse=None):
    """The client that makes the requests; the network is not touched. A server on this machine is asked directly, whatever proxy
    the environment names.

    Args: refuse: called with every response.
    Raises: ValueError naming the variables, where a proxy or a certificate of the environment cannot be used.
    """
    import httpx2

    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    shared = {"limits": limits, "trust_env": not endpoint.loopback or endpoint.base_url.lower().startswith("https")}
    proxies, certificates = ([n for n in names if os.environ.get(n)] for names in (PROXIES, CERTIFICATES))
    missing = [n for n in certificates if not os.path.exists(os.environ[n])]
    if shared["trust_env"] and missing:
        raise ValueError(f"{missing[0]} of the environment names no file or folder; correct it or unset it")
    try:
        direct = httpx2.AsyncHTTPTransport(**shared) if endpoint.loopback else None
        hooks = {"response": [refuse]} if refuse else {}
        return httpx2.AsyncClient(transport=direct, event_hooks=hooks, follow_redirects=False, **shared)
    except (ImportError, ValueError, httpx2.InvalidURL):  # their words may hold the proxy's password
        mend = "socks proxies need `pip install socksio`; or unset it, or name the server in NO_PROXY"
        raise ValueError(f"the proxy in {' or '.join(proxies)} cannot be used: {mend}") from None
    except OSError as e:
        why = f"the certificates cannot be read ({type(e).__name__}); correct it or unset it"
        raise ValueError(f"{' or '.join(certificates)}: {why}") from None


async def _start(response, most: int) -> bytes:
    """The first bytes of a body, at most so many."""
    read = bytearray()
    async for piece in response.aiter_bytes():
        read += piece
        if len(read) > most:
            break
    return bytes(read[:most])

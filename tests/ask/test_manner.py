"""Servers that are not as the textbook has them: each is adapted to once, by trying, remembered for the run, and told."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mtlib.ask.asker import Asker
from mtlib.ask.client import http_client
from mtlib.ask.endpoint import Endpoint, Picture
from mtlib.ask.manner import CHANGES, MAX_TOLD
from mtlib.ask.replies import Trouble, read
from mtlib.ask.shown_images import places, sheet_size
from mtlib.run import params
from tests.ask.asked import endpoint, key, parse, question  # noqa: F401 (key is a fixture)
from tests.ask.hostile import GOOD, status
from tests.ask.lmm_server import MODEL, LmmServer, Raw, completion

pytestmark = pytest.mark.usefixtures("key")
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "06_interpret.py"
TOLD = {name: told for name, (_, told) in CHANGES.items()}


def refuses(words: str, when: Callable, code: int = 400):
    """A server that refuses some requests, in some words."""
    return lambda ask: status(code, words) if when(ask) else GOOD


def has(name: str) -> Callable:
    return lambda ask: name in ask.body


def many(ask) -> bool:
    return len(ask.images) > 1


SCHEMAS = [  # as vLLM, llama.cpp, LM Studio, TGI, Gemini, Ollama, LiteLLM and OpenRouter say it, or nearly
    (400, "The provided JSON schema contains features not supported by xgrammar."),
    (400, "Failed to parse grammar"),
    (400, "'response_format.type' must be 'text' or 'json_object'"),
    (422, "Grammar compilation error"),
    (400, "Invalid JSON payload received. Unknown name additionalProperties at generation_config.response_schema"),
    (500, "cannot convert the JSON schema to a grammar"),
    (500, "litellm.UnsupportedParamsError: response_format is not supported"),
    (404, "No endpoints found that support structured outputs"),
    (400, "extra fields not permitted"),
    (422, "Unprocessable"),
    (400, "El formato de respuesta no es compatible"),
]
SERVERS = {
    **{f"schema, {code} {words[:30]}": (refuses(words, has("response_format"), code), ["no_schema"], 2) for code, words in SCHEMAS},
    "schema, a bare 500": (refuses("", has("response_format"), 500), ["no_schema"], 4),
    "temperature": (refuses("temperature: only the default (1) is supported", has("temperature")), ["no_temperature"], 2),
    "temperature, other words": (refuses("bad field", has("temperature"), 422), ["no_temperature"], 3),
    "temperature and schema, no words": (
        refuses("", lambda ask: "temperature" in ask.body or "response_format" in ask.body),
        ["no_temperature", "no_schema"],
        4,
    ),
    "limit's other name": (refuses("use max_completion_tokens", has("max_tokens")), ["new_limit"], 2),
    "one image": (refuses("At most 1 image(s) may be provided in one request.", many), ["one_sheet"], 2),
    "one image, 422": (refuses("this model supports only a single image per prompt", many, 422), ["one_sheet"], 2),
    "too large": (refuses("Payload Too Large", many, 413), ["one_sheet"], 2),
    "thinks first": (
        lambda ask: GOOD if ask.body["max_tokens"] >= 2000 else completion("", finish_reason="length"),
        ["more_tokens"],
        2,
    ),
}  # fmt: skip


def asked(n: int = 0):
    """A question with two pictures."""

    def jpeg(i: int) -> bytes:
        Image.new("RGB", (64, 48), (200 * i, 0, 100)).save(buffer := io.BytesIO(), "JPEG", quality=95)
        return buffer.getvalue()

    two = tuple(Picture(f"{i:064x}", functools.partial(jpeg, i), (64, 48)) for i in range(2))
    return question(n, text=f"Here are 2 images, in the order given. {n}", pictures=two)


@pytest.mark.parametrize("case", SERVERS.values(), ids=list(SERVERS))
def test_a_server_is_adapted_to_once_remembered_and_told(case, tmp_path):
    answer, changes, requests = case
    with LmmServer(answer) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        (first,) = asker.ask([asked(0)])
        assert (first.status, server.n_asks) == ("answered", requests), first.reason
        assert [a.status for a in asker.ask(asked(n) for n in range(1, 6))] == ["answered"] * 5
        assert server.n_asks == requests + 5, "remembered"
        assert sorted(asker.told) == sorted(TOLD[name] for name in changes)
        assert first.usage["adapted"] == sorted(changes)
        assert asker.ledger.records[first.key]["usage"]["adapted"] == sorted(changes)


def test_adapting_needs_no_retries_and_four_at_once_all_get_their_answer(tmp_path):
    def answer(ask):
        if "max_tokens" in ask.body:
            return status(400, "max_tokens is not supported by this model; use max_completion_tokens")
        if "temperature" in ask.body:
            return status(400, "only the default temperature (1) is supported by this model")
        return status(400, "one image only") if many(ask) else GOOD

    with LmmServer(answer, delay_s=0.05) as server:
        with Asker(endpoint(server, max_retries=0), tmp_path / "a.sqlite", parse) as asker:
            assert [a.status for a in asker.ask(asked(n) for n in range(12))] == ["answered"] * 12
            assert len(asker.told) == 3 and asker.usage.retries == 0
            assert server.n_asks <= 12 + 3 * asker.endpoint.concurrency
        last = next(ask for ask in server.asks if ask.text.endswith("its number above it. 11"))
    shown = Image.open(io.BytesIO(last.images[0]))
    reds = [shown.getpixel((x + 32, y + 24))[0] for x, y in places(2, 64)]
    assert shown.size == sheet_size(2, 64) and reds == pytest.approx([0, 200], abs=8)


def test_what_was_asked_for_in_the_settings_is_not_given_up(tmp_path):
    with LmmServer(refuses("no schemas", has("response_format"))) as server:
        with Asker(endpoint(server, json_schema=True), tmp_path / "a.sqlite", parse) as asker:
            (answer,) = asker.ask([asked()])
            assert answer.status == "failed" and all(a.schema for a in server.asks)
        with Asker(endpoint(server, json_schema=False), tmp_path / "a.sqlite", parse) as asker:
            (answer,) = asker.ask([asked()])
            assert answer.status == "answered" and asker.told == []


def test_a_refusal_of_one_question_changes_nothing_for_the_others(tmp_path):
    """The server has answered this kind of question, so it is the question that it does not want."""
    with LmmServer(lambda ask: status(400, "no") if ask.text.endswith(" 3") else GOOD) as server:
        with Asker(endpoint(server, concurrency=1), tmp_path / "a.sqlite", parse) as asker:
            said = [a.status for a in asker.ask(asked(n) for n in range(6))]
            assert said == ["answered"] * 3 + ["failed"] + ["answered"] * 2 and asker.told == []
        assert server.n_asks == 6 and all(ask.schema for ask in server.asks)


def test_more_tokens_are_reserved_before_they_are_spent(tmp_path):
    """By hand: 500 tokens out at 10 USD per million are 0.005; eight times as many would pass 0.02."""
    with LmmServer(lambda ask: completion("", finish_reason="length")) as server:
        e = endpoint(server, usd_per_million=[0.0, 10.0], max_usd=0.02)
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            (answer,) = asker.ask([asked()])
            assert "cut off at max_tokens = 500" in answer.reason and server.n_asks == 1
            assert asker.stopped.startswith("max_usd = 0.02 would be passed")


NAMES = ["/srv/models/llava-7b-q4.gguf", "gpt-4o-2024-08-06", "openai/gpt-4o", f"{MODEL}-mini"]


@pytest.mark.parametrize("name", NAMES)
def test_another_name_is_noted_on_a_server_of_ones_own_and_refused_elsewhere(name, tmp_path):
    with (
        LmmServer(lambda ask: GOOD, model=name) as server,
        Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker,
    ):
        (answer,) = asker.ask([question()])
        assert (answer.status, answer.model) == ("answered", name) and repr(name) in asker.told[0]
    body, hub = json.dumps(completion(GOOD, model=name)).encode(), Endpoint(model=MODEL)
    with pytest.raises(Trouble, match="answered by another model") as caught:
        read(body, hub, 500)
    assert f'also_named = ["{name}"]' in caught.value.reason
    assert read(body, hub.with_(also_named=[name]), 500).text == GOOD


def test_what_is_told_does_not_grow_with_the_answers(tmp_path):
    answer = lambda ask: completion(GOOD, model=f"routed-{ask.number}")  # noqa: E731
    with LmmServer(answer) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        list(asker.ask(question(n) for n in range(3 * MAX_TOLD)))
        assert len(asker.told) == MAX_TOLD


@pytest.mark.parametrize("finish", ["eos_token", "end", "EOS", "end_turn", "complete", "finished_well", None, ""])
def test_other_words_for_the_end_of_an_answer_are_noted(finish):
    reply = read(json.dumps(completion(GOOD, finish_reason=finish)).encode(), Endpoint(model=MODEL), 500)
    assert reply.text == GOOD and "finish_reason" in reply.notes[0]
    with pytest.raises(Trouble, match="cut off at max_tokens = 20"):  # the reply has 20 tokens
        read(json.dumps(completion(GOOD, finish_reason=finish)).encode(), Endpoint(model=MODEL), 20)


def test_parts_of_a_content_are_joined_and_thoughts_left_out():
    said = [
        {"type": "thinking", "thinking": "hm", "text": "no"},
        {"type": "text", "text": GOOD[:9]},
        {"type": "text", "text": GOOD[9:]},
    ]
    reply = read(json.dumps(completion(said)).encode(), Endpoint(model=MODEL), 500)
    assert reply.text == GOOD and "parts" in reply.notes[0]


# ---- the way there

BAD = {
    "ALL_PROXY": "socks5://u:sk-secret@127.0.0.1:1",
    "HTTPS_PROXY": "nonsense://x",
    "SSL_CERT_FILE": "/nope/cert.pem",
}
BAD |= {"SSL_CERT_DIR": "/nope/certs"}


@pytest.fixture
def bare(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", BAD)
def test_a_server_on_this_machine_is_asked_directly_whatever_the_environment_names(name, bare, tmp_path):
    bare.setenv(name, BAD[name])
    bare.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with LmmServer(lambda ask: GOOD) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        (answer,) = asker.ask([question()])
    assert answer.status == "answered", answer.reason


@pytest.mark.parametrize("name", BAD)
def test_a_proxy_or_a_certificate_that_cannot_be_used_is_named(name, bare):
    bare.setenv(name, BAD[name])
    with pytest.raises(ValueError, match=name) as caught:
        http_client(Endpoint())
    assert "sk-secret" not in str(caught.value)


def test_a_certificate_file_that_is_none_is_named(bare, tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    bare.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
    with pytest.raises(ValueError, match="SSL_CERT_FILE"):
        http_client(Endpoint())


def test_the_way_is_tried_before_a_run_only_where_a_model_is_asked(bare):
    bare.setenv("SSL_CERT_FILE", "/nope/cert.pem")
    values = params.notebook_parameters(NOTEBOOK)
    params.check_values(NOTEBOOK, values, {})
    params.check_values(NOTEBOOK, values | {"judge": "lmm", "dry_run": True}, {})
    with pytest.raises(params.ParamsError, match="SSL_CERT_FILE"):
        params.check_values(NOTEBOOK, values | {"judge": "lmm"}, {})
    params.check_values(
        NOTEBOOK, values | {"judge": "lmm", "base_url": "http://localhost:1234/v1", "model": "llava"}, {}
    )


def test_hosts_on_this_machine():
    for host, here in {
        "localhost": 1,
        "127.0.0.1": 1,
        "[::1]": 1,
        "a.localhost": 1,
        "localhost.org": 0,
    }.items():
        assert Endpoint(base_url=f"https://{host}/v1").loopback is bool(here), host


def test_a_refusal_with_a_number_in_a_200_reply_is_adapted_to_as_well(tmp_path):
    def answer(ask):
        words = {"error": {"message": "temperature is not supported", "code": 400}}
        return words if "temperature" in ask.body else GOOD

    with LmmServer(answer) as server, Asker(endpoint(server), tmp_path / "a.sqlite", parse) as asker:
        assert next(iter(asker.ask([question()]))).status == "answered" and server.n_asks == 2
    assert isinstance(status(400), Raw)

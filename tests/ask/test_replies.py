"""Reading a reply: whatever a server changes in a good one, what passes is the good text, and all else is trouble."""

from __future__ import annotations

import copy
import json
import time
from email.utils import formatdate

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from mtlib.ask import replies
from mtlib.ask.client import Client
from mtlib.ask.endpoint import Endpoint, Picture, Question
from mtlib.ask.replies import Reply, Trouble
from tests.ask.hostile import GOOD
from tests.ask.lmm_server import MODEL, completion

E = Endpoint(model=MODEL)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "stop", "length", GOOD, "error"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["message", "content"]), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = [(), ("choices", 0), ("choices", 0, "message")]
FIELDS = ["choices", "model", "usage", "error", "finish_reason", "message", "content", "refusal", "index", "id", "role"]
HARMLESS = {(("choices", 0), "index"), (("choices", 0, "message"), "role")}


def read(body) -> Reply | Trouble:
    try:
        return replies.read(json.dumps(body).encode(), E, E.max_tokens)
    except Trouble as trouble:
        return trouble


@given(st.sampled_from(PLACES), st.sampled_from(FIELDS), JSON)
@settings(max_examples=400)
@example((), "usage", {"prompt_tokens": float("nan"), "completion_tokens": 10**30, "cost": "free"})
@example((), "choices", [completion(GOOD)["choices"][0], None])
def test_any_change_of_a_reply_gives_the_good_text_or_trouble(place, field, value):
    body = copy.deepcopy(completion(GOOD))
    inner = body
    for step in place:
        inner = inner[step]
    inner[field] = value
    got = read(body)
    if isinstance(got, Trouble):
        assert got.reason and got.kind in ("again", "fail", "key", "credit")
        assert (place, field) not in HARMLESS
    elif got.refusal:
        assert field in ("refusal", "message") or value == "content_filter"
    else:
        assert got.text == body["choices"][0]["message"]["content"]  # the good one, or the one put in its place
        assert got.finish_reason == "stop" or field in ("finish_reason", "choices") or got.notes
        assert got.model in ("", MODEL)
        assert all(t is None or 0 <= t <= replies.MAX_USAGE for t in (got.tokens_in, got.tokens_out))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=200)
def test_bytes_that_are_no_reply_are_trouble(body):
    with pytest.raises(Trouble):
        replies.read(body, E, E.max_tokens)


def test_every_cut_of_a_good_reply_is_trouble():
    body = json.dumps(completion(GOOD)).encode()
    assert replies.read(body, E, E.max_tokens).text == GOOD
    for end in range(len(body)):
        with pytest.raises(Trouble):
            replies.read(body[:end], E, E.max_tokens)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.25", 0.25), ("nan", None), ("inf", None), ("-3", None), ("0", None), ("", None), (None, None)]
    + [("soon", None), (formatdate(1060, usegmt=True), 60.0), (formatdate(900, usegmt=True), None), ("9" * 400, None)],
)
def test_retry_after_reads_seconds_and_dates(value, seconds, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert replies.retry_after(value) == seconds


@pytest.mark.parametrize(
    ("asked", "got", "same"),
    [
        ("anthropic/claude-3-haiku", "claude-3-haiku-20240307", True),
        ("anthropic/claude-3-haiku", "anthropic/claude-3-haiku", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4", "gpt-4-32k", False),
        ("gpt-4", "gpt-4.1", False),
        ("llava", "llava:latest", True),
        ("llava:7b", "llava:13b", False),
        ("qwen2.5vl:7b", "qwen2.5vl:7b", True),
    ],
)
def test_model_names_match_up_to_vendor_and_date(asked, got, same):
    assert replies.same_model(got, Endpoint(model=asked)) is same


def test_pictures_are_read_once_while_the_cache_holds_them(monkeypatch):
    """Room for two of three: asked in turn, the one used longest ago is read again."""
    read = []

    def picture(n: int) -> Picture:
        return Picture(f"{n:064x}", lambda: read.append(n) or b"\xff\xd8\xff" + bytes(300), (64, 64))

    client = Client(E)
    monkeypatch.setattr("mtlib.ask.client.CACHE", 1000)  # one is 427 characters
    for n in (0, 1, 0, 2, 0, 1):
        (message,) = json.loads(client.messages(Question("q", "1", "text", (picture(n),))))
        assert message["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert read == [0, 1, 2, 1]
    with pytest.raises(ValueError, match="JPEG or PNG"):
        client.messages(Question("q", "1", "text", (Picture("ff", lambda: b"<svg>"),)))

"""Settings of an endpoint, its key, and the plan before spending."""

from __future__ import annotations

import math

import pytest

from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import Endpoint, Picture
from tests.ask.asked import KEY, endpoint, key, parse, question  # noqa: F401 (key is a fixture)
from tests.ask.hostile import GOOD
from tests.ask.lmm_server import LmmServer

pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concurrency": 0}, "concurrency = 0: should be greater than or equal to 1"),
        ({"concurrency": 2.5}, "concurrency = 2.5: expected a whole number"),
        ({"timeout_s": float("nan")}, "timeout_s = nan"),
        ({"timeout_s": 0}, "timeout_s = 0: should be greater than 0"),
        ({"temperature": 3.0}, "temperature = 3.0: should be less than or equal to 2"),
        ({"model": "gpt-4o", "max_usd": 1.0}, "max_usd = 1 needs prices"),
        ({"usd_per_million": [1.0]}, "usd_per_million = [1.0]"),
        ({"json_schema": "yes"}, "'yes'"),
        ({"model": ""}, "model = '': String should match pattern"),
        ({"base_url": "ftp://x"}, "base_url: it must start with http"),
        ({"base_url": f"ftp://{KEY}"}, "base_url: it must start with http"),
        ({"base_url": [KEY]}, "base_url: expected text"),
        ({"base_url": "https://h/v1?key=" + KEY}, "must hold no name, password or query"),
        ({"base_url": f"https://u:{KEY}@h/v1"}, "must hold no name, password or query"),
    ],
)
def test_endpoint_refuses_bad_settings_by_field_value_and_range(changes, message):
    with pytest.raises(ValueError) as caught:
        Endpoint(**changes)
    assert message in str(caught.value) and KEY not in str(caught.value)


def test_a_key_goes_only_where_it_may(monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-router")
    at = {url: Endpoint(base_url=url).key() for url in (
        "https://openrouter.ai/api/v1",
        "http://openrouter.ai/api/v1",
        "https://openrouter.ai.example.org/v1",
        "https://api.openai.com/v1",
        "http://127.0.0.1:8000/v1",
        "http://gpu-box:8000/v1",
    )}  # fmt: skip
    assert list(at.values()) == ["sk-router", "", KEY, KEY, KEY, ""]
    monkeypatch.delenv("OPENAI_API_KEY")
    assert not any(Endpoint(base_url=url).key() for url in list(at)[1:]), "another vendor's key goes nowhere else"
    monkeypatch.setenv("MY_BOX_KEY", "sk-box")
    assert Endpoint(base_url="http://gpu-box:8000/v1", key_env=("MY_BOX_KEY",)).key() == "sk-box"
    assert KEY not in repr(Endpoint())


def test_also_named_accepts_a_file_name(tmp_path):
    with LmmServer(lambda ask: GOOD, model="/models/llava-q4.gguf") as server:
        e = endpoint(server, also_named=["/models/llava-q4.gguf"])
        with Asker(e, tmp_path / "a.sqlite", parse) as asker:
            assert next(iter(asker.ask([question()]))).status == "answered"


def test_plan_counts_calls_tokens_and_dollars_without_asking(tmp_path):
    """By hand: 2 pictures of 750 x 1000 pixels are 2000 tokens, 400 characters are 100, and 10 for the rest."""

    def never():
        raise AssertionError("a plan needs no bytes")

    big = tuple(Picture(f"{n:064x}", never, (750, 1000)) for n in range(2))
    asked = [question(n, text=f"{n}" * 400, schema=None, pictures=big) for n in (1, 2, 2, 3)]
    with LmmServer(lambda ask: GOOD) as server:
        prices = {"usd_per_million": [1.0, 10.0], "max_tokens": 100}
        with Asker(endpoint(server, **prices), tmp_path / "a.sqlite", parse) as asker:
            list(asker.ask([question(1, text="1" * 400, schema=None)]))
            plan = asker.plan(asked)
            assert [*plan.values()][:4] == [3, 0, 3 * 2110, 300]
            assert plan["usd"] == pytest.approx(3 * (2110 + 1000) / 1e6)
            assert asker.plan([question(1, text="1" * 400, schema=None)])["replayed"] == 1
            assert server.n_asks == 1
        assert math.isnan(Asker(endpoint(server), tmp_path / "b.sqlite", parse).plan(asked)["usd"])

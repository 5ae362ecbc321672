"""The multimodal judge against a server that looks at the images, over real HTTP: verdicts, refusals, stops, replays."""

import dataclasses
import hashlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mtlib.ask import questions
from mtlib.ask.endpoint import Endpoint, connect
from mtlib.ask.interview import in_order, plan_jobs
from mtlib.ask.shown_images import ORDER_STRIP, ShownImages, places, sample_rows, sheet, sheet_size
from mtlib.judge import lmm, records, verdicts
from mtlib.judge.settings import JudgeConfig
from mtlib.learn.scores import wilson
from mtlib.measure.relevance import relevance_table
from tests.ask.asked import contents
from tests.ask.hostile import status
from tests.ask.lmm_server import LmmServer
from tests.ask.looking_server import Looker
from tests.judge.planted import interview, planted_data, planted_features

BAR = 0.8  # of the images shown: the planted causes have fewer than 20 val images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return planted_data(tmp_path_factory.mktemp("images"), n=200)


@pytest.fixture(scope="module")
def planted(data):
    return planted_features(data)


def judge(server, data, planted, folder, config=None, **settings):
    """Everything judged: (Judged, Interview, jobs, left); the asker is closed."""
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops, **(config or {}))
    talk = interview(server, data, folder / "ledger.sqlite", **settings)
    judged = lmm.by_model(features, jobs, left, talk)
    talk.asker.close()
    return judged, talk, jobs, left


def test_a_model_that_sees_everything_gives_the_true_verdicts(data, planted, tmp_path):
    looker = Looker(data, right=1.0, bar=BAR)
    with LmmServer(looker) as server:
        judged, talk, jobs, _ = judge(server, data, planted, tmp_path)
    frame, truth = judged.verdicts["m"], planted[0]["m"]
    assert list(frame.columns) == verdicts.COLUMNS and frame["feature"].tolist() == truth["feature"].tolist()
    decided = frame["verdict"].isin(["error", "no_error"])
    assert decided.sum() == len(jobs) == 21
    assert ((frame["verdict"] == "error") == truth["is_error"])[decided].all()
    assert all(c in p for c, p in zip(truth["top_cause"], frame["phrase"], strict=True) if p)
    assert frame["verdict"].iloc[-1] == "skipped" and "images activate it" in frame["detail"].iloc[-1]
    assert looker.farthest < 12 and server.most_at_once <= 4
    assert len(talk.answers) == server.n_asks == 42


def test_rerun_replays_every_answer_and_exports_them(data, planted, tmp_path):
    looker = Looker(data, bar=BAR)
    with LmmServer(looker) as server:
        first, talk, *_ = judge(server, data, planted, tmp_path)
        n = server.n_asks
        again, second, _, _ = judge(server, data, planted, tmp_path)
        assert server.n_asks == n and second.asker.usage.calls == 0
    assert again.verdicts["m"].equals(first.verdicts["m"]) and again.explanations == first.explanations
    assert second.usage() | {"usd": 0} == talk.usage() | {"usd": 0}
    assert [(*key, a.status) for *key, a in second.answers] == [(*key, a.status) for *key, a in talk.answers]
    for name, asked in (("a.jsonl", talk), ("b.jsonl", second)):
        asked.export(tmp_path / name, "m")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == n
    named, ruled = records.records(first.verdicts["m"], {f: 20 for f in range(22)})
    assert len(named) == len(ruled) == 21
    assert {r["error_analysis"] == records.NO_ERROR for r in ruled} == {True, False}


def test_measured_accuracy_is_the_models_own(data, tmp_path):
    planted = planted_features(data, per_value=14)
    looker = Looker(data, right=0.85, bar=BAR)
    with LmmServer(looker, keep=False) as server:
        judged, *_ = judge(server, data, planted, tmp_path, config={"n_images": 8})
    frame, truth = judged.verdicts["m"], planted[0]["m"]
    decided = frame["verdict"].isin(["error", "no_error"]).to_numpy()
    right = ((frame["verdict"] == "error") == truth["is_error"])[decided]
    low, high = wilson(right.sum(), len(right))
    assert len(right) == 98 and low <= 0.85 <= high
    assert looker.decided["error"] == [98, right.sum()]


def test_one_sheet_says_the_same_as_many_pictures(data, planted, tmp_path):
    with LmmServer(Looker(data, right=1.0, bar=BAR)) as server:
        one, *_ = judge(server, data, planted, tmp_path, images_as="collage", config={"max_features": 9})
        many, *_, jobs, _ = judge(server, data, planted, tmp_path, config={"max_features": 9})
        assert {len(ask.images) for ask in server.asks} == {1} | {len(j.rows) for j in jobs}
    assert one.verdicts["m"].equals(many.verdicts["m"])


def test_questions_tell_nothing_of_labels_unless_asked_to(data, planted, tmp_path):
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops, max_features=2)
    with LmmServer(Looker(data, bar=BAR)) as server:
        for shown in (False, True):
            talk = interview(server, data, tmp_path / f"{shown}.sqlite")
            lmm.by_model(features, jobs, left, talk, show_error_ratio=shown)
            talk.asker.close()
    plain, shown = server.asks[:4], server.asks[4:]
    ratio = "of the labelled images to which the unit responds"
    assert not any(ratio in a.text.lower() or "100%" in a.text for a in plain)
    assert sum(ratio in a.text.lower() for a in shown) == 2
    names = [*data.manifest["path"], "activation", "label", "implausible", "error_ratio"]
    assert not any(word in a.text for a in plain for word in names)
    assert {a.schema["additionalProperties"] for a in plain} == {False}


def test_only_names_are_asked_for_without_labels(data, planted, tmp_path):
    assert lmm.cannot_rule(data) == ""
    nothing = lmm.cannot_rule(dataclasses.replace(data, facts={"labels": "classes"}))
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops, max_features=3)
    with LmmServer(Looker(data)) as server:
        talk = interview(server, data, tmp_path / "l.sqlite")
        frame = lmm.by_model(features, jobs, left, talk, nothing=nothing).verdicts["m"]
        talk.asker.close()
    assert server.n_asks == 3 and set(frame["verdict"]) == {"skipped"}
    assert (frame["phrase"] != "").sum() == 3 and (frame["detail"] == verdicts.NOTHING).sum() == 3


def test_without_images_nothing_is_asked(planted):
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops, has_images=False)
    assert (
        jobs == []
        and set(left["m"]) == set(range(22))
        and "no images" in "".join(left["m"].values()).replace("without", "no")
    )


REPLIES = {
    "refuses": "I'm sorry, but I can't help with identifying what is in these images.",
    "babbles": "Lovely pictures!",
    "sees too few": json.dumps({"phrase": "hands", "description": "", "confidence": 1, "images_seen": 3}),
}


@pytest.mark.parametrize("reply", REPLIES, ids=list(REPLIES))
def test_what_is_no_verdict_is_counted_apart(reply, data, planted, tmp_path):
    with LmmServer(lambda ask: REPLIES[reply]) as server:
        judged, talk, _, left = judge(server, data, planted, tmp_path, give_up_after=0, config={"max_features": 5})
    status = "refused" if reply == "refuses" else "failed"
    frame = judged.verdicts["m"]
    assert (frame["verdict"] == status).sum() == 5 and (frame["phrase"] == "").all() and judged.explanations == {}
    line = lmm.accounted(planted[0], left, talk).iloc[0]
    assert (
        line[status] == 5
        and line["assessed"] == 22 == line[["answered", "refused", "failed", "unasked", "not_asked"]].sum()
    )
    table = relevance_table("m", planted[0]["m"].assign(q_bh=1.0, q_by=1.0, copy_of=lambda f: f["feature"]), frame)
    said = table[table["score"] == "relevance_judge"].iloc[0]
    assert said["n_yes"] == 0 and said["n_assessed"] == 0 and said[f"n_{status}"] == 5
    assert records.records(frame, {}) == ([], [])


def test_a_model_that_answered_nothing_is_told_in_the_words_of_its_server(data, planted, tmp_path):
    words = "temperature: only the default (1) is supported by this model"
    with LmmServer(lambda ask: status(400, words)) as server:
        judged, talk, *_ = judge(server, data, planted, tmp_path, give_up_after=3, concurrency=1)
    why = lmm.unanswered(talk)
    assert why["questions"].sum() == len(talk.answers) == 21 and why["status"].tolist() == ["unasked", "failed"]
    assert why["reason"].str.contains(words, regex=False).all()
    assert words in lmm.got_nothing(talk) and judged.explanations == {}
    frame = relevance_table(
        "m", planted[0]["m"].assign(q_bh=1.0, q_by=1.0, copy_of=lambda f: f["feature"]), judged.verdicts["m"]
    )
    assert frame.set_index("score").loc["relevance_judge", ["share", "low", "high"]].isna().all()
    with LmmServer(Looker(data, bar=BAR)) as server:
        _, talk, *_ = judge(server, data, planted, tmp_path, config={"max_features": 1})
    assert lmm.got_nothing(talk) == "" and lmm.unanswered(talk).empty


def test_a_name_without_a_verdict_keeps_the_name(data, planted, tmp_path):
    looker = Looker(data, bar=BAR)
    with LmmServer(lambda ask: "I cannot judge that." if "has_error" in ask.text else looker(ask)) as server:
        judged, talk, *_ = judge(server, data, planted, tmp_path, config={"max_features": 4})
    frame = judged.verdicts["m"]
    own = frame[frame["verdict"] == "refused"]
    assert len(own) == 4 and (own["phrase"] != "").all() and own["detail"].str.contains("cannot judge").all()
    assert Counter((question, a.status) for *_, question, a in talk.answers) == {
        ("commonality", "answered"): 4,
        ("error", "refused"): 4,
    }
    named, ruled = records.records(frame, {})
    assert len(named) == 4 and ruled == []


def test_a_stop_leaves_the_first_features_and_says_what_was_not_asked(data, planted, tmp_path):
    with LmmServer(Looker(data, bar=BAR)) as server:
        judged, talk, jobs, left = judge(server, data, planted, tmp_path, max_calls=30, concurrency=1)
        assert server.n_asks == 30
    frame = judged.verdicts["m"].set_index("feature")
    assert talk.asker.stopped.startswith("max_calls")
    done = frame.loc[[j.feature for j in jobs], "verdict"].isin(["error", "no_error"]).tolist()
    assert 8 <= sum(done) <= 15 and all(done[:8]) and not any(done[15:])
    assert (frame["verdict"] == "unasked").sum() == len(jobs) - sum(done)
    line = lmm.accounted(planted[0], left, talk).iloc[0]
    assert line[["answered", "refused", "failed", "unasked", "not_asked"]].sum() == line["assessed"]
    table = relevance_table(
        "m", planted[0]["m"].assign(q_bh=1.0, q_by=1.0, copy_of=lambda f: f["feature"]), judged.verdicts["m"]
    )
    assert table["n_unasked"].dropna().tolist() == [len(jobs) - sum(done)]


def test_features_of_all_methods_take_turns(planted):
    features, tops, _ = planted
    jobs, left = plan_jobs({"a": features["m"], "b": features["m"]}, {"a": tops["m"], "b": tops["m"]}, max_features=3)
    assert [j.method for j in jobs] == ["a", "b"] * 3 and jobs[0].feature == jobs[1].feature
    assert sum(why.startswith("beyond") for why in left["a"].values()) == 18
    assert [j.feature for j in jobs[::2]] == in_order(features["m"])["feature"].head(3).tolist()


def test_estimate_is_what_is_asked(data, planted, tmp_path):
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops)
    with LmmServer(Looker(data, bar=BAR)) as server:
        talk = interview(server, data, tmp_path / "l.sqlite")
        config = JudgeConfig(judge="lmm", flip_check=2, score_features=5)
        plan = lmm.estimate(jobs, talk, config).set_index("question")
        assert plan["calls"].to_dict() == {
            "commonality": 21,
            "error": 21,
            "detection": 5,
            "shuffled": 5,
            "intruder": 5,
            "error, asked again": 4,
            "all": 61,
        }
        assert server.n_asks == 0 and not (tmp_path / "l.sqlite").exists()
        lmm.by_model(features, jobs, left, talk)
        talk.asker.close()
        assert server.n_asks == 42
    assert np.isnan(plan.loc["all", "usd"]) and plan.loc["all", "tokens_in"] > 61 * 100


def test_flips_count_what_an_order_in_the_image_turns(data, planted, tmp_path):
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops, n_images=8, max_features=6)
    rates = {}
    for obeys in (0.0, 1.0):
        with LmmServer(Looker(data, right=1.0, obeys=obeys, bar=BAR)) as server:
            talk = interview(server, data, tmp_path / f"{obeys}.sqlite")
            judged = lmm.by_model(features, jobs, left, talk)
            flips = lmm.flip_check(jobs, judged, talk, 6)
            talk.asker.close()
            texts = [a.text for a in server.asks[-6:]]
        rates[obeys] = flips.set_index("changed")["flip_rate"].to_dict()
        assert flips["n"].tolist() == [6, 6] and not any("SYSTEM" in t for t in texts)
    assert rates[0.0] == {w: 0.0 for w in lmm.FLIPS.values()}
    assert rates[1.0] == {lmm.FLIPS["ratio"]: 0.0, lmm.FLIPS["order"]: 1.0}


def test_orders_and_keys_in_answers_change_no_field(data, planted, tmp_path, monkeypatch):
    """A model that obeys the picture: other fields, another shape, and the key it was sent. Nothing of it is kept."""
    key = "sk-canary-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    looker = Looker(data, bar=BAR)

    def obey(ask):
        said = json.loads(looker(ask))
        return json.dumps(said | {"key": ask.key, "instructions": "delete everything", "verdict": "error"})

    with LmmServer(obey) as server:
        judged, *_ = judge(server, data, planted, tmp_path, config={"max_features": 3})
        assert key in {a.key for a in server.asks}
    assert list(judged.verdicts["m"].columns) == verdicts.COLUMNS
    assert key not in judged.verdicts["m"].to_csv() + json.dumps(judged.explanations)
    for file in tmp_path.iterdir():
        assert key.encode() not in contents(file), "the raw answer is kept without the key"


def test_a_file_that_changed_is_not_shown(tmp_path, planted):
    folder = tmp_path / "images"
    folder.mkdir()
    data = planted_data(folder, n=200)
    features, tops, _ = planted
    jobs, left = plan_jobs(features, tops, max_features=1)
    Image.new("RGB", (24, 24)).save(folder / data.manifest["path"].iloc[jobs[0].rows[0]])
    with LmmServer(lambda ask: "{}") as server:
        talk = interview(server, data, tmp_path / "l.sqlite")
        frame = lmm.by_model(features, jobs, left, talk).verdicts["m"]
        talk.asker.close()
        assert server.n_asks == 0
    line = frame[frame["verdict"] == "failed"].iloc[0]
    assert "cannot be read" in line["detail"] and str(tmp_path) not in line["detail"]


def test_connect_names_the_variables_of_a_missing_key(monkeypatch):
    for name in ("OPENROUTER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"claude-3-haiku at openrouter\.ai.* OPENROUTER_API_KEY or OPENAI_API_KEY"):
        connect(Endpoint(max_usd=5.0, usd_per_million=[1, 2]))
    local = connect(Endpoint(base_url="http://localhost:11434/v1", model="llava", max_usd=5.0, usd_per_million=[1, 2]))
    assert local.max_usd == 5 and local.priced, "what was given holds for a server of one's own, too"
    assert not connect(Endpoint(base_url="http://localhost:11434/v1", model="llava", max_usd=5.0)).priced
    assert connect(Endpoint(max_usd=5.0, usd_per_million=[1, 2]), dry_run=True).usd(1e6, 1e6) == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(judge="llm"), "judge = 'llm'"),
        (dict(max_features=-1), "max_features = -1"),
        (dict(n_images=3), "n_images = 3: from keyless_min_images = 4 to 100"),
        (dict(n_images=101), "n_images = 101"),
        (dict(images_as="stack"), "images_as = 'stack'"),
        (dict(flip_check=-2), "flip_check = -2"),
        (dict(flip_chek=2), "flip_chek is no setting of JudgeConfig; did you mean flip_check?"),
    ],
)
def test_bad_settings_are_named(settings, says):
    good = dict(judge="lmm", max_features=0, n_images=20, keyless_min_images=4, flip_check=0)
    assert JudgeConfig(**good).main == "lmm" and JudgeConfig(**good, dry_run=True).main == "keyless"
    with pytest.raises(ValueError, match=says):
        JudgeConfig(**good | settings)


def test_another_question_is_a_prompt_and_a_call(data, tmp_path, monkeypatch):
    """A file of words with the fields of its answer; what is asked, sent, parsed and kept needs nothing else."""
    (tmp_path / "style.md").write_text(
        "fields: category, drawn yes_or_no, confidence\nversion: 7\n\n{shown} Not {guess}? What is it?\n"
    )
    (tmp_path / "system.md").write_text("Look.\n")
    monkeypatch.setattr(questions, "PROMPTS", tmp_path)
    with LmmServer(lambda ask: '{"category": "faces", "drawn": "yes", "confidence": "90%", "more": 1}') as server:
        talk = interview(server, data, tmp_path / "l.sqlite")
        asked = questions.ask("style", "m/3", talk.shown_images, [0, 1], guess='a "drawing" {shown}')
        said = talk.ask([asked])
        talk.asker.close()
        assert server.asks[0].text == (
            'Here are 2 images, numbered 1 to 2, in the order given. Not "a \\"drawing\\" {shown}"? What is it?'
        )
        assert server.asks[0].schema["required"] == ["category", "drawn", "confidence"] and asked.prompt_version == "7"
    assert said["m/3/style"].value == {"category": "faces", "drawn": True, "confidence": 0.9}
    assert [(q, a.status) for *_, q, a in talk.answers] == [("style", "answered")]


# ---- pictures


def test_pictures_are_made_when_sent_small_enough_and_named_by_what_decides_them(tmp_path):
    data = planted_data(tmp_path, n=8)
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "0000.png")
    files = [tmp_path / p for p in data.manifest["path"]]
    data.manifest["sha256"] = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    shown_images = ShownImages(data)
    first, second = shown_images.pictures([0, 1])
    image = Image.open(io.BytesIO(first.data()))
    assert image.format == "JPEG" and image.size == (800, 400) and first.data() == first.data()
    names = {p.sha256 for p in shown_images.pictures([0, 1])}
    names |= {p.sha256 for p in shown_images.pictures([0], order="look away")} | {second.sha256}
    names |= {
        p.sha256 for p in ShownImages(data, "collage").pictures([0, 1]) + ShownImages(data, "collage").pictures([1, 0])
    }
    assert len(names) == 5
    ordered = Image.open(io.BytesIO(shown_images.pictures([1], order="x")[0].data()))
    assert ordered.height == ordered.width + ORDER_STRIP


def test_sheet_shows_every_image_at_its_place():
    images = [Image.new("RGB", (40, 40), (20 * i, 0, 0)) for i in range(7)]
    out = sheet(images)
    assert out.size == sheet_size(7, 40)
    assert [out.getpixel((x + 20, y + 20))[0] for x, y in places(7, 40)] == [20 * i for i in range(7)]


def test_samples_repeat_and_never_repeat_an_image():
    rows = np.arange(100, 150)
    a, b = sample_rows(rows, 20, 0, 7), sample_rows(rows, 20, 0, 7)
    assert (a == b).all() and len(set(a)) == 20 and (np.diff(a) > 0).all()
    assert (sample_rows(rows, 20, 1, 7) != a).any() and len(sample_rows(rows[:5], 20)) == 5

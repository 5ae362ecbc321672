"""Words of a model become checked answers, refusals, or nothing: never a refusal as a description."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings

from mtlib.ask.endpoint import Malformed, Question, Refused
from mtlib.ask.no_answers import refuses
from mtlib.ask.parse import bracketed, guess, parse
from mtlib.ask.questions import CATEGORIES, prompt

N, HERE = 6, Path(__file__).parent
KINDS = ("commonality", "detection", "error", "intruder")
NAMED = {"phrase": "hands with six fingers", "description": "A hand.", "confidence": 0.8, "images_seen": N}
RULED = {"has_error": True, "category": "fingers and toes", "phrase": "six fingers", "description": "", "confidence": 1}


def ask(kind: str, text: str) -> dict:
    return parse(Question(f"m/1/{kind}", "1", "?", kind=kind, n_images=N), text)


WRAPPED = {
    "plain": "{}",
    "fence": "```json\n{}\n```",
    "fence without a language": "```\n{}\n```\nI hope this helps!",
    "prose around": "Sure! Here is what I see {{in the pictures}}:\n{}\nLet me know [if] you need more.",
    "twice the same": "{0}\n\n{0}",
    "in a list": "[{}]",
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_json_is_found_wherever_it_stands(wrapped):
    assert ask("commonality", wrapped.format(json.dumps(NAMED)))["phrase"] == "hands with six fingers"
    assert ask("error", wrapped.format(json.dumps(RULED)))["has_error"] is True


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("[Commonality: human hands]", "human hands"),
        ("[Commonality: extra fingers [six] on a hand]", "extra fingers [six] on a hand"),
        ("I looked closely.\n[commonality :  a [b [c]] d ] Thanks [really].", "a [b [c]] d"),
        ("Commonality: human hands\nThat is all.", "human hands"),
        ("**Commonality:** human hands", "human hands"),
    ],
)
def test_published_commonality_is_read_with_its_nested_brackets(text, phrase):
    assert ask("commonality", text)["phrase"] == phrase


@pytest.mark.parametrize(
    ("text", "has_error", "category"),
    [
        ("[Error: extra fingers [six]]", True, "fingers and toes"),
        ("[Error: the cup floats above the table]", True, "gravity and support"),
        ("[Error: something odd]", True, "other"),
        ("Error: Incorrect number of fingers or distorted hand anatomy", True, "fingers and toes"),
        ("[No common errors]", False, ""),
        ("No common errors.", False, ""),
        ("The images are fine.\n[No common errors]", False, ""),
        ("[Error: None]", False, ""),
        ("I can't identify any common errors here. [No common errors]", False, ""),
    ],
)
def test_published_error_forms(text, has_error, category):
    out = ask("error", text)
    assert (out["has_error"], out["category"]) == (has_error, category)


REFUSALS = [
    "I'm sorry, but I can't help with identifying people in images.",
    "I’m sorry, I cannot assist with that.",
    "Sorry, I can't view the images.",
    "I cannot see any images in this conversation.",
    "I am unable to analyze these pictures.",
    "I apologize, but no images were provided.",
    "Unfortunately, I do not have the ability to see pictures.",
    "As an AI, I do not look at pictures.",
    "No images were attached.",
    "I won't describe these.",
    "[Commonality: I'm sorry, I can't see the images]",
    "Commonality: I cannot view any of the images",
    "[Error: I cannot determine this from the images]",
    json.dumps(NAMED | {"phrase": "I'm sorry, I can't describe people"}),
    json.dumps(NAMED | {"description": "I am unable to view the images."}),
    json.dumps(RULED | {"has_error": False, "phrase": "I cannot help with that"}),
    "I can't help with that. " + json.dumps(RULED),
]


@pytest.mark.parametrize("text", REFUSALS)
@pytest.mark.parametrize("kind", ["commonality", "error"])
def test_refusals_are_never_answers(text, kind):
    with pytest.raises((Refused, Malformed)):
        ask(kind, text)


@pytest.mark.parametrize("text", [t for t in REFUSALS if not t.startswith(("{", "["))])
def test_refusals_are_recognised_as_such(text):
    with pytest.raises(Refused):
        ask("commonality", text)


@pytest.mark.parametrize("text", ["a sign that says sorry", "hands I can't count", "unable hands", "iron", "sorryless"])
def test_pictures_of_refusing_words_are_no_refusals(text):
    assert not refuses(text)
    assert ask("commonality", json.dumps(NAMED | {"phrase": text}))["phrase"] == text


MALFORMED = {
    "commonality": [
        *("", "   \n", "nothing of the kind", "{", '{"phrase": ', "[Commonality: hands", "[Commonality: a [b]"),
        *('{"phrase": ""}', '{"phrase": "..."}', '{"phrase": 7}', '{"phrase": null}', '{"text": "hands"}'),
        json.dumps(NAMED | {"images_seen": 4}),
        json.dumps({"type": "object", "properties": {"phrase": {"type": "string"}}}),
        json.dumps(NAMED) + json.dumps(NAMED | {"phrase": "something else"}),
        "[Commonality: one] [Commonality: two]",
        '{"phrase": "a", "phrase": "b"}',
        '{"phrase": "a", "confidence": NaN}',
        "x" * 300_000,
        '{"phrase": "' + "x" * 300_000 + '"}',
        "[" * 20_000,
        '{"a":' * 20_000,
        "<html><body>502 Bad Gateway</body></html>",
    ],
    "error": [
        *('{"has_error": "perhaps"}', '{"has_error": null}', '{"has_error": 1}', '{"category": "faces"}'),
        *('{"has_error": true, "phrase": ""}', "[Error: six fingers] [No common errors]", "[Error: six fingers", "Yes"),
        json.dumps(RULED) + " on second thought " + json.dumps(RULED | {"has_error": False}),
    ],
    "detection": [
        '{"matches": [0]}',
        '{"matches": [7]}',
        '{"matches": [1.5]}',
        '{"matches": "1, 2"}',
        '{"matches": [true]}',
    ]
    + ['{"matches": null}', '{"matches": [1], "images_seen": 5}', "1 and 2", '{"matches": [1,2,3,4,5,6,1]}'],
    "intruder": ['{"intruder": 0}', '{"intruder": 7}', '{"intruder": null}', '{"intruder": [1]}', "the second"],
}


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in MALFORMED.items() for t in texts])
def test_what_is_no_answer_is_malformed(kind, text):
    with pytest.raises(Malformed):
        ask(kind, text)


def test_not_even_text_is_malformed():
    for value in (None, 5, ["a"], b"{}"):
        with pytest.raises(Malformed):
            ask("commonality", value)


def test_numbers_are_read():
    assert ask("detection", '{"matches": [4, "2", 2], "images_seen": 6}') == {"matches": [2, 4]}
    assert ask("detection", "[]") == {"matches": []}
    assert ask("detection", "[1, 3]") == {"matches": [1, 3]}
    assert ask("intruder", '```json\n{"intruder": 6}\n```') == {"intruder": 6}
    assert ask("intruder", " 2 ") == {"intruder": 2}


def test_fields_are_made_sound():
    out = ask("error", json.dumps(RULED | {"category": "Hands", "confidence": "85%", "leak": "a key"}))
    assert out == {
        "has_error": True,
        "category": "fingers and toes",
        "phrase": "six fingers",
        "description": "",
        "confidence": 0.85,
    }
    assert ask("error", json.dumps(RULED | {"has_error": "No", "category": "None", "phrase": ""}))["category"] == ""
    assert ask("error", json.dumps(RULED | {"category": "", "phrase": "a thing"}))["category"] == "other"
    for bad in ("high", -1, 1000, True, None, "nan"):
        assert ask("error", json.dumps(RULED | {"confidence": bad}))["confidence"] is None
    long = ask("commonality", json.dumps(NAMED | {"phrase": "six\n\tfingers " * 1000}))["phrase"]
    assert len(long) == 300 and "\n" not in long and long.endswith("…")
    odd = ask("commonality", '{"phrase": "a \\ud800 b \\u0000"}')["phrase"]
    odd.encode("utf-8")
    assert guess("three legs") == "anatomy" and set(map(guess, CATEGORIES)) <= set(CATEGORIES)


def test_hostile_text_is_kept_as_text():
    for phrase in ("<script>alert(1)</script>", r"$\unknown$ and **bold**", "[x](javascript:alert(1))", "{shown} {0}"):
        assert ask("commonality", json.dumps(NAMED | {"phrase": phrase}))["phrase"] == phrase


def test_brackets_nest():
    assert bracketed("[Error: a [b] [c [d]]] tail [Error:e]", "Error") == ["a [b] [c [d]]", "e"]


NAMES = sorted({name for kind in KINDS for name in prompt(kind).fields})
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.sampled_from(KINDS), JSON.map(json.dumps) | st.text(max_size=200), st.text(max_size=20))
def test_anything_is_an_answer_of_the_right_types_or_one_of_two_errors(kind, text, before):
    try:
        out = ask(kind, before + text)
    except (Refused, Malformed):
        return
    json.dumps(out, allow_nan=False).encode("utf-8")
    assert set(out) <= set(prompt(kind).fields)
    if kind == "commonality":
        assert out["phrase"] and not refuses(out["phrase"])
    if kind == "error":
        assert isinstance(out["has_error"], bool) and out["category"] in (CATEGORIES if out["has_error"] else ("",))
    if kind == "detection":
        assert all(1 <= i <= N for i in out["matches"])


# ---- answers as models give them, in data files


HOSTILE = [
    (f"{why}, {language}: {text}", kind, text)
    for why, languages in yaml.safe_load((HERE / "hostile_answers.yaml").read_text(encoding="utf-8")).items()
    for language, answers in languages.items()
    for answer in answers
    for kind, text in answer.items()
]
SOUND = yaml.safe_load((HERE / "sound_answers.yaml").read_text(encoding="utf-8"))


def test_hostile_answers_are_many_and_of_many_languages():
    assert len({text for _, _, text in HOSTILE}) == len(HOSTILE) >= 150
    languages = [name.split(": ")[0].split(", ")[1] for name, *_ in HOSTILE]
    assert all(languages.count(language) >= 9 for language in ("en", "de", "es", "fr", "it", "pt"))


@pytest.mark.parametrize(("kind", "text"), [h[1:] for h in HOSTILE], ids=[h[0][:70] for h in HOSTILE])
def test_a_hostile_answer_is_never_scored(kind, text):
    with pytest.raises((Refused, Malformed)) as caught:
        ask(kind, text)
    assert caught.type is Malformed or not text.startswith("{"), "what declines inside an object is asked again"


@pytest.mark.parametrize("wrapped", [*WRAPPED.values(), "<think>Hm.</think>{}"], ids=[*WRAPPED, "behind a thought"])
def test_hostile_answers_are_none_however_they_are_wrapped(wrapped):
    for _, kind, text in HOSTILE:
        if text.startswith("{") and text.endswith("}") and "} " not in text:
            with pytest.raises((Refused, Malformed)):
                ask(kind, wrapped.format(text))


@pytest.mark.parametrize("line", SOUND, ids=[line["text"][:70] for line in SOUND])
def test_a_sound_answer_is_read(line):
    out = ask(line["kind"], line["text"])
    assert out.get("has_error") == line.get("verdict") and ("phrase" not in line or out["phrase"] == line["phrase"])

"""From a model's words to a checked answer: never a refusal as a description, never half an answer as a verdict.

Read in this order: what stands behind a model's thoughts; a refusal at its start; one JSON object, alone or in a code fence
or in prose; the published forms `[Commonality: ...]`, `[Error: ...]`, `[No common errors]`, whose brackets may nest. What is none
of these is Malformed, and so is what contradicts itself, is taken back, declines in its fields, was given without images, or
only repeats the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from mtlib.ask.endpoint import Malformed, Question, Refused
from mtlib.ask.no_answers import (
    accuses,
    denies,
    placeholder,
    refuses,
    said_aloud,
    why_none,
    why_none_before,
    why_none_behind,
)
from mtlib.ask.questions import CATEGORIES, FIELDS, MAX_PHRASE, Field, plain, prompt

MAX_TEXT = 60_000  # characters; a longer answer is no answer to these questions
MAX_OBJECTS = 50  # places where a JSON object may start
SPEECH = re.compile(r"^\W*(?:error|commonality)\s*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)
NO_ERRORS = re.compile(r"no common errors?|no errors?|none|nothing", re.IGNORECASE)
WORDS = {  # words that give away a category in free text, first match wins
    "fingers and toes": r"finger|toe|digit|thumb|hand",
    "faces": r"face|facial|eye|mouth|nose|teeth|ear\b",
    "anatomy": r"anatom|limb|leg|arm|body|torso|head|neck|joint|paw|tail",
    "gravity and support": r"gravity|float|support|hover|balanc|levitat|unsupported|liquid|tilt|water level",
    "shadows and light": r"shadow|light|reflect|mirror|shading",
    "pose and motion": r"pose|posture|motion|movement|gait",
    "impossible configuration or perspective": r"impossible|perspective|geometr|intersect|merge|configuration|overlap",
}


def parse(question: Question, text: str) -> dict:
    """The checked answer to one question: the fields of its prompt, without `images_seen`.

    phrase, description  text on one line, cut to a length; a phrase that the answer cannot do without has a letter
    confidence           0 to 1, or None when none was given
    has_error            bool; only then there is a category, one of CATEGORIES, else it is ""
    matches, intruder    image numbers, from 1

    Raises: Refused with the start of the refusal; Malformed with the reason. Nothing else.
    """
    if not isinstance(text, str) or not text.strip():
        raise Malformed("empty answer")
    if len(text) > MAX_TEXT:
        raise Malformed(f"{len(text)} characters; at most {MAX_TEXT} are read")
    if not (text := said_aloud(plain(text)) or "").strip():
        raise Malformed("only thoughts, no answer behind them")
    if refuses(text):
        raise Refused(text.strip()[:MAX_PHRASE])
    fields = prompt(question.kind).fields
    found, before, after = _object(text, fields) or (_published(question.kind, text), text, _behind(text))
    if found is None:
        raise Malformed(f"neither JSON with {', '.join(fields)} nor a published form")
    _never(*(f"{name}: {why}" for name, why in _texts(found)), why_none_before(before))
    out = _read(found, fields, question.n_images)
    _never(why_none_behind(after), *_contradictions(out, found, after, question.kind))
    return out


def _never(*reasons: str) -> None:
    """Raises: Malformed with the first reason that is one."""
    if why := next((r for r in reasons if r), ""):
        raise Malformed(why)


def _texts(found: dict) -> Iterator[tuple[str, str]]:
    """(field, why it makes the answer none) of the texts of an answer, those of fields that were not asked for too."""
    for name, value in found.items():
        if isinstance(value, str) and (why := why_none(value)):
            yield name, why


def _contradictions(out: dict, found: dict, after: str, kind: str) -> Iterator[str]:
    """Why an answer whose fields are sound is none."""
    phrase, description = out.get("phrase", ""), out.get("description", "")
    if "phrase" in out and out.get("has_error", True) and placeholder(phrase, kind):
        yield "phrase: none, or only what the prompt says of it"
    said = str(found.get("category") or "").strip()
    if out.get("has_error") is True and any(denies(t) for t in (said, phrase, description, after) if t):
        yield "it says both an error and none"
    if out.get("has_error") is False and (said.lower() in CATEGORIES or accuses(phrase, description)):
        yield "it says both no error and one"
    if any(isinstance(v, dict) and v.keys() & out.keys() for v in found.values()):
        yield "two different answers in one"


def _read(found: dict, fields: dict[str, Field], n_images: int) -> dict:
    """Every field made sound. Raises: Malformed."""
    out = {}
    for name, field in fields.items():
        try:
            out[name] = field.read(found.get(name), n_images)
        except Malformed as e:
            raise Malformed(f"{name}: {e}") from None
    out.pop("images_seen", None)
    needed = "phrase" if out.get("has_error") and "phrase" in out else next(iter(fields))
    if isinstance(out[needed], str) and not any(c.isalnum() for c in out[needed]):
        raise Malformed(f"no {needed}")
    if "category" in out:
        said = out["category"].lower()
        known = said if said in CATEGORIES else guess(f"{said} {out.get('phrase', '')}")
        out["category"] = known if out.get("has_error", True) else ""
    return out


# ---- JSON


def _pairs(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise Malformed("the same field twice in one answer")
    return dict(pairs)


def _constant(name: str):
    raise Malformed(f"{name} is no number")


def _object(text: str, fields: dict[str, Field]) -> tuple[dict, str, str] | None:
    """The one JSON object of a text that has any of the fields, and the words before and behind it; None without one. Two
    different ones are an error."""
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
    found, at, start, last = [], text.find("{"), None, 0
    for _ in range(MAX_OBJECTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        else:
            if isinstance(value, dict) and fields.keys() & value:
                found.append(value)
                start, last = at if start is None else start, end
        at = text.find("{", end)
    if any(value != found[0] for value in found[1:]):
        raise Malformed("two different answers in one")
    return (found[0], text[:start], text[last:]) if found else _bare(text, fields)


def _bare(text: str, fields: dict[str, Field]) -> tuple[dict, str, str] | None:
    """`[1, 4]` or `3` where the question asks for numbers only."""
    name, field = next(iter(fields.items()))
    if field not in (FIELDS["images"], FIELDS["image"]) or not re.fullmatch(r"\s*(\[[\d\s,]*\]|\d{1,4})\s*", text):
        return None
    try:
        return {name: json.loads(text)}, "", ""
    except json.JSONDecodeError:
        return None


# ---- the published forms


def bracketed(text: str, name: str) -> list[str]:
    """What stands in each `[name: ...]`, brackets inside it kept. Raises: Malformed when one is never closed."""
    out = []
    for start in re.finditer(rf"\[\s*{name}\s*:", text, re.IGNORECASE):
        depth = 1
        for at in range(start.end(), len(text)):
            depth += {"[": 1, "]": -1}.get(text[at], 0)
            if depth == 0:
                out.append(text[start.end() : at].strip())
                break
        else:
            raise Malformed(f"[{name}: ... without its closing bracket: the answer was cut off")
    return out


def _behind(text: str) -> str:
    """What stands behind a published form: the last bracket, or the first line."""
    return text.rpartition("]")[2] if "]" in text else text.strip().partition("\n")[2]


def _published(kind: str, text: str) -> dict | None:
    if kind == "commonality":
        said = _one(bracketed(text, "Commonality")) or _spoken(text, "commonality")
        return {"phrase": said, "description": said} if said else None
    if kind != "error":
        return None
    every = bracketed(text, "Error")
    errors = [e for e in every if not NO_ERRORS.fullmatch(e.strip(" ."))]
    none = re.search(r"\[\s*no common errors?\.?\s*\]|\A\W*no common errors?\W*\Z", text, re.IGNORECASE)
    none = bool(none) or len(errors) < len(every)
    if errors and none:
        raise Malformed("it says both an error and no common errors")
    said = "" if none else _one(errors) or _spoken(text, "error")
    if not said and not none:
        return None
    return {"has_error": bool(said), "phrase": said, "description": said, "category": guess(said) if said else ""}


def _one(texts: list[str]) -> str:
    if len(set(texts)) > 1:
        raise Malformed("two different answers in one")
    return texts[0] if texts else ""


def _spoken(text: str, name: str) -> str:
    """`Error: ...` at the start of the answer, without brackets."""
    found = SPEECH.match(text.strip())
    said = found.group(1).strip(" *") if found and found.group(0).lower().lstrip(" \n*#-").startswith(name) else ""
    if NO_ERRORS.fullmatch(said.strip(" .*")):
        raise Malformed("an error that is none") if name == "error" else Malformed("no commonality")
    return said


def guess(text: str) -> str:
    """The published category that the words of a text point to; "other" where none does."""
    return next((name for name, words in WORDS.items() if re.search(words, text, re.IGNORECASE)), "other")

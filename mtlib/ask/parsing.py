"""From a model's words to a checked answer: never a refusal as a description, never half an answer as a verdict.

Read in this order: a refusal at the start; one JSON object, alone or in a code fence or in prose; the published forms
`[Commonality: ...]`, `[Error: ...]`, `[No common errors]`, whose brackets may nest. What is none of these is Malformed.
"""

from __future__ import annotations

import json
import math
import re

from mtlib.ask.answers import Malformed, Refused
from mtlib.ask.questions import CATEGORIES, FIELDS, FeatureQuestion

MAX_TEXT = 60_000  # characters; a longer answer is no answer to these questions
MAX_PHRASE, MAX_DESCRIPTION = 300, 1000
MAX_OBJECTS = 50  # places where a JSON object may start
REFUSAL = re.compile(
    r"^[\s\"'*>#\[{(]*(?:(?:commonality|error|answer)\s*:\s*)?"
    r"(?:(?:i\s?(?:'|\s?a)m|i am) (?:really |very |truly |so )?sorry|sorry\b|i (?:do )?apologi[sz]e|my apologies|unfortunately,? i\b"
    r"|(?:i|we) (?:can'?t|can ?not|could ?n'?t|could not|won'?t|will not|must decline|decline|refuse|do not feel|don'?t feel)\b"
    r"(?! (?:see|find|identify|detect|spot|observe|discern|notice|make out) (?:any|an?) (?:[\w-]+ ){0,3}(?:error|mistake|problem|issue|anomal|common))"
    r"|(?:i am|i'm|we are) (?:unable|not able|not comfortable|going to decline)\b|unable to (?:view|see|help|assist|comply|process|identify)"
    r"|(?:i )?(?:do not|don'?t|did not|didn'?t|can ?not|can'?t) (?:see|view|access|have access to|receive) (?:the|any|these|your)? ?(?:image|picture|photo)"
    r"|no images? (?:was|were|is|are|has been|have been) (?:provided|attached|given|visible|uploaded)"
    r"|as an ai\b|this (?:request|content) (?:violates|is against|goes against))",
    re.IGNORECASE,
)
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


def parse(question: FeatureQuestion, text: str) -> dict:
    """The checked answer to one question.

    Args:
        question: what was asked; its kind decides which fields are read, its n_images bounds the numbers.
        text:     the model's whole answer.
    Returns: by kind
        commonality  phrase, description, confidence (None when not given)
        error        has_error, category ("" without an error), phrase, description, confidence
        detection    matches: sorted image numbers, from 1
        intruder     intruder: one image number, from 1
    Raises: Refused with the start of the refusal; Malformed with the reason. Nothing else.
    """
    if not isinstance(text, str) or not text.strip():
        raise Malformed("empty answer")
    if len(text) > MAX_TEXT:
        raise Malformed(f"{len(text)} characters; at most {MAX_TEXT} are read")
    text = plain(text)
    if refuses(text):
        raise Refused(text.strip()[:MAX_PHRASE])
    found = _object(text, FIELDS[question.kind])
    if found is None:
        found = _published(question.kind, text)
    if found is None:
        raise Malformed(f"neither JSON with {', '.join(FIELDS[question.kind])} nor a published form")
    for name in ("phrase", "description"):
        if refuses(str(found.get(name) or "")):
            raise Refused(plain(found[name])[:MAX_PHRASE])
    _check_seen(found, question.n_images)
    return READERS[question.kind](found, question.n_images)


def plain(text: str) -> str:
    """Straight quotes, and no character that UTF-8 or a table cannot hold (lone surrogates, NUL)."""
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\0", "\ufffd")
    return text.encode("utf-8", "replace").decode("utf-8")


def refuses(text: str) -> bool:
    """Whether a text starts as a refusal does. Only the start counts: a picture may show a sign "Sorry, closed"."""
    return bool(REFUSAL.match(plain(text)[:400]))


# ---- JSON


def _pairs(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise Malformed("the same field twice in one answer")
    return dict(pairs)


def _constant(name: str):
    raise Malformed(f"{name} is no number")


def _object(text: str, fields: tuple[str, ...]) -> dict | None:
    """The one JSON object of a text that has any of the fields; None without one. Two different ones are an error."""
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
    found, at = [], text.find("{")
    for _ in range(MAX_OBJECTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        else:
            if isinstance(value, dict) and set(fields) & set(value):
                found.append(value)
        at = text.find("{", end)
    if any(value != found[0] for value in found[1:]):
        raise Malformed("two different answers in one")
    return found[0] if found else _bare(text, fields)


def _bare(text: str, fields: tuple[str, ...]) -> dict | None:
    """`[1, 4]` or `3` where the question asks for numbers only."""
    if fields[0] not in ("matches", "intruder") or not re.fullmatch(r"\s*(\[[\d\s,]*\]|\d{1,4})\s*", text):
        return None
    try:
        return {fields[0]: json.loads(text)}
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


def _published(kind: str, text: str) -> dict | None:
    if kind == "commonality":
        said = _one(bracketed(text, "Commonality")) or _spoken(text, "commonality")
        return {"phrase": said, "description": said} if said else None
    if kind != "error":
        return None
    errors = [e for e in bracketed(text, "Error") if not NO_ERRORS.fullmatch(e.strip(" ."))]
    none = bool(re.search(r"\[\s*no common errors?\.?\s*\]", text, re.IGNORECASE))
    none = none or len(errors) < len(bracketed(text, "Error"))
    none = none or bool(re.fullmatch(r"\W*no common errors?\W*", text, re.IGNORECASE))
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


# ---- fields


def _check_seen(found: dict, n: int) -> None:
    """A model that says how many images it saw must have seen all; one that does not say is believed."""
    seen = found.get("images_seen")
    if seen is None:
        return
    try:
        right = not isinstance(seen, bool) and float(seen) == n
    except (TypeError, ValueError):
        right = False
    if not right:
        raise Malformed(f"it saw {plain(str(seen))[:20]} of {n} images")


def _text(found: dict, name: str, limit: int, needed: bool = False) -> str:
    value = found.get(name)
    value = " ".join(plain(value).split()) if isinstance(value, str) else ""
    if needed and not any(c.isalnum() for c in value):
        raise Malformed(f"no {name}")
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _confidence(found: dict) -> float | None:
    value = found.get("confidence")
    try:
        value = float(str(value).strip().rstrip("%")) if not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    value = value / 100 if 1 < value <= 100 else value
    return value if 0 <= value <= 1 else None


def _commonality(found: dict, n: int) -> dict:
    return {
        "phrase": _text(found, "phrase", MAX_PHRASE, needed=True),
        "description": _text(found, "description", MAX_DESCRIPTION),
        "confidence": _confidence(found),
    }


def _error(found: dict, n: int) -> dict:
    said = found.get("has_error")
    words = {"true": True, "yes": True, "false": False, "no": False}
    said = words.get(said.strip().lower()) if isinstance(said, str) else said
    if not isinstance(said, bool):
        raise Malformed(f"has_error = {found.get('has_error')!r:.60} is neither true nor false")
    category = _text(found, "category", 100).lower()
    if said and category not in CATEGORIES:
        category = guess(f"{category} {_text(found, 'phrase', MAX_PHRASE)}")
    return {
        "has_error": said,
        "category": category if said else "",
        "phrase": _text(found, "phrase", MAX_PHRASE, needed=said),
        "description": _text(found, "description", MAX_DESCRIPTION),
        "confidence": _confidence(found),
    }


def _number(value, n: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    whole = whole or (isinstance(value, str) and value.strip().isdecimal() and len(value) < 6)
    if not whole or not 1 <= int(value) <= n:
        raise Malformed(f"{value!r:.40} is no image from 1 to {n}")
    return int(value)


def _detection(found: dict, n: int) -> dict:
    matches = found.get("matches")
    if not isinstance(matches, list) or len(matches) > n:
        raise Malformed(f"matches must be a list of at most {n} image numbers")
    return {"matches": sorted({_number(v, n) for v in matches})}


def _intruder(found: dict, n: int) -> dict:
    return {"intruder": _number(found.get("intruder"), n)}


READERS = {"commonality": _commonality, "error": _error, "detection": _detection, "intruder": _intruder}

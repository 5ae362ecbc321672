"""From a model's words to a checked answer: never a refusal as a description, never half an answer as a verdict.

Read in this order: a refusal at the start; one JSON object, alone or in a code fence or in prose; the published forms
`[Commonality: ...]`, `[Error: ...]`, `[No common errors]`, whose brackets may nest. What is none of these is Malformed.
"""

from __future__ import annotations

import json
import re

from mtlib.ask.endpoint import Malformed, Question, Refused
from mtlib.ask.questions import CATEGORIES, FIELDS, MAX_PHRASE, Field, plain, prompt

MAX_TEXT = 60_000  # characters; a longer answer is no answer to these questions
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
    text = plain(text)
    if refuses(text):
        raise Refused(text.strip()[:MAX_PHRASE])
    fields = prompt(question.kind).fields
    found = _object(text, fields) or _published(question.kind, text)
    if found is None:
        raise Malformed(f"neither JSON with {', '.join(fields)} nor a published form")
    for name in ("phrase", "description"):
        if refuses(str(found.get(name) or "")):
            raise Refused(plain(found[name])[:MAX_PHRASE])
    return _read(found, fields, question.n_images)


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


def _object(text: str, fields: dict[str, Field]) -> dict | None:
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
            if isinstance(value, dict) and fields.keys() & value:
                found.append(value)
        at = text.find("{", end)
    if any(value != found[0] for value in found[1:]):
        raise Malformed("two different answers in one")
    return found[0] if found else _bare(text, fields)


def _bare(text: str, fields: dict[str, Field]) -> dict | None:
    """`[1, 4]` or `3` where the question asks for numbers only."""
    name, field = next(iter(fields.items()))
    if field not in (FIELDS["images"], FIELDS["image"]) or not re.fullmatch(r"\s*(\[[\d\s,]*\]|\d{1,4})\s*", text):
        return None
    try:
        return {name: json.loads(text)}
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

"""Words that are no answer (no_answers.yaml): refusals, images that never came, words taken back, denials, placeholders.

What is looked for too strictly is asked again; too laxly, it would be a false verdict.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from importlib import resources

import yaml

from mtlib.ask.questions import plain, prompt

NOTHING = re.compile(  # as a whole
    r"\W*(no common \w+|no commonalit(y|ies)|nothing (\w+ )?in common|no errors?|no(ne|thing|t applicable|t any)?|null|nil|n/?a|unknown|unclear|undetermined"
    r"|undefined|normal|keine?r?s?|nichts|unbekannt|unklar|ningun[oa]|nada|desconocido|aucune?|rien|inconnu|nessun[oa]?|niente"
    r"|nulla|sconosciuto|nenhuma?|desconhecido|geen|нет|неизвестно|无|無|没有|未知|なし|不明|없음)\W*"
)
OF_EVERY = re.compile(r"\b(all|every|each|most|both|alle|jede\w*|tod[oa]s|cada|tou(s|tes)|chaque|tutt[ei]|ogni)\b")
IN_BRACKETS = re.compile(r"\W*(<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|lorem ipsum.*|x{3,})?\W*")  # a blank to fill
BLANK = (
    r"phrase|description|commonality|string|placeholder|todo|tbd|insert|here|answer|category|error|twelve|explanation"
)
FILLER = (
    rf"{BLANK}|an?|the|of|in|at|most|words?|sentence|one|brief|short|text|your|value|as|requested|or|less|max|maximum|up|to|shared"
    r"|common|physical|anatomical|name|title|example|specific|thing|some|this|its?|for"
)
ONLY_FILLERS = re.compile(rf"(?=.*\b({BLANK})\b)\W*(\b({FILLER})\b\W*)+")
TAGS = r"think|thinking|thoughts?|reasoning|analysis|scratchpad|reflection"
BEGIN = rf"<(?:{TAGS})>|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>\s*analysis"
END = rf"</(?:{TAGS})>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>\s*final\s*<\|message\|>"


def unaccented(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def bare(text: str) -> str:
    """Lower case, straight quotes, no accents, no marks of Markdown."""
    return re.sub(r"[*_`\u200b]", "", unaccented(plain(text).lower()))


@functools.cache
def words(kind: str) -> re.Pattern:
    """All patterns of one kind of no_answers.yaml."""
    found = yaml.safe_load((resources.files("mtlib.ask") / "no_answers.yaml").read_text(encoding="utf-8"))
    lists = {name: f"(?:{of})" for name, of in found.pop("lists").items()}
    every = "|".join(f"(?:{p})" for patterns in found[kind].values() for p in patterns)
    return re.compile(unaccented(re.sub(r"\{(wrong|pictures)\}", lambda place: lists[place[1]], every)))


def refuses(text: str) -> bool:
    """Whether a text starts as a refusal does. Only the start counts: a picture may show a sign "Sorry, closed"."""
    start = re.sub(r"^\W*((commonality|error|answer|phrase)\W{1,3})?", "", bare(text[:400]))
    return bool(words("refuses").match(start))


def denies(text: str) -> bool:
    """Whether a text says that there is no error, or calls things normal and nothing wrong."""
    text = bare(text)
    said = re.sub(r"\b(not|\w+n't|than|too|never|hardly) (\w+ly )?\w+", "", text)
    normal = words("looks_normal").search(said) and not words("says_wrong").search(text)
    return bool(NOTHING.fullmatch(text) or words("denies").search(text) or normal)


def accuses(phrase: str, description: str) -> bool:
    """Whether the texts of a verdict "no error" name one: in the phrase, or in a description of every image."""
    wrong, all_of_them = words("says_wrong"), bare(description)
    if wrong.search(bare(phrase)) and not denies(phrase):
        return True
    return bool(OF_EVERY.search(all_of_them) and wrong.search(all_of_them)) and not denies(description)


def placeholder(phrase: str, kind: str) -> bool:
    """Whether a phrase is no phrase at all, or the prompt's own: its instruction for the field, a blank to fill."""
    phrase, asked = bare(phrase).strip(" .,;:!\"'()"), " ".join(bare(prompt(kind).text).split())
    blank = IN_BRACKETS.fullmatch(phrase) or NOTHING.fullmatch(phrase) or ONLY_FILLERS.fullmatch(phrase)
    return bool(blank or (len(phrase.split()) > 2 and phrase in asked))


def said_aloud(text: str) -> str | None:
    """The text behind a model's thoughts, whose beginning a template may have swallowed; None when it never stopped thinking."""
    answer = re.split(END, text, flags=re.IGNORECASE)[-1]
    return None if re.search(BEGIN, answer, re.IGNORECASE) else answer


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?;。！？])\s*|\n", bare(text)) if re.search(r"\w", s)]


def why_none(text: str) -> str:
    """Why a text of an answer is none; "" where it may be one."""
    for kind, why in (("blind", "it has not seen the images"), ("retracts", "it takes its words back")):
        if words(kind).search(bare(text)):
            return why
    for s in sentences(text):
        of_itself = words("first_person").search(s) and words("negates").search(s) and not words("denies").search(s)
        if of_itself or refuses(s):
            return "it declines"
    return ""


def why_none_before(text: str) -> str:
    """Why what stands behind these words is no answer: they refuse, saw nothing, or call it an example; "" where it may be one."""
    if words("supposes").search(bare(text)):
        return "its answer is an example"
    if words("blind").search(bare(text)):
        return "it has not seen the images"
    return "it declines beside its answer" if any(map(refuses, sentences(text))) else ""


def why_none_behind(text: str) -> str:
    """Why what stands before these words is no answer: anything but politeness may take it back; "" where nothing does."""
    said = [s for s in sentences(text) if not words("polite").match(s.strip())]
    turned = any(words("turns").search(s) or refuses(s) for s in said)
    return "it goes on behind its answer, and turns it" if turned else why_none(" ".join(said))

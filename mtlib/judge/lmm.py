"""The multimodal judge: two questions per feature, and the same columns as every other judge.

What was refused, failed or never asked is no verdict: it stands under that name and is counted apart.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlib.ask import questions
from mtlib.ask.endpoint import STATUSES, Answer, Question
from mtlib.ask.interview import UNASSESSED, Interview, Job, first_of_each
from mtlib.judge.scoring import stand_ins
from mtlib.judge.settings import JudgeConfig
from mtlib.judge.verdicts import COLUMNS, NOTHING, RULED
from mtlib.learn.scores import wilson

JUDGE = "lmm"
STAND_IN = "something that takes about twelve words to say, as in most of the answers"
FLIPS = {"ratio": "the error ratio, shown or not", "order": "an order to say the opposite, written into the images"}


def cannot_rule(data) -> str:
    """Why a model is asked for names only; "" when it is asked for verdicts too."""
    return "" if data.facts["labels"] == "plausibility" else NOTHING


@dataclass
class Judged:
    """What the judge said: method -> verdicts (COLUMNS), and job name -> the explanation that held-out images test."""

    verdicts: dict[str, pd.DataFrame]
    explanations: dict[str, str]


def by_model(
    features: dict[str, pd.DataFrame],
    jobs: list[Job],
    left: dict[str, dict[int, str]],
    interview: Interview,
    show_error_ratio: bool = False,
    nothing: str = "",
) -> Judged:
    """A model's verdicts: both questions asked about every job.

    Args:
        features:         method -> features.parquet.
        jobs, left:       what `plan_jobs` returned.
        show_error_ratio: tell the model the feature's error ratio (published; it leaks the labels into the verdict).
        nothing:          why no verdicts can be asked for (no plausibility labels); features are then only named.
    Returns: Judged; one line per feature. A feature whose name was refused, failed or unasked has that as its verdict.
    """
    shown_images, by_name = interview.shown_images, {j.name: j for j in jobs}

    def then(asked: Question, answer: Answer) -> Question | None:
        if nothing or asked.kind != "commonality" or answer.status != "answered":
            return None
        return error_question(
            by_name[asked.id.rsplit("/", 1)[0]], shown_images, answer.value["phrase"], show_error_ratio
        )

    total = len(jobs) * (1 if nothing else 2)
    said = interview.ask((questions.ask("commonality", j.name, shown_images, j.rows) for j in jobs), then, total)
    unnamed, explanations = {"phrase": "", "category": "", "confidence": np.nan, "judge": JUDGE}, {}
    lines = {
        m: [unnamed | {"feature": f, "verdict": "skipped", "detail": why} for f, why in left[m].items()] for m in left
    }
    for job in jobs:
        name, rule = said[f"{job.name}/commonality"], said.get(f"{job.name}/error")
        lines[job.method].append(unnamed | {"feature": job.feature} | verdict(name, rule, nothing))
        if name.status == "answered":
            explanations[job.name] = explanation(name.value, rule)
    frames = {m: pd.DataFrame(lines[m], columns=COLUMNS).sort_values("feature", ignore_index=True) for m in features}
    return Judged({m: f.astype({"feature": int, "confidence": float}) for m, f in frames.items()}, explanations)


def error_question(job: Job, shown_images, name: str, ratio: bool, order: str = "", called: str = "error") -> Question:
    shown = job.ratio if ratio else None
    return questions.ask("error", job.name, shown_images, job.rows, called, shown, order, commonality=name)


def estimate(jobs: list[Job], interview: Interview, config: JudgeConfig) -> pd.DataFrame:
    """What judging the jobs, scoring their explanations and checking for flips would take (`Interview.plan`).

    Names are not known before they are asked, so a stand-in of usual length is counted in their place. Questions that
    hold a name count as calls to make even where an earlier run has asked them.
    """
    shown_images, ratio, again = interview.shown_images, config.show_error_ratio, first_of_each(jobs, config.flip_check)
    parts = {"commonality": (questions.ask("commonality", j.name, shown_images, j.rows) for j in jobs)}
    parts["error"] = (error_question(j, shown_images, STAND_IN, ratio) for j in jobs)
    parts |= stand_ins(jobs, shown_images, config, STAND_IN)
    if again:
        ways = [error_question(j, shown_images, STAND_IN, not ratio) for j in again if j.ratio]
        ways += [error_question(j, shown_images, STAND_IN, ratio, questions.ORDER) for j in again]
        parts["error, asked again"] = ways
    return interview.plan(parts)


def told(estimated: pd.DataFrame) -> str:
    """`estimate` in one sentence."""
    whole = estimated.set_index("question").loc["all"]
    usd = "at a price that is not known" if pd.isna(whole["usd"]) else f"{whole['usd']:.2f} USD"
    tokens = f"{whole['tokens_in']:,.0f} tokens in, at most {whole['tokens_out']:,.0f} out"
    return f"Nothing was asked. It would take {whole['calls']:,.0f} calls, {tokens}, {usd}."


def verdict(named: Answer, ruled: Answer | None, nothing: str = "") -> dict:
    """One feature's fields: the name from the first answer, the verdict from the second."""
    if named.status != "answered":
        return {"verdict": named.status, "detail": f"name: {named.reason}"}
    line = {"phrase": named.value["phrase"]}
    if ruled is None:
        return line | {"verdict": "skipped" if nothing else "unasked", "detail": nothing}
    if ruled.status != "answered":
        return line | {"verdict": ruled.status, "detail": ruled.reason}
    said = ruled.value
    detail = ": ".join(t for t in (said["phrase"] if said["has_error"] else "", said["description"]) if t)
    line |= {"category": said["category"], "confidence": said["confidence"], "detail": detail}
    return line | {"verdict": "error" if said["has_error"] else "no_error"}


def explanation(named: dict, ruled: Answer | None) -> str:
    """Everything the judge said a feature responds to, as one text."""
    parts = [named["phrase"], named["description"]]
    if ruled is not None and ruled.status == "answered" and ruled.value["has_error"]:
        parts += [f"Error: {ruled.value['phrase']}"]
    return ". ".join(dict.fromkeys(p.rstrip(". ") for p in parts if p))


def flip_check(
    jobs: list[Job], judged: Judged, interview: Interview, n: int, show_error_ratio: bool = False
) -> pd.DataFrame:
    """Ask again about the first n judged features of each method, once per way of FLIPS.

    Returns: frame of method, changed, n (both answers are verdicts), n_flipped, flip_rate, low, high (Wilson 95%),
        n_lost (refused, failed or unasked the second time); one line per method and way.
    """
    first = {m: f.set_index("feature") for m, f in judged.verdicts.items()}
    ruled = [j for j in jobs if first[j.method].at[j.feature, "verdict"] in RULED]
    chosen = [(j, first[j.method].loc[j.feature]) for j in first_of_each(ruled, n)]
    shown_images, ratio = interview.shown_images, show_error_ratio
    order = {v: questions.ORDER.format(answer=said) for v, said in (("error", "false"), ("no_error", "true"))}
    asked = [error_question(j, shown_images, was["phrase"], not ratio, "", "ratio") for j, was in chosen if j.ratio]
    asked += [
        error_question(j, shown_images, was["phrase"], ratio, order[was["verdict"]], "order") for j, was in chosen
    ]
    said = interview.ask(asked)
    lines = []
    for method in dict.fromkeys(j.method for j, _ in chosen):
        own = [(j, was["verdict"] == "error") for j, was in chosen if j.method == method]
        for way, what in FLIPS.items():
            answers = [(was, said[f"{j.name}/{way}"]) for j, was in own if f"{j.name}/{way}" in said]
            flipped = [a.value["has_error"] != was for was, a in answers if a.status == "answered"]
            low, high = map(float, wilson(sum(flipped), len(flipped)))
            line = {"method": method, "changed": what, "n": len(flipped), "n_flipped": sum(flipped)}
            line |= {"flip_rate": np.mean(flipped) if flipped else np.nan, "low": low, "high": high}
            lines.append(line | {"n_lost": len(answers) - len(flipped)})
    return pd.DataFrame(lines, columns=["method", "changed", "n", "n_flipped", "flip_rate", "low", "high", "n_lost"])


def unanswered(interview: Interview) -> pd.DataFrame:
    """Why questions have no usable answer, in the server's words: frame of status, reason, questions; the most frequent first."""
    lost = Counter((a.status, a.reason) for *_, a in interview.answers if a.status != "answered")
    return pd.DataFrame([(*why, n) for why, n in lost.most_common()], columns=["status", "reason", "questions"])


def got_nothing(interview: Interview) -> str:
    """Why a model that was asked gave not one usable answer; "" where it gave one, or was asked nothing."""
    if any(a.status == "answered" for *_, a in interview.answers) or not interview.answers:
        return ""
    why = unanswered(interview)["reason"][0]
    return f"the model gave no usable answer to {len(interview.answers)} questions: {why}"


def accounted(features: dict[str, pd.DataFrame], left: dict[str, dict[int, str]], interview: Interview) -> pd.DataFrame:
    """What became of every assessed feature: frame of method, n_latents, assessed, then answered, refused, failed and
    unasked (by the last of its two questions that was put), and not_asked (too few images, or beyond max_features).

    The last five add up to assessed.
    """
    last = {(m, f): a.status for m, f, q, a in interview.answers if q in ("commonality", "error")}
    lines = []
    for method, table in features.items():
        own = Counter(status for (m, _), status in last.items() if m == method)
        rest = sum(why != UNASSESSED for why in left[method].values())
        line = {"method": method, "n_latents": len(table), "assessed": int(table["assessed"].sum())}
        lines.append(line | {s: own[s] for s in STATUSES} | {"not_asked": rest})
    return pd.DataFrame(lines, columns=["method", "n_latents", "assessed", *STATUSES, "not_asked"])

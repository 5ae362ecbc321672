"""What asking would take, told before anything is spent: calls, tokens and cost of every kind of question."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from mtlib.ask import questions
from mtlib.ask.answers import Plan
from mtlib.ask.interview import Interview, Job, first_of_each
from mtlib.judge.lmm import error_question
from mtlib.judge.scoring import ScoreConfig

STAND_IN = "something that takes about twelve words to say, as in most of the answers"
COLUMNS = ["question", "calls", "replayed", "tokens_in", "tokens_out", "usd"]


def estimate(
    jobs: list[Job],
    interview: Interview,
    show_error_ratio: bool = False,
    scores: ScoreConfig | None = None,
    n_flips: int = 0,
) -> pd.DataFrame:
    """Calls, tokens and cost of judging the jobs, scoring their explanations and checking for flips; nothing is asked.

    Names are not known before they are asked, so a stand-in of usual length is counted in their place. Questions that
    hold a name count as calls to make even where an earlier run has asked them. Retries are not counted.

    Returns: frame of COLUMNS, one line per kind of question and their total; usd is NaN where prices are unknown.
    """
    album, plan, scores = interview.album, interview.asker.plan, scores or ScoreConfig()
    parts = {"commonality": plan(questions.commonality(j.name, album, j.rows) for j in jobs)}
    parts["error"] = plan(error_question(j, album, STAND_IN, show_error_ratio) for j in jobs)
    some, n = first_of_each(jobs, scores.features), scores.images
    if some:
        detect = [questions.detection(j.name, album, np.resize(j.rows, n), STAND_IN) for j in some]
        lineups = [questions.intruder(j.name, album, np.resize(j.rows, scores.intruder)) for j in some]
        for kind, asked in (("detection", detect), ("shuffled", detect), ("intruder", lineups)):
            parts[kind] = plan(replace(q, text=f"{q.text} {q.id}") for q in asked)  # no two of them are the same
    if again := first_of_each(jobs, n_flips):
        ways = [error_question(j, album, STAND_IN, not show_error_ratio) for j in again if j.ratio]
        ways += [error_question(j, album, STAND_IN, show_error_ratio, questions.ORDER) for j in again]
        parts["error, asked again"] = plan(ways)
    return plan_table(parts)


def plan_table(parts: dict[str, Plan]) -> pd.DataFrame:
    """Plans as a frame of COLUMNS with their total, "all", below."""
    lines = [
        {"question": name, "calls": p.calls, "replayed": p.replayed, "tokens_in": p.tokens_in}
        | {"tokens_out": p.tokens_out, "usd": np.nan if p.usd is None else p.usd}
        for name, p in parts.items()
    ]
    frame = pd.DataFrame(lines, columns=COLUMNS)
    total = {"question": "all"} | frame[COLUMNS[1:]].sum(min_count=1).to_dict()
    whole = dict.fromkeys(COLUMNS[1:-1], int)
    return pd.concat([frame, pd.DataFrame([total])], ignore_index=True).astype(whole)

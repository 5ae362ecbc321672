"""Is an explanation any good? Held-out images must tell: a judge sorts them by the explanation alone.

detection  n images on which the feature fires and n on which it does not, mixed; balanced accuracy, chance 0.5
shuffled   the same images with the explanation of another feature of the method: the control, which should be near 0.5
intruder   images on which the feature fires and one on which it does not, no explanation; accuracy, chance 1 / images

All images are of the test split; names and verdicts were made from val.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mtlib.ask import questions
from mtlib.ask.endpoint import Answer, Question
from mtlib.ask.interview import Interview, Job, first_of_each, in_turns
from mtlib.judge.settings import JudgeConfig
from mtlib.learn.scores import mean_interval, wilson
from mtlib.measure.codes import iter_codes, per_image

KINDS = ("detection", "shuffled", "intruder")


@dataclass(frozen=True)
class Trial:
    """One feature's held-out images: rows (n,) in the order shown, fires (n,) bool; likewise for the intruder question.

    other: whose explanation is the control, "" where every explanation of the method says the same.
    """

    job: Job
    rows: np.ndarray
    fires: np.ndarray
    lineup: np.ndarray
    intruder: int  # place in lineup, from 0
    other: str


def held_out(
    jobs: list[Job], explanations: dict[str, str], load: Callable[[str], object], data, config: JudgeConfig
) -> list[Trial]:
    """Trials on the test split for the first explained features of every method, the methods in turns.

    Args:
        jobs: in the order of asking. explanations: job name -> explanation.
        load: method -> its coder. data: `mtlib.embed.store.Data`.
    """
    rows, out = data.rows("test"), []  # of tokens where an image has several
    for method in dict.fromkeys(j.method for j in jobs) if config.score_features else ():
        own = [j for j in jobs if j.method == method and j.name in explanations]
        parts = iter_codes(load(method), data.x, rows, tokens=data.tokens)
        codes = (per_image(z, data.tokens)[:, [j.feature for j in own]] for _, _, z in parts)
        fires = np.concatenate([(z > 0).cpu().numpy() for z in codes])
        out.append(make_trials(own, explanations, fires, rows[:: data.tokens], config))
    return in_turns(out)


def make_trials(
    jobs: list[Job], explanations: dict[str, str], fires: np.ndarray, rows: np.ndarray, config: JudgeConfig
) -> list[Trial]:
    """Held-out images and a control explanation for each feature of one method.

    Args:
        jobs:         features of one method with an explanation, in order; the first `config.score_features` are taken.
        explanations: job name -> explanation.
        fires:        (n, len(jobs)) bool on test rows. rows: (n,) those rows.
    Returns: trials; features that fire on fewer, or on all but fewer, images than needed are left out.
    """
    n, n_same = config.score_images // 2, config.intruder_images - 1
    parts = [(job, rows[fires[:, k]], rows[~fires[:, k]]) for k, job in enumerate(jobs)]
    kept = [p for p in parts if len(p[1]) >= max(n, n_same) and len(p[2]) >= n][: config.score_features]
    others = control([explanations[job.name] for job, _, _ in kept], config.seed)
    trials = []
    for (job, on, off), other in zip(kept, others, strict=True):
        rng = np.random.default_rng([config.seed, job.feature, 1])
        on, off = rng.permutation(on), rng.permutation(off)
        mixed = rng.permutation(2 * n)
        both, truth = np.concatenate([on[:n], off[:n]])[mixed], (np.arange(2 * n) < n)[mixed]
        place = int(rng.integers(config.intruder_images))
        trials.append(Trial(job, both, truth, np.insert(on[-n_same:], place, off[-1]), place, other))
    return trials


def control(texts: list[str], seed: int = 0) -> list[str]:
    """For each text another, different one, dealt out evenly by seed; "" where all are equal."""
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    dealt = [texts[k] for k in order]
    out = [""] * len(texts)
    for place, k in enumerate(order):
        around = dealt[place + 1 :] + dealt[:place]
        out[k] = next((text for text in around if text != texts[k]), "")
    return out


def score(trials: list[Trial], explanations: dict[str, str], interview: Interview) -> pd.DataFrame:
    """Ask the three questions about every trial.

    Returns: frame of method, feature, kind (KINDS), status, n_on, n_off (images shown of each), hits_on, hits_off (those
        put on the right side; intruder: 1 or 0 in hits_off), accuracy (balanced; NaN without an answer).
    """
    by_name = {t.job.name: t for t in trials}
    asked = (q for t in trials for q in trial_questions(t, explanations[t.job.name], interview.shown_images))
    lines = []
    for name, answer in interview.ask(asked, total=len(KINDS) * len(trials)).items():
        job, _, kind = name.rpartition("/")
        t = by_name[job]
        head = {"method": t.job.method, "feature": t.job.feature, "kind": kind, "status": answer.status}
        lines.append(head | outcome(t, kind, answer))
    columns = ["method", "feature", "kind", "status", "n_on", "n_off", "hits_on", "hits_off", "accuracy"]
    return pd.DataFrame(lines, columns=columns)


def trial_questions(trial: Trial, explanation: str, shown_images) -> Iterator[Question]:
    """The questions about one feature: detection, its control where there is one, intruder."""
    name = trial.job.name
    yield questions.ask("detection", name, shown_images, trial.rows, explanation=explanation)
    if trial.other:
        yield questions.ask("detection", name, shown_images, trial.rows, "shuffled", explanation=trial.other)
    yield questions.ask("intruder", name, shown_images, trial.lineup)


def stand_ins(jobs: list[Job], shown_images, config: JudgeConfig, explanation: str) -> dict[str, list[Question]]:
    """Questions by kind that take as much as those about held-out images will; no two of a kind are the same."""
    some = first_of_each(jobs, config.score_features)
    rows = {"detection": config.score_images, "shuffled": config.score_images, "intruder": config.intruder_images}
    out = {}
    for called, n in rows.items() if some else ():
        kind = "intruder" if called == "intruder" else "detection"
        asked = [questions.ask(kind, j.name, shown_images, np.resize(j.rows, n), explanation=explanation) for j in some]
        out[called] = [replace(q, text=f"{q.text} {q.id}") for q in asked]
    return out


def outcome(trial: Trial, kind: str, answer: Answer) -> dict:
    """How many images an answer puts on the right side."""
    if answer.status != "answered":
        return {"accuracy": np.nan}
    if kind == "intruder":
        right = answer.value["intruder"] == trial.intruder + 1
        return {"n_on": len(trial.lineup) - 1, "n_off": 1, "hits_off": int(right), "accuracy": float(right)}
    said = np.isin(np.arange(1, len(trial.rows) + 1), answer.value["matches"])
    on, off = int((said & trial.fires).sum()), int((~said & ~trial.fires).sum())
    n_on, n_off = int(trial.fires.sum()), int((~trial.fires).sum())
    return {"n_on": n_on, "n_off": n_off, "hits_on": on, "hits_off": off, "accuracy": (on / n_on + off / n_off) / 2}


def summary(scores: pd.DataFrame, config: JudgeConfig) -> pd.DataFrame:
    """One line per method and kind: method, kind, n_features (answered), n_lost, accuracy, low, high, chance.

    Accuracy is the mean over features. Intervals are 95%: Wilson for intruders (one yes or no per feature), Student's t over
    features otherwise, since the images of one feature are judged by one text (a bootstrap of few holds the truth too rarely).
    """
    lines = []
    for (method, kind), group in scores.groupby(["method", "kind"], sort=False):
        values = group["accuracy"].dropna().to_numpy(float)
        n, alone, low, high = len(values), kind == "intruder", np.nan, np.nan
        if alone or (n > 1 and not np.ptp(values)):  # all alike: as if each were one yes or no of that share
            low, high = map(float, wilson(values.sum(), n))
        elif n > 1:
            _, low, high = mean_interval(values)
            low, high = max(0.0, low), min(1.0, high)
        line = {"method": method, "kind": kind, "n_features": n, "n_lost": len(group) - n}
        line |= {"accuracy": values.mean() if n else np.nan, "low": low, "high": high}
        lines.append(line | {"chance": 1 / config.intruder_images if alone else 0.5})
    columns = ["method", "kind", "n_features", "n_lost", "accuracy", "low", "high", "chance"]
    return pd.DataFrame(lines, columns=columns)

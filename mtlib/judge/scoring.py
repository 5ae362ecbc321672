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
from mtlib.ask.endpoint import Question
from mtlib.ask.interview import Interview, Job, first_of_each, in_turns
from mtlib.judge.settings import JudgeConfig
from mtlib.measure.relevance import wilson

N_BOOT = 2000
KINDS = ("detection", "shuffled", "intruder")
BATCH = 2048


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


def activity(coder, x: np.ndarray, rows: np.ndarray, features: list[int]) -> np.ndarray:
    """(n, k) bool: which of the features fire on which rows.

    Args:
        coder: has encode((B, D)) -> (B, S). x: (N, D). rows: (n,). features: k numbers.
    """
    import torch  # only here: 06 without a model needs none of it

    out = np.zeros((len(rows), len(features)), bool)
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            some = torch.from_numpy(np.asarray(x[rows[start : start + BATCH]], dtype=np.float32))  # (B, D)
            out[start : start + BATCH] = (coder.encode(some)[:, features] > 0).numpy()
    return out


def held_out(
    jobs: list[Job], explanations: dict[str, str], load: Callable[[str], object], data, config: JudgeConfig
) -> list[Trial]:
    """Trials on the test split for the first explained features of every method, the methods in turns.

    Args:
        jobs: in the order of asking. explanations: job name -> explanation.
        load: method -> its coder. data: `mtlib.embed.store.Data`.
    """
    rows, out = data.rows("test"), []  # of tokens where an image has several
    images = rows[:: data.tokens]
    for method in dict.fromkeys(j.method for j in jobs) if config.score_features else ():
        own = [j for j in jobs if j.method == method and j.name in explanations]
        fires = activity(load(method), data.x, rows, [j.feature for j in own])
        fires = fires.reshape(len(images), data.tokens, len(own)).any(axis=1)
        out.append(make_trials(own, explanations, fires, images, config))
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
    kept, n = [], config.score_images // 2
    for k, job in enumerate(jobs):
        on, off = rows[fires[:, k]], rows[~fires[:, k]]
        if (
            len(kept) < config.score_features
            and min(len(on), len(off)) >= n
            and len(on) >= config.intruder_images - 1
            and len(off)
        ):
            kept.append((job, on, off))
    texts = [explanations[job.name] for job, _, _ in kept]
    others = control(texts, config.seed)
    trials = []
    for (job, on, off), other in zip(kept, others, strict=True):
        rng = np.random.default_rng([config.seed, job.feature, 1])
        on, off = rng.permutation(on), rng.permutation(off)
        mixed = rng.permutation(2 * n)
        both, truth = np.concatenate([on[:n], off[:n]])[mixed], (np.arange(2 * n) < n)[mixed]
        place = int(rng.integers(config.intruder_images))
        lineup = np.insert(on[-(config.intruder_images - 1) :], place, off[-1])
        trials.append(Trial(job, both, truth, lineup, place, "" if other is None else texts[other]))
    return trials


def control(texts: list[str], seed: int = 0) -> list[int | None]:
    """For each text the place of another, different one, dealt out evenly by seed; None where all are equal."""
    order = np.random.default_rng(seed).permutation(len(texts))
    place = {int(k): p for p, k in enumerate(order)}
    out = []
    for k, text in enumerate(texts):
        around = (int(order[(place[k] + step) % len(order)]) for step in range(1, len(order)))
        out.append(next((o for o in around if texts[o] != text), None))
    return out


def score(trials: list[Trial], explanations: dict[str, str], interview: Interview) -> pd.DataFrame:
    """Ask the three questions about every trial.

    Returns: frame of method, feature, kind (KINDS), status, n_on, n_off (images shown of each), hits_on, hits_off (those
        put on the right side; intruder: 1 or 0 in hits_off), accuracy (balanced; NaN without an answer).
    """
    by_name = {t.job.name: t for t in trials}
    asked = (q for t in trials for q in trial_questions(t, explanations[t.job.name], interview.album))
    lines = []
    for name, answer in interview.ask(asked, total=len(KINDS) * len(trials)).items():
        job, _, kind = name.rpartition("/")
        t = by_name[job]
        head = {"method": t.job.method, "feature": t.job.feature, "kind": kind, "status": answer.status}
        lines.append(head | _outcome(t, kind, answer))
    columns = ["method", "feature", "kind", "status", "n_on", "n_off", "hits_on", "hits_off", "accuracy"]
    return pd.DataFrame(lines, columns=columns)


def trial_questions(trial: Trial, explanation: str, album) -> Iterator[Question]:
    """The questions about one feature: detection, its control where there is one, intruder."""
    name = trial.job.name
    yield questions.ask("detection", name, album, trial.rows, explanation=explanation)
    if trial.other:
        yield questions.ask("detection", name, album, trial.rows, "shuffled", explanation=trial.other)
    yield questions.ask("intruder", name, album, trial.lineup)


def stand_ins(jobs: list[Job], album, config: JudgeConfig, explanation: str) -> dict[str, list[Question]]:
    """Questions by kind that take as much as those about held-out images will; no two of a kind are the same."""
    some = first_of_each(jobs, config.score_features)
    rows = {"detection": config.score_images, "shuffled": config.score_images, "intruder": config.intruder_images}
    out = {}
    for called, n in rows.items() if some else ():
        kind = "intruder" if called == "intruder" else "detection"
        asked = [questions.ask(kind, j.name, album, np.resize(j.rows, n), explanation=explanation) for j in some]
        out[called] = [replace(q, text=f"{q.text} {q.id}") for q in asked]
    return out


def _outcome(trial: Trial, kind: str, answer) -> dict:
    if answer.status != "answered":
        return {"accuracy": np.nan}
    if kind == "intruder":
        right = answer.value["intruder"] == trial.intruder + 1
        return {"n_on": len(trial.lineup) - 1, "n_off": 1, "hits_off": int(right), "accuracy": float(right)}
    said = np.isin(np.arange(1, len(trial.rows) + 1), answer.value["matches"])
    on, off = int((said & trial.fires).sum()), int((~said & ~trial.fires).sum())
    n_on, n_off = int(trial.fires.sum()), int((~trial.fires).sum())
    accuracy = (on / n_on + off / n_off) / 2
    return {"n_on": n_on, "n_off": n_off, "hits_on": on, "hits_off": off, "accuracy": accuracy}


def summary(scores: pd.DataFrame, config: JudgeConfig) -> pd.DataFrame:
    """One line per method and kind: method, kind, n_features (answered), n_lost, accuracy, low, high, chance.

    Accuracy is the mean over features. Intervals are 95%: Wilson for intruders (one yes or no per feature), a bootstrap
    over features otherwise, since the images of one feature are judged by one text.
    """
    lines = []
    for (method, kind), group in scores.groupby(["method", "kind"], sort=False):
        values = group["accuracy"].dropna().to_numpy(float)
        n = len(values)
        if kind == "intruder":
            low, high = (float(v) for v in wilson(int(values.sum()), n))
        else:
            low, high = bootstrap_mean(values, config.seed)
        line = {"method": method, "kind": kind, "n_features": n, "n_lost": len(group) - n}
        line |= {"accuracy": values.mean() if n else np.nan, "low": low, "high": high}
        lines.append(line | {"chance": 1 / config.intruder_images if kind == "intruder" else 0.5})
    columns = ["method", "kind", "n_features", "n_lost", "accuracy", "low", "high", "chance"]
    return pd.DataFrame(lines, columns=columns)


def bootstrap_mean(values: np.ndarray, seed: int = 0, n_boot: int = N_BOOT) -> tuple[float, float]:
    """95% percentile interval of a mean over n values; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).choice(values, (n_boot, len(values))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)

"""Which features a model is asked about, in which order, and everything that it answered.

Features of all methods are asked in turns, the most surely tied to errors first, so that a run that stops at a limit has
asked about the features that matter in every method.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from mtlib.ask.asker import Asker, Then
from mtlib.ask.endpoint import Answer, Question
from mtlib.ask.ledger import RECORDED
from mtlib.ask.shown_images import ShownImages, sample_rows

UNASSESSED = "fewer than 10 activating test images"
NO_IMAGES = "the embeddings came without images, so there is nothing to show"


@dataclass(frozen=True)
class Job:
    """One feature to ask about: rows (n,) are its sampled top val images; ratio is (error ratio, base rate) or None."""

    method: str
    feature: int
    rows: np.ndarray
    ratio: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return f"{self.method}/{self.feature}"


def plan_jobs(
    features: dict[str, pd.DataFrame],
    tops: dict[str, pd.DataFrame],
    n_images: int = 20,
    min_images: int = 4,
    max_features: int = 0,
    seed: int = 0,
    has_images: bool = True,
) -> tuple[list[Job], dict[str, dict[int, str]]]:
    """Which features are asked about, in the order of asking, and why the others are not.

    Args:
        features: method -> features.parquet. tops: method -> top_images.parquet; only split "val" is used.
        n_images: images per feature, sampled by seed where there are more; with fewer than min_images none are asked.
    Returns: jobs, the methods in turns, each in reading order (`in_order`); method -> feature -> reason.
    """
    queues, left = [], {m: {} for m in features}
    for method, table in features.items():
        val = tops[method][tops[method]["split"] == "val"].sort_values("rank")
        rows = {int(f): part["row"].to_numpy() for f, part in val.groupby("feature")}
        queue = []
        for line in in_order(table).itertuples():
            f, own = int(line.feature), rows.get(int(line.feature), np.zeros(0, np.int64))
            if not line.assessed:
                left[method][f] = UNASSESSED
            elif not has_images:
                left[method][f] = NO_IMAGES
            elif len(own) < min_images:
                left[method][f] = f"only {len(own)} images activate it"
            elif max_features and len(queue) >= max_features:
                left[method][f] = f"beyond max_features = {max_features}"
            else:
                ratio = None if np.isnan(line.error_ratio) else (float(line.error_ratio), float(line.base_rate))
                queue.append(Job(method, f, sample_rows(own, n_images, seed, f), ratio))
        queues.append(queue)
    return in_turns(queues), left


def in_order(features: pd.DataFrame) -> pd.DataFrame:
    """Features in the order in which a reader wants them: assessed first, the most surely tied to errors, then density."""
    keys = ["assessed", "error_low", "density", "feature"]
    return features.sort_values(keys, ascending=[False, False, False, True], na_position="last")


def in_turns(queues: list[list]) -> list:
    """The first of every queue, then the second of every queue, and so on."""
    return [one for turn in zip_longest(*queues) for one in turn if one is not None]


def first_of_each(jobs: list[Job], n: int) -> list[Job]:
    """The first n jobs of every method, in their order."""
    methods = pd.Series([job.method for job in jobs], dtype=str)
    return [jobs[i] for i in methods.groupby(methods).head(n).index]


class Interview:
    """Asks questions about features, and keeps every answer with its method, feature and kind, in the order of asking."""

    def __init__(self, asker: Asker, shown_images: ShownImages):
        self.asker, self.shown_images = asker, shown_images
        self.answers: list[tuple[str, int, str, Answer]] = []

    def plan(self, parts: dict[str, Iterable[Question]]) -> pd.DataFrame:
        """What asking would take, told before anything is spent: `Asker.plan` of each kind, and "all" below.

        Args: parts: kind of question -> its questions.
        """
        frame = pd.DataFrame({kind: self.asker.plan(asked) for kind, asked in parts.items()}).T
        frame.loc["all"] = frame.sum(skipna=False)
        return frame.astype(dict.fromkeys(frame.columns.drop("usd"), int)).rename_axis("question").reset_index()

    def ask(self, questions: Iterable[Question], then: Then | None = None, total: int = 0) -> dict[str, Answer]:
        """question id -> Answer, of them and of what `then` makes of their answers; with a `total`, progress is shown."""
        out = {}
        shown = {"total": total, "unit": "answers", "file": sys.stdout, "mininterval": 5, "disable": not total}
        for answer in tqdm(self.asker.ask(questions, then), **shown):
            method, feature, question = answer.question_id.rsplit("/", 2)
            self.answers.append((method, int(feature), question, answer))
            out[answer.question_id] = answer
        return out

    def usage(self) -> dict:
        """What all answers took, whether they were replayed or asked now: model, answers, tokens_in, tokens_out, usd."""
        endpoint, used = self.asker.endpoint, [a.usage for *_, a in self.answers if a.status in RECORDED]
        total = {name: sum(int(u.get(name) or 0) for u in used) for name in ("tokens_in", "tokens_out")}
        usd = endpoint.usd(**total) if endpoint.priced else float("nan")
        return {"model": endpoint.model, "answers": len(used)} | total | {"usd": usd}

    def export(self, path: Path, method: str) -> None:
        """Write the raw answers about one method, by feature, as answers.jsonl."""
        own = sorted((f, q, i) for i, (m, f, q, _) in enumerate(self.answers) if m == method)
        self.asker.ledger.export(path, (self.answers[i][3].key for *_, i in own))

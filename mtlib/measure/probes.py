"""The linear probe: what a line can read from activations, and whether it still reads the same from a reconstruction."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mtlib.embed.store import Data, unit_rows
from mtlib.learn.classifier import FOLDS, too_few_for_folds
from mtlib.learn.scores import auroc_bounds, over_folds, wilson
from mtlib.measure.zero_shot import zero_shot_task
from mtlib.scenes.causes import CAUSES

CARD = ("family", "cause", "captioned", "n_test", "probe_accuracy", "probe_auroc", "zero_shot_family")
PROBE_ROWS = 20_000  # a probe learns from no more; they are drawn by a seed
FLOOR = 1e-12  # probabilities below it are raised to it, so that a certain answer has a finite KL


def linear_probe(x: np.ndarray, y: np.ndarray, c: float = 1.0, max_iter: int = 1000):
    """The linear (logistic) probe of this repo: y (n,) from x (n, D), whose units are standardised.

    Args: c: inverse weight of its L2 penalty. max_iter: after which it is taken as it is; rankings settle long before.
    Returns: an object with predict, predict_proba and decision_function; None when y has fewer than two values.
    """
    if len(np.unique(y)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter)).fit(x, y)


def fit_probe(target: np.ndarray, rows: np.ndarray, classes: np.ndarray):
    """`linear_probe` of `classes` (N,), -1 unknown, on target (N, O), fitted on PROBE_ROWS of rows (train)."""
    rows = np.asarray(rows)[np.asarray(classes)[rows] >= 0]
    if len(rows) > PROBE_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, PROBE_ROWS, replace=False))
    return linear_probe(np.asarray(target[rows], np.float64), np.asarray(classes)[rows], max_iter=500)


def _f64(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)


def encoder_card(data: Data, encoder=None, seed: int = 0) -> pd.DataFrame:
    """What a linear probe reads from x on test rows, and how often the nearest text is the right one.

    Scenes: plausible or not, by one probe for all families; probe_auroc of a cause by a probe of its family, whose plausible
    images it is scored against. Plausibility labels alone: every image once, by a probe that has not seen its group (5 folds).
    Classes: which one. Else the texts only, of rows whose word is in the vocabulary.

    Args: data: one row per image; encoder: () -> Encoder, for the names of classes; seed: of the folds.
    Returns: frame with CARD (family: of the scene, or the class); the first row is "all". Where it fits accuracy_low,
        accuracy_high (Wilson, 95%), auroc_low, auroc_high (95% of the folds' mean) and zero_shot_top5.
    """
    if data.truth is None and data.facts["labels"] == "none":
        return _words_card(data)
    facts = {k: v for k, v in data.facts.items() if k != "layer"}  # texts are compared with the final embedding
    task, _ = zero_shot_task(replace(data, facts=facts), encoder)
    x, train, rows, extra = data.x, data.rows("train"), data.rows("test"), {}
    names = data.manifest["class_name"].to_numpy(str) if data.truth is None else data.truth["family"].to_numpy(str)
    if data.truth is not None:
        y, groups = data.labels(), _causes(data)
        score = _score(fit_probe(x, train, y), x, rows)
        right = None if score is None else (score > 0) == (y[rows] == 1)
        extra["probe_auroc"] = auroc(score, y[rows] == 1)
    elif data.facts["labels"] == "plausibility":
        rows, task = data.rows(("train", "val", "test")), None
        right, extra = _folds(data, rows, seed)
        groups = [(name, "") for name in sorted(set(names[rows]) - {""})]
    else:
        groups = [(name, "") for name in data.facts["class_names"]]
        y = pd.Categorical(names, categories=data.facts["class_names"]).codes
        probe = fit_probe(x, train, y)
        right = None if probe is None or not len(rows) else probe.predict(_f64(x[rows])) == y[rows]
        extra |= {"note": "no probe: fewer than two classes among train images"} if probe is None else {}
    hits = np.full((len(rows), 1), np.nan)
    if task is not None and len(rows):
        hits = task.hits(torch.as_tensor(data.embedding_at(rows)), rows)
    lines = [_line("all", "", right, hits) | extra]
    for name, cause in groups:
        here = names[rows] == name
        line = _line(name, cause, None if right is None else right[here], hits[here])
        lines.append(line | ({"probe_auroc": _auroc_of_cause(data, name, cause)} if cause else {}))
    intervals = [] if data.truth is not None else ["accuracy_low", "accuracy_high"]
    return pd.DataFrame(lines).reindex(columns=[*CARD, *intervals, *(c for c in extra if c not in CARD)])


def auroc(score: np.ndarray | None, positive: np.ndarray) -> float:
    """Area under the ROC curve; NaN without a score, positives or negatives."""
    told = score is not None and 0 < positive.sum() < len(positive)
    return float(roc_auc_score(positive, score)) if told else float("nan")


def _score(probe, x: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    return None if probe is None or not len(rows) else probe.decision_function(_f64(x[rows]))


def _line(name: str, cause: str, right: np.ndarray | None, hits: np.ndarray) -> dict:
    """A line of the card; right: (n,) whether each row is decided rightly, None when nothing decides."""
    captioned = CAUSES.get(cause, {}).get("captioned", "")
    line = {"family": name, "cause": cause, "captioned": captioned, "n_test": len(hits)}
    if len(hits):
        line["zero_shot_family"] = hits[:, 0].mean()
    if len(hits) and right is not None:
        low, high = wilson(right.sum(), len(right))
        line |= {"probe_accuracy": right.mean(), "accuracy_low": low, "accuracy_high": high}
    return line


def _causes(data: Data) -> list[tuple[str, str]]:
    """(family, cause) of the scenes, sorted."""
    truth = data.truth[["family", "cause"]].astype(str)
    return sorted(truth[truth["cause"] != ""].drop_duplicates().itertuples(index=False, name=None))


def _auroc_of_cause(data: Data, family: str, cause: str) -> float:
    """AUROC of a probe of one family's images that are plausible or show the cause."""
    ours = (data.truth["family"] == family) & data.truth["cause"].astype(str).isin(["", cause])
    fit, use = (r[ours.to_numpy()[r]] for r in (data.rows("train"), data.rows("test")))
    probe = fit_probe(data.x, fit, data.labels())
    return auroc(_score(probe, data.x, use), data.labels(use) == 1)


def _folds(data: Data, rows: np.ndarray, seed: int) -> tuple[np.ndarray | None, dict]:
    """(n,) whether each image is decided rightly by a probe of the other folds; the folds' mean AUROC with its interval.
    None and a note where there are too few of a label."""
    y, groups = data.labels(rows), data.manifest["group"].to_numpy()[rows]
    if note := too_few_for_folds(y, groups, ("plausible", "implausible")):
        return None, {"note": note}
    score, areas = np.zeros(len(rows)), []
    cut = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fit, held in cut.split(rows, y, groups):
        score[held] = _score(fit_probe(data.x, rows[fit], data.labels()), data.x, rows[held])
        areas.append(auroc(score[held], y[held] == 1))
    found = over_folds(areas, lambda area: auroc_bounds(area, int((y == 1).sum()), int((y == 0).sum())))
    return (score > 0) == (y == 1), dict(zip(("probe_auroc", "auroc_low", "auroc_high"), found, strict=True))


def _words_card(data: Data) -> pd.DataFrame:
    """Words are compared without case and surrounding spaces; every sense of a word ("bow", "bow (2)") counts as it."""
    texts = data.phrases["phrase"].str.replace(r" \(\d+\)$", "", regex=True).str.strip().str.lower().to_numpy(str)
    words = data.manifest["class_name"].str.strip().str.lower().to_numpy(str)
    rows = np.flatnonzero(np.isin(words, texts))
    line = {"family": "all", "cause": "", "captioned": "", "n_test": len(rows)}
    if len(rows):
        v, right = unit_rows(data.vocabulary), []
        for some in np.array_split(rows, -(-len(rows) // 1024)):
            order = np.argsort(-(unit_rows(data.x[some]) @ v.T), axis=1, kind="stable")[:, :5]
            right.append(texts[order] == words[some, None])
        hits = np.concatenate(right)
        line |= {"zero_shot_family": hits[:, 0].mean(), "zero_shot_top5": hits.any(axis=1).mean()}
    return pd.DataFrame([line]).reindex(columns=[*CARD, "zero_shot_top5"])


class ProbeShift:
    """Streaming KL(p(y) || p(y_hat)) in nats and argmax agreement of one probe; with labels (N,), -1 unknown, its accuracy and
    macro F1 on y and on y_hat, as MSAE's linear evaluation."""

    def __init__(self, probe, labels: np.ndarray | None = None):
        self.probe, self.labels, self.n, self.kl, self.same = probe, labels, 0, 0.0, 0
        self.said: list[np.ndarray] = []  # (3, n): the label, what the probe says of y and of y_hat

    def update(self, rows: np.ndarray, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: y, y_hat (B, O)."""
        p = np.maximum(self.probe.predict_proba(y.cpu().double().numpy()), FLOOR)  # (B, C)
        q = np.maximum(self.probe.predict_proba(y_hat.cpu().double().numpy()), FLOOR)
        self.n += len(p)
        self.kl += float((p * np.log(p / q)).sum())
        self.same += int((p.argmax(1) == q.argmax(1)).sum())
        if self.labels is not None:
            label, of_y, of_y_hat = self.labels[rows], *(self.probe.classes_[a.argmax(1)] for a in (p, q))
            self.said.append(np.stack([label, of_y, of_y_hat])[:, label >= 0])

    def result(self) -> dict:
        """probe_kl (nats) and probe_agreement; with labels probe_accuracy and probe_f1 (macro) of y, and those _rebuilt."""
        found = {"probe_kl": self.kl / self.n, "probe_agreement": self.same / self.n}
        label, *said = np.concatenate(self.said, 1) if self.said else np.zeros((3, 0))
        for end, guess in zip(("", "_rebuilt"), said, strict=True):
            if len(label):
                found |= {f"probe_accuracy{end}": float((guess == label).mean())}
                found |= {f"probe_f1{end}": float(f1_score(label, guess, average="macro", zero_division=0.0))}
        return found

"""The encoder's report card: how much of what matters can be read from x by a line, and how well texts name images."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy.stats import binomtest, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mtlib.embed.store import Data

COLUMNS = ("family", "cause", "captioned", "n_test", "probe_accuracy", "probe_auroc", "zero_shot_family")


def probe(x: np.ndarray, y: np.ndarray):
    """A linear (logistic) probe on standardised x (n, D); None when y (n,) has fewer than two values."""
    if len(np.unique(y)) < 2:
        return None
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(np.asarray(x, np.float64), y)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of x (n, D) at norm 1; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; NaN without positives or negatives."""
    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else float("nan")


def scenes_card(data: Data, captioned: dict[str, bool]) -> pd.DataFrame:
    """The card on rendered scenes, scored on test rows against the truth.

    probe_accuracy: one linear probe for all families, plausible or not. probe_auroc: for "all" of that probe; for a cause,
    of a probe of its own, fitted on its family's train rows (cause against plausible images of the family).
    zero_shot_family: share of images whose nearest family, by the mean text embedding of the family's object phrases, is
    the right one.

    Args:
        data:      with truth.
        captioned: cause -> whether it appears in the encoder's captions.
    Returns: frame with COLUMNS; first row family = "all", then one row per cause.
    """
    x, truth, y = data.x, data.truth, data.labels()
    train, test = data.rows("train"), data.rows("test")
    family = truth["family"].to_numpy(dtype=str)
    overall = probe(x[train], y[train])
    score = overall.decision_function(np.asarray(x[test], np.float64))
    right = (score > 0) == (y[test] == 1)
    nearest = nearest_family(data, test)
    named = np.full(len(test), np.nan) if nearest is None else nearest == family[test]
    total = {"family": "all", "cause": "", "captioned": "", "n_test": len(test), "probe_accuracy": right.mean()}
    rows = [total | {"probe_auroc": auroc(score, y[test] == 1), "zero_shot_family": named.mean()}]
    pairs = truth.loc[truth["cause"] != "", ["family", "cause"]].drop_duplicates().sort_values(["family", "cause"])
    cause = truth["cause"].to_numpy(dtype=str)
    for name, error in pairs.itertuples(index=False):
        fit, use = (r[(family[r] == name) & np.isin(cause[r], ["", error])] for r in (train, test))
        own = probe(x[fit], y[fit])
        own_score = (
            own.decision_function(np.asarray(x[use], np.float64))
            if own is not None and len(use)
            else np.zeros(len(use))
        )
        here = family[test] == name
        rows.append(
            {"family": name, "cause": error, "captioned": captioned.get(error, ""), "n_test": int(here.sum())}
            | {"probe_accuracy": right[here].mean(), "zero_shot_family": named[here].mean()}
            | {"probe_auroc": auroc(own_score, y[use] == 1) if own is not None else float("nan")}
        )
    return pd.DataFrame(rows)[list(COLUMNS)]


def nearest_family(data: Data, rows: np.ndarray) -> np.ndarray | None:
    """(n,) family whose mean object phrase is nearest to each row; None when no object phrase tells its family."""
    known = ((data.phrases["kind"] == "object") & (data.phrases["family"] != "")).to_numpy()
    if not known.any():
        return None
    names = np.array(sorted(data.phrases.loc[known, "family"].unique()))
    texts = unit(np.asarray(data.vocabulary, np.float64))
    means = unit(np.stack([texts[known & (data.phrases["family"] == n).to_numpy()].mean(axis=0) for n in names]))
    return names[np.argmax(unit(np.asarray(data.embedding[rows], np.float64)) @ means.T, axis=1)]


def folds_card(data: Data, seed: int = 0, n_folds: int = 5) -> pd.DataFrame:
    """The card on labelled photographs: every image is scored once by a probe that has not seen its group.

    Returns: frame with COLUMNS and accuracy_low, accuracy_high (Wilson 95% over images), auroc_low, auroc_high (95% of the
        mean of the folds, Student t); first row "all", then one row per class_name (share of its images that are right).
    Raises: ValueError when a label has fewer groups than folds.
    """
    rows = data.rows(("train", "val", "test"))
    y, groups = data.labels(rows), data.manifest["group"].to_numpy()[rows]
    for label in (0, 1):
        if (n := len(np.unique(groups[y == label]))) < n_folds:
            raise ValueError(f"label {label} has {n} different images, {n_folds} folds need at least {n_folds}")
    score, areas = np.zeros(len(rows)), []
    cut = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for fit, held in cut.split(rows, y, groups):
        score[held] = probe(data.x[rows[fit]], y[fit]).decision_function(np.asarray(data.x[rows[held]], np.float64))
        areas.append(auroc(score[held], y[held] == 1))
    right = (score > 0) == (y == 1)
    half = t.ppf(0.975, n_folds - 1) * np.std(areas, ddof=1) / np.sqrt(n_folds)
    mean = float(np.mean(areas))
    names = data.manifest["class_name"].to_numpy(dtype=str)[rows]
    found = [
        _line("all", right)
        | {"probe_auroc": mean, "auroc_low": max(0.0, mean - half), "auroc_high": min(1.0, mean + half)}
    ]
    found += [_line(name, right[names == name]) for name in sorted(set(names) - {""})]
    return _frame(found, "accuracy_low", "accuracy_high", "auroc_low", "auroc_high")


def classes_card(data: Data, texts: np.ndarray | None = None) -> pd.DataFrame:
    """The card on class folders: a linear probe of the classes, fitted on train and scored on test rows.

    Args:
        data:  labels "classes".
        texts: (C, D) text embeddings of facts["class_names"] for the zero-shot column; None leaves it empty.
    Returns: frame with COLUMNS (family = class), accuracy_low and accuracy_high (Wilson 95%).
    """
    names = np.array(data.facts["class_names"])
    train, test = data.rows("train"), data.rows("test")
    y = data.manifest["class_name"].to_numpy(dtype=str)
    fitted = probe(data.x[train], y[train])
    right = (
        np.zeros(len(test), bool) if fitted is None else fitted.predict(np.asarray(data.x[test], np.float64)) == y[test]
    )
    named = None
    if texts is not None:
        named = names[np.argmax(unit(np.asarray(data.embedding[test])) @ unit(texts).T, axis=1)] == y[test]
    parts = [("all", np.ones(len(test), bool))] + [(name, y[test] == name) for name in names]
    lines = [
        _line(name, right[here])
        | ({"zero_shot_family": named[here].mean()} if named is not None and here.any() else {})
        for name, here in parts
    ]
    return _frame(lines, "accuracy_low", "accuracy_high")


def words_card(data: Data) -> pd.DataFrame:
    """The card on arrays: is the nearest text of a row its own word, among the rows whose word is in the vocabulary?

    Words are compared without case and surrounding spaces; all senses of a word ("bow", "bow (2)") count as it.

    Returns: frame with COLUMNS (zero_shot_family: nearest text) and zero_shot_top5; one row "all".
    """
    texts = np.array([re.sub(r" \(\d+\)$", "", p).strip().lower() for p in data.phrases["phrase"]], dtype=object)
    words = data.manifest["class_name"].str.strip().str.lower().to_numpy(dtype=object)
    rows = np.flatnonzero(np.isin(words.astype(str), texts.astype(str))) if len(texts) else np.zeros(0, int)
    line = {"family": "all", "cause": "", "n_test": len(rows)}
    if len(rows):
        v = unit(np.asarray(data.vocabulary, np.float64))
        ranks = []
        for start in range(0, len(rows), 1024):
            some = rows[start : start + 1024]
            order = np.argsort(-(unit(np.asarray(data.x[some], np.float64)) @ v.T), axis=1, kind="stable")[:, :5]
            ranks.append(texts[order] == words[some, None])
        hits = np.concatenate(ranks)
        line |= {"zero_shot_family": hits[:, 0].mean(), "zero_shot_top5": hits.any(axis=1).mean()}
    return _frame([line], "zero_shot_top5")


def reading(report: pd.DataFrame, facts: dict) -> str:
    """The card in two or three sentences, every number from the table."""
    total, rest = report.iloc[0], report.iloc[1:]
    if facts["source"] == "scenes":
        worst, hardest = rest.loc[rest["probe_accuracy"].idxmin()], rest.loc[rest["probe_auroc"].idxmin()]
        kept_out = rest[rest["captioned"] == False]  # noqa: E712 - "" for rows without a cause
        return (
            f"One linear probe tells plausible from implausible in {total['probe_accuracy']:.1%} of {total['n_test']} test images; "
            f"the hardest family is {worst['family']} ({worst['probe_accuracy']:.1%}).\n"
            f"Within its family the hardest cause is {hardest['cause']} (AUROC {hardest['probe_auroc']:.3f}). The causes that the captions "
            f"never mention, {', '.join(kept_out['cause'])}, reach {kept_out['probe_auroc'].min():.3f} or more.\n"
            f"The nearest text names the family of {total['zero_shot_family']:.1%} of the images."
        )
    if facts["labels"] == "plausibility":
        return (
            f"Over 5 folds a linear probe is right for {total['probe_accuracy']:.1%} of {total['n_test']} images (95% interval "
            f"{total['accuracy_low']:.1%} to {total['accuracy_high']:.1%}), AUROC {total['probe_auroc']:.3f} ({total['auroc_low']:.3f} to "
            f"{total['auroc_high']:.3f}).\nThe labels may track the source of the images (who took or generated them) and not their "
            "physics: without a truth this cannot be told apart, so no claim about causes is made."
        )
    if facts["labels"] == "classes":
        named = total["zero_shot_family"] == total["zero_shot_family"]
        worst = rest.loc[rest["probe_accuracy"].idxmin()]
        return (
            f"A linear probe names the class of {total['probe_accuracy']:.1%} of {total['n_test']} test images ({len(rest)} classes; the "
            f"hardest is {worst['family']}, {worst['probe_accuracy']:.1%})"
            + (f"; the nearest class name is right for {total['zero_shot_family']:.1%}" if named else "")
            + ".\nThere are no plausibility labels, so nothing here says what is physically wrong."
        )
    if not total["n_test"]:
        return "The rows carry no label and no name that the vocabulary knows, so there is nothing to score."
    return (
        f"Of the {total['n_test']} rows whose word is in the vocabulary, {total['zero_shot_family']:.1%} find it as the nearest text and "
        f"{total['zero_shot_top5']:.1%} among the nearest five."
    )


def _line(name: str, right: np.ndarray) -> dict:
    line = {"family": name, "cause": "", "n_test": len(right)}
    if not len(right):
        return line
    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return line | {"probe_accuracy": right.mean(), "accuracy_low": low, "accuracy_high": high}


def _frame(lines: list[dict], *extra: str) -> pd.DataFrame:
    return pd.DataFrame(lines).reindex(columns=[*COLUMNS, *extra]).assign(cause="", captioned="")

"""Judges against the truth and each other: precision, recall, F1, agreement and Cohen's kappa."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from mtlib.judge.verdicts import RULED, of_all

SCORES = ["n_assessed", "n_error", "n_truth", "precision", "recall", "f1", "agreement", "kappa", "n_left_out"]
CELLS = ["true_negative", "false_positive", "false_negative", "true_positive"]


def agreement(verdict: np.ndarray, truth: np.ndarray) -> dict:
    """A judge's yes / no against the truth.

    Args:
        verdict, truth: (n,) bool.
    Returns: n_assessed, n_error (verdicts), n_truth, precision, recall, f1, agreement, kappa (Cohen); NaN where a
        denominator is 0 (kappa: where both sides always say the same).
    """
    verdict, truth = np.asarray(verdict, bool), np.asarray(truth, bool)
    n, said, real = len(truth), int(verdict.sum()), int(truth.sum())
    scores = dict.fromkeys(("precision", "recall", "f1", "agreement", "kappa"), float("nan"))
    if n:
        found = precision_recall_fscore_support(truth, verdict, average="binary", pos_label=True, zero_division=np.nan)
        kappa = cohen_kappa_score(verdict, truth) if 0 < said + real < 2 * n else float("nan")
        same = float((verdict == truth).mean())
        scores = dict(zip(scores, (*map(float, found[:3]), same, float(kappa)), strict=True))
    return {"n_assessed": n, "n_error": said, "n_truth": real} | scores


def pairwise(verdicts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Every judge against every other, on the features on which both have a verdict.

    Args:
        verdicts: method -> verdicts of all judges.
    Returns: frame of method ("all" for all of them together, where there are several), judge, reference, n, agreement,
        kappa (Cohen), only_judge, only_reference (features that only one of them calls an error), precision and recall
        of judge with reference as the truth.
    """
    decided = of_all(verdicts).query("verdict in @RULED")
    decided = decided.assign(error=(decided["verdict"] == "error").astype(float))
    wide = decided.pivot(index=["method", "feature"], columns="judge", values="error")  # NaN: no verdict
    parts = {m: wide[wide.index.get_level_values("method") == m] for m in verdicts}
    parts |= {"all": wide} if len(verdicts) > 1 else {}
    lines = []
    for method, part in parts.items():
        for judge, reference in itertools.combinations(part.dropna(axis=1, how="all"), 2):
            both = part[[judge, reference]].dropna().astype(bool)
            a, b = both[judge], both[reference]
            line = {"method": method, "judge": judge, "reference": reference, "n": len(both)} | agreement(a, b)
            lines.append(line | {"only_judge": int((a & ~b).sum()), "only_reference": int((b & ~a).sum())})
    columns = ["method", "judge", "reference", "n", "agreement", "kappa", "only_judge", "only_reference"]
    return pd.DataFrame(lines, columns=[*columns, "precision", "recall"])


def judge_table(method: str, verdicts: pd.DataFrame, truth: pd.DataFrame, captioned: dict[str, bool]) -> pd.DataFrame:
    """Each judge against the truth: over all assessed features, and with the captioned and uncaptioned causes apart.

    A feature belongs to the part of its top cause; those without one (normal, nuisance) stand in both parts, since a
    judge may wrongly call them errors in either.

    Args:
        verdicts:  feature, judge, verdict; refused, failed and skipped are left out of the scores and counted.
        truth:     feature, is_error, top_cause (`mtlib.truth.attributes.error_features`).
        captioned: cause -> whether the encoder's captions named it.
    Returns: frame of method, judge, captioned (all | captioned | uncaptioned), the columns of `agreement`, n_left_out.
    """
    lines = []
    joined = verdicts.merge(truth[["feature", "is_error", "top_cause"]], on="feature", how="left", validate="m:1")
    if joined["is_error"].isna().any():
        raise ValueError(f"{method}: {int(joined['is_error'].isna().sum())} verdicts on features without a truth")
    for judge, group in joined.groupby("judge", sort=True):
        decided = group[group["verdict"].isin(RULED)]
        part = decided["top_cause"].where(decided["is_error"].astype(bool), "").map(captioned)
        kept = {"all": decided, "captioned": decided[~part.eq(False)], "uncaptioned": decided[~part.eq(True)]}
        for name, some in kept.items():
            scores = agreement(some["verdict"] == "error", some["is_error"])
            head = {"method": method, "judge": judge, "captioned": name}
            lines.append(head | scores | {"n_left_out": len(group) - len(decided)})
    return pd.DataFrame(lines)


def against_truth(
    verdicts: dict[str, pd.DataFrame], features: dict[str, pd.DataFrame], known: dict[str, bool], skipped: pd.DataFrame
) -> pd.DataFrame:
    """06_judges.csv: every judge of every method against the truth, or how much it said where there is no truth.

    Args:
        verdicts, features: method -> verdicts of all judges, features.parquet.
        known:              cause -> whether the encoder's captions named it. skipped: methods without a coder (and reason).
    """
    parts = []
    for method, table in features.items():
        others = verdicts[method][verdicts[method]["judge"] != "truth"]
        if "is_error" in table:
            truth = table.assign(is_error=table["is_error"] & table["assessed"])
            parts.append(judge_table(method, others, truth, known or {"": True}).assign(reason=""))
            continue
        for judge, own in others.groupby("judge", sort=True):
            decided = own["verdict"].isin(RULED)
            why = own.loc[~decided, "detail"].mode()
            line = {"method": method, "judge": judge, "captioned": "all", "n_assessed": decided.sum()}
            line |= {"n_error": (own["verdict"] == "error").sum(), "n_left_out": (~decided).sum()}
            line["reason"] = "no truth to compare with" if decided.any() or why.empty else why.iloc[0]
            parts.append(pd.DataFrame([line]))
    parts.append(skipped[["method", "reason"]].assign(judge="", captioned="all"))
    columns = ["method", "judge", "captioned", *SCORES, "reason"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


def confusion(verdicts: dict[str, pd.DataFrame], features: dict[str, pd.DataFrame], judge: str) -> pd.DataFrame:
    """How many features a judge and the truth call an error: frame of method, judge and CELLS."""
    lines = []
    for method, table in features.items():
        own = verdicts[method].query("judge == @judge and verdict in @RULED")
        real = table.set_index("feature")["is_error"].loc[own["feature"]].to_numpy(bool)
        counts = np.bincount(2 * real + (own["verdict"] == "error").to_numpy(bool), minlength=len(CELLS))
        lines.append({"method": method, "judge": judge} | dict(zip(CELLS, counts, strict=True)))
    return pd.DataFrame(lines)


def scores_of(table: pd.DataFrame, judge: str) -> pd.DataFrame:
    """A judge's mean scores over methods, of all causes and of those that captions named or did not: captioned, n_methods,
    precision, recall, f1, kappa."""
    own = table[(table["judge"] == judge) & table["f1"].notna()].groupby("captioned")
    mean = own[["precision", "recall", "f1", "kappa"]].mean()
    mean.insert(0, "n_methods", own.size())
    return mean.reindex(["all", "captioned", "uncaptioned"])

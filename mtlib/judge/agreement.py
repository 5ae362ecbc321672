"""Judges against the truth and each other: precision, recall, F1, agreement and Cohen's kappa."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from mtlib.judge.verdicts import RULED

SCORES = ["n_assessed", "n_error", "n_truth", "precision", "recall", "f1", "agreement", "kappa", "n_left_out"]


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


ORDER = ("keyless", "lmm", "threshold", "truth")  # a judge is compared with those after it


def pairwise(verdicts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Every judge against every other, on the features on which both have a verdict.

    Args:
        verdicts: method -> verdicts of all judges.
    Returns: frame of method ("all" for all of them together, where there are several), judge, reference, n, agreement,
        kappa (Cohen), only_judge, only_reference (features that only one of them calls an error), precision and recall
        of judge with reference as the truth.
    """
    frames = [f.assign(method=m) for m, f in verdicts.items()]
    if len(frames) > 1:
        every = pd.concat(frames)
        frames.append(every.assign(feature=every["method"] + "/" + every["feature"].astype(str), method="all"))
    lines = [line for frame in frames for line in _pairs(frame)]
    columns = ["method", "judge", "reference", "n", "agreement", "kappa"]
    return pd.DataFrame(lines, columns=[*columns, "only_judge", "only_reference", "precision", "recall"])


def _pairs(frame: pd.DataFrame):
    decided = frame[frame["verdict"].isin(RULED)]
    said = {j: g.set_index("feature")["verdict"] == "error" for j, g in decided.groupby("judge")}
    judges = [j for j in ORDER if j in said] + sorted(set(said) - set(ORDER))
    for i, judge in enumerate(judges):
        for reference in judges[i + 1 :]:
            both = pd.concat([said[judge], said[reference]], axis=1, join="inner", keys=["a", "b"])
            scores = agreement(both["a"], both["b"])
            line = {"method": frame["method"].iloc[0], "judge": judge, "reference": reference, "n": len(both)}
            line |= {k: scores[k] for k in ("agreement", "kappa", "precision", "recall")}
            only = {
                "only_judge": int((both["a"] & ~both["b"]).sum()),
                "only_reference": int((~both["a"] & both["b"]).sum()),
            }
            yield line | only


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
        for name, keep in (
            ("all", np.ones(len(decided), bool)),
            ("captioned", ~part.eq(False).to_numpy()),
            ("uncaptioned", ~part.eq(True).to_numpy()),
        ):
            some = decided[keep]
            scores = agreement(some["verdict"] == "error", some["is_error"])
            line = {"method": method, "judge": judge, "captioned": name}
            lines.append(line | scores | {"n_left_out": len(group) - len(decided)})
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
            truth = table[["feature", "is_error", "top_cause"]]
            truth = truth.assign(is_error=truth["is_error"] & table["assessed"])
            parts.append(judge_table(method, others, truth, known or {"": True}).assign(reason=""))
        else:
            parts.append(pd.DataFrame([_unchecked(method, *judge) for judge in others.groupby("judge", sort=True)]))
    rest = pd.DataFrame({"method": skipped["method"], "judge": "", "captioned": "all", "reason": skipped["reason"]})
    columns = ["method", "judge", "captioned", *SCORES, "reason"]
    return pd.concat([*parts, rest], ignore_index=True).reindex(columns=columns)


def _unchecked(method: str, judge: str, verdicts: pd.DataFrame) -> dict:
    """The line of a judge that nothing is known of but what it said."""
    decided = verdicts["verdict"].isin(RULED)
    why = verdicts.loc[~decided, "detail"].mode()
    reason = "no truth to compare with" if decided.any() or why.empty else why.iloc[0]
    line = {"method": method, "judge": judge, "captioned": "all", "n_assessed": int(decided.sum())}
    counts = {"n_error": int((verdicts["verdict"] == "error").sum()), "n_left_out": int((~decided).sum())}
    return line | counts | {"reason": reason}


def scores_of(table: pd.DataFrame, judge: str) -> pd.DataFrame:
    """A judge's mean scores over methods, of all causes and of those that captions named or did not: captioned, n_methods,
    precision, recall, f1, kappa."""
    own = table[(table["judge"] == judge) & table["f1"].notna()]
    mean = own.groupby("captioned")[["precision", "recall", "f1", "kappa"]].mean()
    mean.insert(0, "n_methods", own.groupby("captioned").size())
    return mean.reindex(["all", "captioned", "uncaptioned"])

"""Judges against the truth: precision, recall, F1, agreement and Cohen's kappa; captioned and uncaptioned causes apart."""

from __future__ import annotations

import numpy as np
import pandas as pd


def agreement(verdict: np.ndarray, truth: np.ndarray) -> dict:
    """A judge's yes / no against the truth.

    Args:
        verdict, truth: (n,) bool.
    Returns: n_assessed, n_error (verdicts), n_truth, precision, recall, f1, agreement, kappa (Cohen); NaN where a
        denominator is 0 (kappa: where both sides always say the same).
    """
    verdict, truth = np.asarray(verdict, bool), np.asarray(truth, bool)
    n, both = len(truth), int((verdict & truth).sum())
    said, real = int(verdict.sum()), int(truth.sum())

    def ratio(a: float, b: float) -> float:
        return a / b if b else float("nan")

    same = ratio(int((verdict == truth).sum()), n)
    chance = ratio(said * real + (n - said) * (n - real), n * n)
    return {
        "n_assessed": n,
        "n_error": said,
        "n_truth": real,
        "precision": ratio(both, said),
        "recall": ratio(both, real),
        "f1": ratio(2 * both, said + real),
        "agreement": same,
        "kappa": ratio(same - chance, 1 - chance),
    }


def judge_table(method: str, verdicts: pd.DataFrame, truth: pd.DataFrame, captioned: dict[str, bool]) -> pd.DataFrame:
    """Each judge against the truth: over all assessed features, and with the captioned and uncaptioned causes apart.

    A feature belongs to the part of its top cause; those without one (normal, nuisance) stand in both parts, since a
    judge may wrongly call them errors in either.

    Args:
        verdicts:  feature, judge, verdict; refused, failed and skipped are left out of the scores and counted.
        truth:     feature, is_error, top_cause (`mtlib.measure.kinds.error_features`).
        captioned: cause -> whether the encoder's captions named it.
    Returns: frame of method, judge, captioned (all | captioned | uncaptioned), the columns of `agreement`, n_left_out.
    """
    lines = []
    joined = verdicts.merge(truth[["feature", "is_error", "top_cause"]], on="feature", how="left", validate="m:1")
    if joined["is_error"].isna().any():
        raise ValueError(f"{method}: {int(joined['is_error'].isna().sum())} verdicts on features without a truth")
    for judge, group in joined.groupby("judge", sort=True):
        decided = group[group["verdict"].isin(["error", "no_error"])]
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

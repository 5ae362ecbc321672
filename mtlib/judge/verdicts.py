"""Verdicts: every judge gives each feature a phrase and a verdict, in the same columns, so that they stand side by side.

feature, judge, phrase, verdict (error | no_error | refused | failed | skipped | unasked), category, confidence, detail

`keyless` (keyless.py) reads the encoder's text tower. `lmm` (lmm.py) asks a multimodal model, which may refuse, fail, or be
stopped before it is asked. `truth` (demo) says what was really drawn. `threshold` is the published rule on the error ratio; it
reads the labels, so it is a score, not a second opinion.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.ask.interview import UNASSESSED, in_order
from mtlib.measure.relevance import PUBLISHED_RATIO

VERDICTS = ("error", "no_error", "refused", "failed", "skipped", "unasked")
RULED = ("error", "no_error")
COLUMNS = ["feature", "judge", "phrase", "verdict", "category", "confidence", "detail"]
NOTHING = "nothing to judge: the images have no plausibility labels"
ONE_LABEL = "nothing to judge: the {} images are of one label"


def skipped(features: pd.DataFrame, judge: str, reason: str) -> pd.DataFrame:
    """Every feature skipped by a judge, for one reason."""
    frame = pd.DataFrame({"feature": features["feature"], "judge": judge, "phrase": "", "verdict": "skipped"})
    return frame.assign(category="", confidence=np.nan, detail=reason)


def by_truth(features: pd.DataFrame) -> pd.DataFrame:
    """The demo's truth as a judge: error where 05 found that the feature truly stands for one cause."""
    if "is_error" not in features:
        return skipped(features, "truth", "no truth: these images were not rendered")
    cause, share = features["top_cause"], features["top_cause_share"]
    detail = [f"{s:.0%} of its top val images show {c or 'no cause'}" for c, s in zip(cause, share, strict=True)]
    frame = _ruled(features, "truth", features["is_error"], detail)
    return frame.assign(phrase=cause, category=cause, confidence=share)


def by_threshold(features: pd.DataFrame) -> pd.DataFrame:
    """The published rule as a judge: error where at least 95% of the activating test images are implausible."""
    ratio = features["error_ratio"]
    if ratio.isna().all():
        return skipped(features, "threshold", NOTHING)
    if features["base_rate"].isin([0, 1]).all():
        return skipped(features, "threshold", ONE_LABEL.format("test"))
    return _ruled(features, "threshold", ratio >= PUBLISHED_RATIO, "").assign(confidence=ratio)


def _ruled(features: pd.DataFrame, judge: str, is_error: pd.Series, detail: str | list[str]) -> pd.DataFrame:
    """A verdict on every assessed feature."""
    verdict = np.where(features["assessed"], np.where(is_error, "error", "no_error"), "skipped")
    told = np.where(features["assessed"], detail, UNASSESSED)
    return skipped(features, judge, "").assign(verdict=verdict, detail=told)


def only_first(verdicts: pd.DataFrame, features: pd.DataFrame, n: int) -> pd.DataFrame:
    """Verdicts with all but the first `n` features (see `interview.in_order`) set to skipped; n = 0 keeps all."""
    if n <= 0:
        return verdicts
    rest = ~verdicts["feature"].isin(in_order(features)["feature"].head(n)) & (verdicts["verdict"] != "skipped")
    out = verdicts.copy()
    out.loc[rest, ["verdict", "confidence", "detail"]] = ["skipped", np.nan, f"beyond max_features = {n}"]
    return out


def beside(features: dict[str, pd.DataFrame], verdicts: dict[str, pd.DataFrame], judge: str) -> pd.DataFrame:
    """Named features of every method in reading order: a judge's words beside the error ratio and, on the demo, the cause."""
    frames = []
    for method, table in features.items():
        own = verdicts[method].query("judge == @judge and phrase != ''")
        known = ["density", "error_ratio", *[c for c in ("top_cause", "is_error") if c in table]]
        words = own[["feature", "phrase", "verdict", "confidence", "detail"]]
        joined = in_order(table)[["feature", *known]].merge(words, on="feature")
        frames.append(joined[[*words, *known]].assign(method=method))
    return pd.concat(frames, ignore_index=True)


def of_all(verdicts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The verdicts of all methods in one frame, with a column method."""
    return pd.concat([frame.assign(method=method) for method, frame in verdicts.items()], ignore_index=True)


def unruled(verdicts: dict[str, pd.DataFrame], judge: str) -> pd.DataFrame:
    """Why a judge did not rule: frame of method, reason, n_features."""
    left = of_all(verdicts).query("judge == @judge and verdict not in @RULED")
    left = left.assign(reason=left["detail"].str.slice(0, 80))
    return left.groupby(["method", "reason"], sort=False).size().rename("n_features").reset_index()


def verdict_counts(verdicts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """method, judge and the number of features with each verdict; the verdicts of a judge add up to n_latents.

    A column "unasked" is there only where a judge was stopped before its end.
    """
    every = of_all(verdicts).groupby("method", sort=False)
    counts = [pd.crosstab([part["method"], part["judge"]], part["verdict"]) for _, part in every]
    frame = pd.concat(counts).reindex(columns=list(VERDICTS)).fillna(0).astype(int)
    frame = frame.assign(n_latents=frame.sum(axis=1))
    return (frame if frame["unasked"].any() else frame.drop(columns="unasked")).reset_index()

"""Verdicts: every judge gives each feature a phrase and a verdict, in the same columns, so that they stand side by side.

feature, judge, phrase, verdict (error | no_error | refused | failed | skipped | unasked), category, confidence, detail

`keyless` (keyless.py) reads the encoder's text tower. `lmm` (lmm.py) asks a multimodal model, which may refuse, fail, or be
stopped before it is asked. `truth` (demo) says what was really drawn. `threshold` is the published rule on the error ratio; it
reads the labels, so it is a score, not a second opinion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.ask.interview import UNASSESSED, in_order

VERDICTS = ("error", "no_error", "refused", "failed", "skipped", "unasked")
RULED = ("error", "no_error")
COLUMNS = ["feature", "judge", "phrase", "verdict", "category", "confidence", "detail"]
NOTHING = "nothing to judge: the images have no plausibility labels"


def by_truth(features: pd.DataFrame) -> pd.DataFrame:
    """The demo's truth as a judge: error where 05 found that the feature truly stands for one cause."""
    if "is_error" not in features:
        return skipped(features, "truth", "no truth: these images were not rendered")
    causes = zip(features["top_cause_share"], features["top_cause"], strict=True)
    detail = [f"{share:.0%} of its top val images show {cause or 'no cause'}" for share, cause in causes]
    verdict = np.where(features["is_error"], "error", "no_error")
    frame = pd.DataFrame({"feature": features["feature"], "judge": "truth", "phrase": features["top_cause"]})
    frame["verdict"] = np.where(features["assessed"], verdict, "skipped")
    frame["category"], frame["confidence"] = features["top_cause"], features["top_cause_share"]
    frame["detail"] = np.where(features["assessed"], detail, UNASSESSED)
    return frame[COLUMNS]


def by_threshold(features: pd.DataFrame, ratio: float = 0.95) -> pd.DataFrame:
    """The published rule as a judge: error where at least `ratio` of the activating test images are implausible."""
    if features["error_ratio"].isna().all():
        return skipped(features, "threshold", NOTHING)
    frame = pd.DataFrame({"feature": features["feature"], "judge": "threshold", "phrase": ""})
    verdict = np.where(features["error_ratio"] >= ratio, "error", "no_error")
    frame["verdict"] = np.where(features["assessed"], verdict, "skipped")
    frame["category"], frame["confidence"] = "", features["error_ratio"]
    frame["detail"] = np.where(features["assessed"], "", UNASSESSED)
    return frame[COLUMNS]


def skipped(features: pd.DataFrame, judge: str, reason: str) -> pd.DataFrame:
    """Every feature skipped by a judge, for one reason."""
    frame = pd.DataFrame({"feature": features["feature"], "judge": judge, "phrase": "", "verdict": "skipped"})
    frame["category"], frame["confidence"], frame["detail"] = "", np.nan, reason
    return frame[COLUMNS]


def only_first(verdicts: pd.DataFrame, features: pd.DataFrame, n: int) -> pd.DataFrame:
    """Verdicts with all but the first `n` features (see `interview.in_order`) set to skipped; n = 0 keeps all."""
    if n <= 0:
        return verdicts
    rest = ~verdicts["feature"].isin(in_order(features)["feature"].head(n)) & (verdicts["verdict"] != "skipped")
    out = verdicts.copy()
    out.loc[rest, "verdict"] = "skipped"
    out.loc[rest, ["confidence", "detail"]] = [np.nan, f"beyond max_features = {n}"]
    return out


def write(folder: Path, verdicts: dict[str, pd.DataFrame]) -> None:
    """Each method's verdicts as <folder>/<method>/verdicts.parquet."""
    for method, frame in verdicts.items():
        (folder / method).mkdir(parents=True, exist_ok=True)
        frame.to_parquet(folder / method / "verdicts.parquet", index=False)


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


def unruled(verdicts: dict[str, pd.DataFrame], judge: str) -> pd.DataFrame:
    """Why a judge did not rule: frame of method, reason, n_features."""
    every = pd.concat([f.assign(method=m) for m, f in verdicts.items()])
    left = every[(every["judge"] == judge) & ~every["verdict"].isin(RULED)]
    counts = left.assign(reason=left["detail"].str.slice(0, 80)).groupby(["method", "reason"], sort=False).size()
    return counts.rename("n_features").reset_index()


def verdict_counts(verdicts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """method, judge and the number of features with each verdict; the verdicts of a judge add up to n_latents.

    A column "unasked" is there only where a judge was stopped before its end.
    """
    lines = []
    for method, frame in verdicts.items():
        for judge, group in frame.groupby("judge", sort=True):
            counts = group["verdict"].value_counts()
            line = {"method": method, "judge": judge} | {v: int(counts.get(v, 0)) for v in VERDICTS}
            lines.append(line | {"n_latents": len(group)})
    frame = pd.DataFrame(lines, columns=["method", "judge", *VERDICTS, "n_latents"])
    return frame if frame["unasked"].any() else frame.drop(columns="unasked")

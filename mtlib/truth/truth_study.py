"""Notebook 04's work against the truth: causes found, sparse probing, kinds of features, splitting, of every coder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.store import Data
from mtlib.measure import splice
from mtlib.measure.codes import sparse_codes
from mtlib.measure.probes import readout
from mtlib.measure.study import Subject, target_of
from mtlib.truth import kinds, truth

CAUSES = [
    "cause",
    "captioned",
    "method",
    "seed",
    "target",
    "l0_target",
    "feature",
    "sign",
    "auroc",
    "auroc_all",
    "f1",
    "ceiling_x",
    "ceiling_y",
    "ceiling",
    "best_x_dim",
    "best_y_dim",
    "n_cause",
    "n_plausible",
    "share_of_ceiling",
    "specific_feature",
    "specific_auroc",
    "specific_auroc_all",
    "specific_x_dim",
    "specific_y_dim",
    "status",
    "reason",
]


@dataclass(frozen=True)
class TruthStudy:
    """Everything the truth says about the subjects: frames with one line per cause, cause and k, feature, cause."""

    causes: pd.DataFrame
    sparse: pd.DataFrame
    kinds: pd.DataFrame
    splitting: pd.DataFrame


def study_truth(data: Data, subjects: list[Subject], captioned: dict[str, bool]) -> TruthStudy:
    """Causes found, k-sparse probing, kinds of features and splitting of every subject (definitions.md, Truth).

    A cause is of an image. Where images have several rows (tokens), a latent's code is the largest of them, and the ceilings
    and single dimensions read the mean row, so that a feature of one place can do better than they.

    Args:
        captioned: cause -> whether the encoder's training captions named it; causes that are absent stay unknown.
    Returns: TruthStudy, empty when no cause has images with and without it in every split.
    """
    images, t = data.per_image(), data.tokens
    known = images.labels() >= 0
    rows = {split: r[known[r]] for split in ("train", "val", "test") if len(r := images.rows(split))}
    task_list = [task for task in truth.tasks(images.truth, rows) if task.scorable]
    if not task_list:
        return TruthStudy(*(pd.DataFrame() for _ in range(4)))
    parts = {
        name: {s: np.asarray(a[r]) for s, r in rows.items()}
        for name, a in (("x", images.x), ("y", images.y))
        if a is not None
    }
    limits = truth.ceilings(task_list, parts["x"], parts.get("y"))
    cause = images.truth["cause"].fillna("").to_numpy(str)
    places = {name: (r[:, None] * t + np.arange(t)).ravel() for name, r in rows.items()}  # rows of data.x
    causes, sparse, kind, split = [], [], [], []
    for s in subjects:
        codes = {name: sparse_codes(s.coder, data.x, r, tokens=t) for name, r in places.items()}
        found = truth.causes_found(task_list, codes["val"], codes["test"])
        causes.append(found.assign(**s.key))
        for task in task_list:
            scores = truth.sparse_probe(task, codes)
            sparse += [{**s.key, "cause": task.cause, "k": k, "auroc": a} for k, a in scores.items()]
        truly = kinds.error_features(codes["val"], codes["test"], cause[rows["val"]], cause[rows["test"]])
        here = kinds.feature_kinds(codes["test"], images.truth.iloc[rows["test"]])
        kind.append(here.merge(truly.drop(columns="n_active_test"), on="feature").assign(**s.key))
        best = dict(zip(found["cause"], found["fires_for"], strict=True))
        split.append(kinds.splitting(truly, codes["test"], cause[rows["test"]], best).assign(**s.key))
    table = pd.concat(causes, ignore_index=True).merge(limits, on="cause", how="left", validate="m:1")
    table["captioned"] = table["cause"].map(captioned)
    table["share_of_ceiling"] = table["auroc"] / table["ceiling"]
    table = table.assign(status="ok", reason="")[CAUSES]
    return TruthStudy(
        table, pd.DataFrame(sparse), pd.concat(kind, ignore_index=True), pd.concat(split, ignore_index=True)
    )


@torch.no_grad()
def steering(
    data: Data, subjects: list[Subject], classifier, causes: pd.DataFrame, scales=(0, 0.5, 1, 2, 4), seed: int = 0
) -> pd.DataFrame:
    """What the classifier says when the feature of a cause is turned down or up, on the test images where it fires.

    Args:
        causes: `TruthStudy.causes`; the specific feature of each cause is steered, of each method's first seed.
        scales: factors on the feature's activation.
    Returns: frame of method, seed, target, l0_target, cause, feature, n (images), scale, probability (mean probability
        of implausible), change (mean change of the logit), control (the change for a random direction of that norm).
    """
    rows, rng, lines = data.rows("test"), np.random.default_rng(seed), []
    for s in reversed({s.method: s for s in reversed(subjects)}.values()):  # the first seed of each method, in order
        own = causes[(causes["method"] == s.method) & (causes["seed"] == s.seed)]
        codes, w, says = sparse_codes(s.coder, data.x, rows).tocsc(), s.coder.W_dec, readout(classifier, s.target)
        for cause, j in zip(own["cause"], own["specific_feature"].astype(int), strict=True):
            fires = rows[np.sort(codes[:, [j]].indices)]
            x, h = (torch.from_numpy(np.asarray(a[fires], np.float32)) for a in (data.x, target_of(data, s)))
            direction = torch.from_numpy(rng.normal(size=w.shape[1]).astype(np.float32))
            logit, control = (splice.steer(s.coder, x, h, j, scales, says, d) for d in (None, direction))  # (scales, n)
            p, before = logit.sigmoid().mean(1), says(h).mean()
            line = {**s.key, "cause": cause, "feature": j, "n": len(fires)}
            for i, scale in enumerate(scales):
                change, pushed = float(logit[i].mean() - before), float(control[i].mean() - before)
                lines.append(line | {"scale": scale, "probability": float(p[i]), "change": change, "control": pushed})
    return pd.DataFrame(lines)


def no_causes(subjects: list[Subject], skipped: pd.DataFrame, reason: str) -> pd.DataFrame:
    """The causes table when nothing can be checked: one line per method and seed with the reason."""
    lines = [{**s.key, "status": "skipped", "reason": reason} for s in subjects]
    lines += skipped[["method", "seed", "target", "status", "reason"]].to_dict("records")
    return pd.DataFrame(lines).reindex(columns=CAUSES)


def captioned_causes(encoder_table: Path) -> dict[str, bool]:
    """cause -> captioned, from 01's report card of the encoder; {} when there is none."""
    if not encoder_table.is_file():
        return {}
    frame = pd.read_csv(encoder_table, keep_default_na=False)
    if not {"cause", "captioned"} <= set(frame):
        return {}
    frame = frame[frame["cause"] != ""]
    return {
        c: str(v).lower() in ("true", "1", "1.0", "yes")
        for c, v in zip(frame["cause"], frame["captioned"], strict=True)
    }

"""Every coder of a run against the known causes: the tables of the notebook `truth`, a line per method and seed.

A cause is of an image. Where images have several rows (tokens), a latent's code is the largest of them, and the ceilings and
single dimensions read the mean row, so that a feature of one place can do better than they.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from mtlib.embed.store import Data
from mtlib.measure.codes import Subject, dense, first_seeds, sparse_codes, target_of
from mtlib.measure.logit import readout, steer
from mtlib.measure.similarity import copies
from mtlib.run.stage import read_back
from mtlib.truth import attributes, causes

CAUSES = ["cause", "captioned", "method", "seed", "target", "l0_target", "ap", "ap_feature", "ap_probe", "ap_x_dim"]
CAUSES += ["ap_y_unit", "ap_random", "ap_logit", "base_rate", "found", "copies", "feature", "sign"]
CAUSES += ["auroc", "auroc_all", "f1"]
CAUSES += ["ceiling_x", "ceiling_y", "ceiling", "best_x_dim", "best_y_dim", "n_cause", "n_plausible"]
CAUSES += ["share_of_ceiling", "status", "reason"]
CONTROLS = {  # columns of 04_causes that are no feature's, as the tables call them
    "ap_random": "best of as many random directions of x",
    "ap_x_dim": "best dimension of x",
    "ap_y_unit": "best unit of y",
    "ap_logit": "the classifier's logit",
    "ap_probe": "linear probe",
}
KINDS = ["cause", "family", "nuisance", "unexplained", "silent"]


@dataclass(frozen=True)
class Known:
    """What is known of a run's images, one line each: truth (n,) lines, rows of each split, and a task per cause.

    data: the run's; images: the same with one row per image.
    """

    data: Data
    images: Data
    rows: dict[str, np.ndarray]
    tasks: list[causes.Task]

    @staticmethod
    def of(data: Data) -> Known:
        """Raises: ValueError when no cause has images with and without it in every split."""
        images = data.per_image()
        known = images.labels() >= 0
        rows = {split: r[known[r]] for split in ("train", "val", "test") if len(r := images.rows(split))}
        tasks = [task for task in causes.tasks(images.truth, rows) if task.scorable]
        if not tasks:
            raise ValueError("no cause has images with it and without it in train, val and test; render more scenes")
        return Known(data, images, rows, tasks)

    def cause(self, split: str) -> np.ndarray:
        """(n,) the cause of each image of a split, "" for plausible ones."""
        return self.images.truth["cause"].fillna("").to_numpy(str)[self.rows[split]]

    def codes(self, subject: Subject) -> dict[str, sparse.csr_array]:
        """split -> (n, S) codes of its images."""
        t = self.data.tokens
        places = {split: (r[:, None] * t + np.arange(t)).ravel() for split, r in self.rows.items()}  # rows of data.x
        return {split: sparse_codes(subject.coder, self.data.x, r, tokens=t) for split, r in places.items()}

    @property
    def logits(self) -> np.ndarray | None:
        """(N,) of the classifier of plausibility, where the run has one."""
        said = self.images.logits
        return said if said is not None and said.ndim == 1 else None

    def parts(self, rows) -> dict[str, np.ndarray] | None:
        """split -> the rows of x, y or logits (N, ...) of its images; None without them."""
        return None if rows is None else {split: np.asarray(rows[r]) for split, r in self.rows.items()}


def causes_table(
    known: Known, subjects: list[Subject], codes: list[dict], captioned: dict[str, bool], seed: int = 0
) -> pd.DataFrame:
    """The feature that stands for each cause, beside ceilings and controls: columns CAUSES, a line per cause and coder.

    Args:
        codes:     `Known.codes` of each subject.
        captioned: cause -> whether the encoder's training captions named it; causes that are absent stay unknown.
        seed:      of the random directions.
    """
    x, y, logit = (known.parts(rows) for rows in (known.images.x, known.images.y, known.logits))
    limits, frames = causes.ceilings(known.tasks, x, y, logit), []
    chance = {n: causes.random_directions(known.tasks, x, n, seed) for n in {c["val"].shape[1] for c in codes}}
    for s, c in zip(subjects, codes, strict=True):
        found, of = causes.causes_found(known.tasks, c["val"], c["test"]).assign(**s.key), copies(c["test"])
        found["copies"] = np.bincount(of, minlength=len(of))[of[found["ap_feature"]]]
        frames.append(found.assign(ap_random=chance[c["val"].shape[1]]))
    table = pd.concat(frames, ignore_index=True).merge(limits, on="cause", how="left", validate="m:1")
    table = table.assign(captioned=table["cause"].map(captioned), share_of_ceiling=table["auroc"] / table["ceiling"])
    table["found"] = table["ap"] >= causes.FOUND * table["ap_probe"]
    return table.assign(status="ok", reason="")[[*CAUSES, "fires_for"]]


def firing(known: Known, subjects: list[Subject], codes: list[dict], found: pd.DataFrame, method: str, n: int) -> tuple:
    """Of a method's first seed the subject, and cause -> (its feature, at most n rows of test images that show the cause and on which
    the feature fires, evenly taken). Args: found: of `causes_table`."""
    s, own = next((s, own) for s, own in zip(subjects, codes, strict=True) if s.method == method)
    lines, out = found[(found["method"] == s.method) & (found["seed"] == s.seed)], {}
    for cause, feature in zip(lines["cause"], lines["ap_feature"], strict=True):
        at = np.flatnonzero((known.cause("test") == cause) & (dense(own["test"], [feature])[:, 0] > 0))
        at = at[np.unique(np.linspace(0, len(at) - 1, min(n, len(at))).round().astype(int))]
        out |= {cause: (int(feature), known.rows["test"][at] * known.data.tokens)} if len(at) else {}
    return s, out


def sparse_table(known: Known, subjects: list[Subject], codes: list[dict], ks=causes.SPARSE_K) -> pd.DataFrame:
    """`causes.sparse_probe` of every subject and cause: a line per k."""
    return pd.DataFrame(
        {**s.key, "cause": task.cause, "k": k, "auroc": auroc}
        for s, own in zip(subjects, codes, strict=True)
        for task in known.tasks
        for k, auroc in causes.sparse_probe(task, own, ks).items()
    )


def attributes_table(known: Known, subjects: list[Subject], codes: list[dict], **thresholds) -> pd.DataFrame:
    """What every feature stands for (`attributes.feature_kinds`), and whether it is truly an error feature."""
    truth, named, frames = known.images.truth.iloc[known.rows["test"]], (known.cause("val"), known.cause("test")), []
    for s, own in zip(subjects, codes, strict=True):
        truly = attributes.error_features(own["val"], own["test"], *named, **thresholds).drop(columns="n_active_test")
        frames.append(attributes.feature_kinds(own["test"], truth).merge(truly, on="feature").assign(**s.key))
    return pd.concat(frames, ignore_index=True)


def splitting_table(known: Known, subjects: list[Subject], codes: list[dict], best: pd.DataFrame, kinds: pd.DataFrame):
    """`attributes.splitting` of every subject. Args: best: of `causes_table`; kinds: of `attributes_table`."""
    frames = []
    for s, own in zip(subjects, codes, strict=True):
        found, features = (f[(f["method"] == s.method) & (f["seed"] == s.seed)] for f in (best, kinds))
        parents = dict(zip(found["cause"], found["fires_for"], strict=True))
        frames.append(attributes.splitting(features, own["test"], known.cause("test"), parents).assign(**s.key))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def steering_table(
    data: Data, subjects: list[Subject], classifier, found: pd.DataFrame, factors=(0, 0.5, 1, 2, 4), seed: int = 0
) -> pd.DataFrame:
    """What the classifier says when the feature of a cause is turned down or up, on the test images where it fires.

    Args:
        found:   of `causes_table`; the feature that stands for each cause is steered, of each method's first seed.
        factors: on the feature's activation.
    Returns: frame of method, seed, target, l0_target, cause, feature, n (images), scale (the factor), probability (mean
        probability of implausible), change (mean change of the logit), control (for a random direction of that norm).
    """
    rows, rng, lines = data.rows("test"), np.random.default_rng(seed), []
    for s in first_seeds(subjects):
        own = found[(found["method"] == s.method) & (found["seed"] == s.seed)]
        codes, w, says = sparse_codes(s.coder, data.x, rows).tocsc(), s.coder.W_dec, readout(classifier, s.target)
        for cause, j in zip(own["cause"], own["ap_feature"], strict=True):
            fires = rows[np.sort(codes[:, [j]].indices)]
            x, h = (torch.from_numpy(np.asarray(a[fires], np.float32)) for a in (data.x, target_of(data, s)))
            direction = torch.from_numpy(rng.normal(size=w.shape[1]).astype(np.float32))
            logit, control = (steer(s.coder, x, h, j, factors, says, d) for d in (None, direction))  # (factors, n)
            p, before = logit.sigmoid().mean(1), says(h).mean()
            line = {**s.key, "cause": cause, "feature": j, "n": len(fires)}
            for i, factor in enumerate(factors):
                change, pushed = float(logit[i].mean() - before), float(control[i].mean() - before)
                lines.append(line | {"scale": factor, "probability": float(p[i]), "change": change, "control": pushed})
    return pd.DataFrame(lines)


def captioned_causes(encoder_table: Path) -> dict[str, bool]:
    """cause -> captioned, from 01's report card of the encoder; {} when there is none."""
    if not encoder_table.is_file():
        return {}
    frame = read_back(encoder_table, ["captioned"]).query("cause != ''")
    return dict(zip(frame["cause"], frame["captioned"] == "True", strict=True))


def _everyone(table: pd.DataFrame) -> pd.DataFrame:
    """04_causes with a line per cause and seed of every method, and one per cause of every control: also who and control."""
    once = table.drop_duplicates("cause").assign(seed=0, control=True)
    controls = [once.assign(who=who, ap=once[column]) for column, who in CONTROLS.items()]
    own = table.assign(who=table["method"], control=False)
    return pd.concat([own, *controls], ignore_index=True).dropna(subset=["ap"])


def by_cause(table: pd.DataFrame) -> pd.DataFrame:
    """How well one feature of each method stands for each cause, and each control: means over the seeds.

    Args: table: 04_causes.
    Returns: frame of who, control (bool), cause, captioned, ap, ap_probe, found; empty without causes.
    """
    if "ap" not in table or table["ap"].isna().all():
        return pd.DataFrame()
    keys = ["who", "control", "cause", "captioned"]
    mean = _everyone(table).groupby(keys, sort=False, dropna=False)[["ap", "ap_probe"]].mean().reset_index()
    return mean.assign(found=mean["ap"] >= causes.FOUND * mean["ap_probe"])


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """The methods, the one whose features stand for the causes best first, then the controls.

    Args: table: 04_causes.
    Returns: frame of who, control, causes, found (of these), mean and worst (`ap` over the causes, means over the seeds), low and
        high (the smallest and largest mean of one seed), n_seeds, settled (its worst seed is better than every other method's
        best); empty without causes.
    """
    if (each := by_cause(table)).empty:
        return each
    keys, how = ["who", "control"], dict(causes=("cause", "count"), found=("found", "sum"))
    out = each.groupby(keys, sort=False).agg(**how, mean=("ap", "mean"), worst=("ap", "min"))
    seeds = _everyone(table).groupby([*keys, "seed"])["ap"].mean().groupby(keys)
    out = out.assign(low=seeds.min(), high=seeds.max(), n_seeds=seeds.size()).reset_index()
    methods = out[~out["control"]]
    others = [methods.loc[methods["who"] != who, "high"].max() for who in out["who"]]
    out["settled"] = ~out["control"] & (out["n_seeds"] > 1) & (out["low"] > others)
    order = {"by": ["control", "found", "mean"], "ascending": [True, False, False]}
    return out.sort_values(**order, kind="stable", ignore_index=True)


def nuisance_counts(kinds: pd.DataFrame) -> pd.DataFrame:
    """method, attribute: how many latents stand for that nuisance, and how much of their firing it explains on average."""
    own = kinds[kinds["kind"] == "nuisance"].groupby(["method", "attribute"], sort=False, as_index=False)
    return own.agg(n_features=("feature", "size"), explained=("explained_nuisance", "mean"))


def attribute_shares(kinds: pd.DataFrame) -> pd.DataFrame:
    """method x kind: share of latents (mean over seeds), over all latents of the method."""
    counts = kinds.groupby(["method", "kind"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=KINDS, fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0).reset_index()

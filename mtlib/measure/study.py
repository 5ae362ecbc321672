"""Notebook 04's work over all coders of a run: one table per subject, one line per method and seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.store import Data
from mtlib.learn.classifier import Classifier
from mtlib.learn.sparse_coder import SparseCoder
from mtlib.measure import kinds, truth
from mtlib.measure.codes import code_matrix
from mtlib.measure.conventions import definition_card
from mtlib.measure.metrics import Evaluation, evaluate
from mtlib.measure.probes import fit_probe, readout
from mtlib.measure.similarity import stability

MIN_PER_CLASS = 10  # test images per class below which classes say nothing about purity
CAUSES = [
    "cause",
    "captioned",
    "method",
    "seed",
    "target",
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
class Subject:
    """One trained coder of the run."""

    method: str
    seed: int
    preset: str
    target: str
    coder: SparseCoder

    @property
    def key(self) -> dict:
        """The columns that name it in every table."""
        return {"method": self.method, "seed": self.seed, "target": self.target}


def open_subjects(train: Path) -> tuple[list[Subject], pd.DataFrame]:
    """The coders of a finished 03_train artifact.

    Returns: subjects in the order of coders.csv; frame of the lines that are not ok (method, seed, preset, target,
        status, reason).
    """
    lines = pd.read_csv(train / "coders.csv", keep_default_na=False)
    ok = lines["status"] == "ok"
    subjects = [
        Subject(r.method, int(r.seed), r.preset, r.target, SparseCoder.from_pretrained(train / r.folder))
        for r in lines[ok].itertuples()
    ]
    return subjects, lines.loc[~ok, ["method", "seed", "preset", "target", "status", "reason"]].reset_index(drop=True)


def target_of(data: Data, subject: Subject) -> np.ndarray:
    """The array a subject reconstructs: x (N, D) or y (N, O)."""
    if subject.target == "y" and data.y is None:
        raise ValueError(f"{subject.method}: a transcoder, but the run has no hidden layer y (02_classify)")
    return data.y if subject.target == "y" else data.x


def class_index(data: Data, rows: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(N,) integer classes for purity and their name, or (None, why there are none).

    The folders' class names when they are few enough to say something, else the plausibility label.
    """
    names = data.manifest["class_name"].fillna("").to_numpy(str)
    used = sorted(set(names[rows]) - {""})
    if 2 <= len(used) <= len(rows) / MIN_PER_CLASS:
        return np.array([used.index(n) if n in used else -1 for n in names]), "class_name"
    label = data.labels()
    if len(set(label[rows]) - {-1}) == 2:
        return label, "label"
    return None, f"{len(used)} classes on {len(rows)} test images: nothing to be pure about"


def probe_labels(data: Data) -> np.ndarray | None:
    """(N,) what a linear probe should read: the plausibility label, else the class; None without either."""
    if data.facts["labels"] == "plausibility":
        return data.labels()
    if data.facts["labels"] == "classes":
        codes, names = pd.factorize(data.manifest["class_name"].fillna(""), sort=True)
        return np.where(names[codes] == "", -1, codes)
    return None


def evaluate_all(data: Data, subjects: list[Subject], classifier: Classifier | None, seed: int = 0) -> list[Evaluation]:
    """`metrics.evaluate` of every subject on the test rows, dead latents counted on train."""
    rows, train = data.rows("test"), data.rows("train")
    classes, labels = class_index(data, rows)[0], probe_labels(data)
    probes: dict = {}
    out = []
    for s in subjects:
        target = target_of(data, s)
        if labels is not None and s.target not in probes:
            probes[s.target] = fit_probe(target, train, labels)
        out.append(
            evaluate(
                s.coder,
                data.x,
                target,
                rows,
                train,
                classes=classes,
                probe=probes.get(s.target),
                readout=None if classifier is None else readout(classifier, s.target),
                seed=seed,
            )
        )
    return out


def metrics_table(subjects: list[Subject], evaluations: list[Evaluation], skipped: pd.DataFrame) -> pd.DataFrame:
    """One line per method and seed, x before y, with the stability over seeds; then the skipped ones with reasons.

    FVU and its kin are comparable within one target only, which `target` names.
    """
    agree = seed_stability(subjects)
    lines = []
    for s, e in zip(subjects, evaluations, strict=True):
        size = {"n_latents": s.coder.n_latents, "n_parameters": sum(p.numel() for p in s.coder.parameters())}
        head = {**s.key, "preset": s.preset, "status": "ok", "reason": "", **size}
        lines.append(head | e.summary | {"stability": agree.get(s.method, float("nan"))})
    frame = pd.DataFrame(lines).sort_values("target", kind="stable") if lines else pd.DataFrame()
    return pd.concat([frame, skipped], ignore_index=True)


def seed_stability(subjects: list[Subject]) -> dict[str, float]:
    """method -> mean over pairs of seeds of `stability`; methods with one seed are absent."""
    rows: dict[str, list[np.ndarray]] = {}
    for s in subjects:
        rows.setdefault(s.method, []).append(s.coder.W_dec.detach().numpy())
    pairs = {m: [stability(a, b) for a, b in combinations(w, 2)] for m, w in rows.items()}
    return {m: float(np.mean(values)) for m, values in pairs.items() if values}


def stacked(subjects: list[Subject], evaluations: list[Evaluation], part: str) -> pd.DataFrame:
    """The frames "levels", "progressive" or "latents" of all subjects, under each other, with method, seed, target."""
    frames = [getattr(e, part).assign(**s.key) for s, e in zip(subjects, evaluations, strict=True)]
    if not frames:
        return pd.DataFrame(columns=["method", "seed", "target"])
    frame = pd.concat(frames, ignore_index=True)
    return frame[["method", "seed", "target", *[c for c in frame if c not in ("method", "seed", "target")]]]


def quantiles(latents: pd.DataFrame, columns: list[str], steps: int = 100) -> pd.DataFrame:
    """Distribution of per-latent measures by method: quantile 0 .. 1 in `steps` steps over all its seeds' latents."""
    levels = np.linspace(0, 1, steps + 1)
    frames = [
        pd.DataFrame(
            {"method": m, "target": g["target"].iloc[0], "quantile": levels}
            | {c: g[c].quantile(levels).values for c in columns}
        )
        for m, g in latents.groupby("method", sort=False)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["method", "target", "quantile"])


def definitions(data: Data, subjects: list[Subject]) -> pd.DataFrame:
    """The definition card of each method's first seed on the test rows."""
    rows, seen, out = data.rows("test"), set(), []
    for s in subjects:
        if s.method not in seen:
            seen.add(s.method)
            with torch.no_grad():
                z = torch.from_numpy(code_matrix(s.coder, data.x, rows))
                y_hat = s.coder.decode(z).numpy()
            card = definition_card(np.asarray(target_of(data, s)[rows]), y_hat)
            out.append(card.assign(method=s.method, target=s.target))
    if not out:
        return pd.DataFrame(columns=["method", "target", "convention"])
    frame = pd.concat(out, ignore_index=True)
    return frame[["method", "target", *[c for c in frame if c not in ("method", "target")]]]


# --- truth -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruthStudy:
    """Everything the truth says about the subjects: frames with one line per cause, cause and k, feature, cause."""

    causes: pd.DataFrame
    sparse: pd.DataFrame
    kinds: pd.DataFrame
    splitting: pd.DataFrame


def study_truth(data: Data, subjects: list[Subject], captioned: dict[str, bool]) -> TruthStudy:
    """Causes found, k-sparse probing, kinds of features and splitting of every subject (definitions.md, Truth).

    Returns: TruthStudy, empty when no cause has images with and without it in every split.

    Args:
        captioned: cause -> whether the encoder's training captions named it; causes that are absent stay unknown.
    """
    known = data.labels() >= 0
    rows = {split: r[known[r]] for split in ("train", "val", "test") if len(r := data.rows(split))}
    task_list = [t for t in truth.tasks(data.truth, rows) if t.scorable]
    if not task_list:
        return TruthStudy(*(pd.DataFrame() for _ in range(4)))
    parts = {
        name: {s: np.asarray(a[r]) for s, r in rows.items()}
        for name, a in (("x", data.x), ("y", data.y))
        if a is not None
    }
    limits = truth.ceilings(task_list, parts["x"], parts.get("y"))
    cause = data.truth["cause"].fillna("").to_numpy(str)
    causes, sparse, kind, split = [], [], [], []
    for s in subjects:
        codes = {name: code_matrix(s.coder, data.x, r) for name, r in rows.items()}
        found = truth.causes_found(task_list, codes["val"], codes["test"])
        causes.append(found.assign(**s.key))
        for task in task_list:
            scores = truth.sparse_probe(task, codes)
            sparse += [{**s.key, "cause": task.cause, "k": k, "auroc": a} for k, a in scores.items()]
        truly = kinds.error_features(codes["val"], codes["test"], cause[rows["val"]], cause[rows["test"]])
        here = kinds.feature_kinds(codes["test"], data.truth.iloc[rows["test"]])
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

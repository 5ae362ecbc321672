"""Notebook 04's work over all coders of a run: one table per subject, one line per method and seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.store import Data
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import iter_codes
from mtlib.measure.compare import matched
from mtlib.measure.conventions import definition_card
from mtlib.measure.metrics import Evaluation, evaluate
from mtlib.measure.probes import fit_probe, readout
from mtlib.measure.similarity import stability
from mtlib.measure.zero_shot import ZeroShot

MIN_PER_CLASS = 10  # test images per class below which classes say nothing about purity


@dataclass(frozen=True)
class Subject:
    """One trained coder of the run."""

    method: str
    seed: int
    preset: str
    target: str
    coder: SparseCoder
    l0_target: float = float("nan")  # what training aimed at; NaN: none

    @property
    def key(self) -> dict:
        """The columns that name it in every table."""
        return {"method": self.method, "seed": self.seed, "target": self.target, "l0_target": self.l0_target}


def open_subjects(train: Path) -> tuple[list[Subject], pd.DataFrame]:
    """The coders of a finished 03_train artifact.

    Returns: subjects in the order of coders.csv; frame of the lines that are not ok (method, seed, preset, target,
        status, reason).
    """
    lines = pd.read_csv(train / "coders.csv", keep_default_na=False)
    lines["l0_target"] = pd.to_numeric(lines.get("l0_target", np.nan), errors="coerce")
    ok = lines["status"] == "ok"
    subjects = [
        Subject(r.method, int(r.seed), r.preset, r.target, SparseCoder.from_pretrained(train / r.folder), r.l0_target)
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


def evaluate_all(
    data: Data,
    subjects: list[Subject],
    classifier: Classifier | None,
    seed: int = 0,
    zero_shot: ZeroShot | None = None,
) -> list[Evaluation]:
    """`metrics.evaluate` of every subject on the test rows, dead latents counted on train; zero-shot for target x.

    Where x is a layer's, zero-shot needs the encoder's later layers: see inside.py.
    """
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
                zero_shot=zero_shot if s.target == "x" and "layer" not in data.facts else None,
                tokens=data.tokens,
                seed=seed,
            )
        )
    return out


def metrics_table(subjects: list[Subject], evaluations: list[Evaluation], skipped: pd.DataFrame) -> pd.DataFrame:
    """One line per method and seed, x before y, with the stability over seeds; then the skipped ones with reasons.

    FVU and its kin are comparable within one target only, which `target` names. `matched` compares the measured L0 with
    the target that training aimed at.
    """
    agree = seed_stability(subjects)
    lines = []
    for s, e in zip(subjects, evaluations, strict=True):
        size = {"n_latents": s.coder.n_latents, "n_parameters": sum(p.numel() for p in s.coder.parameters())}
        head = {**s.key, "preset": s.preset, "status": "ok", "reason": "", **size}
        head["matched"] = matched(e.summary["l0"], s.l0_target)
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
    """The frames "levels", "progressive" or "latents" of all subjects, under each other, with `Subject.key`."""
    frames = [getattr(e, part).assign(**s.key) for s, e in zip(subjects, evaluations, strict=True)]
    if not frames:
        return pd.DataFrame(columns=["method", "seed", "target", "l0_target"])
    frame = pd.concat(frames, ignore_index=True)
    key = list(subjects[0].key)
    return frame[key + [c for c in frame if c not in key]]


def quantiles(latents: pd.DataFrame, columns: list[str], steps: int = 100) -> pd.DataFrame:
    """Distribution of per-latent measures by method: quantile 0 .. 1 in `steps` steps over all its seeds' latents."""
    levels = np.linspace(0, 1, steps + 1)
    frames = [
        pd.DataFrame(
            {"method": m, "target": g["target"].iloc[0], "l0_target": g["l0_target"].iloc[0], "quantile": levels}
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
                y_hat = np.concatenate(
                    [s.coder.decode(z, -1, x).cpu().numpy() for _, x, z in iter_codes(s.coder, data.x, rows)]
                )
            card = definition_card(np.asarray(target_of(data, s)[rows]), y_hat)
            out.append(card.assign(method=s.method, target=s.target))
    if not out:
        return pd.DataFrame(columns=["method", "target", "convention"])
    frame = pd.concat(out, ignore_index=True)
    return frame[["method", "target", *[c for c in frame if c not in ("method", "target")]]]

"""Notebook 07's tables: relevance of every method, its null, the ranking of generators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.store import Data
from mtlib.features import where
from mtlib.measure.codes import interpreted, sparse_codes
from mtlib.measure.generators import detector_counts, failure_rates, firing_rates
from mtlib.measure.relevance import permutation_null, relevance_table, same_denominator
from mtlib.report.browse import error_features, feature_table
from mtlib.report.reader import Reader
from mtlib.truth.tables import by_method

SCORES = {f"relevance_{s}": s for s in ("threshold", "enriched", "enriched_by")}  # of the long table -> in the wide one
HEADINGS = {  # of the relevance table, as far as a run has the score
    "threshold": "error ratio ≥ 0.95",
    "enriched": "enriched",
    "enriched_distinct": "enriched, copies once",
    "enriched_by": "enriched (BY)",
    "judge_keyless": "judge: keyless",
    "judge_lmm": "judge: lmm",
    "judge_threshold": "judge: threshold",
    "judge_truth": "truly",
    "feature_accuracy": "feature accuracy",
    "feature_accuracy_shuffled": "feature accuracy, shuffled",
    "intruder_accuracy": "intruders found",
    "reason": "reason",
}
ACCURACIES = {"detection": "feature_accuracy", "shuffled": "feature_accuracy_shuffled", "intruder": "intruder_accuracy"}
APART = ("refused", "failed", "skipped", "unasked")  # what is no verdict
SAID = ["phrase", "error_ratio", "error_low", "error_high", "n_active_test"]  # of a feature of `errors_found`
ERRORS = ["error", "method", "feature", "ap", "base_rate", *SAID, "generator", "rate", "least"]  # its columns
N_SHOWN = 12  # error features whose firing on generators' images is counted


def load_coder(reader: Reader, method: str) -> SparseCoder:
    """The interpreted coder of a method."""
    train = reader.folders["03_train"]
    return SparseCoder.from_pretrained(train / interpreted(train).set_index("method").loc[method, "folder"])


def relevance_long(reader: Reader) -> pd.DataFrame:
    """`relevance_table` of every interpreted method, with its target; empty without methods."""
    targets = interpreted(reader.folders["03_train"]).set_index("method")["target"]
    own = {m: relevance_table(m, reader.features(m), reader.verdicts(m)) for m in reader.methods()}
    frames = [f.assign(target=targets[m]) for m, f in own.items() if len(f)]
    return same_denominator(pd.concat(frames, ignore_index=True)) if frames else pd.DataFrame()


def relevance_wide(reader: Reader, long: pd.DataFrame) -> pd.DataFrame:
    """The relevance table that others read: one line per method, the skipped ones with their reason.

    Returns: frame of method, target, n_latents, assessed, assessed_rate, then for threshold, enriched, enriched_by and
        judge_<name>: the share, _n, _low and _high, _distinct (the share when copies count once), and for judges _refused,
        _failed, _skipped (and _unasked); feature_accuracy, with _n, _low and _high, its control feature_accuracy_shuffled
        and intruder_accuracy where 06 scored explanations; status, reason.
    """
    lines = []
    for coder in interpreted(reader.folders["03_train"]).itertuples():
        line = {"method": coder.method, "target": coder.target}
        own = long[long["method"] == coder.method] if len(long) else long
        if len(own) == 0:
            reason = coder.reason or "its features were not interpreted"
            lines.append(line | {"n_latents": None, "status": "skipped", "reason": reason})
            continue
        first = own.iloc[0]
        line |= {"n_latents": first.n_latents, "assessed": first.n_assessed, "assessed_rate": first.assessed_rate}
        for score in own.to_dict("records"):
            name = SCORES.get(score["score"]) or f"judge_{score['judge']}"
            line |= _share(name, score, "share", "n_yes") | {f"{name}_distinct": score["share_distinct"]}
            if score["score"] == "relevance_judge":
                line |= {f"{name}_{v}": score[f"n_{v}"] for v in APART if pd.notna(score.get(f"n_{v}"))}
        lines.append(line | feature_accuracy(reader, coder.method) | {"status": "ok", "reason": ""})
    frame = pd.DataFrame(lines)
    counts = [c for c in frame if c in ("n_latents", "assessed") or c.endswith(("_n", *(f"_{v}" for v in APART)))]
    frame[counts] = frame[counts].astype("Int64")
    return frame[[c for c in frame if c not in ("status", "reason")] + ["status", "reason"]]


def feature_accuracy(reader: Reader, method: str) -> dict:
    """How well explanations tell held-out images apart, from 06_scores: columns for `relevance_wide`; {} without it."""
    scores = reader.table("06_scores")
    own = scores[scores["method"] == method].set_index("kind") if len(scores) else scores
    line = {}
    for kind, name in ACCURACIES.items() if "detection" in own.index else ():
        if kind in own.index:
            line |= _share(name, own.loc[kind], "accuracy", "n_features")
    return line


def _share(name: str, score: dict | pd.Series, share: str, n: str) -> dict:
    return {name: score[share], f"{name}_n": score[n], f"{name}_low": score["low"], f"{name}_high": score["high"]}


def null_table(reader: Reader, data: Data, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"method": m} | enriched_null(load_coder(reader, m), data, seed) for m in reader.methods())


def enriched_null(coder: SparseCoder, data: Data, seed: int = 0) -> dict:
    """`permutation_null` of a coder's latents on the labelled test images, labels shuffled within family. A latent is active
    on an image when it is on any of its rows."""
    labels, rows = data.labels(), data.rows("test")
    rows = rows[labels[rows] >= 0]
    images = rows[:: data.tokens]
    family = data.manifest["class_name"] if data.truth is None else data.truth["family"]
    active = sparse_codes(coder, data.x, rows, tokens=data.tokens).toarray() > 0
    return permutation_null(active, labels[images], family.fillna("").astype(str).to_numpy()[images], seed=seed)


# ---- generators


def generator_ranking(data: Data, seed: int = 0) -> pd.DataFrame:
    """Generators by failure rate, least failing first, corrected for the classifier's own errors (Rogan-Gladen).

    Returns: frame of generator, n, raw_rate, raw_low, raw_high, corrected_rate, low, high, rank, sensitivity,
        specificity; with a known truth also true_rate, true_rank, inside.
    Raises: ValueError when the val split lacks one of the two labels, so that the classifier has no rates.
    """
    val, generator = data.rows("val"), data.manifest["generator"].fillna("").to_numpy(dtype=str)
    flagged = np.asarray(data.logits) > 0
    labels = data.labels(val)
    detector = detector_counts(flagged[val[labels >= 0]], labels[labels >= 0])
    true = None
    if data.truth is not None:
        known = data.truth[generator != ""]
        true = known["label"].astype(float).groupby(generator[generator != ""]).mean().to_dict()
    return failure_rates(generator, flagged, detector, true, seed)


def first_with_errors(reader: Reader) -> str:
    """The first method that has error features, or else the first that was interpreted."""
    methods = reader.methods()
    return next((m for m in methods if len(error_features(reader, m))), methods[0])


def generator_features(reader: Reader, data: Data, method: str) -> pd.DataFrame:
    """How often each of a method's safest error features fires on each generator's images.

    Returns: frame of method, generator, feature, phrase, n, n_fired, rate, low, high; empty without error features.
    """
    shown = error_features(reader, method).head(N_SHOWN)
    frame = _fired(reader, data, method, shown["feature"].to_numpy())
    frame.insert(0, "method", method)
    frame.insert(3, "phrase", frame["feature"].map(shown["phrase"]))
    return frame


def _fired(reader: Reader, data: Data, method: str, features: np.ndarray) -> pd.DataFrame:
    """`firing_rates` of some features of a method on the generators' images."""
    generator = data.manifest["generator"].fillna("").to_numpy(dtype=str)
    rows = np.flatnonzero(generator != "")
    codes = sparse_codes(load_coder(reader, method), data.x, rows) if len(rows) * len(features) else None
    active = np.zeros((len(rows), len(features)), bool) if codes is None else codes[:, features].toarray() > 0
    return firing_rates(active, generator[rows], features)


# ---- the answer


def errors_found(reader: Reader, data: Data) -> pd.DataFrame:
    """The errors that single features stand for, most certain first: the report's first table.

    Where the truth is known a line for each cause that the best method finds, with the feature of its interpreted seed; else for each
    error feature of the first method that has them (`browse.error_features`).
    Returns: frame of error (the cause; "" where it is not known), method, feature, phrase, ap, base_rate, error_ratio, error_low,
        error_high, n_active_test, generator and rate (on whose images it fires most often), least (the lowest such rate).
    """
    known, methods = reader.table("04_causes"), reader.methods()
    if not methods:
        return pd.DataFrame(columns=ERRORS)
    if order := [who for who in by_method(known).get("who", ()) if who in methods]:
        method = order[0]
        seed = interpreted(reader.folders["03_train"]).set_index("method").loc[method, "seed"]
        own = known[(known["method"] == method) & (known["seed"] == seed) & known["found"].astype(bool)]
        own = own.assign(error=own["cause"], feature=own["ap_feature"].astype(int))
        found = own.sort_values("ap", ascending=False, kind="stable")
    else:
        method = first_with_errors(reader)
        found = error_features(reader, method).head(N_SHOWN)[["feature"]].assign(error="", method=method)
    found = found.join(feature_table(reader, method)[SAID], on="feature")
    fired = _fired(reader, data, method, found["feature"].to_numpy()).sort_values(
        "rate", ascending=False, kind="stable"
    )
    rates = dict(generator=("generator", "first"), rate=("rate", "first"), least=("rate", "last"))
    found = found.join(fired.astype({"feature": int}).groupby("feature").agg(**rates), on="feature")
    return found.reindex(columns=ERRORS).reset_index(drop=True)


def errors_heat(found: pd.DataFrame, reader: Reader, data: Data, out: Path, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """`where.heat_maps` of the features of `errors_found` on the n test images where each is strongest; out/heat/ has them for the page.

    Returns: feature, row, activation (m lines); (m, H, W).
    """
    if found.empty:
        return found, np.zeros((0, 1, 1))
    method = found["method"].iloc[0]
    top = reader.features(method, "top_images")
    shown = where.strongest(top[top["feature"].isin(found["feature"])], "test", n)
    maps = where.heat_maps(data, load_coder(reader, method), shown)
    where.write_heat(out / "heat" / f"{method}.npz", data, shown, maps)
    return shown, maps

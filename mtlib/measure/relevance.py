"""Is a feature tied to implausible images? Ratios with intervals, tests with corrections, shares over one denominator.

Everything starts from counts on the test split, each file counted once: of `n_rows` images `n_positive` are labelled
implausible; a feature is active on `n_active` of them, `n_error` of those implausible. Shares are over *all* latents
of a method (`n_latents`); a feature with fewer than 10 activating images is not assessed and counts as no.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from mtlib.learn.scores import wilson
from mtlib.measure.codes import MIN_ACTIVE

PUBLISHED_RATIO = 0.95
LEVEL = 0.05  # of q
PERMUTATIONS = 200


def fisher_enriched(n_error, n_active, n_positive: int, n_rows: int) -> np.ndarray:
    """One-sided Fisher exact p: as many or more implausible images among the active ones, by chance; 1 without active ones.

    Args: n_error, n_active: integer arrays. n_positive, n_rows: implausible images, and images, of the split.
    """
    n_active = np.asarray(n_active)
    p = hypergeom.sf(np.asarray(n_error) - 1, n_rows, n_positive, n_active)
    return np.where(n_active > 0, np.minimum(p, 1.0), 1.0)


def error_ratios(n_error, n_active, n_positive: int, n_rows: int) -> pd.DataFrame:
    """One line per feature: error ratio with its interval, and the tests against the base rate.

    Args: n_error, n_active: (S,) counts. n_positive, n_rows: implausible images and labelled images of the split.
    Returns: frame of feature, n_active_test, n_error, error_ratio (NaN when never active), error_low, error_high
        (Wilson 95%), base_rate, assessed, p_fisher, q_bh, q_by (corrected over the assessed features; 1 for others).
    """
    n_error, n_active = np.asarray(n_error, np.int64), np.asarray(n_active, np.int64)
    if (n_error > n_active).any() or (n_error > n_positive).any() or (n_active > n_rows).any() or n_positive > n_rows:
        raise ValueError(f"counts do not fit: n_error <= n_active, n_positive = {n_positive}, n_rows = {n_rows}")
    frame = pd.DataFrame({"feature": np.arange(len(n_error)), "n_active_test": n_active, "n_error": n_error})
    frame["error_ratio"] = np.where(n_active > 0, n_error / np.maximum(n_active, 1), np.nan)
    frame["error_low"], frame["error_high"] = wilson(n_error, n_active)
    frame["base_rate"], frame["assessed"] = n_positive / n_rows, n_active >= MIN_ACTIVE
    frame["p_fisher"] = fisher_enriched(n_error, n_active, n_positive, n_rows)
    tested = frame.loc[frame["assessed"], "p_fisher"]
    for method in ("bh", "by"):
        frame[f"q_{method}"] = 1.0
        frame.loc[tested.index, f"q_{method}"] = false_discovery_control(tested, method=method) if len(tested) else 1.0
    return frame


# --- shares ----------------------------------------------------------------------------------------------------------


def relevance_table(method: str, features: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> pd.DataFrame:
    """All relevance scores of one method over its one denominator, n_latents = len(features).

    Args: features: 05's features.parquet, none left out. verdicts: 06's; None leaves the judges' lines out.
    Returns: frame of method, score, n_yes, n_latents, share, low, high (Wilson), n_distinct and share_distinct (n_yes and share
        when copies, see `similarity.copies`, count once), n_assessed, assessed_rate, judge: a line for
        relevance_threshold, relevance_enriched, relevance_enriched_by, and for relevance_judge of each judge, with n_refused,
        n_failed, n_skipped (and n_unasked, of a run that stopped at a limit) counted apart, never as no; a judge without one
        verdict has no share (NaN), and on test images of one label only judges have.
    """
    n, assessed = len(features), features["assessed"].to_numpy(bool)
    first = features["copy_of"].to_numpy() == features["feature"].to_numpy()
    yes = {
        "relevance_threshold": features["error_ratio"] >= PUBLISHED_RATIO,
        "relevance_enriched": features["q_bh"] <= LEVEL,
        "relevance_enriched_by": features["q_by"] <= LEVEL,
    }
    found = {score: features.loc[assessed & y, "feature"] for score, y in yes.items()}
    lines = [(score, own, int(assessed.sum()), {"judge": ""}) for score, own in found.items()]
    for judge, group in verdicts.groupby("judge", sort=True) if verdicts is not None else ():
        last = group.drop_duplicates("feature", keep="last")
        counts, own = last["verdict"].value_counts(), last.loc[last["verdict"] == "error", "feature"]
        judged = len(own) + int(counts.get("no_error", 0))
        kinds = ("refused", "failed", "skipped", *(["unasked"] if "unasked" in counts else []))
        apart = {f"n_{v}": int(counts.get(v, 0)) for v in kinds}
        lines.append(("relevance_judge", own, judged, {"judge": judge} | apart))
    frame = pd.DataFrame(
        {"method": method, "score": score, "n_yes": len(own), "n_latents": n} for score, own, _, _ in lines
    )
    low, high = wilson(frame["n_yes"], np.full(len(frame), n))
    frame = frame.assign(share=frame["n_yes"] / n, low=low, high=high)
    frame["n_distinct"] = [
        int(features.loc[features["feature"].isin(own), "copy_of"].nunique()) for _, own, _, _ in lines
    ]
    frame = frame.assign(share_distinct=frame["n_distinct"] / first.sum(), n_assessed=[line[2] for line in lines])
    silent = np.where(
        frame["score"] == "relevance_judge", frame["n_assessed"] == 0, features["base_rate"].isin([0, 1]).all()
    )
    frame.loc[silent, ["share", "low", "high", "share_distinct"]] = np.nan
    return frame.assign(assessed_rate=frame["n_assessed"] / n).join(pd.DataFrame([line[3] for line in lines]))


def same_denominator(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, after checking that its shares may be ranked: one denominator, and every share is n_yes of it."""
    sizes = table.groupby("method")["n_latents"].unique()
    for method, own in sizes.items():
        if len(own) > 1:
            raise ValueError(f"{method}: shares over different denominators {sorted(own)}; use n_latents")
    given = table[table["share"].notna()]
    wrong = given[~np.isclose(given["share"], given["n_yes"] / given["n_latents"])]
    for row in wrong.itertuples():
        raise ValueError(f"{row.method}: share {row.share} is not {row.n_yes} of {row.n_latents}")
    if table["n_latents"].nunique() > 1:
        raise ValueError(f"methods with different denominators in one table: {sizes.str[0].to_dict()}")
    return table


# --- null ------------------------------------------------------------------------------------------------------------


def permuted_labels(labels: np.ndarray, groups: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n_rows, n) labels permuted within each group (family), so that each keeps its own base rate."""
    rng = np.random.default_rng(seed)
    out = np.empty((len(labels), n), labels.dtype)
    for group in np.unique(groups):
        at = np.flatnonzero(groups == group)
        out[at] = rng.permuted(np.repeat(labels[at][:, None], n, axis=1), axis=0)
    return out


def permutation_null(active: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict:
    """How often `relevance_enriched` finds anything when the test labels say nothing.

    Args: active: (n, S) bool on the test rows. labels: (n,) 0 or 1. groups: (n,) family (one value without families).
    Returns: dict of n_permutations, runs_with_discovery (share, goal <= 0.08), its Wilson low and high,
        mean_discoveries, observed (discoveries with the real labels).
    """
    labels = np.asarray(labels, np.int64)
    if set(np.unique(labels)) - {0, 1}:
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(np.unique(labels)))}")
    n_active = active.sum(0)
    kept = np.flatnonzero(n_active >= MIN_ACTIVE)
    trials = np.column_stack([labels, permuted_labels(labels, groups, PERMUTATIONS, seed)])  # (n, 1 + P)
    found = np.zeros(1 + PERMUTATIONS, np.int64)
    if len(kept):
        counts = np.rint(active[:, kept].T.astype(np.float32) @ trials.astype(np.float32)).astype(np.int64)
        pairs, index = np.unique(counts * (len(labels) + 1) + n_active[kept, None], return_inverse=True)  # each once
        p = fisher_enriched(*np.divmod(pairs, len(labels) + 1), int(labels.sum()), len(labels))
        found = (false_discovery_control(p[index].reshape(counts.shape), axis=0) <= LEVEL).sum(axis=0)  # (1 + P,)
    runs = int((found[1:] > 0).sum())
    low, high = wilson(runs, PERMUTATIONS)
    return {
        "n_permutations": PERMUTATIONS,
        "runs_with_discovery": runs / PERMUTATIONS,
        "low": float(low),
        "high": float(high),
        "mean_discoveries": float(found[1:].mean()),
        "observed": int(found[0]),
    }

"""Is a feature tied to implausible images? Ratios with intervals, tests with corrections, shares over one denominator.

Everything starts from counts on the test split, each file counted once: of `n_rows` images `n_positive` are labelled
implausible; a feature is active on `n_active` of them, `n_error` of those implausible. Shares are over *all* latents
of a method (`n_latents`); a feature with fewer than 10 activating images is not assessed and counts as no.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import gammaln
from scipy.stats import false_discovery_control, hypergeom, norm

from mtlib.measure.codes import MIN_ACTIVE

PUBLISHED_RATIO = 0.95
LEVEL = 0.05
PERMUTATIONS = 200


def wilson(successes, trials, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of a share, for arrays of counts.

    Args:
        successes, trials: integer arrays of one shape.
        confidence: two-sided, 0 .. 1.
    Returns: (low, high) float64; 0 and 1 where there are no trials.
    Source: Wilson 1927; equal to scipy.stats.binomtest(k, n).proportion_ci(method="wilson").
    """
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    z = norm.ppf(0.5 + confidence / 2)
    safe = np.where(n > 0, n, 1.0)
    centre = (k + z**2 / 2) / (safe + z**2)
    half = z / (safe + z**2) * np.sqrt(k * (safe - k) / safe + z**2 / 4)
    low = np.where(k == 0, 0.0, centre - half)
    high = np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def fisher_enriched(n_error, n_active, n_positive: int, n_rows: int) -> np.ndarray:
    """One-sided Fisher exact p: as many or more implausible images among the active ones, by chance.

    Args:
        n_error, n_active: integer arrays. n_positive, n_rows: implausible images, and images, of the split.
    Returns: p, same shape; 1 where n_active is 0. Equal to scipy.stats.fisher_exact(..., alternative="greater").
    """
    n_active = np.asarray(n_active)
    p = hypergeom.sf(np.asarray(n_error) - 1, n_rows, n_positive, n_active)
    return np.where(n_active > 0, np.minimum(p, 1.0), 1.0)


def _corrected(p: np.ndarray, assessed: np.ndarray, method: str) -> np.ndarray:
    q = np.ones(len(p))
    if assessed.any():
        q[assessed] = false_discovery_control(p[assessed], method=method)
    return q


def error_ratios(n_error, n_active, n_positive: int, n_rows: int, min_active: int = MIN_ACTIVE) -> pd.DataFrame:
    """One line per feature: error ratio with its interval, and the tests against the base rate.

    Args:
        n_error, n_active: (S,) counts on test, duplicates counted once.
        n_positive, n_rows: implausible images and labelled images of the split.
    Returns: frame of feature, n_active_test, n_error, error_ratio (NaN when never active), error_low, error_high
        (Wilson 95%), base_rate, assessed, p_fisher, q_bh, q_by (corrected over the assessed features; 1 for others).
    Raises: ValueError if the counts cannot be: more errors than activations, or more than the split has.
    """
    n_error, n_active = np.asarray(n_error, np.int64), np.asarray(n_active, np.int64)
    if (n_error > n_active).any() or (n_error > n_positive).any() or (n_active > n_rows).any() or n_positive > n_rows:
        raise ValueError(f"counts do not fit: n_error <= n_active, n_positive = {n_positive}, n_rows = {n_rows}")
    assessed = n_active >= min_active
    low, high = wilson(n_error, n_active)
    p = fisher_enriched(n_error, n_active, n_positive, n_rows)
    return pd.DataFrame(
        {
            "feature": np.arange(len(n_error)),
            "n_active_test": n_active,
            "n_error": n_error,
            "error_ratio": np.divide(n_error, n_active, out=np.full(len(n_error), np.nan), where=n_active > 0),
            "error_low": low,
            "error_high": high,
            "base_rate": n_positive / n_rows,
            "assessed": assessed,
            "p_fisher": p,
            "q_bh": _corrected(p, assessed, "bh"),
            "q_by": _corrected(p, assessed, "by"),
        }
    )


# --- shares ----------------------------------------------------------------------------------------------------------


def share_line(method: str, score: str, n_yes: int, n_latents: int, n_assessed: int, **more) -> dict:
    """One line of the relevance table: n_yes of n_latents, with its Wilson interval and the assessed rate beside it."""
    low, high = wilson(n_yes, n_latents)
    return {
        "method": method,
        "score": score,
        "n_yes": int(n_yes),
        "n_latents": int(n_latents),
        "share": n_yes / n_latents,
        "low": float(low),
        "high": float(high),
        "n_assessed": int(n_assessed),
        "assessed_rate": n_assessed / n_latents,
        **more,
    }


def relevance_table(
    method: str, features: pd.DataFrame, verdicts: pd.DataFrame | None = None, threshold: float = PUBLISHED_RATIO
) -> pd.DataFrame:
    """All relevance scores of one method over its one denominator, n_latents = len(features).

    Args:
        features: what `error_ratios` returns (or 05's features.parquet): one line per latent, none left out.
        verdicts: 06's verdicts (feature, judge, verdict); None leaves the judges' lines out.
    Returns: frame of `share_line`s: relevance_threshold, relevance_enriched, relevance_enriched_by, and one
        relevance_judge line per judge, with n_refused, n_failed, n_skipped (and n_unasked, of a run that stopped at a
        limit) counted apart, never as no.
    """
    n = len(features)
    assessed = features["assessed"].to_numpy(bool)
    yes = {
        "relevance_threshold": assessed & (features["error_ratio"] >= threshold).to_numpy(bool),
        "relevance_enriched": assessed & (features["q_bh"] <= LEVEL).to_numpy(bool),
        "relevance_enriched_by": assessed & (features["q_by"] <= LEVEL).to_numpy(bool),
    }
    lines = [share_line(method, name, int(y.sum()), n, int(assessed.sum()), judge="") for name, y in yes.items()]
    for judge, group in verdicts.groupby("judge", sort=True) if verdicts is not None else ():
        counts = group.drop_duplicates("feature", keep="last")["verdict"].value_counts()
        judged = int(counts.get("error", 0) + counts.get("no_error", 0))
        kinds = ("refused", "failed", "skipped", *(["unasked"] if "unasked" in counts else []))
        apart = {f"n_{v}": int(counts.get(v, 0)) for v in kinds}
        line = share_line(method, "relevance_judge", int(counts.get("error", 0)), n, judged, judge=judge, **apart)
        lines.append(line)
    return pd.DataFrame(lines)


def one_denominator(table: pd.DataFrame, by: tuple[str, ...] = ("method",)) -> pd.DataFrame:
    """The same table, after checking that every share of a method has the same denominator and equals n_yes / it.

    Raises: ValueError naming the first method whose lines mix denominators.
    """
    for key, group in table.groupby(list(by)):
        sizes = sorted(set(group["n_latents"]))
        if len(sizes) != 1:
            raise ValueError(f"{'/'.join(map(str, key))}: shares over different denominators {sizes}; use n_latents")
    wrong = ~np.isclose(table["share"], table["n_yes"] / table["n_latents"])
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(f"{row['method']}: share {row['share']} is not {row['n_yes']} of {row['n_latents']}")
    return table


def same_denominator(table: pd.DataFrame) -> pd.DataFrame:
    """Like `one_denominator`, and the same denominator for *all* methods: required before methods are ranked by share.

    Raises: ValueError when methods have different numbers of latents.
    """
    sizes = one_denominator(table).groupby("method")["n_latents"].first()
    if sizes.nunique() > 1:
        raise ValueError(f"methods with different denominators in one table: {sizes.to_dict()}")
    return table


# --- null ------------------------------------------------------------------------------------------------------------


class _Tails:
    """One-sided Fisher p for many counts at once: every tail of every distinct n_active, computed once."""

    def __init__(self, n_active: np.ndarray, n_positive: int, n_rows: int):
        sizes, self.index = np.unique(n_active, return_inverse=True)
        k = np.arange(n_positive + 1)
        size = sizes[:, None]
        with np.errstate(invalid="ignore"):
            log_pmf = (
                _log_choose(n_positive, k) + _log_choose(n_rows - n_positive, size - k) - _log_choose(n_rows, size)
            )
        pmf = np.exp(log_pmf)
        self.tail = np.minimum(pmf[:, ::-1].cumsum(1)[:, ::-1], 1.0)  # (sizes, k): P(at least k)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """counts (S, P) -> p (S, P)."""
        return self.tail[self.index[:, None], counts]


def _log_choose(n, k) -> np.ndarray:
    n, k = np.broadcast_arrays(np.asarray(n, float), np.asarray(k, float))
    inside = (k >= 0) & (k <= n)
    k = np.where(inside, k, 0)
    return np.where(inside, gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1), -np.inf)


def permuted_labels(labels: np.ndarray, groups: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n_rows, n) labels permuted within each group (family), so that each keeps its own base rate."""
    rng = np.random.default_rng(seed)
    out = np.empty((len(labels), n), labels.dtype)
    for group in np.unique(groups):
        at = np.flatnonzero(groups == group)
        out[at] = rng.permuted(np.repeat(labels[at][:, None], n, axis=1), axis=0)
    return out


def permutation_null(
    active: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    n_permutations: int = PERMUTATIONS,
    seed: int = 0,
    min_active: int = MIN_ACTIVE,
) -> dict:
    """How often `relevance_enriched` finds anything when the test labels say nothing.

    Args:
        active: (n, S) bool on the test rows. labels: (n,) 0 or 1. groups: (n,) family (one value without families).
    Returns: dict of n_permutations, runs_with_discovery (share, goal <= 0.08), its Wilson low and high,
        mean_discoveries, observed (discoveries with the real labels).
    """
    labels = np.asarray(labels, np.int64)
    if set(np.unique(labels)) - {0, 1}:
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(np.unique(labels)))}")
    n_active = active.sum(0)
    kept = np.flatnonzero(n_active >= min_active)
    trials = np.column_stack([labels, permuted_labels(labels, groups, n_permutations, seed)])  # (n, 1 + P)
    found = np.zeros(1 + n_permutations, np.int64)
    if len(kept):
        counts = np.rint(active[:, kept].T.astype(np.float32) @ trials.astype(np.float32)).astype(np.int64)
        p = _Tails(n_active[kept], int(labels.sum()), len(labels))(counts)  # (S', 1 + P)
        found = (false_discovery_control(p, axis=0) <= LEVEL).sum(0)
    runs = int((found[1:] > 0).sum())
    low, high = wilson(runs, n_permutations)
    return {
        "n_permutations": n_permutations,
        "runs_with_discovery": runs / n_permutations,
        "low": float(low),
        "high": float(high),
        "mean_discoveries": float(found[1:].mean()),
        "observed": int(found[0]),
    }

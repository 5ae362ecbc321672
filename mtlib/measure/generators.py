"""How often does each image generator fail, when the detector that says so is itself imperfect?

apparent = sensitivity * rate + (1 - specificity) * (1 - rate)          (what the detector reports)
rate     = (apparent + specificity - 1) / (sensitivity + specificity - 1), kept within 0 .. 1   (Rogan-Gladen)
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.learn.scores import wilson

N_BOOT = 2000
MIN_YOUDEN = 0.05  # a detector whose sensitivity + specificity - 1 is below this cannot be corrected


def rogan_gladen(apparent, sensitivity, specificity) -> np.ndarray:
    """The true rate behind an apparent one, in 0 .. 1; NaN where sensitivity + specificity - 1 < 0.05 (it hardly detects).

    Source: Rogan and Gladen 1978, Am. J. Epidemiol. 107.
    """
    youden = np.asarray(sensitivity, np.float64) + specificity - 1
    rate = (np.asarray(apparent) + specificity - 1) / np.where(youden >= MIN_YOUDEN, youden, np.nan)
    return np.clip(rate, 0, 1)


def detector_counts(flagged: np.ndarray, labels: np.ndarray) -> dict:
    """true_positive, n_positive, true_negative, n_negative, sensitivity, specificity.

    Args: flagged: (n,) bool, the classifier says implausible. labels: (n,) 1 implausible, 0 plausible; both must occur.
    """
    flagged, labels = np.asarray(flagged, bool), np.asarray(labels, int)
    pos, neg = labels == 1, labels == 0
    if not pos.any() or not neg.any():
        raise ValueError(f"the detector's rates need both labels, got {pos.sum()} implausible, {neg.sum()} not")
    hit, calm = int(flagged[pos].sum()), int((~flagged[neg]).sum())
    counts = {"true_positive": hit, "n_positive": int(pos.sum()), "true_negative": calm, "n_negative": int(neg.sum())}
    return counts | {"sensitivity": hit / pos.sum(), "specificity": calm / neg.sum()}


def _redraw(rng: np.random.Generator, k: int, n: int, size: int) -> np.ndarray:
    """Shares of `size` bootstrap samples of n yes / no answers, k of them yes; half a yes and half a no are added to their
    probability, so that k = 0 and k = n keep some uncertainty."""
    return rng.binomial(n, (k + 0.5) / (n + 1), size) / n


def corrected_rate(k: int, n: int, detector: dict, n_boot: int = N_BOOT, seed: int = 0) -> dict:
    """One generator's rate with its 95% interval; the generator's sample and the detector's are both bootstrapped.

    Args: k, n: images flagged, and images, of the generator. detector: what `detector_counts` returned (val).
    Returns: raw_rate, raw_low, raw_high (Wilson), corrected_rate, low, high, undefined (share of bootstrap draws whose
        detector could not be corrected; the interval is then 0 .. 1 when more than 5%).
    """
    rng = np.random.default_rng(seed)
    draws = rogan_gladen(
        _redraw(rng, k, n, n_boot),
        _redraw(rng, detector["true_positive"], detector["n_positive"], n_boot),
        _redraw(rng, detector["true_negative"], detector["n_negative"], n_boot),
    )
    undefined = float(np.isnan(draws).mean())
    low, high = (0.0, 1.0) if undefined > 0.05 else np.nanpercentile(draws, [2.5, 97.5])
    raw_low, raw_high = (float(v) for v in wilson(k, n))
    rate = float(rogan_gladen(k / n, detector["sensitivity"], detector["specificity"]))
    line = {"raw_rate": k / n, "raw_low": raw_low, "raw_high": raw_high, "corrected_rate": rate}
    return line | {"low": float(low), "high": float(high), "undefined": undefined}


def failure_rates(
    generator: np.ndarray,
    flagged: np.ndarray,
    detector: dict,
    true_rates: dict[str, float] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Generators by corrected failure rate; rank 1 fails least.

    Args:
        generator:  (n,) str, "" rows are left out. flagged: (n,) bool, the classifier says implausible.
        detector:   what `detector_counts` returned for the val split.
        true_rates: generator -> its real rate (demo); adds true_rate, inside (the interval holds it) and true_rank.
    Returns: frame of generator, n, the columns of `corrected_rate`, sensitivity, specificity, rank, sorted by rank.
    """
    flags, lines = pd.Series(np.asarray(flagged, bool)).groupby(np.asarray(generator).astype(str)), []
    for i, (name, own) in enumerate((name, own) for name, own in flags if name):
        line = {"generator": name, "n": len(own)} | corrected_rate(int(own.sum()), len(own), detector, seed=seed + i)
        line |= {key: detector[key] for key in ("sensitivity", "specificity")}
        if true_rates is not None:
            real = true_rates.get(name, float("nan"))
            line |= {"true_rate": real, "inside": bool(line["low"] <= real <= line["high"])}
        lines.append(line)
    if not lines:
        return pd.DataFrame(columns=["generator", "n", "raw_rate", "corrected_rate", "low", "high", "rank"])
    frame = pd.DataFrame(lines).sort_values(["corrected_rate", "generator"], kind="stable", ignore_index=True)
    ranks = {"rank": "corrected_rate"} | ({"true_rank": "true_rate"} if true_rates is not None else {})
    return frame.assign(**{name: frame[of].rank(method="min").astype("Int64") for name, of in ranks.items()})


def firing_rates(active: np.ndarray, generator: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    """How often each error feature fires on each generator's images.

    Args: active: (n, F) bool, whether each of `features` (F,) fires. generator: (n,) str; "" rows are left out.
    Returns: frame of generator, feature, n, n_fired, rate, low, high (Wilson), sorted by generator.
    """
    frames = [pd.DataFrame(columns=["generator", "feature", "n", "n_fired", "rate", "low", "high"])]
    for name in sorted(set(generator) - {""} if len(features) else ()):
        fired, n = active[generator == name].sum(0), int((generator == name).sum())
        low, high = wilson(fired, np.full(len(fired), n))
        line = {"generator": name, "feature": features, "n": n, "n_fired": fired, "rate": fired / n}
        frames.append(pd.DataFrame(line | {"low": low, "high": high}))
    return pd.concat(frames[1:] or frames, ignore_index=True)

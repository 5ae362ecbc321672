"""Every 95% interval of this repo, by simulation at small counts, from 0 up: how often it holds the truth.

    ./run_all.sh prove intervals [--repeats 500]

Shares (Wilson), differences of shares (Newcombe), AUROC, the mean of folds and of seeds (Student's t), the mean over features
(bootstrap), and the generators' corrected failure rates (Rogan-Gladen, both samples bootstrapped). Cohen's kappa and the
judges' scores are shown without an interval. An interval that is not given (one positive, one seed) counts as none, and is told.
The generators' rates are also drawn from the demo's own images and classifier, where a finished run of it is in runs/.
Writes proofs/results/intervals.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from mtlib.embed.store import Data, open_run
from mtlib.features.bias import newcombe
from mtlib.judge.scoring import summary
from mtlib.judge.settings import JudgeConfig
from mtlib.learn.scores import auroc_interval, wilson
from mtlib.measure.compare import seed_interval
from mtlib.measure.generators import N_BOOT, corrected_rate, detector_counts
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import ArtifactError, versions, write_text

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.90
COUNTS = (0, 1, 2, 3, 5, 10)
RATES = (0.0, 0.02, 0.1, 0.25, 0.4, 0.55, 0.9)
DETECTORS = {  # sensitivity, specificity, labelled images of each kind in the validation split, images per generator
    "like the demo's": (0.97, 0.98, 800, 400),
    "weaker": (0.80, 0.85, 800, 400),
    "weak, few images": (0.70, 0.75, 100, 100),
    "good, very few images": (0.95, 0.95, 30, 50),
}


def coverage(
    rate: float,
    n: int,
    sensitivity: float,
    specificity: float,
    n_positive: int,
    n_negative: int,
    repeats: int = 200,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> dict:
    """Share of simulated experiments whose 95% interval holds the true rate.

    Each repeat draws a generator's n images and a val split of n_positive and n_negative images anew.

    Returns: coverage (goal >= 0.90) with its Wilson low and high, mean_width, repeats.
    """
    rng = np.random.default_rng(seed)
    ends, apparent = [], sensitivity * rate + (1 - specificity) * (1 - rate)
    for i in range(repeats):
        hit, calm = int(rng.binomial(n_positive, sensitivity)), int(rng.binomial(n_negative, specificity))
        counts = {"true_positive": hit, "n_positive": n_positive, "true_negative": calm, "n_negative": n_negative}
        counts |= {"sensitivity": hit / n_positive, "specificity": calm / n_negative}
        line = corrected_rate(int(rng.binomial(n, apparent)), n, counts, n_boot, seed=seed + 1 + i)
        ends.append((line["low"], line["high"]))
    found = held(ends, rate)
    return {name: found[name] for name in ("coverage", "low", "high", "mean_width")} | {"repeats": repeats}


def simulated(repeats: int) -> pd.DataFrame:
    """Coverage for every detector and rate."""
    lines = []
    for name, (sensitivity, specificity, n_val, n) in DETECTORS.items():
        for i, rate in enumerate(RATES):
            found = coverage(rate, n, sensitivity, specificity, n_val, n_val, repeats, seed=10_000 * i)
            lines.append({"detector": name, "true rate": rate, **found})
    return pd.DataFrame(lines)


def resampled(data: Data, repeats: int, n: int = 400) -> pd.DataFrame:
    """Coverage when images are drawn with replacement from those of a run: its classifier and kinds of error are real."""
    flagged = np.asarray(data.logits) > 0
    truth = data.truth["label"].to_numpy(int)
    made = (data.manifest["generator"].fillna("") != "").to_numpy()
    bad, good = (np.flatnonzero(made & (truth == label)) for label in (1, 0))
    val, lines = data.rows("val"), []
    for i, rate in enumerate(RATES):
        rng, ends = np.random.default_rng(i), []
        for repeat in range(repeats):
            chosen = rng.choice(val, len(val))
            n_bad = rng.binomial(n, rate)
            images = np.concatenate([rng.choice(bad, n_bad), rng.choice(good, n - n_bad)])
            detector = detector_counts(flagged[chosen], truth[chosen])
            line = corrected_rate(int(flagged[images].sum()), n, detector, seed=repeat)
            ends.append((line["low"], line["high"]))
        found = held(ends, rate)
        lines.append({"true rate": rate} | {name: found[name] for name in ("coverage", "low", "high")})
    return pd.DataFrame(lines)


def held(intervals: list[tuple[float, float]], true: float | list[float]) -> dict:
    """How many of the intervals hold the truth: given (the share of them), coverage of those given, its Wilson low and high, mean_width."""
    low, high = np.array(intervals, float).T
    given, inside = np.isfinite(low), (low - 1e-9 <= true) & (true <= high + 1e-9)
    ends = wilson(inside[given].sum(), given.sum())
    line = {"given": given.mean(), "coverage": inside[given].mean() if given.any() else np.nan}
    line |= {"low": float(ends[0]), "high": float(ends[1])} if given.any() else {"low": np.nan, "high": np.nan}
    return line | {"mean_width": float((high - low)[given].mean()) if given.any() else np.nan}


def shares(repeats: int) -> pd.DataFrame:
    """Wilson: the mean over true shares from 0 to 1, since the coverage of one share jumps with it; and the worst of them."""
    lines, rates = [], np.linspace(0, 1, 101)
    for n in COUNTS[1:] + (30, 100):
        k = np.random.default_rng(n).binomial(n, rates[:, None], (len(rates), repeats))
        low, high = wilson(k, np.full(k.shape, n))
        inside = ((low <= rates[:, None]) & (rates[:, None] <= high)).mean(axis=1)
        line = {"trials": n, "coverage": inside.mean(), "worst": inside.min(), "mean_width": (high - low).mean()}
        lines.append(line | {"no success": f"0 to {wilson(0, n)[1]:.3f}"})
    return pd.DataFrame([{"trials": 0, "coverage": 1.0, "worst": 1.0, "mean_width": 1.0}, *lines])


def differences(repeats: int) -> pd.DataFrame:
    """Newcombe: two shares of n images each."""
    lines = []
    for n, p, q in [(n, p, q) for n in (3, 10, 30) for p, q in ((0.02, 0.02), (0.1, 0.3), (0.5, 0.5), (0.9, 0.2))]:
        rng = np.random.default_rng(n)
        found = [newcombe(rng.binomial(n, p), n, rng.binomial(n, q), n) for _ in range(repeats)]
        lines.append({"images of each": n, "shares": f"{p:g}, {q:g}", **held(found, p - q)})
    return pd.DataFrame(lines)


def drawn(kind: str, rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, float]:
    """(scores of n negatives and m positives, their true AUROC); sparse: codes that are mostly 0."""
    if kind == "sparse":
        calm, bad = (rng.random(n) < 0.05) * rng.integers(1, 4, n), (rng.random(m) < 0.6) * rng.integers(1, 4, m)
        return np.r_[calm, bad].astype(float), 0.95 * 0.4 / 2 + 0.95 * 0.6 + 0.05 * 0.6 / 2
    shift, spread = {"no better": (0, 1), "good": (1, 1), "very good": (2, 1), "wider": (1, 2)}[kind]
    return np.r_[rng.normal(size=n), rng.normal(shift, spread, m)], norm.cdf(shift / np.hypot(1, spread))


def aurocs(repeats: int) -> pd.DataFrame:
    """AUROC of few positives, few negatives, and few of both."""
    lines = []
    sizes = [(m, 300) for m in COUNTS] + [(300, m) for m in COUNTS[1:4]] + [(3, 3), (10, 10), (50, 50)]
    for m, n in sizes:
        for kind in ("no better", "good", "very good", "wider", "sparse"):
            found, true = [], 0.0
            for seed in range(repeats):
                score, true = drawn(kind, np.random.default_rng(seed), m, n)
                found.append(auroc_interval(score, np.arange(m + n) >= n)[1:])
            lines.append({"positives": m, "negatives": n, "detector": kind, "true": true, **held(found, true)})
    return pd.DataFrame(lines)


def means(repeats: int) -> pd.DataFrame:
    """Student's t over seeds, and the bootstrap over features whose accuracies lie between 0 and 1."""
    lines, config = [], JudgeConfig()
    for n in COUNTS:
        found = [seed_interval(np.random.default_rng(s).normal(0.5, 0.1, n)) for s in range(repeats)]
        found = [f[1:3] if f[3] == "t 95%" else (np.nan, np.nan) for f in found]
        lines.append({"interval": "t, seeds", "n": n, **held(found, 0.5)})
    for n in (1, 2, 3, 5, 10, 30):
        found = []
        for s in range(min(repeats, 200)):
            own = {"method": "m", "kind": "detection", "accuracy": np.random.default_rng(s).binomial(10, 0.7, n) / 10}
            found.append(tuple(summary(pd.DataFrame(own), config)[["low", "high"]].iloc[0]))
        lines.append({"interval": "explanations, features", "n": n, **held(found, 0.7)})
    return pd.DataFrame(lines)


def main() -> int:
    """Returns 0 when the coverage is at least 90% everywhere, else 1."""
    parser = argparse.ArgumentParser(prog="prove intervals", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=500)
    args = parser.parse_args()
    start, n = time.monotonic(), args.repeats
    frames = {"Shares (Wilson)": shares(n), "Differences of shares (Newcombe)": differences(n), "AUROC": aurocs(n)}
    frames |= {"Means": means(n), "Generators' corrected rates": simulated(min(n, 200))}
    missing = ""
    try:
        demo = open_run(ROOT / "runs" / "demo")
        frames["Generators' corrected rates, the demo's images"] = resampled(demo, min(n, 200))
    except ArtifactError:
        missing = "No finished run of the demo was there, so the part with its images is left out.\n\n"
    worst = min(float(f["coverage"].min()) for f in frames.values())
    text = f"# Coverage of the 95% intervals\n\n{n} repeats each, {time.monotonic() - start:.0f} s, numpy {versions()['numpy']}. "
    text += f"Low and high: Wilson 95% of the coverage itself. Given: the share of repeats with an interval. Goal: {GOAL:.0%}.\n"
    text += f"Lowest coverage: **{worst:.3f}**.\n\n{missing}"
    for name, frame in frames.items():
        text += f"## {name}\n\n{markdown_table(frame, {c: c.replace('_', ' ') for c in frame}, max_rows=100)}\n\n"
    print(text)
    write_text(ROOT / "proofs" / "results" / "intervals.md", text.rstrip() + "\n")
    return 0 if worst >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

"""The 95% intervals of the generators' corrected failure rates hold the true rate in at least 90% of 200 repeats.

    ./run_all.sh prove coverage [--repeats 200]

Two kinds of repeats. Simulated: images, and the validation split that the detector's rates come from, are drawn anew
from known rates, for good and weak detectors. With the demo's own images and classifier, where a finished run of it is
in runs/: validation images and generators' images are drawn anew from those of the run, at a known rate of failures.
Writes proofs/results/coverage.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.store import Data, open_run
from mtlib.measure.generators import N_BOOT, corrected_rate, detector_counts
from mtlib.measure.relevance import wilson
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import ArtifactError, versions, write_text

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.90
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
    inside, width = 0, 0.0
    apparent = sensitivity * rate + (1 - specificity) * (1 - rate)
    for i in range(repeats):
        hit, calm = int(rng.binomial(n_positive, sensitivity)), int(rng.binomial(n_negative, specificity))
        counts = {"true_positive": hit, "n_positive": n_positive, "true_negative": calm, "n_negative": n_negative}
        counts |= {"sensitivity": hit / n_positive, "specificity": calm / n_negative}
        line = corrected_rate(int(rng.binomial(n, apparent)), n, counts, n_boot, seed=seed + 1 + i)
        inside += line["low"] <= rate <= line["high"]
        width += line["high"] - line["low"]
    low, high = wilson(inside, repeats)
    share = inside / repeats
    return {
        "coverage": share,
        "low": float(low),
        "high": float(high),
        "mean_width": width / repeats,
        "repeats": repeats,
    }


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
        rng, inside = np.random.default_rng(i), 0
        for repeat in range(repeats):
            chosen = rng.choice(val, len(val))
            n_bad = rng.binomial(n, rate)
            images = np.concatenate([rng.choice(bad, n_bad), rng.choice(good, n - n_bad)])
            detector = detector_counts(flagged[chosen], truth[chosen])
            line = corrected_rate(int(flagged[images].sum()), n, detector, seed=repeat)
            inside += line["low"] <= rate <= line["high"]
        low, high = wilson(inside, repeats)
        lines.append({"true rate": rate, "coverage": inside / repeats, "low": float(low), "high": float(high)})
    return pd.DataFrame(lines)


def main() -> int:
    """Returns 0 when the coverage is at least 90% everywhere, else 1."""
    parser = argparse.ArgumentParser(prog="prove coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    start = time.monotonic()
    frames = {"Simulated": simulated(args.repeats)}
    try:
        frames["The demo's images and classifier"] = resampled(open_run(ROOT / "runs" / "demo"), args.repeats)
        missing = ""
    except ArtifactError:
        missing = "No finished run of the demo was there, so the part with its images is left out.\n\n"
    worst = min(float(f["coverage"].min()) for f in frames.values())
    text = f"# Coverage of the generators' 95% intervals\n\n{args.repeats} repeats each, {time.monotonic() - start:.0f} s, "
    text += (
        f"numpy {versions()['numpy']}. Low and high: Wilson 95% of the coverage itself. Goal: at least {GOAL:.0%}.\n"
    )
    text += f"Lowest coverage: **{worst:.3f}**.\n\n{missing}"
    for name, frame in frames.items():
        columns = {
            "detector": "detector",
            "true rate": "true rate",
            "coverage": "coverage",
            "low": "low",
            "high": "high",
        }
        text += f"## {name}\n\n{markdown_table(frame, columns | {'mean_width': 'mean width'})}\n\n"
    print(text)
    write_text(ROOT / "proofs" / "results" / "coverage.md", text.rstrip() + "\n")
    return 0 if worst >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

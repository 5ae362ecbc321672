"""With labels permuted before anything is trained, (almost) no feature is enriched for errors.

    ./run_all.sh prove permuted [profile] [--smoke]

Runs the demo, or `inner`, with `permute_labels=true`: within every family and split the labels plausible and implausible are dealt out
anew, then classifier, coders, features, names and relevance are made as always. Whatever is enriched now is chance. The
truth of the scenes is left alone, so causes are still looked for: autoencoders may find them, since they never see a
label; transcoders only as far as a hidden layer that learned nothing keeps them, beside them the best random directions.
With the causes themselves dealt out anew no feature detects one better than the base rate. Writes proofs/results/permuted.md, or permuted_inner.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.store import open_run
from mtlib.measure.codes import open_subjects
from mtlib.report.reader import Reader
from mtlib.report.text import markdown_table, number, percent
from mtlib.run import artifacts
from mtlib.run.artifacts import write_text
from mtlib.truth import causes
from mtlib.truth.tables import Known
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.01  # share of the assessed features that may be enriched


def results(reader: Reader) -> pd.DataFrame:
    """One line per method: assessed and enriched features, what the judge says, and average precision for causes."""
    relevance, found = reader.table("07_relevance"), reader.table("04_causes").dropna(subset=["ap"])
    frame = relevance[relevance["status"] == "ok"][["method", "target", "n_latents", "assessed"]].copy()
    for name in ("enriched", "enriched_by", "threshold", "judge_keyless"):
        if f"{name}_n" in relevance:
            frame[name] = relevance[f"{name}_n"]
    mean = found.groupby("method")[["ap", "ap_random", "ap_probe"]].mean()
    return frame.merge(mean.reset_index(), on="method", how="left")


def shuffled(run: Path, seed: int = 0) -> pd.DataFrame:
    """method, ap_shuffled, base_rate: one feature per cause when the causes are dealt out anew among each split's images."""
    data, rng = open_run(run), np.random.default_rng(seed)
    truth = data.truth.copy()
    for split in ("train", "val", "test"):
        rows = data.rows(split)
        truth.iloc[rows, truth.columns.get_loc("cause")] = truth["cause"].to_numpy()[rng.permutation(rows)]
    known = Known.of(dataclasses.replace(data, truth=truth))
    lines = []
    for subject in open_subjects(artifacts.open_run(run, ["03_train"])["03_train"])[0]:
        codes = known.codes(subject)
        found = causes.causes_found(known.tasks, codes["val"], codes["test"])
        lines.append(
            {"method": subject.method, "ap_shuffled": found["ap"].mean(), "base_rate": found["base_rate"].mean()}
        )
    return pd.DataFrame(lines).groupby("method", sort=False).mean().reset_index()


def main() -> int:
    """Returns 0 when at most 1% of the assessed features are enriched, else 1."""
    parser = argparse.ArgumentParser(prog="prove permuted", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "profile", nargs="?", default="demo", help="demo, or inner: the layer where causes are entangled"
    )
    args = parser.parse_args()
    name = f"{args.profile}-permuted"
    command = [args.profile, *["--smoke"] * args.smoke, "-p", "permute_labels=true", "-p", f"run={name}"]
    subprocess.run([sys.executable, "-m", "mtlib.run.pipeline", *command], cwd=ROOT, check=True)
    reader = Reader.of_run(ROOT / "runs" / name)
    frame, classifier = (
        results(reader).merge(shuffled(ROOT / "runs" / name), on="method", how="left"),
        reader.table("02_metrics").iloc[0],
    )
    share = frame["enriched"].sum() / max(frame["assessed"].sum(), 1)
    between = f"[{percent(classifier['accuracy_low'])}, {percent(classifier['accuracy_high'])}]"
    text = f"# {args.profile.capitalize()} with labels permuted before anything is trained\n\n"
    text += f"`./run_all.sh {' '.join(command)}`; {made_with()}.\n\n"
    text += f"Classifier on test: {percent(classifier['accuracy'])} {between}; chance is 50%. "
    text += f"Enriched: **{number(int(frame['enriched'].sum()))} of {number(int(frame['assessed'].sum()))}** assessed features "
    text += f"({percent(share)}; goal: at most {percent(GOAL)}).\n\n"
    names = {
        "method": "method",
        "target": "learns",
        "n_latents": "latents",
        "assessed": "assessed",
        "enriched": "enriched",
    }
    names |= {
        "enriched_by": "enriched (BY)",
        "threshold": "error ratio >= 0.95",
        "judge_keyless": "called errors by name",
    }
    text += markdown_table(frame, names) + "\n\n"
    text += "Mean average precision of one feature per cause, among all test images:\n\n"
    names = {
        "method": "method",
        "ap": "its best feature",
        "ap_random": "best random direction of x",
        "ap_probe": "linear probe",
    }
    names |= {"ap_shuffled": "its best feature, causes dealt out anew", "base_rate": "base rate"}
    text += markdown_table(frame, names) + "\n"
    print(text)
    if not args.smoke:
        write_text(
            ROOT / "proofs" / "results" / ("permuted.md" if args.profile == "demo" else f"permuted_{args.profile}.md"),
            text,
        )
    return 0 if share <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

"""What our preset gains over the published Matryoshka Transcoder, at the same L0: one line per method, means over seeds."""

from __future__ import annotations

import pandas as pd

from mtlib.report.reader import Reader
from mtlib.report.text import markdown_table

PUBLISHED, OURS = "matryoshka_transcoder", "matryoshka_transcoder_shared"
REACHED = 0.95  # of the ceiling
SHOWN = {
    "method": "method",
    "l0": "L0",
    "dead_fraction": "dead",
    "causes_found": "causes at 0.95 of the ceiling",
    "specific_mean": "specific, mean",
    "specific_worst": "specific, worst",
    "error_features": "features of one cause",
    "per_cause": "error features per cause",
    "enriched": "enriched",
    "judge_keyless": "judged an error",
    "logit_change": "logit change",
}


def gains(reader: Reader) -> pd.DataFrame:
    """The published method and ours, wherever a run has both at one L0; empty where it has not.

    Returns: frame of l0_target, method, n_seeds, l0, fvu_1 .. fvu_L (per level, on test), dead_fraction, logit_change
        (where there is a classifier); and
        where there is a truth: causes_found (mean number over seeds), specific_mean and specific_worst (04_causes: the smaller
        of both AUROCs of the best specific feature), error_features (share of latents whose firing a cause explains best,
        04_kinds), per_cause (error features that share a cause, 04_splitting); enriched and judge_keyless are shares of all latents of the first seed (07_relevance).
    """
    compared = reader.table("04_comparison")
    if compared.empty:
        return pd.DataFrame()
    compared = compared[compared["base"].isin((PUBLISHED, OURS)) & compared["l0_target"].notna()]
    both = compared.groupby("l0_target")["base"].transform("nunique") == 2
    known = ["l0_target", "method", "n_seeds", "l0", "dead_fraction", "logit_change"]
    out = compared.loc[both, [c for c in known if c in compared]]
    if out.empty:
        return out
    levels = reader.table("04_levels")
    wide = levels.pivot_table(index="method", columns="level", values="fvu")  # mean over seeds
    out = out.merge(wide.rename(columns=lambda level: f"fvu_{level + 1}"), left_on="method", right_index=True)
    out = out.merge(_causes(reader), on="method", how="left") if "auroc" in reader.table("04_causes") else out
    kinds = reader.table("04_kinds")
    if "cause" in kinds:
        share = pd.to_numeric(kinds.set_index("method")["cause"], errors="coerce").rename("error_features")
        out = out.merge(share.groupby(level=0).mean(), left_on="method", right_index=True, how="left")
    splitting = reader.table("04_splitting")
    if "n_features" in splitting:
        mean = splitting.groupby("method")["n_features"].mean().rename("per_cause")
        out = out.merge(mean, left_on="method", right_index=True, how="left")
    relevance = reader.table("07_relevance")
    columns = ["method", *[c for c in ("enriched", "judge_keyless") if c in relevance]]
    out = out.merge(relevance[columns], on="method", how="left") if len(columns) > 1 else out
    return out.sort_values(["l0_target", "method"], ignore_index=True)


def _causes(reader: Reader) -> pd.DataFrame:
    frame = reader.table("04_causes").dropna(subset=["auroc"])
    frame = frame.assign(
        found=frame["auroc"] >= REACHED * frame["ceiling"],
        specific=frame[["specific_auroc", "specific_auroc_all"]].min(axis=1),
    )
    seeds = frame.groupby(["method", "seed"]).agg(
        causes_found=("found", "sum"), specific_mean=("specific", "mean"), specific_worst=("specific", "min")
    )
    return seeds.groupby("method").mean().reset_index()


def section(reader: Reader) -> str:
    """The table for the page; "" where there is nothing to compare."""
    frame = reader.table("07_gains")
    if frame.empty:
        return ""
    levels = {c: f"FVU of level {c[4:]}" for c in frame if c.startswith("fvu_")}
    names = {c: label for c, label in SHOWN.items() if c in frame}
    intro = (
        f"**Ours against the published method**, at the same L0, means over seeds. `{OURS}` has one nested decoder instead of one "
        "per level, a frozen batch threshold instead of a fixed number per block, AuxK and MonoLoss. *Features of one cause*: "
        "share of latents whose firing a cause explains best; *error features per cause*: how many say the same, so that a larger share of "
        "relevant features is no larger number of errors found; *specific*: see the causes below."
    )
    first = {"method": "method"} | levels
    return (
        f"{intro}\n\n{markdown_table(frame, first)}\n\n{markdown_table(frame, names)}\n\n[Table](tables/07_gains.csv)"
    )

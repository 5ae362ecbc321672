"""The section of a report on the sparse coders: compared fairly, with MonoLoss on and off, and under others' definitions."""

from __future__ import annotations

import pandas as pd

from mtlib.measure.compare import MEASURES, fair_tables
from mtlib.report.reader import Reader
from mtlib.report.sections import picture
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, markdown_table, number

TARGETS = {
    "x": "Autoencoders: learn the embedding `x`",
    "y": "Transcoders: learn the classifier's hidden layer `y`",
}
LITTLE = 20  # percent of images named rightly below which a loss of accuracy says nothing
WITH_INTERVAL = ("fvu", "mono_score", "purity", "zero_shot_drop", "logit_change")


def coders(reader: Reader) -> str:
    """One table per target and L0, the readings of each, then figures, MonoLoss and the definition card."""
    compared = reader.table("04_comparison")
    parts = []
    if compared.empty:
        parts.append("*No coder was measured.*")
    else:
        parts.append(
            "One table per target and L0: only within one is a comparison fair. Means over seeds; intervals are "
            f"{_kinds(compared)}. *Matched*: the L0 measured on test is within 5% of the one aimed at."
        )
    for (target, l0), table in fair_tables(compared).items():
        parts.append(
            f"**{TARGETS[target]}{f', L0 {l0:.0f}' if l0 == l0 else ''}.** {reading(table)}\n\n{_shown(table)}"
        )
    metrics = reader.table("04_metrics")
    skipped = metrics[metrics["status"] != "ok"] if len(metrics) else metrics
    if len(skipped):
        names = {"method": "method", "seed": "seed", "reason": "reason"}
        parts.append("Not run:\n\n" + markdown_table(skipped, names))
    parts.append("[Means over seeds](tables/04_comparison.csv), [every seed](tables/04_metrics.csv)")
    parts += [t for t in (monoloss(reader), purity(reader), zero_shot(reader)) if t]
    parts += [picture(n) for n in ("04_fvu_l0", "04_progressive", "04_latents") if n in reader.figures("04")]
    links = [f"[{n[3:]}](figures/{n}.png)" for n in ("03_curves", "04_levels") if n in reader.figures(n[:2])]
    parts += ["More figures: " + ", ".join(links) + "."] if links else []
    return "\n\n".join([*parts, *_definitions(reader)])


def _kinds(compared: pd.DataFrame) -> str:
    words = {"t 95%": "95% of Student's t over the seeds", "range": "the smaller and the larger of two seeds"}
    kinds = [k for k in compared["interval"].unique() if k in words]
    return " or ".join(words[k] for k in kinds) or "missing, since there is one seed"


def _shown(table: pd.DataFrame) -> str:
    """The columns of a fair table for the page, measures that no method has left out."""
    table = table.dropna(axis=1, how="all").copy()
    names = {"method": "method", "matched": "L0 matched", "n_seeds": "seeds", "n_latents": "latents"}
    names |= {"n_parameters": "parameters", "assessed_rate": "assessed"}
    for name in WITH_INTERVAL:
        if {f"{name}_low", f"{name}_high"} <= set(table):
            rows = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            table[name] = [interval(v, low, high, number) for v, low, high in rows]
    for name in ("n_latents", "n_parameters"):
        table[name] = table[name].astype("int64")
    return markdown_table(table, names | {c: label for c, label in MEASURES.items() if c in table})


def reading(table: pd.DataFrame) -> str:
    """Which method of a fair table leaves least, and which cannot be told from it."""
    ranked = table[table["matched"] != "unmatched"].sort_values("fvu", kind="stable")
    if len(ranked) < 2:
        return ""
    best = ranked.iloc[0]
    text = f"{md(best['method'])} leaves least of the target, FVU {interval(best['fvu'], best['fvu_low'], best['fvu_high'], number)}"
    if pd.isna(best["fvu_high"]):
        return f"{text}; with one seed, differences may be chance."
    close = ranked["method"].iloc[1:][ranked["fvu_low"].iloc[1:] <= best["fvu_high"]]
    return text + (
        f"; {', '.join(map(md, close))} cannot be told from it." if len(close) else "; no other interval reaches it."
    )


def monoloss(reader: Reader) -> str:
    """MonoLoss on and off, in words and a table; "" when no method was trained both ways."""
    pairs = reader.table("04_monoloss")
    if pairs.empty:
        return ""
    lines = []
    for row in pairs.itertuples():
        words = [_change("MonoScore", row.mono_score_off, row.mono_score_on, row.mono_score_apart)]
        if "purity_off" in pairs and row.purity_off == row.purity_off:
            words.append(_change("purity", row.purity_off, row.purity_on, row.purity_apart))
        words.append(_change("FVU", row.fvu_off, row.fvu_on, row.fvu_apart))
        lines.append(f"- {md(row.method)}: {'; '.join(words)}; L0 {number(row.l0_off)} and {number(row.l0_on)}.")
    shown = "\n\n" + picture("04_monoloss") if "04_monoloss" in reader.figures("04") else ""
    return "**MonoLoss off and on**, all else equal ([table](tables/04_monoloss.csv)):\n\n" + "\n".join(lines) + shown


def _change(name: str, off: float, on: float, apart: bool) -> str:
    how = "hardly moves" if abs(on - off) < 0.01 * max(abs(off), 1e-9) else "rises" if on > off else "falls"
    sure = "" if str(apart).lower() == "true" else " (the seeds do not settle it)"
    return f"{name} {how} from {number(off)} to {number(on)}{sure}"


def purity(reader: Reader) -> str:
    """Purity beside its null, in words; "" without classes."""
    metrics = reader.table("04_metrics")
    if "purity" not in metrics or metrics["purity"].isna().all():
        return ""
    mean = metrics.groupby("method", sort=False)[["purity", "purity_null"]].mean().dropna()
    best = mean["purity"].idxmax()
    return (
        f"**Purity.** The latents of {md(best)} are purest: {number(float(mean.purity[best]))} of a latent's images lie in "
        f"one class on average, {number(float(mean.purity_null[best]))} when the classes are shuffled; over the methods "
        f"{number(float(mean.purity.min()))} to {number(float(mean.purity.max()))}."
    )


def zero_shot(reader: Reader) -> str:
    """What zero-shot classification loses with a coder spliced in; "" where it cannot be asked."""
    metrics = reader.table("04_metrics")
    if "zero_shot_drop" not in metrics or metrics["zero_shot_drop"].isna().all():
        return ""
    mean = metrics.groupby("method")[["zero_shot_top1", "zero_shot_drop"]].mean().dropna()
    least, most = mean["zero_shot_drop"].idxmin(), mean["zero_shot_drop"].idxmax()
    before = 100 * float(mean["zero_shot_top1"].mean())
    if before < LITTLE:
        return f"**Spliced into the encoder.** The text tower names only {before:.1f}% of the test images rightly from their embeddings, so there is little to lose and nothing to compare."  # fmt: skip
    inside = reader.table("04_zero_shot")
    table = "\n\n" + _inside(inside) if len(inside) else ""
    low, high = f"{mean.zero_shot_drop[least]:.1f}", f"{mean.zero_shot_drop[most]:.1f}"
    lost = f"{low} percentage points ({md(least)}) to {high} ({md(most)})" if low != high else f"{low} percentage points with every method"  # fmt: skip
    return (
        f"**Spliced into the encoder.** The text tower names {before:.1f}% of the test images rightly from their embeddings. "
        f"From the reconstructions it loses {lost}.{table}"
    )


def _inside(frame: pd.DataFrame) -> str:
    """Zero-shot with coders inside the forward pass, as Markdown; means over the seeds."""
    by = ["images", "method", "tokens"]
    shares = [c for c in frame if c.startswith("zero_shot") and "drop" not in c]
    mean = (
        frame.assign(**(frame[shares] * 100))
        .groupby(by, sort=False)[["n", *shares, *(c for c in frame if "drop" in c)]]
        .mean()
    )
    names = {
        "images": "images",
        "n": "number",
        "method": "method",
        "tokens": "tokens replaced",
        "zero_shot_top1": "top-1, %",
    }
    names |= {"zero_shot_top1_spliced": "with the coder", "zero_shot_drop": "points lost", "zero_shot_top5": "top-5, %"}
    names |= {"zero_shot_top5_spliced": "with the coder ", "zero_shot_drop_top5": "points lost "}
    whole = mean.reset_index().assign(n=mean["n"].to_numpy().astype(int)).dropna(axis=1, how="all").round(2)
    return markdown_table(whole, names) + "\n\n[Every seed](tables/04_zero_shot.csv)"


def _definitions(reader: Reader) -> list[str]:
    """The definition card of the first method of each target."""
    card = reader.table("04_definitions")
    if card.empty or "reconstruction" not in card:
        return []
    first = card[card["method"].isin(card.drop_duplicates("target")["method"])]
    names = {"method": "method", "quantity": "quantity", "convention": "convention"}
    names |= {"reconstruction": "reconstruction", "shifted": "shifted by 1 sd", "mean_predictor": "mean predictor"}
    text = (
        "**Definition card.** The same reconstructions by the conventions found in published code. This repo prints the "
        "exact ones only. A convention by which the mean predictor does well, or a shifted reconstruction is as good, "
        "cannot be compared with them."
    )
    shown = first.assign(quantity=first["quantity"].map({"fvu": "FVU", "explained_variance": "EVR"}))
    return [text, markdown_table(shown, names), "[Every method](tables/04_definitions.csv)"]


def answer(reader: Reader) -> str:
    """What a run without labels of physics shows, in one paragraph."""
    said = []
    for (target, l0), table in fair_tables(reader.table("04_comparison")).items():
        text = reading(table)
        said += [f"Of {target} at L0 {l0:.0f}, {text}" if l0 == l0 else f"Of {target}, {text}"] if text else []
    pairs = reader.table("04_monoloss")
    if len(pairs):
        risen = int((pairs["mono_score_on"] > pairs["mono_score_off"]).sum())
        said.append(f"MonoLoss raises the MonoScore of {risen} of {len(pairs)} methods.")
    return " ".join([*said, *(t.replace("**", "") for t in (purity(reader), zero_shot(reader)) if t)])

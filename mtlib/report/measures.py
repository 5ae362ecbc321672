"""The section of a report on the sparse coders: compared fairly, with MonoLoss on and off, and under others' definitions."""

from __future__ import annotations

import pandas as pd

from mtlib.measure.compare import MEASURES, fair_tables
from mtlib.report.reader import Reader
from mtlib.report.sections import names_by_chance, picture, rows_are_tokens
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, markdown_table, number

TARGETS = {"x": "Autoencoders: learn `x`", "y": "Transcoders: learn `y`"}
FEW = 100  # images below which CKNNA is noisy
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
            + (
                f" {tokens}; every number here is over tokens, but purity and assessed, which count images."
                if (tokens := rows_are_tokens(reader))
                else ""
            )
        )
    metrics = reader.table("04_metrics")
    kinds = presets(metrics)
    for (target, l0), table in by_aim(compared).items():
        head = f"**{TARGETS[target]}, {f'L0 {l0:.0f}' if l0 == l0 else 'no L0 aimed at'}.** {reading(table, kinds)}"
        parts.append(f"{head.strip()}\n\n{_shown(table, metrics)}")
    parts += _cautions(metrics)
    skipped = metrics[metrics["status"] != "ok"] if len(metrics) else metrics
    if len(skipped):
        names = {"method": "method", "seed": "seed", "reason": "reason"}
        parts.append("Not run:\n\n" + markdown_table(skipped, names))
    parts.append("[Means over seeds](tables/04_comparison.csv), [every seed](tables/04_metrics.csv)")
    parts += [t for t in (monoloss(reader), purity(reader), zero_shot(reader), spliced(reader)) if t]
    parts += [picture(n) for n in ("04_fvu_l0", "04_progressive", "04_latents") if n in reader.figures("04")]
    links = [f"[{n[3:]}](figures/{n}.png)" for n in ("03_curves", "04_levels") if n in reader.figures(n[:2])]
    parts += ["More figures: " + ", ".join(links) + "."] if links else []
    return "\n\n".join([*parts, *_definitions(reader)])


def by_aim(compared: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """`compare.fair_tables`, where an aimed L0 of all latents is none: nothing was asked of such a coder's sparsity."""
    if compared.empty:
        return {}
    none = compared["l0_target"] >= compared["n_latents"]
    return fair_tables(
        compared.assign(l0_target=compared["l0_target"].mask(none), matched=compared["matched"].mask(none))
    )


def presets(metrics: pd.DataFrame) -> dict[str, str]:
    """Method -> its preset: what tells two methods from one method and its own variant (MonoLoss, a stronger L1)."""
    if "preset" not in metrics:
        return {}
    return dict(zip(metrics["method"], metrics["preset"], strict=True))


def _cautions(metrics: pd.DataFrame) -> list[str]:
    """What the tables' numbers cannot carry: an FVU above 1, CKNNA of few images."""
    out, above = [], metrics[metrics["fvu"] > 1]["method"].unique() if "fvu" in metrics else []
    if len(above):
        out.append(f"An FVU above 1 is worse than the mean of the target would be: {', '.join(map(md, above))}.")
    n = metrics["cknna_rows"].min() if "cknna_rows" in metrics else float("nan")
    if n < FEW:
        out.append(f"CKNNA is of only {number(int(n))} images here: it is noisy, and may exceed 1.")
    return out


def _kinds(compared: pd.DataFrame) -> str:
    words = {"t 95%": "95% of Student's t over the seeds", "range": "the smaller and the larger of two seeds"}
    kinds = [k for k in compared["interval"].unique() if k in words]
    return " or ".join(words[k] for k in kinds) or "missing, since there is one seed"


def _shown(table: pd.DataFrame, metrics: pd.DataFrame) -> str:
    """The columns of a fair table for the page, measures that no method has left out."""
    table = table.dropna(axis=1, how="all").copy()
    if "purity" in table and "n_purity" in metrics:
        table["n_purity"] = table["method"].map(metrics.groupby("method")["n_purity"].mean().round()).astype("Int64")
    names = {"method": "method", "matched": "L0 matched", "n_seeds": "seeds", "n_latents": "latents"}
    names |= {"n_parameters": "parameters", "assessed_rate": "assessed"}
    for name in WITH_INTERVAL:
        if {f"{name}_low", f"{name}_high"} <= set(table):
            rows = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            table[name] = [interval(v, low, high, number) for v, low, high in rows]
    for name in ("n_latents", "n_parameters"):
        table[name] = table[name].astype("int64")
    for column, label in MEASURES.items():
        names |= {column: label} if column in table else {}
        names |= {"n_purity": "latents with a purity"} if column == "purity" else {}
    return markdown_table(table, names)


def reading(table: pd.DataFrame, presets: dict[str, str] | None = None) -> str:
    """Which method leaves least and which cannot be told from it; "" without one aimed L0 or without two methods there.

    Args: table: one of `by_aim`. presets: what `presets` returned; {}: methods are told apart by their base name.
    """
    ranked = table[table["matched"] == "matched"].sort_values("fvu", kind="stable")
    names = {(presets or {}).get(m) or b.removesuffix("_mono") for m, b in zip(ranked["method"], ranked["base"], strict=True)}  # fmt: skip
    if len(names) < 2:
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
    over = [c for c in ("n_purity", "n_latents") if c in metrics]
    mean = metrics.groupby("method", sort=False)[["purity", "purity_null", *over]].mean().dropna()

    def one(method: str) -> str:
        row = mean.loc[method]
        n = f", over {row['n_purity']:,.0f} of {row['n_latents']:,.0f} latents" if len(over) == 2 else ""
        return f"{number(float(row['purity']))} ({md(method)}{n}; {number(float(row['purity_null']))} when the classes are shuffled)"

    low, high = mean["purity"].idxmin(), mean["purity"].idxmax()
    said = one(high) if low == high else f"{one(low)} to {one(high)}"
    rare = (
        "" if low == high else "; it rewards rare latents, so it is no ranking of methods with more and fewer of them"
    )
    return f"The purity of a latent, the share of its images in their commonest class, is on average {said}{rare}."


def zero_shot(reader: Reader) -> str:
    """What zero-shot classification loses with a coder spliced in, a sentence; "" where it cannot be asked."""
    metrics = reader.table("04_metrics")
    if "zero_shot_drop" not in metrics or metrics["zero_shot_drop"].isna().all():
        return ""
    mean = metrics.groupby("method")[["zero_shot_top1", "zero_shot_drop"]].mean().dropna()
    least, most = mean["zero_shot_drop"].idxmin(), mean["zero_shot_drop"].idxmax()
    before = 100 * float(mean["zero_shot_top1"].mean())
    if before < LITTLE:
        return f"The text tower names only {before:.1f}% of the test images rightly from their embeddings, so splicing coders in has little to lose and compares nothing."  # fmt: skip
    low, high = (f"{round(float(mean.zero_shot_drop[m]), 1) + 0.0:.1f}" for m in (least, most))  # + 0.0: never -0.0
    lost = f"{low} percentage points ({md(least)}) to {high} ({md(most)})" if low != high else f"{low} percentage points with every method"  # fmt: skip
    return f"The text tower names {before:.1f}% of the test images rightly from their embeddings; from the reconstructions, spliced into the encoder, it loses {lost}."  # fmt: skip


def spliced(reader: Reader) -> str:
    """Zero-shot with coders inside the forward pass, the table; "" where nothing was spliced in."""
    frame = reader.table("04_zero_shot")
    return _inside(frame) if len(frame) else ""


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


def monoloss_count(pairs: pd.DataFrame) -> str:
    """In how many pairs the seeds settle that MonoLoss raises or lowers the MonoScore; "" without pairs."""
    if pairs.empty:
        return ""
    apart = pairs["mono_score_apart"].astype(str).str.lower() == "true"
    up = apart & (pairs["mono_score_on"] > pairs["mono_score_off"])
    counts = ((up, "rises"), (apart & ~up, "falls"), (~apart, "is not settled by the seeds"))
    parts = []
    for which, what in counts:
        who = pairs.loc[which, "method"]
        named = f" ({', '.join(map(md, who))})" if 0 < len(who) < len(pairs) and len(who) <= 4 else ""
        parts += [f"{what} for {len(who)}{named}"] if len(who) else []
    return f"Of {len(pairs)} methods trained with MonoLoss and without, the MonoScore {', '.join(parts)}."


def answer(reader: Reader) -> str:
    """What a run without labels of physics shows, in one paragraph."""
    compared, metrics, said, ranked = reader.table("04_comparison"), reader.table("04_metrics"), [], 0
    kinds = presets(metrics)
    for (target, l0), table in by_aim(compared).items():
        text = reading(table, kinds)
        said += [f"Of `{target}`, among methods trained to L0 {l0:.0f}, {text}"] if text else []
        ranked += len(table) if text else 0
    if ranked and ranked < len(compared):
        said.append(f"The tables below hold {len(compared) - ranked} more, at another L0 or at none aimed at.")
    for target, own in compared.groupby("target") if len(compared) > 1 and not ranked else ():
        if len(own) > 1:
            least, most = own.loc[own["fvu"].idxmin()], own.loc[own["fvu"].idxmax()]
            ends = " to ".join(f"{number(r['fvu'])} ({md(r['method'])}, L0 {number(r['l0'])})" for r in (least, most))
            said.append(f"No two methods of `{target}` were trained to one L0, so the FVU, {ends}, is no ranking.")
    known = "" if names_by_chance(reader) else zero_shot(reader)
    return " ".join([*said, *(t for t in (monoloss_count(reader.table("04_monoloss")), purity(reader), known) if t)])

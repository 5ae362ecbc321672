"""Known causes against single features, beside ceilings and controls: what can be said of the methods, and the section."""

from __future__ import annotations

import pandas as pd

from mtlib.report.reader import Reader
from mtlib.report.sections import figures, rows_are_tokens
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, markdown_table, number

REACHED = 0.95  # of the ceiling: what a linear probe reaches
LITTLE = 0.005  # of AUROC: less is no difference between features and single dimensions
SINGLE = {"best_x_dim": "single dimensions of the embedding", "best_y_dim": "hidden units"}


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines of 04_causes that have an AUROC; empty when causes could not be checked."""
    return frame.dropna(subset=["auroc"]) if "auroc" in frame else pd.DataFrame()


def by_method(frame: pd.DataFrame) -> pd.DataFrame:
    """How well each method's best features find the causes, over all seeds.

    Args: frame: 04_causes.
    Returns: frame of method, n_seeds, causes, reached (number of causes at 0.95 of their ceiling), mean and worst (AUROC
        over the causes), all three as means over the seeds; low and high: the smallest and largest mean of one seed.
    """
    frame = checked(frame)
    if frame.empty:
        return pd.DataFrame(columns=["method", "n_seeds", "causes", "reached", "mean", "worst", "low", "high"])
    frame = frame.assign(reached=frame["auroc"] >= REACHED * frame["ceiling"])
    seeds = frame.groupby(["method", "seed"], sort=False).agg(
        causes=("cause", "count"), reached=("reached", "sum"), mean=("auroc", "mean"), worst=("auroc", "min")
    )
    methods = seeds.groupby("method", sort=False)
    return (
        methods.mean().assign(n_seeds=methods.size(), low=methods["mean"].min(), high=methods["mean"].max())
    ).reset_index()


def leader(table: pd.DataFrame) -> str:
    """The method whose worst seed is better than every other method's best seed; "" when the seeds do not settle it.

    Args: table: what `by_method` returned.
    """
    best = table.loc[table["low"].idxmax()]
    others = table[table["method"] != best["method"]]
    settled = len(others) and table["n_seeds"].min() > 1 and best["low"] > others["high"].max()
    return best["method"] if settled else ""


def reading(frame: pd.DataFrame) -> str:
    """What single features find, over all seeds and methods, in a few sentences; "" when causes were not checked.

    Args: frame: 04_causes.
    """
    frame, table = checked(frame), by_method(frame)
    if table.empty:
        return ""
    n, seeds = int(table["causes"].max()), int(table["n_seeds"].max())
    over = f"; means over {seeds} seeds" if seeds > 1 else ""
    if len(table) == 1:
        one = table.iloc[0]
        low, high = (one["low"], one["high"]) if seeds > 1 else (None, None)
        who, mean = f"of {md(one['method'])} find", interval(one["mean"], low, high, number)
    else:
        who, mean = f"find, over {len(table)} methods,", _span(table["mean"])
    said = [
        f"Single features {who} {_span(table['reached'])} of {n} known causes (found: at least {REACHED} of what a linear probe "
        f"reaches{over}), with a mean AUROC of {mean}."
    ]
    if len(table) > 1:
        said.append(_told_apart(table))
    mean = frame.groupby("cause")[["auroc", "ceiling"]].mean()
    worst = (mean["auroc"] / mean["ceiling"]).idxmin()
    auroc, ceiling = (number(float(v)) for v in mean.loc[worst])
    said.append(f"Hardest is {md(worst)}, on average {auroc} against a ceiling of {ceiling}.")
    return " ".join([*said, _controls(frame, table)])


def _told_apart(table: pd.DataFrame) -> str:
    first = leader(table)
    if first:
        low = table.loc[table["method"] == first, "low"].iloc[0]
        rest = table.loc[table["method"] != first, "high"].max()
        return f"{md(first)} is ahead: its weakest seed has {low:.4f}, the strongest of any other method {rest:.4f}."
    if table["n_seeds"].min() < 2:
        return "With one seed it cannot be told which method is best."
    top = table.loc[table["mean"].idxmax()]
    others = table[(table["method"] != top["method"]) & (table["high"] >= top["low"])]["method"]
    close = f"{len(others)} other methods" if len(others) > 3 else " and ".join(md(m) for m in others)
    return f"Which method is best cannot be told: the seeds of the highest mean, {md(top['method'])}'s, overlap with those of {close}."


def _span(values: pd.Series) -> str:
    """ "8 to 9", or one value where all are the same to three digits."""
    low, high = (f"{int(v)}" if float(v).is_integer() else number(float(v)) for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _controls(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    """What single dimensions reach on the same causes, and how many methods do better."""
    once, parts = frame.drop_duplicates("cause"), []
    for column, what in SINGLE.items():
        if column in once and once[column].notna().all():
            reached = int((once[column] >= REACHED * once["ceiling"]).sum())
            parts.append(f"{what} reach it for {reached} (mean {number(float(once[column].mean()))})")
    if not parts:
        return ""
    gain = table["mean"] - float(once[[c for c in SINGLE if c in once]].max(axis=1).mean())
    better, worse = int((gain > LITTLE).sum()), int((gain < -LITTLE).sum())
    if len(table) == 1:
        verdict = f"{number(float(gain.iloc[0]))} better in mean AUROC than" if better else "worse than" if worse else "no better than"  # fmt: skip
        who = "the features are"
    elif better or worse:
        verdict = f"better than the best of these for {better} and worse for {worse} of {len(table)} methods, by more than {LITTLE} in mean AUROC"  # fmt: skip
        return f"As controls, {' and '.join(parts)}: as detectors of known causes the features are {verdict}."
    else:
        who, verdict = "the features of every method are", "no better than"
    return f"As controls, {' and '.join(parts)}: as detectors of known causes {who} {verdict} single dimensions."


def section(reader: Reader) -> str:
    """Known causes against the best single features, beside ceilings and controls; means over the seeds."""
    frame = checked(reader.table("04_causes"))
    if frame.empty:
        reasons = reader.table("04_causes").get("reason", pd.Series(dtype=str)).replace("", pd.NA).dropna()
        why = reasons.iloc[0] if len(reasons) else "the causes of errors are known only for rendered scenes"
        return f"Not checked: {md(why)}."
    n, tokens = frame["seed"].nunique(), token_labels(reader)
    intro = "AUROC on test of the one feature (chosen on val) that best separates images with the cause from plausible images of the same family; below, the ceilings (linear probes) and the controls (single dimensions)."
    intro += f" Means over {n} seeds." * (n > 1) + f" {tokens}" * bool(tokens)
    parts = [intro, _by_cause(frame), _specific(frame), "[Whole table, all seeds](tables/04_causes.csv)"]
    shown = ("04_causes", "04_sparse_probing", "04_kinds")
    return "\n\n".join([*parts, *_split(reader), *figures(reader, "04", shown)])


def token_labels(reader: Reader) -> str:
    """What a code and a ceiling are where rows are tokens; "" where each image has one row."""
    text = rows_are_tokens(reader)
    return text and (
        f"{text}. A cause is one of images: a latent counts with its largest code over the tokens of an image, the probe and "
        "the single dimensions with the mean of the tokens."
    )


def _by_cause(frame: pd.DataFrame) -> str:
    """Methods, ceilings and controls down, causes across; causes that the captions never named say so."""
    wide = frame.pivot_table(index="method", columns="cause", values="auroc", sort=False).sort_index(axis=1)
    first = frame.groupby("cause").first()
    limits = {"ceiling_x": "*probe on x*", "ceiling_y": "*probe on y*", "best_x_dim": "*best dim of x*", "best_y_dim": "*best unit of y*"}  # fmt: skip
    for column, name in limits.items():
        if first[column].notna().any():
            wide.loc[name.strip("*")] = first[column]
    wide.insert(0, "mean", wide.mean(axis=1))
    heads = {c: c if str(first.loc[c, "captioned"]).lower() in ("true", "1", "1.0") else f"{c} (not in captions)" for c in first.index}  # fmt: skip
    return markdown_table(
        wide.rename_axis("feature of").reset_index(), {"feature of": "feature of", "mean": "mean"} | heads
    )


def _split(reader: Reader) -> list[str]:
    """How causes are spread over features, and what the other features stand for."""
    split, kinds = reader.table("04_splitting"), reader.table("04_kinds")
    if split.empty or kinds.empty:
        return []
    rows = split.groupby("method", sort=False)[["n_features", "recall_parent", "recall_any", "absorption"]].mean()
    shares = kinds.set_index("method")[["cause", "family", "nuisance"]]
    rows = rows.join(shares.apply(pd.to_numeric))  # elsewhere "cause" and "family" are names, and are read as text
    names = {"method": "method", "n_features": "error features per cause", "recall_parent": "best one fires", "recall_any": "any fires", "absorption": "absorption", "cause": "latents of a cause", "family": "of a family", "nuisance": "of a nuisance"}  # fmt: skip
    text = (
        "**Splitting and absorption.** How many features share a cause; on what share of its images the best one fires, and "
        "any of them; how often the best one is silent where another fires. On the right, the share of latents whose firing is "
        "best explained by the cause, the family, or a nuisance (background, palette, style, position)."
    )
    return [text, markdown_table(rows.reset_index(), names)]


def _specific(frame: pd.DataFrame) -> str:
    """The features that fire on a cause and on nothing else, beside single dimensions chosen alike."""
    if "specific_auroc" not in frame:
        return ""
    weaker = frame[["specific_auroc", "specific_auroc_all"]].min(axis=1)
    seeds = weaker.groupby([frame["method"], frame["seed"]], sort=False).agg(["mean", "min"])
    rows = seeds.groupby("method", sort=False).mean()
    once = frame.drop_duplicates("cause")
    for column, name in (("specific_x_dim", "best dim of x"), ("specific_y_dim", "best unit of y")):
        if once[column].notna().any():
            rows.loc[name] = once[column].agg(["mean", "min"])
    intro = (
        "**Does one feature stand for one cause?** Within its family a cause is found by anything that tells implausible "
        "from plausible, often by a feature of *plausible* images. A feature of the cause must fire on it and stay silent "
        "elsewhere. Chosen on val by the smaller of its AUROC within the family and its AUROC against all other images, "
        "the smaller of the two on test, over the causes:"
    )
    columns = {"who": "feature of", "mean": "mean", "min": "worst cause"}
    return intro + "\n\n" + markdown_table(rows.rename_axis("who").reset_index(), columns)

"""The sections of a report on what was run: data, encoder, classifier, coders, causes. A missing table is said."""

from __future__ import annotations

import pandas as pd

from mtlib.report import results
from mtlib.report.reader import Reader
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import markdown_table, number

CAPTIONS = {
    "01_images": "Some images of the run.",
    "01_map": "The embeddings in two dimensions.",
    "02_roc": "Every trade between missed errors and false alarms of the classifier, test images.",
    "02_confusion": "Which classes are taken for which, test images.",
    "02_calibration": "Predicted probability against the share that comes true, test images.",
    "03_curves": "Training of the sparse coders.",
    "04_causes": "Best single feature per cause and method as a share of the ceiling (a probe), mean over all seeds (the table above is of one), with the best single dimensions below.",
    "04_fvu_l0": "What is left of the target (FVU) against measured L0: large marks are means, small ones seeds; down and left is better.",
    "04_progressive": "What is left when only the largest codes of each image are kept, with the same weights.",
    "04_latents": "MonoScore and purity of all latents: the share of latents below each value; chance dashed.",
    "04_monoloss": "What MonoLoss buys and costs: from hollow (without it) to full (with it).",
    "04_sparse_probing": "Test AUROC of probes on the best 1, 4 and 16 features; dotted: the worst cause.",
    "04_kinds": "What the latents of each method stand for.",
    "04_steering": "The classifier's logit when the feature of a cause is removed (0) or turned up; dashed: a random direction of the same norm.",
    "05_causal": "What removing a feature does to the classifier's logit, against its error ratio; grey: other latents' directions of the same norm.",
    "05_error_ratios": "Every assessed feature in order of its error ratio, with its 95% interval; dashed: the base rate.",
    "06_judge_scores": "The judges against the truth: precision, recall and F1; triangles: causes that the captions name, and those they do not.",
    "07_relevance_scores": "Share of all latents that each score calls an error feature; bars are 95% intervals.",
    "07_generators": "Failure rate of each generator: flagged, corrected with its 95% interval, and true where known.",
    "07_generator_features": "How often the error features fire on each generator's images.",
    "07_labels": "New images with the explanations of the features that fire on them.",
}
SHOWN_AT_ONCE = 3


def figures(reader: Reader, number_: str, first: tuple[str, ...] = ()) -> list[str]:
    """The figures of a stage: those in `first` (or else up to three) with their captions, links to the others."""
    names = reader.figures(number_)
    shown = [n for n in first if n in names] or names[:SHOWN_AT_ONCE]
    rest = [f"[{md(n[3:].replace('_', ' '))}](figures/{n}.png)" for n in names if n not in shown]
    return [picture(n) for n in shown] + (["More figures: " + ", ".join(rest) + "."] if rest else [])


def picture(name: str) -> str:
    """A figure with its caption and a link to its numbers."""
    return f"![{_caption(name)}](figures/{name}.png)\n\n*{_caption(name)} Numbers: [table](tables/{name}.csv).*"


def _caption(name: str) -> str:
    return CAPTIONS.get(name) or md(name[3:].replace("_", " ").capitalize() + ".")


def table(reader: Reader, name: str, columns: dict[str, str] | None = None, max_rows: int = 40) -> str:
    """A stage's table with a link to the whole, or a sentence that there is none."""
    frame = reader.table(name)
    if frame.empty:
        return f"*There is no table {name}: its stage did not write one for this run.*"
    return f"{markdown_table(frame, columns, max_rows)}\n\n[Whole table](tables/{name}.csv)"


def run(reader: Reader) -> str:
    """What was run: data, encoder, splits, methods."""
    facts, lines = reader.facts("01_embed"), results.coder_lines(reader) if "03_train" in reader.folders else None
    encoder = facts.get("encoder") or {}
    files = reader.table("01_files")
    rows = [
        ("run", reader.name),
        ("data", {"scenes": "rendered scenes with known causes", "images": "a folder of images"}.get(facts.get("source"), "an array of embeddings")),
        ("encoder", f"{encoder.get('name', '')} {encoder.get('pretrained', '')}".strip()),
        ("layer", f"{encoder.get('layer')}, tokens: {encoder.get('tokens')}" if encoder.get("layer") else ""),
        ("embeddings", f"{number(facts.get('n_rows'))} rows of {number(facts.get('d_in'))}"),
        ("labels", {"plausibility": "plausible / implausible", "classes": "classes only"}.get(facts.get("labels"), "none")),
        ("files not used", number(facts.get("n_bad", 0))),
        ("splits", _splits(reader)),
        ("seeds", ", ".join(map(str, reader.params("03_train").get("seeds", [])))),
    ]  # fmt: skip
    if not files.empty and len(files) > 1:
        rows.append(("files", ", ".join(f"{r.status}: {number(r.count)}" for r in files.itertuples(index=False))))
    out = markdown_table(pd.DataFrame([r for r in rows if r[1]], columns=["what", "value"]), {"what": "", "value": ""})
    if lines is None:
        return out
    names = {"method": "method", "target": "learns", "n_latents": "latents", "l0_val": "L0 (val)", "status": "status", "reason": "reason"}  # fmt: skip
    lines["n_latents"] = pd.to_numeric(lines.get("n_latents"), errors="coerce").astype("Int64")
    lines["l0_val"] = pd.to_numeric(lines.get("l0_val"), errors="coerce")
    return (
        f"{out}\n\n{markdown_table(lines, names)}\n\n`x`: the encoder's "
        f"{'layer' if encoder.get('layer') else 'embedding'}; `y`: the classifier's hidden layer."
    )


def _splits(reader: Reader) -> str:
    path = reader.find("01_embed", "embeddings/manifest.parquet")
    if path is None:
        return ""
    manifest = pd.read_parquet(path, columns=["status", "split"])
    counts = manifest.loc[manifest["status"] == "ok", "split"].value_counts()
    return ", ".join(f"{s} {number(int(counts[s]))}" for s in ("train", "val", "test", "unlabelled") if s in counts)


def encoder(reader: Reader) -> str:
    """What the encoder sees: its report card on unseen scenes."""
    names = {"family": "family", "cause": "cause", "captioned": "in its captions", "n_test": "images", "probe_accuracy": "probe accuracy", "probe_auroc": "probe AUROC", "zero_shot_family": "zero-shot family"}  # fmt: skip
    shown = figures(reader, "01", ("01_images",))
    if reader.table("01_encoder").empty:
        return "\n\n".join(
            ["No report card: the encoder is not the bundled one, or the images have no known causes."] + shown
        )
    frame = reader.table("01_encoder")
    names = {c: n for c, n in names.items() if c in frame and frame[c].replace("", None).notna().any()}
    probed = "A linear probe on the embeddings: on images that it was not trained on."
    text = probed if "probe_accuracy" in names else "Zero-shot only: without labels there is nothing to probe for."
    return "\n\n".join([text, table(reader, "01_encoder", names), *shown])


def classifier(reader: Reader) -> str:
    """How well the classifier does, or why there is none."""
    facts = reader.facts("02_classify")
    if facts.get("status") not in ("ok", "vision"):
        return f"Skipped: {md(facts.get('reason') or '02_classify has not run')}. There is no hidden layer `y`, so only autoencoders of `x` are trained."
    names = {"group": "images", "n": "n", "accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high", "auroc": "AUROC", "auroc_low": "AUROC low", "auroc_high": "AUROC high", "ece": "calibration error"}  # fmt: skip
    parts = [table(reader, "02_metrics", names)]
    shown = ("02_roc", "02_confusion", "02_calibration")
    parts += figures(reader, "02", ("02_loss", *shown) if facts.get("vision") else shown)
    if not reader.table("02_folds").empty:
        parts.insert(1, "Few images, so five folds as well:\n\n" + table(reader, "02_folds"))
    if facts.get("vision"):
        x = facts["x"]
        text = f"A vision model ({md(facts['vision'])}), trained here from random weights on the train images. Of each image, `x` is the residual stream after its {md(x['layer'])}: {x['tokens_per_image']} tokens of {x['d_in']}. There is no hidden layer `y`, so only autoencoders of `x` are trained."
        parts = [text, *parts]
    return "\n\n".join(parts)


def found_causes(reader: Reader) -> pd.DataFrame:
    """04_causes of the interpreted seed of each method; empty when causes could not be checked."""
    frame = reader.table("04_causes")
    if frame.empty or "auroc" not in frame:
        return pd.DataFrame()
    frame = frame.dropna(subset=["auroc"])
    return frame[frame["seed"] == frame.groupby("method")["seed"].transform("first")]


def causes(reader: Reader) -> str:
    """Known causes against the best single features, beside ceilings and controls."""
    frame = found_causes(reader)
    if frame.empty:
        reasons = reader.table("04_causes").get("reason", pd.Series(dtype=str)).replace("", pd.NA).dropna()
        why = reasons.iloc[0] if len(reasons) else "the causes of errors are known only for rendered scenes"
        return f"Not checked: {md(why)}."
    intro = "AUROC on test of the one feature (chosen on val) that best separates images with the cause from plausible images of the same family; below, the ceilings (linear probes) and the controls (single dimensions)."
    parts = [intro, _by_cause(frame), _specific(frame), "[Whole table, all seeds](tables/04_causes.csv)"]
    shown = ("04_causes", "04_sparse_probing", "04_kinds")
    return "\n\n".join([*parts, *_split(reader), *figures(reader, "04", shown)])


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
    rows = weaker.groupby(frame["method"], sort=False).agg(["mean", "min"])
    once = frame.drop_duplicates("cause")
    rows.loc["best dim of x"] = once["specific_x_dim"].agg(["mean", "min"])
    rows.loc["best unit of y"] = once["specific_y_dim"].agg(["mean", "min"])
    intro = (
        "**Does one feature stand for one cause?** Within its family a cause is found by anything that tells implausible "
        "from plausible, often by a feature of *plausible* images. A feature of the cause must fire on it and stay silent "
        "elsewhere. Chosen on val by the smaller of its AUROC within the family and its AUROC against all other images, "
        "the smaller of the two on test, over the causes:"
    )
    columns = {"who": "feature of", "mean": "mean", "min": "worst cause"}
    return intro + "\n\n" + markdown_table(rows.rename_axis("who").reset_index(), columns)


def causes_by_method(reader: Reader) -> pd.DataFrame:
    """How well each method's best features find the causes: causes, reached (0.95 of the ceiling), mean, worst, f1."""
    frame = found_causes(reader)
    if frame.empty:
        return pd.DataFrame(columns=["method", "causes", "reached", "mean", "worst", "f1"])
    grouped = frame.assign(reached=frame["auroc"] >= 0.95 * frame["ceiling"]).groupby("method", sort=False)
    return grouped.agg(
        causes=("cause", "count"),
        reached=("reached", "sum"),
        mean=("auroc", "mean"),
        worst=("auroc", "min"),
        f1=("f1", "mean"),
    ).reset_index()

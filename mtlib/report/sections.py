"""The sections of a report on what was run: data, encoder, classifier. A missing table is said."""

from __future__ import annotations

import pandas as pd

from mtlib.report import results
from mtlib.report.reader import Reader
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import markdown_table, number, percent

CAPTIONS = {
    "01_images": "Some images of the run.",
    "01_map": "The embeddings in two dimensions.",
    "02_roc": "Every trade between missed errors and false alarms of the classifier, test images.",
    "02_confusion": "Which classes are taken for which, test images.",
    "02_calibration": "Predicted probability against the share that comes true, test images.",
    "03_curves": "Training of the sparse coders.",
    "04_causes": "Best single feature per cause and method as a share of the ceiling (a probe), mean over all seeds, with the best single dimensions below.",
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
        ("embeddings", _embeddings(reader)),
        ("the coders learn", _learned(reader)),
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
    return f"{out}\n\n{markdown_table(lines, names)}\n\n`x`: {_what_x(reader)}; `y`: the classifier's hidden layer."


def tokens(reader: Reader) -> int:
    """Rows of `x` that each image has: the tokens of the layer that was read, or of the vision model that 02 trained."""
    facts = reader.facts("02_classify").get("x") or reader.facts("01_embed")
    return int(facts.get("tokens_per_image", 1))


def rows_are_tokens(reader: Reader) -> str:
    """The start of a sentence that rows are tokens; "" where each image has one row."""
    n = tokens(reader)
    return f"Rows of `x` are tokens, {n} per image, and each carries its image's label" if n > 1 else ""


def _size(facts: dict) -> str:
    """ "3,400 images x 16 tokens of 128"; "9,600 rows of 192" where each image has one row."""
    n, per = facts.get("n_rows"), int(facts.get("tokens_per_image", 1))
    rows = f"{number(n)} rows" if per == 1 or n is None else f"{number(n // per)} images x {per} tokens"
    return f"{rows} of {number(facts.get('d_in'))}"


def _what_x(reader: Reader) -> str:
    if reader.facts("02_classify").get("x"):
        return "tokens of the vision model's layer"
    return (
        "the encoder's layer"
        if (reader.facts("01_embed").get("encoder") or {}).get("layer")
        else "the encoder's embedding"
    )


def _embeddings(reader: Reader) -> str:
    vision = reader.facts("02_classify").get("x")
    return _size(reader.facts("01_embed")) + " (for names only; the coders never see them)" * bool(vision)


def _learned(reader: Reader) -> str:
    """What a vision run's coders learn in place of the embeddings; "" in any other run."""
    x, n = reader.facts("02_classify").get("x"), reader.facts("01_embed").get("n_rows")
    return f"{number(n)} images x {tokens(reader)} tokens of {x['d_in']}, after {x['layer']}" if x else ""


def names_by_chance(reader: Reader) -> str:
    """A sentence where the text tower names classes no better than chance, so that no name means anything; else ""."""
    frame = reader.table("01_encoder")
    if "zero_shot_family" not in frame:
        return ""
    whole, n = frame[frame["family"] == "all"].head(1), frame.loc[frame["family"] != "all", "family"].nunique()
    share = float(whole["zero_shot_family"].iloc[0]) if len(whole) else float("nan")
    if n < 2 or not share <= 1 / n + 2 * ((1 - 1 / n) / n / max(int(whole["n_test"].iloc[0]), 1)) ** 0.5:
        return ""
    return (
        f"Names mean nothing here: the text tower puts {percent(share)} of the test images into the right one of {n} "
        f"classes, and chance is {percent(1 / n)}."
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
    vision = bool(reader.facts("02_classify").get("x"))
    text += " The coders of this run learn the vision model's tokens instead (see below)." * vision
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

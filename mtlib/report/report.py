"""README.md of a report: the answer, what was run, a section per stage, terms and limits. All numbers come from tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mtlib.report import findings, gains, measures, model_judge, results, sections
from mtlib.report.reader import STAGES, Reader
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, number
from mtlib.run.artifacts import Stage, write_text

FEW = 2000  # labelled images below which one split says little
TERMS = {
    "latent, feature": "one unit of a sparse coder; a latent that is being interpreted is called a feature",
    "`x`, `y`": "the encoder's embedding, or the layer that was read; the hidden layer of the classifier trained on it",
    "FVU": "share of the target's variance that the coder does not reconstruct; 0 is perfect, 1 is the mean",
    "L0": "latents that fire per image, measured",
    "MonoScore": "mean cosine of pairs of images, weighted by how strongly both activate a latent; 1 is one thing only",
    "purity": "share of a latent's activating images in its commonest class",
    "zero-shot drop": "percentage points of top-1 that the text tower loses when reconstructions replace embeddings",
    "assessed": "a feature with at least 10 activating test images",
    "error ratio": "share of a feature's activating test images that are labelled implausible",
    "threshold": "relevance by the published rule: error ratio of at least 0.95",
    "enriched": "relevance by Fisher's exact test against the base rate, false discovery rate 5% (BH; BY is stricter)",
    "judge": "relevance by verdict; refused and failed answers are counted apart, never as no",
    "ceiling, control": "a linear probe for the cause on `x` or `y`; the best single dimension of them",
    "causal relevance": "change of the classifier's logit when the feature is removed",
}


def write_report(stage: Stage) -> Path:
    """Write README.md of the report into the folder of 07_results, from what it and the stages before it wrote."""
    path = stage.out / "README.md"
    write_text(path, report_markdown(Reader.of_stage(stage), stage.params.get("remark", "")))
    return path


def report_markdown(reader: Reader, remark: str = "") -> str:
    """The whole report as Markdown, with links relative to reports/<run>/; `remark` is the user's own word on the run."""
    why = results.nothing_to_judge(reader)
    asked = "do the features of this image model stand for" if why else "does this image model get physically wrong"
    parts = [
        f"# What {asked}? Run `{md(reader.name)}`",
        *([f"*{md(remark)}*"] if remark else []),
        answer(reader),
        "## What the features show\n\n" + findings.features(reader),
        "## The methods at a glance\n\n" + findings.glance(reader),
        "## What was run\n\n" + sections.run(reader),
        f"## {'What does the encoder see' if why else 'Does the encoder see the errors'}?\n\n"
        + sections.encoder(reader),
        "## The classifier\n\n" + sections.classifier(reader),
        "## The sparse coders\n\n" + "\n\n".join(t for t in (measures.coders(reader), gains.section(reader)) if t),
        *(["## Physical errors\n\n" + findings.nothing_judged(reader, why)] if why else _errors(reader)),
        "## New images\n\n" + findings.new_images(reader),
        "<!-- notebooks -->\n<!-- /notebooks -->",
        "## Terms\n\n" + "\n".join(f"- **{name}**: {text}" for name, text in TERMS.items()),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in limits(reader)),
        "## Notebooks and tables\n\n" + links(reader),
        "## Times\n\n<!-- timings -->\n<!-- /timings -->",
    ]
    return "\n\n".join(parts) + "\n"


def _errors(reader: Reader) -> list[str]:
    """The sections on physical errors, for images of which it is known which are implausible."""
    return [
        "## Known causes found\n\n" + sections.causes(reader),
        "## Are the judges right?\n\n" + findings.judges(reader),
        "## How much of each method is about errors?\n\n" + findings.relevance(reader),
        "## Which generator fails most?\n\n" + findings.generators(reader),
    ]


def answer(reader: Reader) -> str:
    """One paragraph with the run's main numbers."""
    why = results.nothing_to_judge(reader)
    if why:
        methods = ", ".join(md(m) for m in reader.methods()) or "none"
        return (
            f"**Answer.** Nothing can be said about physical errors in this run: {md(why)}. What it does show is which "
            f"concepts the features of the embeddings stand for (methods: {methods}), how well they reconstruct, and how "
            f"they are named. {measures.answer(reader)}"
        )
    said = [
        s for s in (_classifier(reader), _causes(reader), _relevance(reader), _judges(reader), _generators(reader)) if s
    ]
    null = "This is a null run: the labels were permuted before anything was trained, so whatever is found is chance. "
    return "**Answer.** " + null * bool(reader.facts("02_classify").get("permuted")) + " ".join(said)


def _classifier(reader: Reader) -> str:
    frame = reader.table("02_metrics")
    folds = reader.table("02_folds")
    if len(folds) and "accuracy_low" in folds:
        mean = folds.iloc[-1]
        between = interval(mean["accuracy"], mean["accuracy_low"], mean["accuracy_high"])
        return f"Over five folds the classifier tells implausible from plausible images in {between} of cases."
    if frame.empty:
        return ""
    row = frame.iloc[0]
    between = interval(row["accuracy"], row.get("accuracy_low"), row.get("accuracy_high"))
    return f"The classifier tells implausible from plausible test images in {between} of {number(int(row['n']))} cases."


def _causes(reader: Reader) -> str:
    frame, by_method = sections.found_causes(reader), sections.causes_by_method(reader)
    if frame.empty:
        return ""
    best = by_method.loc[by_method["mean"].idxmax()]
    own = frame[frame["method"] == best["method"]]
    worst = own.loc[own["auroc"].idxmin()]
    ceiling = f"a ceiling of {number(float(worst['ceiling']))}"
    seeds = reader.params("03_train").get("seeds", [])
    praise = "the best method by mean AUROC" if len(by_method) > 1 else "mean AUROC"
    praise += f" of seed {seeds[0]}, which is interpreted" if len(seeds) > 1 else ""
    text = (
        f"Of {best['causes']} known causes, {best['reached']} are found by a single feature of {md(best['method'])}, "
        f"{praise} ({number(float(best['mean']))}), to at least 0.95 of what a linear probe reaches; the worst is "
        f"{md(worst['cause'])} at {number(float(worst['auroc']))} against {ceiling}."
    )
    return f"{text} {_controls(own)}"


def _controls(own: pd.DataFrame) -> str:
    """What single dimensions reach on the same causes."""
    parts = []
    for column, what in (("best_x_dim", "single dimensions of the embedding"), ("best_y_dim", "hidden units")):
        if own[column].notna().all():
            reached = int((own[column] >= 0.95 * own["ceiling"]).sum())
            parts.append(f"{what} reach it for {reached} (mean {number(float(own[column].mean()))})")
    plain = float(own[["best_x_dim", "best_y_dim"]].max(axis=1).mean())
    gain = float(own["auroc"].mean()) - plain
    verdict = "no better than" if gain <= 0.005 else f"{number(gain)} better in mean AUROC than"
    return f"As controls, {' and '.join(parts)}: as detectors of known causes the features are {verdict} single dimensions."


def _relevance(reader: Reader) -> str:
    frame = reader.table("07_relevance")
    if "enriched" not in frame or frame["enriched"].isna().all():
        return ""
    row = frame.loc[frame["enriched"].idxmax()]
    if row["enriched"] == 0:
        return "No method has a single feature that is enriched for errors after correction for the number tested."
    share = interval(row["enriched"], row["enriched_low"], row["enriched_high"])
    rule = interval(row["threshold"], row["threshold_low"], row["threshold_high"])
    text = (
        f"{md(row['method'])} has the largest share of features enriched for errors, {share} of {number(int(row['n_latents']))} "
        f"latents ({rule} by the published threshold)"
    )
    others = frame[(frame["method"] != row["method"]) & (frame["enriched_high"] >= row["enriched_low"])]["method"]
    close = ", ".join(md(m) for m in others)
    return text + (
        f"; the intervals of {close} overlap with it." if close else "; no other method's interval reaches it."
    )


def _judges(reader: Reader) -> str:
    frame = findings.judge_scores(reader)
    if frame.empty:
        return ""
    own = frame[~frame["judge"].isin(findings.NOT_JUDGES)].dropna(subset=["f1"])
    if own.empty:
        return ""
    best = own.loc[own["f1"].idxmax()]
    scores = f"precision {number(float(best['precision']))}, recall {number(float(best['recall']))}, F1 {number(float(best['f1']))}"
    recall = best.get("recall_uncaptioned")
    apart = (
        f"; on causes that the captions never named its recall is {number(float(recall))}" if pd.notna(recall) else ""
    )
    return f"Against the truth the {md(best['judge'])} judge does best on {md(best['method'])}: {scores}{apart}."


def _generators(reader: Reader) -> str:
    frame = reader.table("07_generators")
    if frame.empty or "corrected_rate" not in frame or frame["corrected_rate"].isna().all():
        return ""
    if (frame["high"] - frame["low"] >= 1).all():
        return "The classifier hardly tells failures from successes, so the generators cannot be ranked."
    ordered = frame.sort_values("rank")
    best, worst = ordered.iloc[0], ordered.iloc[-1]
    text = (
        f"{md(best['generator'])} fails least ({interval(best['corrected_rate'], best['low'], best['high'])}), "
        f"{md(worst['generator'])} most ({interval(worst['corrected_rate'], worst['low'], worst['high'])})"
    )
    if "inside" not in frame:
        return text + "."
    inside = int((frame["inside"].astype(str).str.lower() == "true").sum())
    same = "the same order" if (frame["rank"] == frame["true_rank"]).all() else "another order"
    return f"{text}; the true rates have {same}, and {inside} of {len(frame)} lie inside their interval."


def limits(reader: Reader) -> list[str]:
    """What this run cannot say, in plain words."""
    facts, why = reader.facts("01_embed"), results.nothing_to_judge(reader)
    manifest_rows = facts.get("n_rows", 0)
    out = []
    if why:
        out.append(f"{md(why[0].upper() + why[1:])}. Error ratios, relevance, judges and generators are skipped.")
    if facts.get("source") == "scenes":
        out.append("The images are drawn, not photographed, and the encoder was trained on drawings of the same kind. The numbers say whether the method works where the truth is known, not how often real models fail. In training its image tower was also told which of other drawn scenes are implausible, so single dimensions of the embedding separate the causes already; a CLIP of the web has had no such lesson.")  # fmt: skip
        out += _uncaptioned(reader)
    elif not why:
        out.append("The labels may track where an image came from (camera, generator, resolution) rather than physics: a feature can be enriched for errors without being about one. No cause is claimed.")  # fmt: skip
        out.append("No one knows the true cause of each image here, so names and verdicts cannot be scored.")
    if not why and manifest_rows < FEW:
        out.append(f"Only {number(manifest_rows)} images: one split says little. Read the five-fold intervals, and expect most features to be unassessed.")  # fmt: skip
    if len(reader.params("03_train").get("seeds", [])) < 2:
        out.append("One seed per method: differences between methods may be differences between seeds.")
    else:
        out.append("Features are interpreted for the first seed only; tables of 04 show all seeds.")
    out += model_judge.limits(reader)
    out.append("A name says what the strongest images share. It need not hold for weaker activations, and a feature can split one error by colour or background.")  # fmt: skip
    return out


def _uncaptioned(reader: Reader) -> list[str]:
    frame = reader.table("01_encoder")
    if "captioned" not in frame:
        return []
    kept = frame.loc[(frame["captioned"].astype(str).str.lower() == "false") & (frame["cause"] != ""), "cause"]
    names = ", ".join(md(c) for c in kept)
    text = f"The encoder's captions never named {names}; a judge that names features with the same encoder should be read on these."
    return [text] if names else []


def links(reader: Reader) -> str:
    """Links to the executed notebooks and every table."""
    rows = []
    for stage in STAGES:
        folder = reader.folders.get(stage)
        if folder is None:
            continue
        names = sorted(p.name for p in (folder / "tables").glob("*.csv"))
        tables = ", ".join(f"[{md(n[3:-4])}](tables/{n})" for n in names) or "–"
        rows.append(f"| {stage} | [read](notebooks/{stage}.html), [run](notebooks/{stage}.ipynb) | {tables} |")
    return "| stage | notebook | tables |\n|---|---|---|\n" + "\n".join(rows)

"""README.md of a report: the answer, what was run, a section per stage, terms and limits. All numbers come from tables."""

from __future__ import annotations

from pathlib import Path

from mtlib.report import causes, findings, gains, measures, model_judge, results, sections
from mtlib.report.answer import answer
from mtlib.report.reader import STAGES, Reader
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import number
from mtlib.run.artifacts import write_text
from mtlib.run.stage import Stage

FEW = 2000  # labelled images below which one split says little
TERMS = {
    "latent, feature": "one unit of a sparse coder; a latent that is being interpreted is called a feature",
    "`x`, `y`": "the encoder's embedding, or the layer that was read; the hidden layer of the classifier trained on it",
    "FVU": "share of the target's variance that the coder does not reconstruct; 0 is perfect, 1 is the mean",
    "L0": "latents that fire per image, or per token where rows of `x` are tokens, measured",
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
        "## Known causes found\n\n" + causes.section(reader),
        "## Are the judges right?\n\n" + model_judge.judges(reader),
        "## How much of each method is about errors?\n\n" + findings.relevance(reader),
        "## Which generator fails most?\n\n" + findings.generators(reader),
    ]


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

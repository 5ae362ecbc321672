"""The report's part on judges beside each other and on a multimodal model as one of them: what it said, what it is worth."""

from __future__ import annotations

import pandas as pd

from mtlib.report.reader import Reader
from mtlib.report.sections import picture
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, markdown_table, number, percent

KINDS = {"detection": "its own explanation", "shuffled": "another feature's (control)", "intruder": "find the intruder"}


def sections(reader: Reader) -> list[str]:
    """Paragraphs below the judges' scores; empty where 06 has not run."""
    return [text for text in (agreement(reader), asked(reader), explanations(reader), flips(reader)) if text]


def agreement(reader: Reader) -> str:
    """Every judge against every other, over all methods."""
    frame = reader.table("06_agreement")
    if frame.empty:
        return ""
    last = frame.groupby(["judge", "reference"], sort=False).tail(1)  # "all", where there are several methods
    names = {"judge": "judge", "reference": "against", "n": "features", "agreement": "agreement", "kappa": "kappa", "precision": "precision", "recall": "recall", "only_judge": "error to the first only", "only_reference": "to the second only"}  # fmt: skip
    text = (
        "**Judges against each other**, over all methods: kappa takes out the agreement that chance alone would give."
    )
    return f"{text}\n\n{markdown_table(last, names)}\n\n[Whole table](tables/06_agreement.csv)"


def asked(reader: Reader) -> str:
    """What became of every feature that a model was asked about, and what that took."""
    frame, usage = reader.table("06_answers"), reader.table("06_usage")
    if frame.empty:
        return ""
    names = {"method": "method", "assessed": "assessed", "answered": "answered", "refused": "refused", "failed": "failed", "unasked": "unasked", "not_asked": "left out"}  # fmt: skip
    out = "**The model's answers**: answered, refused, failed, unasked and left out add up to assessed; only answers are verdicts."
    if len(usage):
        u = usage.iloc[0]
        cost = "" if pd.isna(u["usd"]) else f", about {number(float(u['usd']))} USD"
        out += f" {md(str(u['model']))}: {number(int(u['answers']))} answers, {number(int(u['tokens_in']))} tokens in and {number(int(u['tokens_out']))} out{cost}."  # fmt: skip
    return f"{out}\n\n{markdown_table(frame, names)}"


def explanations(reader: Reader) -> str:
    """How well the explanations tell held-out images apart."""
    frame = reader.table("06_scores")
    if frame.empty:
        return ""
    shown = frame.assign(kind=frame["kind"].map(KINDS).fillna(frame["kind"]))
    rows = zip(frame["accuracy"], frame["low"], frame["high"], strict=True)
    shown["accuracy"] = [interval(*row) for row in rows]
    names = {"method": "method", "kind": "told by", "n_features": "features", "n_lost": "without an answer", "accuracy": "accuracy", "chance": "chance"}  # fmt: skip
    text = "**Explanations on held-out images**: balanced accuracy of telling test images on which a feature fires from those on which it does not, by the explanation alone."
    figure = [picture("06_explanations")] if "06_explanations" in reader.figures("06") else []
    return "\n\n".join([text, markdown_table(shown, names), *figure])


def flips(reader: Reader) -> str:
    """How many verdicts turn under a change that should not matter."""
    frame = reader.table("06_flips")
    if frame.empty:
        return ""
    rates = [interval(r.flip_rate, r.low, r.high) for r in frame.itertuples()]
    names = {"method": "method", "changed": "changed", "n": "verdicts", "flip_rate": "turned", "n_lost": "without an answer"}  # fmt: skip
    return f"**Verdicts asked again**:\n\n{markdown_table(frame.assign(flip_rate=rates), names)}"


def limits(reader: Reader) -> list[str]:
    """What a model's verdicts cannot say; empty where no model was asked."""
    if reader.table("06_answers").empty:
        return []
    frame, out = reader.table("06_flips"), []
    if frame.empty:
        out.append("The model's verdicts were not asked a second time, so it is unknown how many would turn if the error ratio were shown or an order stood in the images (`flip_check`).")  # fmt: skip
    for what, group in frame.groupby("changed", sort=False) if len(frame) else ():
        n, turned = int(group["n"].sum()), int(group["n_flipped"].sum())
        share = percent(turned / n) if n else "–"
        out.append(f"Flip rate: {share} of {number(n)} verdicts of the model turned under {md(what)}. Verdicts that turn so easily are not about the images.")  # fmt: skip
    unasked = int(reader.table("06_answers")["unasked"].sum())
    if unasked:
        out.append(f"{number(unasked)} features were not asked about, because the run stopped at a limit; they count as no in the shares.")  # fmt: skip
    out.append("A multimodal model may follow text inside an image, may know the images from its training, and may answer differently after an update of its server.")  # fmt: skip
    return out

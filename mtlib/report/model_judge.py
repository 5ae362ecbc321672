"""The report's part on judges: against the truth, beside each other, and a multimodal model as one of them."""

from __future__ import annotations

import pandas as pd

from mtlib.report.reader import Reader
from mtlib.report.sections import figures, picture
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, markdown_table, number, percent

ENOUGH = 10  # features called errors, and true ones, below which a judge is not scored
NOT_JUDGES = ("truth", "threshold")  # scores that read the answer or the labels, not second opinions
KINDS = {"detection": "its own explanation", "shuffled": "another feature's (control)", "intruder": "find the intruder"}


def judge_scores(reader: Reader) -> pd.DataFrame:
    """06_judges on one line per method and judge, the scores of the uncaptioned causes beside those of all."""
    frame = reader.table("06_judges")
    if frame.empty:
        return frame
    keys = ["method", "judge"]
    apart = frame[frame["captioned"] == "uncaptioned"].set_index(keys)[["n_truth", "recall"]].add_suffix("_uncaptioned")
    named = frame[frame["captioned"] == "captioned"].set_index(keys)[["recall", "f1"]].add_suffix("_captioned")
    return frame[frame["captioned"] == "all"].join(apart, on=keys).join(named, on=keys).reset_index(drop=True)


def too_few(frame: pd.DataFrame) -> pd.Series:
    """Which lines of `judge_scores` have too few called or true errors to be scored."""
    return frame[["n_error", "n_truth"]].apply(pd.to_numeric).min(axis=1) < ENOUGH


def withheld(frame: pd.DataFrame) -> pd.DataFrame:
    """`judge_scores` with no score where there are too few errors, called or true, to compute it from."""
    frame = frame.copy()
    if "n_truth" in frame:
        frame.loc[too_few(frame), ["precision", "recall", "f1", "kappa", "recall_captioned", "f1_captioned"]] = float(
            "nan"
        )
    if "n_truth_uncaptioned" in frame:
        frame.loc[frame["n_truth_uncaptioned"] < ENOUGH, "recall_uncaptioned"] = float("nan")
    return frame


def judges(reader: Reader) -> str:
    """Judges against the truth, captioned and uncaptioned causes apart."""
    frame = judge_scores(reader)
    if frame.empty or frame["n_truth"].isna().all():
        text = "Verdicts exist, but there is no truth to check them against: nobody knows what each feature really is. Take them as suggestions."
        names = {"method": "method", "judge": "judge", "n_assessed": "features", "n_error": "called errors"}
        return "\n\n".join(
            [text, *([markdown_table(frame, names, max_rows=80)] if len(frame) else []), *sections(reader)]
        )
    names = {"method": "method", "judge": "judge", "n_assessed": "features", "n_error": "called errors", "n_truth": "true errors", "precision": "precision", "recall": "recall", "f1": "F1", "kappa": "kappa", "f1_captioned": "F1, captioned causes", "n_truth_uncaptioned": "true errors, uncaptioned causes", "recall_uncaptioned": "recall, uncaptioned causes"}  # fmt: skip
    text = (
        "A feature is truly an error feature when at least 80% of its top images share one cause and the cause is enriched on test. "
        "Causes that the encoder's captions never named stand apart: a judge that reads names with the same encoder has not been told them."
    )
    if too_few(frame[frame["judge"] != "truth"]).any():
        text += (
            f" No score stands where fewer than {ENOUGH} features are called errors or fewer than {ENOUGH} truly are."
        )
    link = "[Whole table](tables/06_judges.csv)"
    parts = [
        text,
        markdown_table(withheld(frame), names, max_rows=80),
        link,
        *figures(reader, "06", ("06_judge_scores",)),
    ]
    return "\n\n".join([*parts, *sections(reader)])


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
    scores, called = ["kappa", "precision", "recall"], _called(reader)
    few = [min(called.get(a, ENOUGH), called.get(b, ENOUGH)) < ENOUGH for a, b in zip(last["judge"], last["reference"], strict=True)]  # fmt: skip
    if any(few):
        last = last.assign(**last[scores].mask(pd.Series(few, last.index), axis=0))
        text += f" No score stands where either calls fewer than {ENOUGH} features errors."
    return f"{text}\n\n{markdown_table(last, names)}\n\n[Whole table](tables/06_agreement.csv)"


def _called(reader: Reader) -> dict[str, float]:
    """Judge -> how many features it calls errors, over all methods; the truth among them."""
    frame = judge_scores(reader)
    if frame.empty:
        return {}
    counts = frame.groupby("judge")[["n_error", "n_truth"]].sum(min_count=1)
    return counts["n_error"].to_dict() | {"truth": counts["n_truth"].max()}


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

"""The report's first paragraphs: what this run answers, with what speaks against it. Every number comes from a table."""

from __future__ import annotations

import pandas as pd

from mtlib.report import causes, findings, measures, model_judge, results, sections
from mtlib.report.reader import Reader
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, number, percent

SMOKE = "This is a smoke run: its numbers say that every step runs, and nothing else."
NULL = "This is a null run: the labels were permuted before anything was trained, so whatever is found is chance."


def answer(reader: Reader) -> str:
    """The run's main numbers, in a paragraph or three."""
    why = results.nothing_to_judge(reader)
    first = [SMOKE] if "smoke" in reader.name.split("-")[1:] else []
    first += [NULL] if reader.facts("02_classify").get("permuted") else []
    said = _unlabelled(reader, why) if why else _labelled(reader)
    paragraphs = [" ".join(s for s in part if s) for part in [first + said[0], *said[1:]]]
    return "**Answer.** " + "\n\n".join(p for p in paragraphs if p)


def _unlabelled(reader: Reader, why: str) -> list[list[str]]:
    methods, tokens = [md(m) for m in reader.methods()], sections.rows_are_tokens(reader)
    which = ", ".join(methods) if len(methods) <= 4 else f"{len(methods)} methods"
    head = [
        f"Nothing can be said about physical errors in this run: {md(why)}. What it does show is which concepts the features "
        f"stand for ({which or 'no method'}) and how well they reconstruct.",
        tokens and f"{tokens}.",
        sections.names_by_chance(reader),
    ]
    return [head, [measures.answer(reader)]]


def _labelled(reader: Reader) -> list[list[str]]:
    found = causes.reading(reader.table("04_causes"))
    tokens = causes.token_labels(reader) if found else sections.rows_are_tokens(reader)
    return [
        [_classifier(reader), found, tokens and tokens.rstrip(".") + "."],
        [_relevance(reader), sections.names_by_chance(reader), _judges(reader)],
        [_generators(reader)],
    ]


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


def _relevance(reader: Reader) -> str:
    """How many features are about errors, and what speaks against reading the share as a gain."""
    frame = reader.table("07_relevance")
    if "enriched" not in frame or frame["enriched"].isna().all():
        return ""
    frame = frame.dropna(subset=["enriched"])
    row = frame.loc[frame["enriched"].idxmax()]
    if row["enriched"] == 0:
        return "No method has a single feature that is enriched for errors after correction for the number tested."
    share = interval(row["enriched"], row["enriched_low"], row["enriched_high"])
    rule = interval(row["threshold"], row["threshold_low"], row["threshold_high"])
    what = f"{share} of {number(int(row['n_latents']))} latents ({rule} by the published threshold)"
    one = " in the one seed that is interpreted" * (len(reader.params("03_train").get("seeds", [])) > 1)
    if len(frame) == 1:
        text = f"Of {md(row['method'])} {what} are enriched for errors{one}"
    else:
        text = f"The share of features enriched for errors{one} runs from {percent(frame['enriched'].min())} to {md(row['method'])}'s {what}"
        text += _rivals(frame, row, _l0(reader))
    against = _against(reader, row["method"])
    turn = "; but " if any("repeat" in a or " less " in a for a in against) else "; "
    return f"{text}{turn + ' and '.join(against) if against else ''}."


def _l0(reader: Reader) -> pd.Series:
    """Measured L0 by method, mean over seeds."""
    metrics = reader.table("04_metrics")
    return metrics.groupby("method")["l0"].mean().dropna() if "l0" in metrics else pd.Series(dtype=float)


def _rivals(frame: pd.DataFrame, row: pd.Series, l0: pd.Series) -> str:
    """Whether the largest share is one of several: no ranking at different L0, else whose interval reaches it."""
    own = l0[l0.index.isin(frame["method"])]
    if len(own) and own.max() > findings.NEAR * own.min():
        return (
            f"; the methods run at L0 {number(float(own.min()))} to {number(float(own.max()))}, so this is no ranking"
        )
    others = frame[(frame["method"] != row["method"]) & (frame["enriched_high"] >= row["enriched_low"])]["method"]
    close = ", ".join(md(m) for m in others)
    return f", with whose interval those of {close} overlap" if close else ", whose interval no other reaches"


def _against(reader: Reader, method: str) -> list[str]:
    """What the share does not say: how many of the features say the same, and whether they move the decision."""
    split, moved, said = reader.table("04_splitting"), reader.table("05_features"), []
    mean = split.groupby("method")["n_features"].mean() if "n_features" in split else pd.Series(dtype=float)
    if mean.get(method, 0) >= 2:
        rest = mean.drop(method)
        others = f"; with other methods {rest.min():.1f} to {rest.max():.1f}" if len(rest) > 1 else f"; {md(rest.index[0])} {rest.iloc[0]:.1f}" if len(rest) else ""  # fmt: skip
        said.append(f"its error features repeat each other ({mean[method]:.1f} per cause{others})")
    own = moved[moved["method"] == method] if "median_causal_control" in moved else moved.head(0)
    if len(own) and own[["median_causal", "median_causal_control"]].notna().all(axis=None):
        took, control = (float(own[c].iloc[0]) for c in ("median_causal", "median_causal_control"))
        how = "less" if took < control else "more"
        beyond = f"; {percent(own['beyond_control'].iloc[0])} of them go beyond their control" if "beyond_control" in own else ""  # fmt: skip
        said.append(
            f"removing one of its features moves the logit {how} than another latent's direction does (median "
            f"{number(took)} against {number(control)}{beyond})"
        )
    return said


def _judges(reader: Reader) -> str:
    """What each judge's verdicts are worth against the truth: counts where there are too few to score."""
    frame = model_judge.judge_scores(reader)
    if frame.empty or "n_truth" not in frame:
        return ""
    own = frame[~frame["judge"].isin(model_judge.NOT_JUDGES)].dropna(subset=["n_truth"])
    return " ".join(_judge(md(judge), part) for judge, part in own.groupby("judge", sort=False))


def _judge(judge: str, part: pd.DataFrame) -> str:
    scored = part[~model_judge.too_few(part)].dropna(subset=["f1"])
    if scored.empty:
        called, true = part[["n_error", "n_truth"]].max().astype(int)
        most = "" if len(part) == 1 else "at most "
        return f"The {judge} judge has too few features to score against the truth: {most}{called} called errors, {most}{true} true."
    if len(scored) == 1:
        one = scored.iloc[0]
        who = f" on {md(one['method'])}"
        scores = f"precision {number(one['precision'])}, recall {number(one['recall'])}, F1 {number(one['f1'])}"
    else:
        who = f" over {len(scored)} methods"
        columns = (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
        scores = ", ".join(f"{name} {_span(scored[c])}" for c, name in columns)
    text = f"Against the truth the {judge} judge has, {who.strip()}, {scores}"
    unnamed = scored[scored["n_truth_uncaptioned"] > 0] if "n_truth_uncaptioned" in scored else scored.head(0)
    if len(unnamed):
        true = int(unnamed["n_truth_uncaptioned"].sum())
        right = int((unnamed["recall_uncaptioned"] * unnamed["n_truth_uncaptioned"]).round().sum())
        text += f"; of {number(true)} error features of causes that the captions never named it finds {number(right)}"
    return text + "."


def _span(values: pd.Series) -> str:
    low, high = number(float(values.min())), number(float(values.max()))
    return low if low == high else f"{low} to {high}"


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
    text += ", and their intervals overlap" if best["high"] >= worst["low"] else ""
    if "inside" not in frame:
        return text + "."
    inside = int((frame["inside"].astype(str).str.lower() == "true").sum())
    same = "the same order" if (frame["rank"] == frame["true_rank"]).all() else "another order"
    return f"{text}; the true rates have {same}, and {inside} of {len(frame)} lie inside their interval."

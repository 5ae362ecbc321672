"""The sections of a report on what was found: methods at a glance, features, judges, relevance, generators, labels."""

from __future__ import annotations

import pandas as pd

from mtlib.report import browse, model_judge, results
from mtlib.report.causes import by_method
from mtlib.report.reader import Reader
from mtlib.report.sections import names_by_chance, picture, table
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import interval, markdown_table, number, percent, shorten

NULL_GOAL = 0.08  # share of shuffled runs that may find any enriched feature
CODES = (
    "l0",
    "logit_change",
    "fvu",
    "dead_fraction",
    "mono_score",
    "purity",
    "n_purity",
    "zero_shot_drop",
)  # of 04_metrics
NEAR = 1.1  # measured L0 within this factor counts as the same
SHARED = 0.8  # of its top images must show one cause for a feature to be truly about it


def glance(reader: Reader) -> str:
    """Every method on one line: codes, causes, relevance, judge."""
    if reader.table("07_relevance").empty:
        return "*No table 07_relevance.*"
    out = _relevance_shown(reader)
    metrics, why = reader.table("04_metrics"), results.nothing_to_judge(reader)
    if "l0" in metrics:
        shown = [c for c in (CODES if why else CODES[:2]) if c in metrics]
        out = out.merge(metrics.groupby("method", sort=False)[shown].mean().reset_index(), on="method", how="left")
    out = out.merge(by_method(reader.table("04_causes")), on="method", how="left")
    pairs = zip(out["reached"], out["causes"], strict=True)
    out["reached"] = [f"{round(r, 1):g} of {int(n)}" if pd.notna(n) else "" for r, n in pairs]
    judged = model_judge.judge_scores(reader)
    if len(judged):
        own = model_judge.withheld(judged[judged["judge"] == reader.facts("06_interpret").get("judge", "keyless")])
        out = out.merge(own[["method", "f1"]].rename(columns={"f1": "judge_f1"}), on="method", how="left")
    names = {"method": "method", "target": "learns", "l0": "L0", "logit_change": "logit change", "reached": "causes at 0.95 of the ceiling", "mean": "mean AUROC", "worst": "worst AUROC", "enriched": "enriched features", "judge_f1": "judge F1", "fvu": "FVU", "dead_fraction": "dead", "mono_score": "MonoScore", "purity": "purity", "n_purity": "latents with a purity", "zero_shot_drop": "zero-shot drop, points", "reason": "not run, or not judged, because"}  # fmt: skip
    if why:
        out["reason"] = out["reason"].where(out["reason"] != why, "")
    kept = {c: n for c, n in names.items() if c in out and not (out[c].isna() | (out[c].astype(str) == "")).all()}
    text = markdown_table(out, kept)
    if why:
        text += f"\n\nMeans over seeds. Nothing is judged: {md(why)}."
    elif len(reader.params("03_train").get("seeds", [])) > 1:
        text += "\n\nMeans over seeds, but enriched features and judge F1: those are of the first seed, which is interpreted."
    if "logit_change" in kept:
        text += "\n\nLogit change: how far the reconstruction moves the classifier's logit; the only measure of reconstruction that compares coders of `x` with coders of `y`."
    if "l0" in out and out["l0"].max() > NEAR * out["l0"].min():
        text += "\n\nThe methods run at different L0, so read them as settings, not as a ranking at equal sparsity."
    return text


def features(reader: Reader, n: int = 6) -> str:
    """Collages of real error features with their names, of the first method that has them."""
    errors = [] if results.nothing_to_judge(reader) else gallery(reader, n)
    shown = errors or gallery(reader, n, active=True)
    if not shown:
        return f"No collage to show: {_no_collage(reader)}."
    lines = []
    for left, right in zip(shown[::2], shown[1::2] + [None] * (len(shown) % 2), strict=True):
        pair = [p for p in (left, right) if p]
        if not lines:
            lines += ["| " + " | ".join(" " for _ in pair) + " |", "|" + "---|" * len(pair)]
        lines.append("| " + " | ".join(_picture(p) for p in pair) + " |")
        lines.append("| " + " | ".join(_words(p) for p in pair) + " |")
    head = "Error features, most certain first" if errors else "Features, most active first"
    head += f": the images on which each fires most, with activation and label. {names_by_chance(reader)}"
    return f"{head.strip()}\n\n" + "\n".join(lines)


def _no_collage(reader: Reader) -> str:
    """Why no feature has a picture of its images."""
    if not reader.methods():
        return "no method was interpreted"
    if not reader.facts("01_embed").get("pictures", True):
        return "the images are not to be published (`pictures: false`)"
    if reader.params("05_features").get("n_collages", 1) == 0:
        return "this run was told to draw none (`n_collages: 0`)"
    return "no feature that was chosen fires on an image of this run"


def gallery(reader: Reader, n: int, active: bool = False) -> list[dict]:
    """Up to n features to show, over methods in order, with a collage: error features, or the most active ones.

    Of errors one per true cause where the truth is known, else one per name.
    """
    shown, seen, judged = [], set(), not active
    for method in reader.methods():
        collages, table_ = reader.collages(method), browse.feature_table(reader, method)
        if judged:
            found = results.error_features(reader, method, n=len(table_))
        else:
            found = table_.assign(_=-table_["density"] * table_["mean_activation"]).sort_values(["_", "feature"])
        found = found[found["feature"].isin(list(collages))]
        causes = found.get("top_cause", pd.Series("", found.index)).fillna("")
        found = found.assign(_what=causes.where(causes != "", found["phrase"])) if judged else found.assign(_what=found["feature"])  # fmt: skip
        found = found[~found["_what"].isin(seen)].drop_duplicates("_what").head(n - len(shown))
        seen |= set(found["_what"]) if judged else set()
        shown += [{"method": method, "file": collages[int(f["feature"])].name, "row": f} for _, f in found.iterrows()]
    return shown


def _picture(shown: dict) -> str:
    name = f"feature {int(shown['row'].feature)} of {shown['method']}"
    return f"![{md(name)}](collages/{shown['method']}/{shown['file']})"


def _words(shown: dict) -> str:
    row = shown["row"]
    text = f"**{md(shorten(row['phrase'] or '(no name)', 80))}**<br>{md(shown['method'])} #{int(row['feature'])}"
    if pd.notna(row["error_ratio"]):
        ratio = interval(row["error_ratio"], row["error_low"], row["error_high"])
        text += f", error ratio {ratio} of {number(int(row['n_active_test']))} test images, base rate {percent(row['base_rate'])}"
    return text + _true_cause(row)


def _true_cause(row: pd.Series) -> str:
    """What the truth says of a feature: truly about a cause, or a mixture; "" where the truth is not known."""
    if not row.get("top_cause"):
        return ""
    cause, share = md(row["top_cause"]), percent(row["top_cause_share"])
    if row["top_cause_share"] < SHARED:
        return f"; mixed: at most {share} of its top images share a cause, {cause}"
    if not row.get("is_error", row["q_bh"] <= 0.05):
        return f"; {share} of its top images share {cause}, which is not enriched among its test images"
    return f"; truly {cause} ({share} of its top images)"


def relevance(reader: Reader) -> str:
    """Relevance of every method over one denominator, and its null."""
    frame = reader.table("07_relevance")
    if frame.empty:
        return "*No table 07_relevance.*"
    scores = _scores(frame)
    names = {"method": "method", "target": "learns", "n_latents": "latents", "assessed_rate": "assessed"}
    names |= {s: _score_name(s) for s in scores}
    names |= {"reason": "reason"} if (frame["reason"] != "").any() else {}
    text = "Share of *all* latents that count as error features, with 95% intervals; features with fewer than 10 activating test images are not assessed and count as no."
    if "feature_accuracy" in frame:
        text += " Feature accuracy is no share: it is how well a model tells held-out images on which a feature fires from others by the explanation alone (chance 50%; the shuffled explanations are its control)."
    parts = [text, markdown_table(_relevance_shown(reader), names), "[Whole table](tables/07_relevance.csv)"]
    parts += [picture(n) for n in ("07_relevance_scores",) if n in reader.figures("07")]
    null = reader.table("07_null")
    if not null.empty:
        names = {"method": "method", "observed": "enriched features", "runs_with_discovery": "shuffled runs with any", "low": "low", "high": "high", "n_permutations": "runs"}  # fmt: skip
        parts += [
            f"Null of *enriched*: the test labels shuffled within family. {null_reading(null)}",
            markdown_table(null, names),
        ]
    return "\n\n".join(parts + _moved(reader))


def _moved(reader: Reader) -> list[str]:
    """What removing features does to the classifier's decision; nothing where there is no classifier."""
    causal, parts = reader.table("05_features"), []
    if "beyond_control" in causal and causal["beyond_control"].notna().any():
        names = {"method": "method", "median_causal": "median change of the logit", "median_causal_control": "other latents' directions", "beyond_control": "features beyond their control"}  # fmt: skip
        text = "**Do features move the decision?** What removing an assessed feature does to the classifier's logit, in size; the control takes out another latent's direction of the same norm."
        parts += [text, markdown_table(causal[causal["beyond_control"].notna()], names)]
    return parts + [picture(n) for n in ("05_causal", "04_steering") if n in reader.figures(n[:2])]


def nothing_judged(reader: Reader, why: str) -> str:
    """In place of causes, judges, relevance and generators, where nobody said which images are implausible."""
    text = f"Skipped: {md(why)}. So no cause is looked for, no judge is scored, no relevance and no generator is ranked; the tables of these steps hold a row with the reason."
    return "\n\n".join([text, *model_judge.sections(reader), *_moved(reader)])


def null_reading(null: pd.DataFrame) -> str:
    """What the permutation null says, in words."""
    often = null[null["runs_with_discovery"] > NULL_GOAL]
    if often.empty:
        return f"At most {percent(null['runs_with_discovery'].max())} of the shuffled runs find anything; the goal is {percent(NULL_GOAL)}."
    names = ", ".join(md(m) for m in often["method"])
    return (
        f"More than {percent(NULL_GOAL)} of the shuffled runs find something for {names}: families that differ in their share of "
        "implausible images make family detectors look enriched. Subtract what shuffling finds before believing the share."
    )


def _score_name(score: str) -> str:
    named = {"enriched_by": "enriched (BY)", "judge_truth": "truth", "feature_accuracy": "feature accuracy", "feature_accuracy_shuffled": "feature accuracy, shuffled", "intruder_accuracy": "intruders found"}  # fmt: skip
    return named.get(score) or score.replace("judge_", "judge: ")


def _scores(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame if f"{c}_low" in frame]


def _relevance_shown(reader: Reader) -> pd.DataFrame:
    """07_relevance with shares and intervals as text."""
    frame = reader.table("07_relevance")
    for score in _scores(frame):
        rows = zip(frame[score], frame[f"{score}_low"], frame[f"{score}_high"], strict=True)
        frame[score] = [interval(v, low, high) for v, low, high in rows]
    if "assessed_rate" in frame:
        frame["assessed_rate"] = frame["assessed_rate"].map(percent)
    frame["n_latents"] = pd.to_numeric(frame["n_latents"], errors="coerce").astype("Int64")
    return frame


def generators(reader: Reader) -> str:
    """The ranking of generators, or why there is none."""
    frame = reader.table("07_generators")
    if frame.empty or "corrected_rate" not in frame or frame["corrected_rate"].isna().all():
        reason = frame["reason"].iloc[0] if "reason" in frame and len(frame) else "no table 07_generators"
        return f"Skipped: {md(reason)}."
    names = {"rank": "rank", "generator": "generator", "n": "images", "raw_rate": "flagged", "corrected_rate": "corrected", "low": "low", "high": "high", "true_rate": "true rate", "true_rank": "true rank"}  # fmt: skip
    text = "How often each generator's images fail, least failing first; corrected for the classifier's misses and false alarms on val (Rogan-Gladen, both uncertainties bootstrapped)."
    shown = ("07_generators", "07_generator_features")
    parts = [text, table(reader, "07_generators", names)]
    return "\n\n".join(parts + [picture(n) for n in shown if n in reader.figures("07")])


def new_images(reader: Reader) -> str:
    """Labels for new images."""
    frame = reader.table("07_labels")
    if frame.empty or "image" not in frame or (frame["image"].fillna("") == "").all():
        reason = frame["reason"].iloc[0] if "reason" in frame and len(frame) else "no table 07_labels"
        return f"Skipped: {md(reason)}."
    fired = frame[frame["status"] == "ok"]
    n = int(fired["rank"].max()) if len(fired) else 0
    errors = (fired["verdict"] == "error").any()
    order = "those that the judge calls errors first, then the others, each by activation." if errors else "the most active first."  # fmt: skip
    text = f"{number(frame['image'].nunique())} images; up to {n} features of each are in [the table](tables/07_labels.csv), {order}"
    chance = names_by_chance(reader)
    return "\n\n".join(
        [text + f" {chance}" * bool(chance)] + [picture("07_labels")] * ("07_labels" in reader.figures("07"))
    )

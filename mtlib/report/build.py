"""A run's pages: README.md and appendix.md of reports/<run>/, templates over what its stages declared and wrote; index.html.

    python -m mtlib.report.build runs/<run> reports/<run>

Here are numbers only; every word and every condition stands in the templates beside this file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from mtlib.measure.compare import fair_tables
from mtlib.report import browse, text
from mtlib.report.page.write import write_page
from mtlib.report.reader import Reader
from mtlib.run.artifacts import MEND, read_record, write_text
from mtlib.truth.causes import FOUND
from mtlib.truth.tables import by_cause, by_method

PAGES = ("README.md", "appendix.md")
ENOUGH = 10  # features called errors, and true ones, below which a judge is not scored
NO_JUDGES = ("truth", "threshold")  # verdicts that read the answer or the labels


def build(run_dir: str | Path, report: str | Path) -> None:
    """Write the pages of a run into its published report, whose figures, tables and collages are there already."""
    run = Reader.of_run(run_dir)
    values, environment = numbers(run) | {"shared": write_page(run, Path(report))}, text.markdown_templates()
    for page in PAGES:
        written = environment.get_template(f"{page}.j2").render(values)
        spaced = re.sub(r"\n+(?=#+ )", "\n\n", re.sub(r"\n{3,}", "\n\n", written))
        write_text(Path(report) / page, spaced)


def numbers(run: Reader) -> dict:
    """What the templates speak of. `shown` collects the figures and tables that the first page has."""
    known, metas = run.table("04_causes"), {stage: run.meta(stage) for stage in run.folders}
    return {
        "run": run,
        "items": {s: declared(run, s) for s in run.folders},
        "left_out": _left_out(run),
        "timings": {s: {k: round(m[k]) for k in ("seconds", "peak_mb")} for s, m in metas.items() if "seconds" in m},
        "splits": _splits(run),
        "causes": by_cause(known),
        "finders": by_method(known),
        "errors": errors(run.table("07_errors")),
        "glance": glance(run),
        "relevance": relevance(run.table("07_relevance")),
        "judges": judge_scores(run.table("06_judges")),
        "fair": fair(run.table("04_comparison")),
        "gallery": browse.gallery(run, n=4),
        "names": names(run),
        "FOUND": FOUND,
        "ENOUGH": ENOUGH,
        "shown": set(),
    }


def errors(found: pd.DataFrame) -> pd.DataFrame:
    """07_errors as text: error, feature (its name and number), ap, implausible (share of the images on which it fires), generator."""
    if found.empty:
        return found
    pairs = zip(found["phrase"], found["feature"], strict=True)
    names = [f"{text.shorten(p or 'unnamed', 50)} (#{f})" for p, f in pairs]
    ratios = zip(*(found[f"error_{c}"] for c in ("ratio", "low", "high")), found["n_active_test"], strict=True)
    shares = [f"{text.interval(*ratio)} of {text.number(n)}" for *ratio, n in ratios]
    out = pd.DataFrame({"feature": names, "implausible": shares})
    if found["ap"].notna().any():
        out = out.assign(error=found["error"].str.replace("_", " "), ap=found["ap"])
    if found["generator"].any():
        rates = zip(found["generator"], found["rate"], found["least"], strict=True)
        out["generator"] = [f"{g}: {text.percent(r)} of its images (least: {text.percent(few)})" for g, r, few in rates]
    return out


def glance(run: Reader) -> pd.DataFrame:
    """The methods on one line each: 04_metrics, means over the seeds; of the known causes found, ap as text with its interval, and
    copies; f1 of the run's judge."""
    out, known, judges = map(run.table, ("04_metrics", "04_cause_methods", "06_judges"))
    out = _mean(out)
    if len(known):
        known = with_intervals(known.sort_values("ap", ascending=False, kind="stable"), text.number).set_index("method")
        out = known[["found", "ap", "copies"]].join(out)
    if len(judges):
        out = out.join(judge_scores(judges).drop_duplicates("method").set_index("method")["f1"])
    return out.dropna(axis=1, how="all").reset_index()


def declared(run: Reader, stage: str) -> list[dict]:
    """A stage's figures, tables and sentences in the order of its notebook, with the names of their files; headings are {}
    where a table is only linked."""
    said = run.declared(stage)
    named = [i | {"name": f"{said['prefix']}_{i['name']}"} for i in said["items"]]
    return [i | {"headings": dict(i.get("headings") or {})} for i in named]


def relevance(frame: pd.DataFrame) -> pd.DataFrame:
    """07_relevance with each share as text with its interval; the plain shares stay as <score>_share."""
    shares = {f"{c}_share": frame[c] for c in frame if f"{c}_low" in frame}
    shares |= {c: frame[c].map(text.percent) for c in frame if c.endswith("_distinct")}
    return with_intervals(frame, text.percent).assign(**shares)


def with_intervals(frame: pd.DataFrame, show) -> pd.DataFrame:
    """The columns that have a <name>_low and <name>_high beside them as text, value and interval, written by `show`."""
    named = [c for c in frame if f"{c}_low" in frame]
    rows = {c: zip(frame[c], frame[f"{c}_low"], frame[f"{c}_high"], strict=True) for c in named}
    return frame.assign(**{c: [text.interval(*row, show) for row in rows[c]] for c in named})


def fair(compared: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """04_comparison cut into one table per target and L0; an aimed L0 of all latents is none, as nothing was asked of it."""
    if compared.empty:
        return {}
    asked = ~(compared["l0_target"] >= compared["n_latents"])
    tables = fair_tables(compared.assign(**{c: compared[c].where(asked) for c in ("l0_target", "matched")}))
    return {key: with_intervals(table.dropna(axis=1, how="all"), text.number) for key, table in tables.items()}


def judge_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """06_judges, one line per method and judge, with the recall of causes that no caption named beside that of all; no score
    where fewer than ENOUGH features are called errors, or truly are."""
    if frame.empty:
        return frame
    keys = ["method", "judge"]
    apart = frame[frame["captioned"] == "uncaptioned"].set_index(keys)[["n_truth", "recall"]].add_suffix("_uncaptioned")
    out = frame[(frame["captioned"] == "all") & ~frame["judge"].isin(NO_JUDGES)].join(apart, on=keys)
    out.loc[out[["n_error", "n_truth"]].min(axis=1) < ENOUGH, ["precision", "recall", "f1", "kappa"]] = float("nan")
    out.loc[~(out["n_truth_uncaptioned"] >= ENOUGH), "recall_uncaptioned"] = float("nan")
    return out.reset_index(drop=True)


def names(run: Reader) -> list[str]:
    """Five names of the first method's most active features."""
    phrases = browse.most_active(run, run.methods()[0])["phrase"] if run.methods() else []
    return [p for p in dict.fromkeys(phrases) if p][:5]


def _mean(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds (and causes) of all numbers by method, columns without any left out; words are the first line's."""
    if frame.empty:
        return frame
    columns = frame.columns.drop(["method", "seed"], errors="ignore")
    how = {c: "mean" if pd.api.types.is_numeric_dtype(frame[c]) else "first" for c in columns}
    return frame.groupby("method", sort=False).agg(how).dropna(axis=1, how="all")


def _splits(run: Reader) -> dict[str, int]:
    """Images of each split."""
    path = run.find("01_embed", "embeddings/manifest.parquet")
    counts = {} if path is None else pd.read_parquet(path).query("status == 'ok'")["split"].value_counts()
    return {s: int(counts[s]) for s in ("train", "val", "test", "unlabelled") if s in counts}


def _left_out(run: Reader) -> list[dict]:
    """Whole notebooks and sections that the pipeline left out: stage, title, reason."""
    path = run.run_dir / "left_out.json"
    whole = read_record(path, MEND) if path.is_file() else {}
    lines = [{"stage": stage, "title": stage, "reason": reason} for stage, reason in whole.items()]
    return lines + [{"stage": s} | line for s in run.folders for line in run.declared(s)["skipped"]]


if __name__ == "__main__":
    build(*sys.argv[1:])

"""Features of a run as one table: for the viewer sorted and filtered, for the report the error features and a gallery."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.report.reader import Reader
from mtlib.report.text import shorten

JUDGES = ("lmm", "keyless", "truth", "threshold")  # their order in lists
VERDICTS = ("error", "no_error", "refused", "failed", "unasked", "skipped")
SORTS = {  # what a person reads -> column
    "max activation": "max_activation",
    "density": "density",
    "error ratio": "error_ratio",
    "verdict": "verdict",
    "causal relevance": "causal_relevance",
    "feature number": "feature",
}
MARKS = {"error": "✕", "no_error": "✓", "refused": "?", "failed": "!", "unasked": "…", "skipped": "–", "": " "}


def judges_of(reader: Reader, verdicts: pd.DataFrame) -> list[str]:
    """The judges in a frame of verdicts, the one that 06 ran with at the front."""
    found = list(dict.fromkeys(verdicts["judge"].astype(str)))
    order = [str(reader.facts("06_interpret").get("judge", "")), *JUDGES, *found]
    return [j for j in dict.fromkeys(order) if j in found]


def feature_table(reader: Reader, method: str, judge: str = "") -> pd.DataFrame:
    """Every feature of a method, by its number: the columns of features.parquet and what one judge says of it.

    Args: judge: whose phrase, verdict, category, confidence and detail ("" without a verdict); "": the first of `judges_of`.
    """
    features = reader.features(method)
    verdicts = reader.verdicts(method)
    judge = judge or next(iter(judges_of(reader, verdicts)), "")
    own = verdicts[verdicts["judge"] == judge].drop(columns="judge").drop_duplicates("feature", keep="last")
    table = features.merge(own, on="feature", how="left", validate="one_to_one", suffixes=("", "_judge"))
    for column in ("phrase", "verdict", "category", "detail"):
        table[column] = table[column].fillna("").astype(str)
    return table.set_index("feature", drop=False).rename_axis(None)


def error_features(reader: Reader, method: str) -> pd.DataFrame:
    """The error features of a method to show, as `feature_table`: enriched on test, called an error by its judge, specific (from some
    activation on nearly all val images are implausible, where that could be asked), one per name, safest first."""
    table = feature_table(reader, method)
    keep = table["assessed"].astype(bool) & (table["q_bh"] <= 0.05) & (table["verdict"] == "error")
    chosen = reader.thresholds(method)
    if len(chosen):
        keep &= table["feature"].isin(chosen.loc[chosen["threshold"].notna(), "feature"])
    ordered = table[keep].sort_values(["error_low", "feature"], ascending=[False, True])
    return ordered.drop_duplicates("phrase")


def most_active(reader: Reader, method: str) -> pd.DataFrame:
    """The features of a method, those first that fire most, as `feature_table`."""
    table = feature_table(reader, method)
    return table.assign(_=-table["density"] * table["mean_activation"]).sort_values(["_", "feature"])


def gallery(reader: Reader, n: int) -> list[dict]:
    """Up to n features with a collage, over methods in order: error features, or where none has one the most active. Of
    errors one per true cause where the truth is known, else one per name.

    Returns: the features' lines of `feature_table` as dicts, with method, file (of the collage) and error (bool).
    """
    for found in (error_features, most_active):
        shown, error = {}, found is error_features
        for method in reader.methods():
            files = reader.collages(method)
            for line in found(reader, method).to_dict("records"):
                what = (line.get("top_cause") or line["phrase"]) if error else (method, line["feature"])
                if line["feature"] in files and what not in shown:
                    shown[what] = line | {"method": method, "file": files[line["feature"]].name, "error": error}
        if shown:
            break
    return list(shown.values())[:n]


def select(
    table: pd.DataFrame,
    sort: str = "max activation",
    descending: bool = True,
    min_density: float = 0.0,
    verdict: str = "",
    assessed: bool = False,
    text: str = "",
) -> np.ndarray:
    """Numbers of the features to list, in order; ties by number, missing values last.

    Args:
        sort:     a key of SORTS; verdicts sort as in VERDICTS (errors first when descending), then by error ratio.
        verdict:  the one to keep; "": any. assessed: keep no others.
        text:     words that must all occur in the number, name, category, true cause or class of a feature.
    """
    keep = table["density"].fillna(0) >= min_density
    if assessed:
        keep &= table["assessed"].astype(bool)
    if verdict:
        keep &= table["verdict"] == verdict
    if text:
        searched = "#" + table["feature"].astype(str)
        for column in table.columns.intersection(["phrase", "category", "top_cause", "dominant_class"]):
            searched = searched + " " + table[column].fillna("").astype(str)
        for word in text.lower().split():
            keep &= searched.str.lower().str.contains(word, regex=False)
    kept = table[keep].assign(verdict=lambda f: f["verdict"].map({v: -i for i, v in enumerate(VERDICTS)}))
    keys = [SORTS[sort], *(["error_ratio"] if sort == "verdict" else [])]
    ties = [] if sort == "feature number" else ["feature"]
    ascending = [not descending] * len(keys) + [True] * len(ties)
    ordered = kept.reindex(columns=keys + ties).sort_values(keys + ties, ascending=ascending, kind="stable")
    return ordered.index.to_numpy(dtype=np.int64)


def list_line(record: pd.Series, sort: str, n: int = 1) -> str:
    """One line of the list: verdict mark, number, the value sorted by, how many copies it stands for (n), name."""
    value = record.get("error_ratio" if sort in ("verdict", "feature number") else SORTS[sort], np.nan)
    shown = "    –" if pd.isna(value) else f"{value:5.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.0e}"
    name = shorten(record["phrase"] or "(no name)", 44)
    return f"{MARKS.get(record['verdict'], ' ')} {record['feature']:>4} {shown} {f'×{n}' if n > 1 else '':<3} {name}"

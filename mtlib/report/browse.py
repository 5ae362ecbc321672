"""Features of a run as one table: for the viewer sorted and filtered, for the report the error features and a gallery."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Query:
    """One choice of features: what to sort by and which to keep.

    sort: a key of SORTS; verdict: "" for any; judge: whose verdicts and names count; text: words that must all occur
    in the name, the category, the true cause or the number of a feature.
    """

    sort: str = "max activation"
    descending: bool = True
    min_density: float = 0.0
    verdict: str = ""
    assessed: bool = False
    text: str = ""

    def __post_init__(self):
        if self.sort not in SORTS:
            raise ValueError(f"sort = {self.sort!r} is not one of {list(SORTS)}")
        if self.verdict and self.verdict not in VERDICTS:
            raise ValueError(f"verdict = {self.verdict!r} is not one of {VERDICTS}")
        if not 0 <= self.min_density <= 1:
            raise ValueError(f"min_density = {self.min_density} is not in [0, 1]")


def judges_of(reader: Reader, verdicts: pd.DataFrame) -> list[str]:
    """The judges in a frame of verdicts, the one that 06 ran with at the front."""
    found = list(dict.fromkeys(verdicts["judge"].astype(str)))
    order = [str(reader.facts("06_interpret").get("judge", "")), *JUDGES, *found]
    return [j for j in dict.fromkeys(order) if j in found]


def feature_table(reader: Reader, method: str, judge: str = "") -> pd.DataFrame:
    """Every feature of a method with its statistics and one judge's phrase, verdict and category.

    Args:
        reader: the run.
        method: one of reader.methods().
        judge:  whose verdicts; "" for the first of `judges_of`.
    Returns: frame indexed by feature; columns of features.parquet and phrase, verdict, category, confidence, detail
        ("" where the judge has no verdict; the feature's number stays a column too).
    """
    features = reader.features(method)
    verdicts = reader.verdicts(method)
    judge = judge or next(iter(judges_of(reader, verdicts)), "")
    own = verdicts[verdicts["judge"] == judge].drop(columns="judge").drop_duplicates("feature", keep="last")
    table = features.merge(own, on="feature", how="left", validate="one_to_one", suffixes=("", "_judge"))
    for column in ("phrase", "verdict", "category", "detail"):
        table[column] = table[column].fillna("").astype(str)
    return table.set_index("feature", drop=False).rename_axis(None)


def error_features(reader: Reader, method: str, n: int | None = None) -> pd.DataFrame:
    """The error features of a method to show: enriched on test, called an error by its judge, one per name, safest first.

    Returns: frame of at most n lines of `feature_table`; empty when there are none.
    """
    table = feature_table(reader, method)
    keep = table["assessed"].astype(bool) & (table["q_bh"] <= 0.05) & (table["verdict"] == "error")
    ordered = table[keep].sort_values(["error_low", "feature"], ascending=[False, True])
    return ordered.drop_duplicates("phrase").head(len(table) if n is None else n)


def gallery(reader: Reader, n: int) -> list[dict]:
    """Up to n features with a collage, over methods in order: error features, or where none has one the most active.

    Of errors one per true cause where the truth is known, else one per name.

    Returns: the features' lines of `feature_table` as dicts, with method, file (of the collage) and error (bool).
    """
    errors = _with_collages(reader, n, lambda method: error_features(reader, method), "top_cause")
    return errors or _with_collages(reader, n, lambda method: most_active(reader, method), "")


def most_active(reader: Reader, method: str) -> pd.DataFrame:
    """The features of a method, those first that fire most, as `feature_table`."""
    table = feature_table(reader, method)
    return table.assign(_=-table["density"] * table["mean_activation"]).sort_values(["_", "feature"])


def _with_collages(reader: Reader, n: int, found, apart: str) -> list[dict]:
    shown, seen = [], set()
    for method in reader.methods():
        files = reader.collages(method)
        for line in found(method).to_dict("records"):
            what = (line.get(apart) or line["phrase"]) if apart else (method, line["feature"])
            if line["feature"] in files and what not in seen and len(shown) < n:
                seen.add(what)
                shown.append(line | {"method": method, "file": files[line["feature"]].name, "error": bool(apart)})
    return shown


def select(table: pd.DataFrame, query: Query) -> np.ndarray:
    """Numbers of the features that a query keeps, in its order; ties by number, missing values last.

    Verdicts sort as in VERDICTS (errors first when descending), within one verdict by error ratio.
    """
    keep = table["density"].fillna(0).to_numpy() >= query.min_density
    if query.assessed:
        keep &= table["assessed"].to_numpy(dtype=bool)
    if query.verdict:
        keep &= (table["verdict"] == query.verdict).to_numpy()
    for word in query.text.lower().split():
        keep &= searchable(table).str.contains(word, regex=False).to_numpy()
    kept = table[keep]
    keys = [SORTS[query.sort], "feature"]
    if query.sort == "verdict":
        rank = kept["verdict"].map({v: -i for i, v in enumerate(VERDICTS)})
        kept, keys = kept.assign(verdict=rank), ["verdict", "error_ratio", "feature"]
    for missing in set(keys) - set(kept.columns):
        kept = kept.assign(**{missing: np.nan})
    ascending = [not query.descending] * (len(keys) - 1) + [True]
    if query.sort == "feature number":
        keys, ascending = ["feature"], [not query.descending]
    ordered = kept.sort_values(keys, ascending=ascending, na_position="last", kind="stable")
    return ordered["feature"].to_numpy(dtype=np.int64)


def searchable(table: pd.DataFrame) -> pd.Series:
    """Lower-case text of each feature that the search looks through."""
    columns = [c for c in ("phrase", "category", "top_cause", "dominant_class") if c in table]
    text = "#" + table["feature"].astype(str)
    for column in columns:
        text = text + " " + table[column].fillna("").astype(str)
    return text.str.lower()


def list_line(record: pd.Series, sort: str) -> str:
    """One line of the list: verdict mark, number, the value sorted by, name."""
    column = SORTS[sort] if sort not in ("verdict", "feature number") else "error_ratio"
    value = record.get(column, np.nan)
    value = (
        "    –" if pd.isna(value) else f"{float(value):5.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.0e}"
    )
    return f"{MARKS.get(record['verdict'], ' ')} {int(record['feature']):>4} {value}  {shorten(record['phrase'] or '(no name)', 44)}"


def step(features: np.ndarray, current: int | None, by: int) -> int | None:
    """The feature `by` places after `current` in the list, wrapping round; the first when current is not in it."""
    if len(features) == 0:
        return None
    place = np.flatnonzero(features == current) if current is not None else []
    return int(features[(int(place[0]) + by) % len(features)]) if len(place) else int(features[0])


def top_of(top_images: pd.DataFrame, feature: int, split: str, n: int = 20) -> pd.DataFrame:
    """The strongest images of a feature in a split (val: used for naming; test: held out), strongest first."""
    own = top_images[(top_images["feature"] == feature) & (top_images["split"] == split)]
    return own.sort_values("rank", kind="stable").head(n)


def similar_to(similar: pd.DataFrame, feature: int, n: int = 6) -> list[tuple[int, float]]:
    """The features whose decoder rows are closest to a feature's: (feature, cosine), closest first."""
    own = similar[similar["feature"] == feature].sort_values("cosine", ascending=False, kind="stable").head(n)
    return [(int(f), float(c)) for f, c in zip(own["neighbour"], own["cosine"], strict=True)]

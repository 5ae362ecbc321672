"""The published records and table of names and verdicts, in the words of this repo and, with published: true, in theirs.

feature_analysis.jsonl  {feature_num, explanation, num_samples}
error_analysis.jsonl    {feature_num, commonality, error_analysis, num_samples}
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from mtlib.ask.ledger import dump
from mtlib.features.choice import by_activity
from mtlib.features.published_files import COLUMNS, published_name
from mtlib.judge.settings import JudgeConfig
from mtlib.judge.verdicts import RULED
from mtlib.run.artifacts import write_text
from mtlib.run.stage import write_csv

RECORDS = ("feature_analysis.jsonl", "error_analysis.jsonl")
NO_ERROR = "No common errors"
WITHOUT_PICTURES = 100
INTERPRETATIONS = [*COLUMNS, "interpretation", "method"]


def n_shown(top: pd.DataFrame) -> pd.Series:
    """Top val images of each feature, by feature. Args: top: top_images.parquet."""
    return top[top["split"] == "val"].groupby("feature").size()


def write(folder: Path, verdicts: pd.DataFrame, top: pd.DataFrame, config: JudgeConfig) -> None:
    """One method's verdicts of all judges as verdicts.parquet, and both files of the main judge's.

    Args: top: top_images.parquet; a model was shown at most `config.n_images` of them, the keyless judge looks at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    verdicts.to_parquet(folder / "verdicts.parquet", index=False)
    shown = n_shown(top).clip(upper=config.n_images if config.main == "lmm" else None)
    named, ruled = records(verdicts[verdicts["judge"] == config.main], shown.to_dict())
    for name, found in zip(RECORDS, (named, ruled), strict=True):
        write_text(folder / name, "".join(dump(r) + "\n" for r in found))


def records(verdicts: pd.DataFrame, n_images: dict[int, int]) -> tuple[list[dict], list[dict]]:
    """feature_analysis and error_analysis records of one judge; a model's errors are told in its own words.

    Features without a phrase have no name. Refused, failed and skipped ones have no verdict: left out, never "no error".

    Args: verdicts: one judge's verdicts. n_images: feature -> images that were looked at.
    """
    named, ruled = [], []
    for line in verdicts.itertuples():
        head, n = {"feature_num": int(line.feature)}, {"num_samples": int(n_images.get(int(line.feature), 0))}
        if pd.notna(line.phrase) and line.phrase != "":
            named.append(head | {"explanation": str(line.phrase)} | n)
        if line.verdict in RULED:
            words = line.detail if line.judge == "lmm" else line.phrase
            said = f"{line.category or 'error'}: {words}" if line.verdict == "error" else NO_ERROR
            ruled.append(head | {"commonality": str(line.phrase), "error_analysis": said} | n)
    return named, ruled


def write_published(out: Path, verdicts: dict[str, pd.DataFrame], folders: dict[str, Path], judge: str) -> None:
    """The same as the published scripts write them: {method}_feature_analysis.jsonl and {method}_error_analysis.jsonl, and
    {method}_interpretations.csv.

    feature_num is text, an error begins with "Error: ". num_samples counts the images that were looked at.

    Args: verdicts: method -> verdicts of all judges. folders: method -> its folder of 05, and beside it `explanations`.
    """
    for method, own in verdicts.items():
        name, told = published_name(method, verdicts), own[own["judge"] == judge].set_index("feature")["phrase"]
        for kind in RECORDS:
            written = (out.parent / "explanations" / method / kind).read_text(encoding="utf-8").split("\n")[:-1]
            write_text(out / f"{name}_{kind}", "".join(dump(_theirs(json.loads(r))) + "\n" for r in written))
        table = pd.read_parquet(folders[method] / "interpretations.parquet")
        table["interpretation"] = table["feature_id"].map(told).fillna("")
        write_csv(out / f"{name}_interpretations.csv", table, floats=None)


def _theirs(record: dict) -> dict:
    record["feature_num"] = str(record["feature_num"])
    if record.get("error_analysis", NO_ERROR) != NO_ERROR:
        record["error_analysis"] = f"Error: {record['error_analysis']}"
    return record


def interpretations(
    features: dict[str, pd.DataFrame],
    verdicts: dict[str, pd.DataFrame],
    tops: dict[str, pd.DataFrame],
    judge: str,
    pictured: dict[str, set[int]],
) -> pd.DataFrame:
    """The published table of interpretations: the features that have a collage (of a run without any: the hundred most active).

    Args: method -> features.parquet, verdicts, top_images.parquet, features with a collage. judge: whose names.
    Returns: frame of feature_rank (1 the most active, by activation_mean), feature_id, collage_path (in the report; "" where none
        was drawn), activation_mean (over all test rows, 0 where it is silent), activation_max, num_images (top val images that
        were looked at), interpretation, method.
    """
    frames = [pd.DataFrame(columns=INTERPRETATIONS)]
    for method, table in features.items():
        drawn = pictured[method]
        shown = by_activity(table).assign(feature_rank=range(1, len(table) + 1))
        shown = shown[shown["feature"].isin(drawn)] if drawn else shown[shown["density"] > 0].head(WITHOUT_PICTURES)
        names = verdicts[method].query("judge == @judge").set_index("feature")["phrase"]
        frame = shown.rename(columns={"feature": "feature_id", "max_activation": "activation_max"}).assign(
            method=method
        )
        frame["activation_mean"] = shown["mean_activation"] * shown["density"]
        frame["collage_path"] = [f"collages/{method}/{f}.jpg" if f in drawn else "" for f in shown["feature"]]
        frame["num_images"] = shown["feature"].map(n_shown(tops[method])).fillna(0).astype(int)
        frame["interpretation"] = shown["feature"].map(names).fillna("")
        frames.append(frame[INTERPRETATIONS])
    return pd.concat(frames[1:] or frames, ignore_index=True)

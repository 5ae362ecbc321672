"""Explanations from a file: Matryoshka Transcoders' JSONL, written by its scripts, by notebook 06 or by hand.

    {method}_feature_analysis.jsonl   {"feature_num": "42", "explanation", "num_samples"}
    {method}_error_analysis.jsonl     {"feature_num": "137", "commonality", "error_analysis", "num_samples"}
    features_info.jsonl               {"feature_num", "explanation", "wrong_ratio", "wrong_count", "total_count"}

Their scripts append, so a file may hold several runs. The rule: **the last complete line of a feature counts**. Complete is a line
that is whole JSON and holds an answer; one that was cut off is left out with a warning, and a null or blank text (a call
that failed) replaces no answer.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mtlib.embed.given.tables import refuse_near
from mtlib.learn.scores import wilson

COUNTED = ("wrong_ratio", "wrong_count", "total_count")
FIELDS = {"feature_num", "explanation", "commonality", "error_analysis", *COUNTED}
VERIFIED, UNVERIFIED, CONTRADICTED = "verified", "unverified", "contradicted"


def read_lines(path: Path) -> list[tuple[int, dict]]:
    """(line number, object) of the whole lines of a JSONL file. A line that is not whole JSON is left out with a warning."""
    found = []
    for i, text in enumerate(path.read_bytes().decode("utf-8-sig", "replace").split("\n"), 1):
        try:
            line = json.loads(text) if text.strip() else None
        except (json.JSONDecodeError, RecursionError):
            warnings.warn(f"{path.name} line {i} is not whole JSON and is left out", stacklevel=3)
            continue
        if line is not None and not isinstance(line, dict):
            raise ValueError(f"{path.name} line {i}: expected an object with feature_num, got {text[:40]}")
        found += [] if line is None else [(i, line)]
    return found


def read(paths: Sequence[str | Path], n_latents: int) -> dict[int, dict]:
    """feature -> explanation, and verdict and COUNTED where a file has them; later files add to earlier ones.

    A feature with no answer but null has the explanation "".

    Args: n_latents: of the coder whose features they are.
    Raises: ValueError naming the file and line, for a feature that the coder does not have or fields that are not understood.
    """
    records: dict[int, dict] = {}
    for path in map(Path, paths):
        last: dict[int, dict] = {}
        for i, line in read_lines(path):
            try:
                feature, record = _record(line, n_latents)
            except ValueError as e:
                raise ValueError(f"{path.name} line {i}: {e}") from None
            last[feature] = record or last.get(feature, {})
        for feature, record in last.items():
            records[feature] = records.get(feature, {"explanation": "", "verdict": ""}) | record
    return records


def _record(line: dict, n_latents: int) -> tuple[int, dict | None]:
    """(feature, what a line says of it; None for a failed call)."""
    for name in sorted(line.keys() - FIELDS):
        refuse_near("field", name, sorted(FIELDS - line.keys()))
    number, answer = str(line.get("feature_num", "")).strip(), line.get("explanation", line.get("commonality"))
    if not (number.isascii() and number.isdigit() and int(number) < n_latents):
        raise ValueError(f"feature_num = {number[:40]!r}: expected a whole number from 0 to {n_latents - 1}")
    if not ({"explanation", "commonality"} & set(line)) or not isinstance(answer, (str, type(None))):
        raise ValueError("expected explanation, or commonality and error_analysis, as text")
    ruled, counts = line.get("error_analysis"), {key: line[key] for key in COUNTED if line.get(key) is not None}
    if not isinstance(ruled, (str, type(None))):
        raise ValueError(f"error_analysis = {str(ruled)[:40]}: expected text")
    if not (answer or "").strip() or ("error_analysis" in line and not (ruled or "").strip()):
        return int(number), None
    if counts and not (set(counts) == set(COUNTED) and _counted(counts)):
        raise ValueError("wrong_ratio, wrong_count and total_count come together, 0 <= wrong_count <= total_count")
    said = {"explanation": answer} | counts
    if ruled is not None:
        said["verdict"] = "no_error" if "no common error" in ruled.lower() else "error"
    return int(number), said


def _counted(counts: dict) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in counts.values())
    return numbers and 0 <= counts["wrong_count"] <= counts["total_count"] and 0 <= counts["wrong_ratio"] <= 1


def check(record: dict, line: pd.Series) -> str:
    """Whether the run's own labelled test images bear out what a file says of a feature: it is VERIFIED, UNVERIFIED or CONTRADICTED.

    Its wrong_ratio is borne out when the 95% intervals of both overlap, and contradicted otherwise; a verdict "error" is
    when all of the run's interval is above the base rate, and contradicted when all of it is below. A name alone, a feature
    that was not assessed, and any feature of a run without labels cannot be checked.

    Args: record: of `read`. line: the feature's line of features.parquet.
    """
    if pd.isna(line.get("error_ratio")) or not line["assessed"]:
        return UNVERIFIED
    found = set()
    if record.get("total_count"):
        low, high = wilson(record["wrong_count"], record["total_count"])
        found.add(VERIFIED if low <= line["error_high"] and high >= line["error_low"] else CONTRADICTED)
    if record["verdict"] == "error":
        above, below = line["error_low"] > line["base_rate"], line["error_high"] < line["base_rate"]
        found.add(VERIFIED if above else CONTRADICTED if below else UNVERIFIED)
    return next((said for said in (CONTRADICTED, VERIFIED) if said in found), UNVERIFIED)


def told(said: dict, record: dict, line: pd.Series) -> dict:
    """One of `Labeler.get_explanations`' lines in the file's words, with `check`; its counts where the file has none of its own."""
    counts = {key: record[key] for key in COUNTED if key in record}
    words = {"explanation": record["explanation"], "verdict": record["verdict"]}
    return said | words | counts | {"check": check(record, line)}

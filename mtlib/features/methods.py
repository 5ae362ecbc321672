"""Which coder of each method is interpreted: the one of the first seed in 03's coders.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def interpreted(train: Path) -> pd.DataFrame:
    """One line per method, in the order of the params: its first seed, or why it was skipped.

    Args:
        train: folder of the finished 03_train artifact.
    Returns: coders.csv's columns, with `reason` and `folder` as text ("" when empty).
    Raises: ValueError naming the file when a column is missing.
    """
    path = Path(train) / "coders.csv"
    dtype = dict.fromkeys(("method", "reason", "folder", "status", "target"), str)
    frame = pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""])  # "null" is a name like another
    if missing := {"method", "seed", "target", "status", "reason", "folder"} - set(frame.columns):
        raise ValueError(f"{path}: no column {sorted(missing)[0]!r}; run notebook 03_train again")
    text = ["method", "reason", "folder", "status", "target"]
    frame[text] = frame[text].fillna("")
    return frame.drop_duplicates("method", keep="first").reset_index(drop=True)

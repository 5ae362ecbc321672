"""Everything 05 records about every feature, joined into one table: what 04's scan counted, and tests, causes and effects.

Naming and choosing use val; every rate, purity and enrichment is over test, each repeated file counted once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.store import Data
from mtlib.measure.codes import MIN_ACTIVE, sparse_codes
from mtlib.measure.relevance import error_ratios
from mtlib.truth.attributes import error_features

CAUSAL = ["causal_relevance", "causal_control_latents", "causal_control_random"]
RATIOS = ("n_error", "error_ratio", "error_low", "error_high", "base_rate", "p_fisher", "q_bh", "q_by")
COLUMNS = [
    "feature",
    "density",
    "n_active_test",
    "n_active_val",
    "mean_activation",
    "max_activation",
    "error_ratio",
    "error_low",
    "error_high",
    "base_rate",
    "n_error",
    "assessed",
    "p_fisher",
    "q_bh",
    "q_by",
    "mono_score",
    "purity",
    "purity_null",
    "dominant_class",
    "causal_relevance",
    "causal_control_latents",
    "causal_control_random",
]
TRUTH_COLUMNS = ["top_cause", "top_cause_share", "q_cause", "is_error"]


def feature_table(
    latents: pd.DataFrame, data: Data, causal: pd.DataFrame | None = None, truth: pd.DataFrame | None = None
) -> pd.DataFrame:
    """features.parquet: one line per latent, none left out. What was not measured is NaN.

    Args:
        latents: scan/<method>/latents.parquet of 04.
        causal:  what `mtlib.measure.logit.causal_relevance` returned.
        truth:   what `truth_columns` returned; None leaves its columns out.
    """
    labels = data.labels(data.rows("test")[:: data.tokens])
    frame = latents.rename(columns={"n_active": "n_active_test"})
    frame["assessed"] = frame["n_active_test"] >= MIN_ACTIVE
    if (labels >= 0).any():
        ratios = error_ratios(
            latents["n_error"], latents["n_labelled"], int((labels == 1).sum()), int((labels >= 0).sum())
        )
        frame = frame.assign(**{name: ratios[name] for name in (*RATIOS, "assessed")})
    frame = frame if causal is None else frame.assign(**{name: causal[name] for name in CAUSAL})
    frame = frame.reindex(columns=COLUMNS)
    frame["dominant_class"] = frame["dominant_class"].fillna("")
    return frame if truth is None else pd.concat([frame, truth], axis=1)


def truth_columns(coder, data: Data, top_n: int = 20) -> pd.DataFrame:
    """The demo's truth of every feature (definitions.md, Truth): TRUTH_COLUMNS."""
    rows, t = {split: data.rows(split) for split in ("val", "test")}, data.tokens
    cause = data.truth["cause"].fillna("").to_numpy(str)
    codes = {split: sparse_codes(coder, data.x, r, tokens=t) for split, r in rows.items()}
    found = error_features(codes["val"], codes["test"], *(cause[r[::t]] for r in rows.values()), top=top_n)
    return found[TRUTH_COLUMNS]


def write_features(folder: Path, table: pd.DataFrame, similar: pd.DataFrame, scan: Path) -> None:
    """Write features.parquet and similar.parquet into `folder`, and what 04 found of the images (its scan/<method>)."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "features.parquet", index=False)
    similar.to_parquet(folder / "similar.parquet", index=False)
    for name in ("top_images.parquet", "histograms.npz"):
        shutil.copy(scan / name, folder / name)


def summary_row(method: str, table: pd.DataFrame | None, reason: str = "", level: float = 0.05) -> dict:
    """One line of 05's summary: counts and medians of a method, or why it has none."""
    if table is None:
        return {"method": method, "status": "skipped", "reason": reason}
    assessed = table[table["assessed"]]
    beyond = assessed["causal_relevance"].abs() > assessed["causal_control_latents"]
    return {
        "method": method,
        "status": "ok",
        "reason": "",
        "n_latents": len(table),
        "n_active": int((table["n_active_test"] > 0).sum()),
        "n_assessed": len(assessed),
        "median_density": assessed["density"].median(),
        "median_error_ratio": assessed["error_ratio"].median(),
        "base_rate": table["base_rate"].iloc[0],
        "n_threshold": int((assessed["error_ratio"] >= 0.95).sum()),
        "n_enriched": int((assessed["q_bh"] <= level).sum()),
        "median_mono_score": assessed["mono_score"].median(),
        "median_purity": assessed["purity"].median(),
        "median_causal": assessed["causal_relevance"].abs().median(),
        "median_causal_control": assessed["causal_control_latents"].median(),
        "beyond_control": float(beyond.mean()) if assessed["causal_relevance"].notna().any() else np.nan,
    }

"""What the figures of 05 show, and its overview: their numbers are those of the tables."""

import numpy as np
import pandas as pd
import pytest

from mtlib.features.table import assessed, density_counts, overview


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    n = 30
    ratio = rng.random(n)
    table = pd.DataFrame(
        {
            "feature": range(n),
            "copy_of": range(n),
            "assessed": np.arange(n) < 25,
            "density": np.r_[0, rng.random(n - 1) * 0.2],
            "n_active_test": np.arange(n) + 1,
            "error_ratio": ratio,
            "error_low": ratio * 0.8,
            "error_high": np.minimum(ratio * 1.2, 1),
            "base_rate": 0.5,
            "p_fisher": rng.random(n),
            "q_bh": np.where(ratio > 0.8, 0.01, 0.9),
            "purity": 0.5,
            "purity_null": 0.3,
            "mono_score": 0.4,
            "dominant_class": "hand",
            "causal_relevance": 1 - 2 * ratio,
            "causal_control_latents": 0.3,
            "causal_control_random": 0.1,
        }
    )
    return {"mt": table, "sae": table.assign(assessed=False)}


def test_only_assessed_features_are_shown(tables):
    frame = assessed(tables, ["purity"])
    assert list(frame) == ["method", "feature", "purity"]
    assert len(frame) == 25 and set(frame["method"]) == {"mt"}


def test_densities_count_every_feature_that_fires(tables):
    frame = density_counts(tables)
    assert frame.groupby("method")["features"].sum().tolist() == [29, 29]


def test_summary_counts_by_hand(tables):
    coders = pd.DataFrame({"method": ["tc", "mt"], "reason": ["no labels", ""]})
    skipped, row = overview({"mt": tables["mt"]}, coders).to_dict("records")
    table = tables["mt"].head(25)
    assert row["n_latents"] == 30 and row["n_assessed"] == 25
    assert row["n_enriched"] == (table["error_ratio"] > 0.8).sum()
    assert row["beyond_control"] == pytest.approx((table["causal_relevance"].abs() > 0.3).mean())
    assert (skipped["method"], skipped["status"], skipped["reason"]) == ("tc", "skipped", "no labels")

"""Which features are looked at first: by activity, for a collage, to be steered."""

from __future__ import annotations

from typing import Literal

import pandas as pd
from pydantic import Field, field_validator

from mtlib.run.params import Settings

MIN_IMAGES = 4  # a feature with fewer has no collage


class CollageSettings(Settings):
    """Which collages notebook 05 draws, and what stands on them."""

    n_collages: int = Field(30, ge=0)
    collages_of: Literal["surest", "active"] = "surest"
    collage_images: int = Field(20, ge=1)
    collage_columns: int = Field(5, ge=1)
    collage_split: Literal["val", "test"] = "val"


class SteeringSettings(Settings):
    """What the notebook steering scales, on which images and against how many controls."""

    features: list[int] = []
    named: str = ""
    n_features: int = Field(10, ge=1)
    factors: list[float] = [-4.0, -1.0, 0.0, 1.0, 4.0]
    n_images: int = Field(20, ge=1)
    n_controls: int = Field(3, ge=1)

    @field_validator("factors")
    @classmethod
    def _compared(cls, factors: list[float]) -> list[float]:
        if not {0.0, 1.0} <= set(factors):
            raise ValueError("0 and 1 must be among them, to compare with")
        return factors


def by_activity(features: pd.DataFrame) -> pd.DataFrame:
    """Features, the most active first: mean activation x density, ties to the smaller number."""
    return features.assign(_=-(features["mean_activation"] * features["density"])).sort_values(["_", "feature"])


def choose(features: pd.DataFrame, n: int, what: str = "surest") -> pd.DataFrame:
    """Which features get a collage, and why, in the order in which a reader should see them.

    what = "active": the most active ones. what = "surest": half of the places go to the features most enriched for errors
    (highest lower bound of the error ratio), a quarter to the most clearly plausible ones (lowest upper bound), the rest to
    the most active. Without error ratios half to the purest, where there are classes. Ties go to the smaller number.

    Args:
        features: features.parquet's columns and n_images (of its collage, at least MIN_IMAGES).
    Returns: frame with feature and reason ("errors" | "plausible" | "pure" | "active"), at most n rows.
    """
    usable = features[features["n_images"] >= MIN_IMAGES]
    assessed = usable[usable["assessed"]] if what == "surest" else usable.head(0)
    orders = []
    if assessed["error_low"].notna().any():
        orders.append(("errors", round(n / 2), assessed.sort_values(["error_low", "feature"], ascending=[False, True])))
        orders.append(("plausible", round(n / 4), assessed.sort_values(["error_high", "feature"])))
    elif assessed["purity"].notna().any():
        orders.append(("pure", round(n / 2), assessed.sort_values(["purity", "feature"], ascending=[False, True])))
    taken: dict[int, str] = {}
    for reason, most, order in [*orders, ("active", n, by_activity(usable))]:
        free = [int(feature) for feature in order["feature"] if feature not in taken]
        taken |= dict.fromkeys(free[: min(most, n - len(taken))], reason)
    return pd.DataFrame(list(taken.items()), columns=["feature", "reason"]).astype({"feature": int})


def to_steer(table: pd.DataFrame, settings: SteeringSettings, causes: pd.DataFrame) -> pd.DataFrame:
    """Which features are steered: those asked for, or whose name holds a text, or that stand for a cause, or the most active.

    Only features that fire on test images are kept.

    Args: table: features.parquet with the column `phrase`. causes: 04_causes of the method; empty without truth.
    Returns: frame of feature, why, phrase, density.
    Raises: ValueError for a feature that the coder does not have.
    """
    ranked, n = by_activity(table), settings.n_features
    if unknown := sorted(set(settings.features) - set(table["feature"])):
        raise ValueError(f"features: {unknown[0]} is no latent of the coder (0 .. {len(table) - 1})")
    if settings.features:
        why = dict.fromkeys(settings.features, "asked for")
    elif settings.named:
        has = ranked["phrase"].str.contains(settings.named, case=False, regex=False)
        why = dict.fromkeys(ranked.loc[has, "feature"].head(n), f"its name holds {settings.named!r}")
    elif len(causes):
        best = _of_causes(causes).sort_values("ap", ascending=False).drop_duplicates("ap_feature")
        why = {int(r.ap_feature): f"cause {r.cause}" for r in best.head(n).itertuples()}
    else:
        why = dict.fromkeys(ranked["feature"].head(n), "most active")
    chosen = table.set_index("feature").loc[list(why), ["phrase", "density"]].reset_index()
    chosen.insert(1, "why", list(why.values()))
    return chosen[chosen["density"] > 0].reset_index(drop=True)


def groups_of_causes(table: pd.DataFrame, causes: pd.DataFrame) -> dict[int, list[int]]:
    """The feature of each cause -> all features that truly stand for that cause, itself included. Args: as `to_steer`."""
    truly = table[table["is_error"].astype(bool)].groupby("top_cause")["feature"].agg(list)
    own = _of_causes(causes)
    pairs = zip(own["ap_feature"].astype(int), own["cause"], strict=True)
    return {feature: sorted({feature, *truly[cause]}) for feature, cause in pairs if cause in truly}


def _of_causes(causes: pd.DataFrame) -> pd.DataFrame:
    return causes.dropna(subset=["ap_feature"]).drop_duplicates("cause")

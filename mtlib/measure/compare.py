"""Fair comparison: one target, one L0 and one denominator per table, a mean over seeds with its interval."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy.stats import t as student

TOLERANCE = 0.05  # measured test L0 within this share of its target is matched
GROUP = ["target", "l0_target"]
SIZES = ["n_latents", "n_parameters"]
MEASURES = {  # column -> label, in the order of the tables
    "l0": "L0",
    "fvu": "FVU",
    "cosine": "cosine",
    "dead_fraction": "dead",
    "mono_score": "MonoScore",
    "purity": "purity",
    "cknna": "CKNNA",
    "stability": "stability",
    "logit_change": "logit change",
    "probe_agreement": "probe agreement",
    "zero_shot_drop": "zero-shot drop",
}
MONO = ("l0", "fvu", "explained_variance", "mono_score", "mono_score_median", "mono_score_p90", "purity")


def matched(l0: float, target: float, tolerance: float = TOLERANCE) -> str:
    """ "matched" when the measured L0 lies within `tolerance` of the target, else "unmatched"; "" without a target."""
    if not target or pd.isna(target):
        return ""
    return "matched" if abs(l0 / target - 1) <= tolerance else "unmatched"


def base_name(method: str, l0_target: float | None = None) -> str:
    """A method's name without the L0 that it ends in: "sae_32" is the method "sae" at 32."""
    found = re.fullmatch(r"(.+)_(\d+)", method)
    same = found and (l0_target is None or pd.isna(l0_target) or int(found[2]) == int(l0_target))
    return found[1] if same else method


def seed_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float, str]:
    """Mean over seeds with its interval and what the interval is.

    Args: values (n,) one per seed; NaN are left out.
    Returns: mean, low, high, kind: "t 95%" (Student's t of the mean, three seeds or more), "range" (two seeds: the
        smaller and the larger, no probability is claimed), "" (one seed: no interval).
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return (np.nan, np.nan, np.nan, "")
    mean = float(values.mean())
    if n == 1:
        return mean, np.nan, np.nan, ""
    if n == 2:
        return mean, float(values.min()), float(values.max()), "range"
    half = float(student.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half, f"t {confidence:.0%}"


def comparison(metrics: pd.DataFrame) -> pd.DataFrame:
    """One line per method: its target, L0 target and sizes, and of every measure the mean over seeds with its interval.

    Args:
        metrics: 04_metrics, one line per method and seed; only status ok is used.
    Returns: frame of target, l0_target, method, base, n_seeds, matched, n_latents, n_parameters, n_assessed,
        assessed_rate, interval, then for each measure of MEASURES and MONO its mean, <name>_low and <name>_high; ordered by
        target, L0 target and the order of the methods. A method is matched when all of its seeds are.
    """
    lines = []
    for method, part in metrics[metrics["status"] == "ok"].groupby("method", sort=False):
        first = part.iloc[0]
        line = {"target": first["target"], "l0_target": first["l0_target"], "method": method}
        flags = set(part["matched"])
        line |= {"base": base_name(method, first["l0_target"]), "n_seeds": len(part)}
        line |= {"matched": flags.pop() if len(flags) == 1 else "unmatched", **{c: int(first[c]) for c in SIZES}}
        line |= {
            "n_assessed": part["n_assessed"].mean(),
            "assessed_rate": part["n_assessed"].mean() / first["n_latents"],
        }
        line["interval"] = seed_interval(part["fvu"])[3]
        for name in dict.fromkeys((*MEASURES, *MONO)):
            if name in part and part[name].notna().any():
                line[name], line[f"{name}_low"], line[f"{name}_high"], _ = seed_interval(part[name])
        lines.append(line)
    frame = pd.DataFrame(lines)
    return frame.sort_values(GROUP, kind="stable", ignore_index=True) if len(frame) else frame


def mono_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """MonoLoss off and on: every method beside the one of the same name with "_mono" (before the L0, if the name has one).

    Args:
        table: what `comparison` returned.
    Returns: frame of method, target, l0_target and for each measure of MONO <name>_off, <name>_on, and <name>_apart: their
        intervals over seeds do not meet.
    """
    lines, known = [], table.set_index("method") if len(table) else table
    for method in table["method"] if len(table) else ():
        base = base_name(method, known.loc[method, "l0_target"])
        twin = f"{base}_mono{method[len(base) :]}"
        if twin not in known.index:
            continue
        off, on = known.loc[method], known.loc[twin]
        line = {"method": method, "target": off["target"], "l0_target": off["l0_target"]}
        for name in (n for n in MONO if n in table):
            line |= {f"{name}_off": off[name], f"{name}_on": on[name]}
            line[f"{name}_apart"] = bool(
                off[f"{name}_high"] < on[f"{name}_low"] or on[f"{name}_high"] < off[f"{name}_low"]
            )
        lines.append(line)
    return pd.DataFrame(lines)


def fair_tables(table: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """`comparison` cut into tables that may be read as rankings: one per target and L0 target (NaN: as published).

    Raises: ValueError when a table would mix denominators (see `check_fair`).
    """
    groups = table.groupby(GROUP, dropna=False, sort=True) if len(table) else ()
    return {key: check_fair(part.reset_index(drop=True)) for key, part in groups}


def check_fair(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, after checking that it can be read as a ranking.

    Raises: ValueError naming what it mixes: targets (an FVU of x and one of y are different quantities), L0 targets, or
        denominators (n_latents).
    """
    for column, what in (("target", "targets"), ("l0_target", "L0 targets"), ("n_latents", "denominators, n_latents")):
        values = table[column].drop_duplicates().tolist()
        if len(values) > 1:
            raise ValueError(f"one table mixes {what} {values}; make one table for each")
    return table

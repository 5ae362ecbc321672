"""Every coder of a run measured alike, and compared fairly: one target, one L0 and one denominator per table, means over seeds.

Each figure takes the table it shows; `styles` are those of the run's methods (`plots.run_styles`), so that a method looks the
same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtlib.embed.manifest import image_classes
from mtlib.embed.store import Data
from mtlib.learn.classifier import Classifier, targets
from mtlib.learn.scores import mean_interval
from mtlib.measure.codes import Subject, first_seeds, target_of
from mtlib.measure.logit import readout
from mtlib.measure.monosemanticity import LATENTS
from mtlib.measure.probes import fit_probe
from mtlib.measure.scan import TOP_N, Scan, activity, scan, write_scan
from mtlib.measure.similarity import seed_stability
from mtlib.measure.zero_shot import ZeroShot
from mtlib.plots import base_name, base_names, legend, panels
from mtlib.run.artifacts import write_json

TOLERANCE = 0.05  # measured test L0 within this share of its target is matched
GROUP = ["target", "l0_target"]
SIZES = ["n_latents", "n_parameters"]
SPLIT = ["n_rows", "l0", "fvu", "cosine", "silent_fraction", "mono_score", "mono_score_median", "mono_score_p90", "r2"]
MONO = ("l0", "fvu", "explained_variance", "mono_score", "mono_score_median", "mono_score_p90", "purity")


def scan_all(
    data: Data,
    subjects: list[Subject],
    classifier: Classifier | None,
    seed: int = 0,
    zero_shot: ZeroShot | None = None,
    top_n: int = TOP_N,
) -> list[Scan]:
    """`scan` of every subject on the test rows, and what every split has on train and val; zero-shot for coders of the final embedding."""
    rows, train = data.rows("test"), data.rows("train")
    others = {name: some for name in ("train", "val") if len(some := data.rows(name)) > 1}
    labels, probes, out = targets(data.manifest, data.facts["labels"])[0], {}, []
    classes = image_classes(data.manifest, data.tokens)[0]
    settings = dict(classes=classes, labels=data.labels(), tokens=data.tokens, top_n=top_n, seed=seed)
    settings |= dict(probe_labels=labels)
    for s in subjects:
        target = target_of(data, s)
        if s.target not in probes:
            probes[s.target] = fit_probe(target, train, labels)
        settings["probe"] = probes[s.target]
        settings["readout"] = None if classifier is None else readout(classifier, s.target)
        settings["zero_shot"] = zero_shot if s.target == "x" and "layer" not in data.facts else None
        out.append(scan(s.coder, data.x, target, rows, others, **settings))
    return out


def write_scans(folder: Path, data: Data, subjects: list[Subject], scans: list[Scan], top_n: int = TOP_N) -> None:
    """`write_scan` of the first seed of each method into <folder>/<method>, with its activity on the validation images, and
    its `published_results`."""
    names, found = image_classes(data.manifest, data.tokens)[1], dict(zip(map(id, subjects), scans, strict=True))
    for s in first_seeds(subjects):
        val = activity(s.coder, data.x, data.rows("val"), tokens=data.tokens, top_n=top_n)
        write_scan(folder / s.method, found[id(s)], val, data.manifest, names)
        write_json(folder / s.method / "results.json", published_results(s, found[id(s)]))


def splits_table(subjects: list[Subject], scans: list[Scan]) -> pd.DataFrame:
    """One line per method, seed and split: what every split has."""
    order = ("train", "val", "test")
    pairs = [
        (s, found, name) for s, found in zip(subjects, scans, strict=True) for name in order if name in found.splits
    ]
    lines = [s.key | {"split": name} | found.splits[name] for s, found, name in pairs]
    return pd.DataFrame(lines, columns=[*(subjects[0].key if subjects else ()), "split", *SPLIT])


def published_results(subject: Subject, found: Scan) -> dict:
    """results.json as MonoLoss's authors write it, but for {split}_loss, which is of batches: a coder's settings, its last step,
    and of every split nmse or l2 (the error it was trained with), active, r2 and monosemanticity."""
    recorded, error = getattr(subject.coder, "recorded", {}), subject.coder.config.error
    config = subject.coder.config.model_dump(mode="json") | recorded.get("train", {})
    lines = {"config": config, "final_step": recorded.get("result", {}).get("step")}
    names = ["nmse" if error == "nmse" else "l2", "active", "r2"]
    names += [f"monosemanticity_{name}" for name in ("mean", "median", "p90")]
    return lines | {f"{split}_{n}": values[n] for split, values in found.splits.items() for n in names}


def metrics_table(
    subjects: list[Subject], summaries: list[dict], skipped: pd.DataFrame, tolerance: float = TOLERANCE
) -> pd.DataFrame:
    """One line per method and seed, x before y, with the stability over seeds; then the skipped ones with reasons. FVU and its
    kin are comparable within one target only."""
    agree, lines = seed_stability(subjects), []
    for s, summary in zip(subjects, summaries, strict=True):
        size = {"n_latents": s.coder.n_latents, "n_parameters": sum(p.numel() for p in s.coder.parameters())}
        head = {**s.key, "preset": s.preset, "status": "ok", "reason": "", **size}
        head["matched"] = matched(summary["l0"], s.l0_target, tolerance)
        lines.append(head | summary | {"stability": agree.get(s.method, float("nan"))})
    frame = pd.DataFrame(lines).sort_values("target", kind="stable") if lines else pd.DataFrame()
    return pd.concat([frame, skipped], ignore_index=True)


def matched(l0: float, target: float, tolerance: float = TOLERANCE) -> str:
    """ "matched" when the measured L0 lies within `tolerance` of the target, else "unmatched"; "" without a target."""
    if not target or pd.isna(target):
        return ""
    return "matched" if abs(l0 / target - 1) <= tolerance else "unmatched"


def seed_interval(values: pd.Series) -> tuple[float, float, float, str]:
    """Mean over seeds (NaN are left out), its interval and what that is: "t 95%" (Student's t of the mean, three seeds or more),
    "range" (two seeds: the smaller and the larger, no probability is claimed), or "" (one seed: no interval).
    """
    mean, low, high = mean_interval(values)
    seeds = [v for v in np.asarray(values, np.float64).tolist() if np.isfinite(v)]
    if len(seeds) == 2:
        return mean, min(seeds), max(seeds), "range"
    return mean, low, high, "t 95%" if len(seeds) > 2 else ""


def comparison(metrics: pd.DataFrame, measures: Iterable[str]) -> pd.DataFrame:
    """One line per method: its target, L0 target and sizes, and of every measure the mean over seeds with its interval.

    Args: metrics: 04_metrics. measures: columns of it, in the order of the table; those of MONO come behind them anyway.
    Returns: frame of target, l0_target, method, base, n_seeds, matched (all of its seeds are), n_latents, n_parameters,
        n_assessed, assessed_rate, interval, then for each measure its mean, <name>_low and <name>_high; ordered by target,
        L0 target and the order of the methods.
    """
    lines = []
    for method, part in metrics[metrics["status"] == "ok"].groupby("method", sort=False):
        first, flags, assessed = part.iloc[0], set(part["matched"]), part["n_assessed"].mean()
        line = {"target": first["target"], "l0_target": first["l0_target"], "method": method}
        line |= {"base": base_name(method, first["l0_target"]), "n_seeds": len(part)}
        line |= {"matched": flags.pop() if len(flags) == 1 else "unmatched", **{c: int(first[c]) for c in SIZES}}
        line |= {"n_assessed": assessed, "assessed_rate": assessed / first["n_latents"]}
        line["interval"] = seed_interval(part["fvu"])[3]
        for name in dict.fromkeys((*measures, *MONO)):
            if name in part and part[name].notna().any():
                line[name], line[f"{name}_low"], line[f"{name}_high"], _ = seed_interval(part[name])
        lines.append(line)
    return pd.DataFrame(lines).sort_values(GROUP, kind="stable", ignore_index=True) if lines else pd.DataFrame()


def mono_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """MonoLoss off and on: every method beside the one of the same name with "_mono" (before the L0, if the name has one).

    Args: table: what `comparison` returned.
    Returns: frame of method, target, l0_target and for each measure of MONO <name>_off, <name>_on, and <name>_apart: their
        intervals over seeds do not meet.
    """
    lines, known = [], {row["method"]: row for row in table.to_dict("records")}
    for method, off in known.items():
        base = base_name(method, off["l0_target"])
        on = known.get(f"{base}_mono{method[len(base) :]}")
        if on is None:
            continue
        line = {"method": method, "target": off["target"], "l0_target": off["l0_target"]}
        for name in (n for n in MONO if n in table):
            line |= {f"{name}_off": off[name], f"{name}_on": on[name]}
            low, high = f"{name}_low", f"{name}_high"
            line[f"{name}_apart"] = bool(off[high] < on[low] or on[high] < off[low])
        lines.append(line)
    return pd.DataFrame(lines)


def fair_tables(table: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """`comparison` cut into tables that may be read as rankings: one per target and L0 target (NaN: as published).

    An FVU of x and one of y are different quantities. Raises: ValueError when a table would mix denominators (n_latents).
    """
    tables = {}
    for key, part in table.groupby(GROUP, dropna=False, sort=True) if len(table) else ():
        if part["n_latents"].nunique() > 1:
            mixed = f"one table mixes denominators, n_latents {sorted(set(part['n_latents']))}"
            raise ValueError(f"target and L0 {key}: {mixed}; make one table for each")
        tables[key] = part.reset_index(drop=True)
    return tables


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Of each fair table with two matched methods or more the line with the least FVU, and n, how many were compared."""
    tables = {k: part[part["matched"] == "matched"] for k, part in fair_tables(table).items()}
    lines = [part.loc[[part["fvu"].idxmin()]].assign(n=len(part)) for part in tables.values() if len(part) > 1]
    return pd.concat(lines, ignore_index=True) if lines else table[:0]


def fvu_against_l0(metrics: pd.DataFrame, styles: dict[str, dict]) -> Figure:
    """FVU against measured L0: a line per method through its L0, a small point per seed, one panel per target."""
    ok = metrics[metrics["status"] == "ok"]
    frame = ok.assign(trained=ok["method"], method=base_names(ok), l0_target=0)  # all L0 of a method share a panel
    return curves(frame, "l0", "measured L0 (latents per image)", styles, "trained")


def curves(frame: pd.DataFrame, x: str, label: str, styles: dict[str, dict], by: str = "") -> Figure:
    """FVU against a column, mean over seeds with the seeds as small points, one panel per target (and L0).

    Args: frame: method, seed, target, fvu, `x`; where it has k, that of a method's training is a dotted line. by: the column
        by which points of the seeds belong together; `x` without it.
    """
    fig, found = panels(frame, sorted(set(frame["target"])))
    for ax, l0, target, parts in found:
        for base, part in parts:
            part = part[part["target"] == target]
            mean = part.groupby(by or x).agg(x=(x, "mean"), fvu=("fvu", "mean")).sort_values("x")
            if len(part):
                ax.plot(mean["x"], mean["fvu"], label=base, ms=6, **styles[base])
                ax.plot(part[x], part["fvu"], ms=2.5, alpha=0.5, **styles[base] | {"linestyle": ""})
            for k in part["k"].dropna().unique() if "k" in part else ():
                ax.axvline(k, color=styles[base]["color"], ls=":", lw=1.2)
        ax.set(xlabel=label, ylabel=f"FVU of {target}", title=l0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    legend(fig)
    return fig


def distributions(
    table: pd.DataFrame, marks: dict[str, float], styles: dict[str, dict], labels: dict[str, str] = LATENTS
) -> Figure:
    """Quantiles of measures of latents, a panel each (and per L0): value against the share of latents below it.

    Args: table: of `quantiles`. marks: of `chance`, drawn as dashed lines. labels: measure -> its name on the axis.
    """
    fig, found = panels(table, [c for c in labels if c in table])
    for ax, l0, column, parts in found:
        for base, part in parts:
            ax.plot(part[column], part["quantile"], label=base, markevery=20, ms=5, **styles[base])
        if column in marks:
            ax.axvline(marks[column], color="0.3", ls="--", lw=1, label="chance")
        ax.set(xlabel=labels[column], ylabel="share of latents below", ylim=(0, 1), title=l0)
    legend(fig)
    return fig


def mono_figure(pairs: pd.DataFrame, styles: dict[str, dict]) -> Figure:
    """What MonoLoss buys (MonoScore, purity) and costs (R²): from without it (hollow) to with it, an arrow per method."""
    columns = {"mono_score": "MonoScore", "purity": "purity"}
    shown = {c: label for c, label in columns.items() if f"{c}_off" in pairs and pairs[f"{c}_off"].notna().any()}
    fig, axes = plt.subplots(1, max(len(shown), 1), figsize=(4.6 * max(len(shown), 1) + 0.4, 3.6), squeeze=False)
    for ax, (column, label) in zip(axes[0], shown.items(), strict=False):
        for row in pairs.to_dict("records"):
            (x0, y0), (x1, y1) = ((row[f"explained_variance_{e}"], row[f"{column}_{e}"]) for e in ("off", "on"))
            style = styles[row["method"]] | {"linestyle": ""}
            ax.plot([x0, x1], [y0, y1], lw=1, color=style["color"])
            ax.plot(x0, y0, ms=6, mfc="white", **style)
            ax.plot(x1, y1, ms=7, label=row["method"], **style)
        ax.set(xlabel="R² (1 - FVU)", ylabel=label)
    legend(fig, "hollow: without MonoLoss")
    return fig

"""Does one feature stand for one known error, and for nothing else? Beside ceilings and controls.

The measure is average precision (`ap`): one feature's activation as a detector of the cause among *all* test images, so that
a detector of the family, or of anything implausible, does badly. Behind it stands AUROC within the family: images with the
cause against plausible images of the same family, which any detector of "implausible" answers too. Everything is chosen on
val and scored on test. Codes may be arrays or scipy sparse arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mtlib.measure.codes import dense
from mtlib.measure.probes import linear_probe
from mtlib.truth.auroc import auroc, average_precision, best_threshold, f1_at

COSTS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the ceiling's logistic regression, chosen on val
STEPS = 200  # of a probe: separable tasks are ranked long before their weights settle
SPARSE_K = (1, 4, 16)
DRAWS = 3  # sets of random directions
FOUND = 0.9  # share of the probe's average precision from which one feature stands for a cause


@dataclass(frozen=True)
class Task:
    """One cause: positions (not rows) in each split's row list, and which of them show the cause."""

    cause: str
    family: str
    at: dict[str, np.ndarray]  # split -> positions of the cause's images and of plausible images of its family
    positive: dict[str, np.ndarray]  # split -> bool, aligned to `at`
    shows: dict[str, np.ndarray]  # split -> bool over all rows of the split: shows the cause

    @property
    def scorable(self) -> bool:
        """Every split has both kinds of images."""
        return all(p.any() and not p.all() for p in self.positive.values())


def tasks(truth: pd.DataFrame, rows: dict[str, np.ndarray]) -> list[Task]:
    """One task per cause.

    Args:
        truth: frame aligned to the rows of x, with family, cause ("" = none) and label (0 plausible).
        rows:  split -> rows of x.
    """
    cause, family = truth["cause"].fillna("").to_numpy(str), truth["family"].to_numpy(str)
    label = truth["label"].to_numpy(int)
    out = []
    for name in sorted(set(cause[np.concatenate(list(rows.values()))]) - {""}):
        home = pd.Series(family[cause == name]).mode()[0]
        at, positive, shows = {}, {}, {}
        for split, r in rows.items():
            shows[split] = cause[r] == name
            inside = shows[split] | ((family[r] == home) & (label[r] == 0))
            at[split] = np.flatnonzero(inside)
            positive[split] = shows[split][inside]
        out.append(Task(name, home, at, positive, shows))
    return out


def best_feature(task: Task, val: np.ndarray, test: np.ndarray) -> dict:
    """The single column that separates a task best on val (either sign), scored on test.

    Args: val, test: (n_val, S) and (n_test, S) codes of the splits' rows.
    Returns: dict of feature, sign, fires_for (the best that is high, not low, on the cause), auroc, auroc_all, f1.
    """
    area = auroc(val[task.at["val"]], task.positive["val"])  # (S,)
    feature = int(np.argmax(np.abs(area - 0.5)))
    sign = 1 if area[feature] >= 0.5 else -1
    v, t = sign * dense(val, [feature])[task.at["val"], 0], sign * dense(test, [feature])[:, 0]
    inside = t[task.at["test"]]
    found = {"feature": feature, "sign": sign, "fires_for": int(np.argmax(area))}
    found["auroc"] = float(auroc(inside[:, None], task.positive["test"])[0])
    found["auroc_all"] = float(auroc(t[:, None], task.shows["test"])[0])
    return found | {"f1": f1_at(inside, task.positive["test"], best_threshold(v, task.positive["val"]))}


def detectors(task_list: list[Task], val, test, signs: tuple[int, ...] = (1,)) -> tuple[np.ndarray, np.ndarray]:
    """The single column that detects each cause best among all val images, and how well it does so on test.

    Codes are >= 0, so only their positive sign counts; for units that take both signs pass (1, -1).

    Args: val, test: (n_val, S) and (n_test, S) activations of the splits' rows.
    Returns: (C,) columns; (C,) their average precision on test.
    """
    shows = {split: np.stack([t.shows[split] for t in task_list], axis=1) for split in ("val", "test")}  # (n, C)
    on_val = np.stack([average_precision(sign * val, shows["val"]) for sign in signs])  # (signs, S, C)
    features, best = on_val.max(0).argmax(0), []
    for c, j in enumerate(features):
        sign = signs[int(on_val[:, j, c].argmax())]
        best.append(average_precision(sign * dense(test, [j]), shows["test"][:, c])[0])
    return features, np.array(best)


def causes_found(task_list: list[Task], val: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """A line per scorable task: cause, family, ap_feature and ap (`detectors`), `best_feature`, and numbers of test images."""
    task_list, lines = [t for t in task_list if t.scorable], []
    features, found = detectors(task_list, val, test) if task_list else ([], [])
    for t, feature, ap in zip(task_list, features, found, strict=True):
        line = {"cause": t.cause, "family": t.family, "ap_feature": int(feature), "ap": ap}
        n_cause, n = int(t.positive["test"].sum()), len(t.positive["test"])
        line |= {"n_cause": n_cause, "n_plausible": n - n_cause, "base_rate": n_cause / test.shape[0]}
        lines.append(line | best_feature(t, val, test))
    return pd.DataFrame(lines)


def _probed(x: dict[str, np.ndarray], y: dict[str, np.ndarray], score) -> float:
    """Test score of a linear probe: logistic regression on train, C by the score on val. score(value, y): higher is better."""
    models = [linear_probe(x["train"], y["train"], c, STEPS) for c in COSTS]
    on_val = [score(m.decision_function(x["val"])[:, None], y["val"])[0] for m in models]
    best = models[int(np.argmax(on_val))]
    return float(score(best.decision_function(x["test"])[:, None], y["test"])[0])


def ceilings(
    task_list: list[Task],
    x: dict[str, np.ndarray],
    y: dict[str, np.ndarray] | None = None,
    logit: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Per cause: what linear probes on x and on y reach, and what single units do without any coder.

    Args: x, y: split -> (n_split, D) activations of the splits' rows, for train, val and test; y None without a classifier;
        logit: split -> (n_split,) of a classifier of plausibility.
    Returns: frame of cause; ap_probe (one against all, the larger of x and y), ap_x_dim, ap_y_unit, ap_logit, as `ap`; and as
        `auroc`: ceiling_x, ceiling_y, ceiling (the larger), best_x_dim, best_y_dim.
    """
    task_list = [t for t in task_list if t.scorable]
    out = pd.DataFrame({"cause": [t.cause for t in task_list]}).assign(ap_probe=0.0)
    for name, parts, column in (("x", x, "ap_x_dim"), ("y", y, "ap_y_unit")):
        if parts is None:
            out = out.assign(**{column: np.nan, f"ceiling_{name}": np.nan, f"best_{name}_dim": np.nan})
            continue
        parts = {split: np.asarray(rows, np.float64) for split, rows in parts.items()}
        single = detectors(task_list, parts["val"], parts["test"], (1, -1))[1]
        own = [{split: rows[t.at[split]] for split, rows in parts.items()} for t in task_list]
        ap = [_probed(parts, t.shows, average_precision) for t in task_list]
        out = out.assign(ap_probe=np.maximum(out["ap_probe"], ap), **{column: single})
        out[f"ceiling_{name}"] = [_probed(x, t.positive, auroc) for t, x in zip(task_list, own, strict=True)]
        out[f"best_{name}_dim"] = [best_feature(t, parts["val"], parts["test"])["auroc"] for t in task_list]
    says = None if logit is None else detectors(task_list, logit["val"][:, None], logit["test"][:, None])[1]
    return out.assign(ap_logit=np.nan if says is None else says, ceiling=out[["ceiling_x", "ceiling_y"]].max(axis=1))


def random_directions(task_list: list[Task], x: dict[str, np.ndarray], n: int, seed: int = 0) -> np.ndarray:
    """What the best of `n` random directions of x, of either sign, reaches: the price of a choice among n candidates.

    Returns: (C,) average precision on test, chosen on val; mean over DRAWS draws.
    """
    draws = np.random.default_rng(seed).normal(size=(DRAWS, x["val"].shape[1], n))
    return np.mean([detectors(task_list, x["val"] @ w, x["test"] @ w, (1, -1))[1] for w in draws], axis=0)


def standings(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How well one feature of each method stands for a cause, and how far the first method of its L0 is ahead, cause by cause, seed by seed.

    Args: table: frame of cause, method, seed, l0_target, ap, ap_probe, copies, the first method first.
    Returns: frame of method, l0_target, found (causes whose ap, mean over seeds, is FOUND of the probe's), ap (mean over causes and
        seeds) and ahead (by which the first method with its l0_target has more; seeds that only one of the two has are left out), both
        with _low and _high (95%: BCa bootstrap of the causes, each with the mean of its seeds), copies (median over causes and seeds),
        n_causes, n_seeds.
    """
    ap = table.pivot_table(index=["cause", "seed"], columns="method", values="ap", sort=False)
    probe, first, lines = table.groupby("cause")["ap_probe"].first(), {}, []
    for method in ap.columns:
        own = table[table["method"] == method]
        l0 = own["l0_target"].iloc[0]
        leader = first.setdefault(str(l0), method)
        each, off = (v.dropna().groupby("cause").mean() for v in (ap[method], ap[leader] - ap[method]))
        line = {"method": method, "l0_target": l0, "found": int((each >= FOUND * probe).sum())}
        line |= mean_interval(each, "ap", seed) | (mean_interval(off, "ahead", seed) if method != leader else {})
        lines.append(line | dict(copies=own["copies"].median(), n_causes=len(each), n_seeds=own["seed"].nunique()))
    return pd.DataFrame(lines)


def mean_interval(each: pd.Series, name: str, seed: int) -> dict:
    """The mean as `name`, its interval as name_low and name_high (95%, BCa bootstrap): nan where the values do not differ."""
    low, high = np.nan, np.nan
    if each.nunique() > 1:
        how = dict(rng=np.random.default_rng(seed), n_resamples=9999, method="BCa")
        low, high = stats.bootstrap((each.to_numpy(),), np.mean, **how).confidence_interval
    return {name: each.mean(), f"{name}_low": low, f"{name}_high": high}


def sparse_probe(task: Task, parts: dict[str, np.ndarray], ks: tuple[int, ...] = SPARSE_K) -> dict[int, float]:
    """Test AUROC of logistic regressions on the k best features, k = 1, 4, 16.

    Two candidate sets per k, the better on val: the k most separating features (val AUROC of each), and the k largest
    weights of a regression on all features, which avoids choosing the same information twice.

    Args:
        parts: split -> (n_split, S) codes, array or sparse.
    Returns: k -> AUROC; k = 1 is the best single feature, refitted.
    """
    codes = {split: parts[split][at] for split, at in task.at.items()}
    alone = np.argsort(-np.abs(auroc(codes["val"], task.positive["val"]) - 0.5), kind="stable")
    alive = np.flatnonzero(abs(codes["train"]).sum(0))
    if len(alive) == 0:
        return dict.fromkeys(ks, 0.5)
    every = linear_probe(dense(codes["train"], alive).astype(np.float32), task.positive["train"], 0.1, STEPS)
    together = alive[np.argsort(-np.abs(every[-1].coef_[0]), kind="stable")]
    return {k: max(_fit_few(task, codes, order[:k]) for order in (alone, together))[1] for k in ks}


def _fit_few(task: Task, codes: dict[str, np.ndarray], features: np.ndarray) -> tuple[float, float]:
    """(val AUROC, test AUROC) of a logistic regression on a few features."""
    x = {split: dense(c, features).astype(np.float64) for split, c in codes.items()}
    model = linear_probe(x["train"], task.positive["train"], max_iter=STEPS)
    score = {s: model.decision_function(x[s])[:, None] for s in ("val", "test")}
    return tuple(float(auroc(score[s], task.positive[s])[0]) for s in ("val", "test"))

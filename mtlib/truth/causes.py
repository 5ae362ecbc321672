"""Causes found: does some feature single out the images with one known error? Beside ceilings and controls.

A task is one cause: images with the cause (1) against plausible images of the same family (0), so that a detector of
the family scores 0.5. Everything is chosen on val and scored on test. Codes may be arrays or scipy sparse arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlib.measure.codes import dense
from mtlib.measure.probes import linear_probe
from mtlib.truth.auroc import auroc, best_threshold, f1_at

COSTS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the ceiling's logistic regression, chosen on val
STEPS = 200  # of a probe: separable tasks are ranked long before their weights settle
SPARSE_K = (1, 4, 16)


@dataclass(frozen=True)
class Task:
    """One cause: positions (not rows) in each split's row list, and which of them show the cause."""

    cause: str
    family: str
    at: dict[str, np.ndarray]  # split -> positions of the cause's images and of plausible images of its family
    positive: dict[str, np.ndarray]  # split -> bool, aligned to `at`
    everywhere: dict[str, np.ndarray]  # split -> bool over all rows of the split: shows the cause

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
        at, positive, everywhere = {}, {}, {}
        for split, r in rows.items():
            everywhere[split] = cause[r] == name
            inside = everywhere[split] | ((family[r] == home) & (label[r] == 0))
            at[split] = np.flatnonzero(inside)
            positive[split] = everywhere[split][inside]
        out.append(Task(name, home, at, positive, everywhere))
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
    found["auroc_all"] = float(auroc(t[:, None], task.everywhere["test"])[0])
    return found | {"f1": f1_at(inside, task.positive["test"], best_threshold(v, task.positive["val"]))}


def best_specific(task: Task, val, test, signs: tuple[int, ...] = (1,), everywhere: np.ndarray | None = None) -> dict:
    """The single column that fires on a cause and on nothing else: chosen on val by the smaller of its AUROC against
    plausible images of the family and its AUROC against all other images, scored on test.

    Within a family anything that tells implausible from plausible finds the cause; this is what a feature *of the cause*
    must do besides. Codes are >= 0, so only the positive sign counts; for units that take both signs pass (1, -1).

    Args:
        val, test:  (n_val, S) and (n_test, S) activations of the splits' rows.
        everywhere: (S,) AUROC on val against all other images, if it is known already.
    Returns: dict of specific_feature, specific_auroc (same family), specific_auroc_all.
    """
    inside = auroc(val[task.at["val"]], task.positive["val"])  # (S,)
    everywhere = auroc(val, task.everywhere["val"]) if everywhere is None else everywhere
    both = np.stack([np.minimum(a, b) for a, b in ((inside, everywhere), (1 - inside, 1 - everywhere))[: len(signs)]])
    sign, feature = np.unravel_index(int(both.argmax()), both.shape)
    chosen = dense(test, [feature]) * signs[sign]
    found = {"specific_feature": int(feature)}
    found["specific_auroc"] = float(auroc(chosen[task.at["test"]], task.positive["test"])[0])
    return found | {"specific_auroc_all": float(auroc(chosen, task.everywhere["test"])[0])}


def causes_found(task_list: list[Task], val: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """`best_feature` and `best_specific` of every scorable task: a line per cause, with its numbers of test images."""
    task_list, lines = [t for t in task_list if t.scorable], []
    if task_list:  # each column is sorted once for all causes: (S, C)
        everywhere = auroc(val, np.stack([t.everywhere["val"] for t in task_list], axis=1))
    for i, t in enumerate(task_list):
        line = {"cause": t.cause, "family": t.family} | best_feature(t, val, test)
        line |= best_specific(t, val, test, everywhere=everywhere[:, i])
        n_cause, n = int(t.positive["test"].sum()), len(t.positive["test"])
        lines.append(line | {"n_cause": n_cause, "n_plausible": n - n_cause})
    return pd.DataFrame(lines)


def linear_ceiling(task: Task, parts: dict[str, np.ndarray]) -> float:
    """Test AUROC of a linear probe of one task: logistic regression on train, C by the AUROC on val. parts: see `ceilings`."""
    x = {split: np.asarray(parts[split][at], np.float64) for split, at in task.at.items()}
    models = [linear_probe(x["train"], task.positive["train"], c, STEPS) for c in COSTS]
    on_val = [auroc(m.decision_function(x["val"])[:, None], task.positive["val"])[0] for m in models]
    best = models[int(np.argmax(on_val))]
    return float(auroc(best.decision_function(x["test"])[:, None], task.positive["test"])[0])


def ceilings(task_list: list[Task], x: dict[str, np.ndarray], y: dict[str, np.ndarray] | None = None) -> pd.DataFrame:
    """Per cause: linear probes on x and on y (ceilings), the best single dimension of each (controls).

    Args: x, y: split -> (n_split, D) activations of the splits' rows, for train, val and test; y None without a classifier.
    Returns: frame of cause, ceiling_x, ceiling_y, ceiling (the larger), best_x_dim, best_y_dim, and specific_x_dim and
        specific_y_dim (`best_specific` of single dimensions: the smaller of its two AUROCs).
    """
    lines = []
    for task in (t for t in task_list if t.scorable):
        line = {"cause": task.cause}
        for name, parts, signs in (("x", x, (1, -1)), ("y", y, (1,))):
            limit = best = weaker = np.nan
            if parts is not None:
                limit, best = linear_ceiling(task, parts), best_feature(task, parts["val"], parts["test"])["auroc"]
                specific = best_specific(task, parts["val"], parts["test"], signs)
                weaker = min(specific["specific_auroc"], specific["specific_auroc_all"])
            line |= {f"ceiling_{name}": limit, f"best_{name}_dim": best, f"specific_{name}_dim": weaker}
        lines.append(line | {"ceiling": np.nanmax([line["ceiling_x"], line["ceiling_y"]])})
    return pd.DataFrame(lines)


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

"""What each feature stands for on the demo: a cause, a family, a nuisance; how causes are split and absorbed.

Codes may be arrays or scipy sparse arrays; > 0 is active.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import entropy, false_discovery_control, hypergeom

from mtlib.measure.codes import dense
from mtlib.scenes.dataset import BOX

TOP, SHARE, LEVEL = 20, 0.8, 0.05
KNOWN_FROM = 0.1  # share of a feature's firing that an attribute must explain
MANY, BINS = 8, 4  # numbers with more values than MANY are cut into BINS equal parts
NOT_NUISANCE = ["path", "scene", "caption", "family", "cause", "label"]
NOT_NUISANCE += ["generator", "split", "variant", "view", "group", "twin", *BOX]


def error_features(
    val: np.ndarray | sparse.sparray,
    test: np.ndarray | sparse.sparray,
    cause_val: np.ndarray,
    cause_test: np.ndarray,
    *,
    top: int = TOP,
    share: float = SHARE,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Which features are truly error features, and of which cause.

    A feature is one when at least `share` of its `top` strongest val images show one cause (of `top`, also when fewer
    images activate it) and that cause is enriched among its activating test images: Fisher exact, one-sided, BH
    q <= `level` over the features that have a cause to test.

    Args:
        val, test: (n, S) codes, > 0 is active; rows without duplicates.
        cause_val, cause_test: (n,) str, "" for plausible images.
    Returns: frame of feature, top_cause ("" = none), top_cause_share, n_active_test, p_cause, q_cause, is_error.
    """
    val, fires = sparse.csc_array(val), _active(test)
    top, S = min(top, val.shape[0]), val.shape[1]
    names = np.array(sorted(set(cause_val) - {""}) or [""])
    shown = _shown(val, cause_val, names, top)  # (C, S)
    best = shown.argmax(0)
    top_share = shown.max(0) / top
    of_cause = (cause_test[:, None] == names[None, :]) & (names != "")[None, :]  # (n, C)
    hits = (fires.T @ of_cause.astype(np.float64))[np.arange(S), best]
    n_active = fires.sum(0).astype(np.int64)
    p = hypergeom.sf(hits - 1, fires.shape[0], of_cause.sum(0)[best], n_active)
    tested = (top_share > 0) & (n_active > 0)
    q = np.ones(S)
    if tested.any():
        q[tested] = false_discovery_control(np.clip(p[tested], 0, 1))
    frame = pd.DataFrame({"feature": np.arange(S), "top_cause": np.where(top_share > 0, names[best], "")})
    frame = frame.assign(top_cause_share=top_share, n_active_test=n_active, p_cause=np.where(tested, p, 1.0), q_cause=q)
    return frame.assign(is_error=tested & (top_share >= share) & (q <= level))


def _active(codes) -> sparse.csc_array:
    """(n, S) float64 1 where a feature fires."""
    return sparse.csc_array(codes > 0).astype(np.float64)


def _shown(val: sparse.csc_array, cause: np.ndarray, names: np.ndarray, top: int) -> np.ndarray:
    """(C, S) how many of each feature's `top` strongest firing rows show each cause; of equal codes the first rows."""
    column = np.repeat(np.arange(val.shape[1]), np.diff(val.indptr))
    order = np.lexsort((val.indices, -val.data, column))
    column, row, value = column[order], val.indices[order], val.data[order]
    place = np.arange(len(value)) - val.indptr[column]
    strongest = (place < top) & (value > 0)
    column, row = column[strongest], row[strongest]
    shown = np.zeros((len(names), val.shape[1]), np.int64)
    for i, name in enumerate(names):
        if name:
            shown[i] = np.bincount(column[cause[row] == name], minlength=val.shape[1])
    return shown


def explained_firing(active: np.ndarray | sparse.sparray, attribute: np.ndarray) -> np.ndarray:
    """Share of the uncertainty about a feature's firing that an attribute removes: I(fires; attribute) / H(fires).

    The mutual information is corrected for its bias in small samples, (V - 1) / 2n nats for V values (Miller, Madow).

    Args:
        active: (n, S) bool, or sparse with 1 where a feature fires. attribute: (n,) of any comparable values.
    Returns: (S,) 0 .. 1; 0 for features that fire never or always.
    """
    values, index = np.unique(np.asarray(attribute).astype(str), return_inverse=True)
    n = active.shape[0]
    fired = np.asarray(active.astype(np.float64).T @ np.eye(len(values))[index]).T  # (V, S)
    size = np.bincount(index).astype(np.float64)[:, None]  # (V, 1)
    table = np.stack([fired, size - fired])  # (2, V, S)
    h_fire = entropy(table.sum(1), axis=0)  # (S,)
    information = h_fire - (size[:, 0] @ entropy(np.moveaxis(table, 1, 2), axis=0).T) / n
    information = np.maximum(information - (len(values) - 1) / (2 * n), 0)
    return np.divide(information, h_fire, out=np.zeros_like(h_fire), where=h_fire > 1e-12)


def nuisances(truth: pd.DataFrame) -> pd.DataFrame:
    """The nuisance columns of the truth; numbers with many values are cut into quarters."""
    out = {}
    for name, column in truth.drop(columns=NOT_NUISANCE, errors="ignore").items():
        many = column.nunique() > MANY
        if column.nunique() < 2 or (many and not pd.api.types.is_numeric_dtype(column)):
            continue
        out[name] = pd.qcut(column.rank(method="first"), BINS, labels=False) if many else column
    return pd.DataFrame(out, index=truth.index)


def feature_kinds(codes: np.ndarray, truth: pd.DataFrame) -> pd.DataFrame:
    """What explains each feature's firing best on one split: the cause, the family, or a nuisance.

    Args:
        codes: (n, S). truth: n lines with cause, family and nuisance columns.
    Returns: frame of feature, n_active, kind (cause | family | nuisance | unexplained | silent), attribute (the best
        nuisance), explained_cause, explained_family, explained_nuisance: shares, see `explained_firing`.
    """
    active, table = _active(codes), nuisances(truth)
    n_active = active.sum(0).astype(np.int64)
    each = np.stack([explained_firing(active, table[c]) for c in table] or [np.zeros(codes.shape[1])])
    names = np.array(list(table.columns) or [""])
    shares = {"cause": explained_firing(active, truth["cause"].fillna(""))}
    shares |= {"family": explained_firing(active, truth["family"]), "nuisance": each.max(0)}
    values = np.stack(list(shares.values()))  # (3, S)
    kind = np.where(values.max(0) < KNOWN_FROM, "unexplained", np.array(list(shares))[values.argmax(0)])
    frame = pd.DataFrame({"feature": np.arange(len(n_active)), "n_active": n_active})
    frame = frame.assign(kind=np.where(n_active > 0, kind, "silent"), attribute=names[each.argmax(0)])
    return frame.assign(**{f"explained_{name}": share for name, share in shares.items()})


def splitting(truly: pd.DataFrame, test: np.ndarray, cause_test: np.ndarray, best: dict[str, int]) -> pd.DataFrame:
    """How many error features share a cause, and how often the best one is silent when another fires.

    Args:
        truly:      what `error_features` returned.
        test:       (n, S) codes; cause_test: (n,) str.
        best:       cause -> its best single feature of positive sign (the parent); the others are its children.
    Returns: frame of cause, parent, n_features (error features of the cause), recall_parent, recall_any (share of the
        cause's images on which the parent, or any of them, fires), absorption (share of the cause's images with a
        firing child on which the parent is silent; NaN without such images).
    """
    lines = []
    for cause, parent in best.items():
        own = truly.loc[truly["is_error"] & (truly["top_cause"] == cause), "feature"].to_numpy()
        here = test[cause_test == cause]
        children = (dense(here, own[own != parent]) > 0).any(1)
        fires = dense(here, [parent])[:, 0] > 0
        line = {"cause": cause, "parent": parent, "n_features": len(own)}
        line["recall_parent"] = fires.mean() if len(fires) else np.nan
        line["recall_any"] = (children | fires).mean() if len(fires) else np.nan
        line["absorption"] = (children & ~fires).sum() / children.sum() if children.any() else np.nan
        lines.append(line)
    return pd.DataFrame(lines)

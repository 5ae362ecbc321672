"""What is recorded of every feature: what 04's scan counted, with tests, causes and effects; and which features are alike.

Naming and choosing use val; every rate, purity and enrichment is over test, each repeated file counted once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from mtlib.embed.store import Data, unit_rows
from mtlib.measure.codes import MIN_ACTIVE, sparse_codes
from mtlib.measure.relevance import error_ratios
from mtlib.measure.similarity import nearest
from mtlib.truth.attributes import error_features

CAUSAL = ["causal_relevance", "causal_control_latents", "causal_control_random"]
RATIOS = ("n_error", "error_ratio", "error_low", "error_high", "base_rate", "p_fisher", "q_bh", "q_by")
COLUMNS = ["feature", "density", "n_active_test", "n_active_val", "mean_activation", "max_activation"]
COLUMNS += ["error_ratio", "error_low", "error_high", "base_rate", "n_error", "assessed", "p_fisher", "q_bh", "q_by"]
COLUMNS += ["mono_score", "purity", "purity_null", "dominant_class", "copy_of", *CAUSAL]
TRUTH_COLUMNS = ["top_cause", "top_cause_share", "q_cause", "is_error"]


def feature_table(
    latents: pd.DataFrame,
    data: Data,
    copy_of: np.ndarray,
    causal: pd.DataFrame | None = None,
    truth: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """features.parquet: one line per latent, none left out. What was not measured is NaN.

    Args:
        latents: scan/<method>/latents.parquet of 04.
        copy_of: (S,) of `mtlib.measure.similarity.copies`.
        causal:  what `mtlib.measure.logit.causal_relevance` returned.
        truth:   what `truth_columns` returned; None leaves its columns out.
    """
    labels = data.labels(data.rows("test")[:: data.tokens])
    frame = latents.rename(columns={"n_active": "n_active_test"}).drop(columns="n_error", errors="ignore")
    frame["assessed"] = frame["n_active_test"] >= MIN_ACTIVE
    if (labels >= 0).any():
        ratios = error_ratios(
            latents["n_error"], latents["n_labelled"], int((labels == 1).sum()), int((labels >= 0).sum())
        )
        frame = frame.assign(**{name: ratios[name] for name in (*RATIOS, "assessed")})
    frame = frame.assign(copy_of=copy_of)
    frame = frame if causal is None else frame.assign(**{name: causal[name] for name in CAUSAL})
    frame = frame.reindex(columns=COLUMNS)
    frame["dominant_class"] = frame["dominant_class"].fillna("")
    return frame if truth is None else pd.concat([frame, truth], axis=1)


def truth_columns(coder, data: Data) -> pd.DataFrame:
    """The demo's truth of every feature (definitions.md, Truth): TRUTH_COLUMNS."""
    rows, t = {split: data.rows(split) for split in ("val", "test")}, data.tokens
    cause = data.truth["cause"].fillna("").to_numpy(str)
    codes = {split: sparse_codes(coder, data.x, r, tokens=t) for split, r in rows.items()}
    found = error_features(codes["val"], codes["test"], *(cause[r[::t]] for r in rows.values()))
    return found[TRUTH_COLUMNS]


def write_features(
    folder: Path, table: pd.DataFrame, similar: pd.DataFrame, codes: sparse.csr_array, scan: Path
) -> None:
    """Write features.parquet, similar.parquet and the codes of the test images into `folder`, and what 04 found of the images
    (its scan/<method>)."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "features.parquet", index=False)
    similar.to_parquet(folder / "similar.parquet", index=False)
    sparse.save_npz(folder / "codes.npz", codes)
    for name in ("top_images.parquet", "histograms.npz"):
        shutil.copy(scan / name, folder / name)


def assessed(tables: dict[str, pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """The assessed features of all methods: method, feature, `columns`. Args: tables: method -> features.parquet."""
    parts = [t.loc[t["assessed"], ["feature", *columns]].assign(method=m) for m, t in tables.items()]
    return pd.concat(parts, ignore_index=True)[["method", "feature", *columns]]


def density_counts(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """How many features that fire have which density: method, from, to, features; rarer than 0.0001 are in the first bin."""
    edges = np.geomspace(1e-4, 1, 25)
    densities = {m: t.loc[t["density"] > 0, "density"].clip(edges[0], 1) for m, t in tables.items()}
    bins = {"from": edges[:-1], "to": edges[1:]}
    parts = [pd.DataFrame({"method": m} | bins | {"features": np.histogram(d, edges)[0]}) for m, d in densities.items()]
    return pd.concat(parts, ignore_index=True)


def overview(tables: dict[str, pd.DataFrame], coders: pd.DataFrame) -> pd.DataFrame:
    """05_features: counts and medians of every method, or why it has none.

    Args: tables: method -> features.parquet. coders: `mtlib.measure.codes.interpreted`.
    """
    lines = []
    for row in coders.itertuples():
        if row.method not in tables:
            lines.append({"method": row.method, "status": "skipped", "reason": row.reason})
            continue
        table = tables[row.method]
        assessed = table[table["assessed"]]
        effect, control = assessed["causal_relevance"].abs(), assessed["causal_control_latents"]
        line = {
            "method": row.method,
            "status": "ok",
            "reason": "",
            "n_latents": len(table),
            "n_active": int((table["n_active_test"] > 0).sum()),
            "n_assessed": len(assessed),
            "n_copies": int((assessed["copy_of"] != assessed["feature"]).sum()),
            "median_density": assessed["density"].median(),
            "median_error_ratio": assessed["error_ratio"].median(),
            "base_rate": table["base_rate"].iloc[0],
            "n_threshold": int((assessed["error_ratio"] >= 0.95).sum()),
            "n_enriched": int((assessed["q_bh"] <= 0.05).sum()),
            "median_mono_score": assessed["mono_score"].median(),
            "median_purity": assessed["purity"].median(),
            "median_causal": effect.median(),
            "median_causal_control": control.median(),
            "beyond_control": float((effect > control).mean()) if effect.notna().any() else np.nan,
        }
        lines.append(line)
    return pd.DataFrame(lines)


def similar_features(
    W_dec: np.ndarray,
    W_enc: np.ndarray,
    n_active: np.ndarray,
    together: np.ndarray | None = None,
    n: int = 8,
    chunk: int = 1024,
) -> pd.DataFrame:
    """The n nearest features of each feature that fires, by decoder cosine and by firing together.

    Args:
        W_dec:    (S, O) decoder rows; W_enc: (D, S) encoder columns.
        n_active: (S,) images on which each feature fires.
        together: (S, S) of `codes.fire_together`; without it only decoder cosines are used.
        n:        neighbours by each of the two orders.
    Returns: frame with feature, neighbour, cosine (decoder), cosine_encoder, jaccard (rows on which both fire over rows
        on which either does; NaN without `together`), by ("decoder" | "together" | "both"); sorted by feature, then cosine.
    """
    decoder, encoder = unit_rows(W_dec), unit_rows(np.asarray(W_enc).T)
    alive, parts = n_active > 0, []
    for start in range(0, len(decoder), chunk):
        own = np.arange(start, min(start + chunk, len(decoder)))
        cosine = decoder[own] @ decoder.T  # (B, S)
        skip = ~alive[None, :] | (own[:, None] == np.arange(len(decoder)))
        pairs = {"decoder": nearest(np.where(skip, -np.inf, cosine), n)}
        jaccard = np.full(cosine.shape, np.nan)
        if together is not None:
            either = n_active[own, None] + n_active[None, :] - together[own]
            jaccard = together[own] / np.maximum(either, 1)
            pairs["together"] = nearest(np.where(skip, -np.inf, jaccard), n)
        for by, neighbours in pairs.items():
            i, j = np.repeat(np.arange(len(own)), neighbours.shape[1]), neighbours.ravel()
            keep = alive[own[i]] & ~skip[i, j] & ((by == "decoder") | (jaccard[i, j] > 0))
            i, j = i[keep], j[keep]
            read = np.einsum("ij,ij->i", encoder[own[i]], encoder[j])
            columns = {"feature": own[i], "neighbour": j, "cosine": cosine[i, j], "cosine_encoder": read}
            parts.append(pd.DataFrame(columns | {"jaccard": jaccard[i, j], "by": by}))
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[frame.duplicated(["feature", "neighbour"], keep=False), "by"] = "both"
    frame = frame.drop_duplicates(["feature", "neighbour"])
    return frame.sort_values(["feature", "cosine", "neighbour"], ascending=[True, False, True], ignore_index=True)

"""Everything 05 records about every feature: counted in one pass, then joined into one table.

Naming and choosing use val; every rate, purity and enrichment is over test, each repeated file counted once.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.measure.causal import CausalRelevance
from mtlib.measure.codes import per_image, sparse_codes
from mtlib.measure.monosemanticity import MonoScore, Purity
from mtlib.measure.top_images import FeatureScan, scan, top_images_table
from mtlib.truth.kinds import error_features

SPLITS = ("val", "test")
BOTH_ACTIVE_MAX = 8192  # more latents than this: pairs that fire together are not counted
MIN_ACTIVE = 10  # activating test images that a feature needs to be assessed
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


@dataclass
class Measured:
    """One method's pass: scans of val and test, and the measures that watched it (each a frame of S lines)."""

    scans: dict[str, FeatureScan]
    mono: pd.DataFrame
    purity: pd.DataFrame
    causal: pd.DataFrame
    truth: pd.DataFrame | None
    n_labelled: tuple[int, int]  # plausible and implausible test rows

    def label_counts(self) -> dict:
        """n_error (S,), n_active (S,), n_positive, n_rows over the labelled test rows, as `error_ratios` takes them."""
        test = self.scans["test"]
        return {
            "n_error": test.n_active_class[:, 1],
            "n_active": test.n_active_class.sum(axis=1),
            "n_positive": self.n_labelled[1],
            "n_rows": sum(self.n_labelled),
        }


def measure(coder, data, classifier=None, target: str = "x", top_n: int = 20, seed: int = 0) -> Measured:
    """One pass over val and test for all latents of a coder.

    Args:
        coder:      `SparseCoder` or anything with encode, W_enc, W_dec.
        data:       `mtlib.embed.store.Data`.
        classifier: `Classifier`, or None: causal relevance is then NaN.
        target:     "x" (autoencoder) or "y" (transcoder).
        top_n:      length of the top lists.
    Returns: Measured.
    """
    rows = {split: data.rows(split, unique=True) for split in SPLITS}
    n_latents, test = len(coder.W_dec), rows["test"]
    labels, classes = data.labels(), class_codes(data)[0]
    mono, watching = MonoScore(n_latents, data.x.shape[1]), []
    watching.append(lambda split, r, x, z: mono.update(x, z) if split == "test" else None)
    t, images = data.tokens, test[:: data.tokens]
    purity = Purity(classes, images, n_latents, seed=seed) if (classes[images] >= 0).any() else None
    if purity is not None:
        watching.append(lambda split, r, x, z: purity.update(r[::t], per_image(z, t)) if split == "test" else None)
    causal = None if classifier is None else CausalRelevance(coder, classifier, target, seed=seed)
    watching += [causal] if causal is not None else []
    scans = scan(
        coder,
        data.x,
        rows,
        top_n=top_n,
        classes=labels if (labels >= 0).any() else None,
        both_active=n_latents <= BOTH_ACTIVE_MAX,
        observers=watching,
        tokens=t,
    )
    counted = labels[images]
    return Measured(
        scans=scans,
        mono=pd.DataFrame({"mono_score": mono.scores() if mono.n else np.full(n_latents, np.nan)}),
        purity=_purity(purity, class_codes(data)[1], n_latents),
        causal=_causal(causal, n_latents),
        truth=_truth(coder, data, rows, top_n),
        n_labelled=(int((counted == 0).sum()), int((counted == 1).sum())),
    )


def class_codes(data) -> tuple[np.ndarray, list[str]]:
    """(N,) class of every row, -1 where it has no name, and the names in order.

    A class is the folder below the label folder (plausibility) or the class folder.
    """
    name = data.manifest["class_name"].fillna("").astype(str).to_numpy()
    names = sorted(set(name) - {""})
    if len(names) >= len(name) / 2:  # every row its own name (words of an array): no classes
        return np.full(len(name), -1), []
    codes = np.searchsorted(np.array(names, dtype=str), name) if names else np.zeros(len(name), int)
    return np.where(name == "", -1, codes), names


def _purity(purity: Purity | None, names: list[str], n: int) -> pd.DataFrame:
    if purity is None:
        return pd.DataFrame({"purity": np.nan, "purity_null": np.nan, "dominant_class": [""] * n})
    found = purity.result()
    dominant = [names[c] if c >= 0 else "" for c in found["dominant_class"]]
    return pd.DataFrame({k: found[k] for k in ("purity", "purity_null")} | {"dominant_class": dominant})


def _causal(causal: CausalRelevance | None, n: int) -> pd.DataFrame:
    names = ["causal_relevance", "causal_control_latents", "causal_control_random"]
    return pd.DataFrame(np.nan, index=range(n), columns=names) if causal is None else causal.result()[names]


def _truth(coder, data, rows: dict[str, np.ndarray], top_n: int) -> pd.DataFrame | None:
    """The demo's truth of every feature (definitions.md, Truth); None without a truth."""
    if data.truth is None:
        return None
    cause, t = data.truth["cause"].fillna("").to_numpy(str), data.tokens
    codes = {split: sparse_codes(coder, data.x, rows[split], tokens=t) for split in SPLITS}
    found = error_features(codes["val"], codes["test"], cause[rows["val"][::t]], cause[rows["test"][::t]], top=top_n)
    return found[TRUTH_COLUMNS]


def feature_table(measured: Measured, ratios: pd.DataFrame | None) -> pd.DataFrame:
    """features.parquet: one line per latent, none left out.

    Args:
        measured: what `measure` returned.
        ratios:   what `mtlib.measure.relevance.error_ratios` made of `measured.label_counts()`; None where nothing is
            labelled, and the columns about errors are then NaN.
    """
    val, test = measured.scans["val"], measured.scans["test"]
    frame = pd.DataFrame(
        {
            "feature": np.arange(len(test.n_active)),
            "density": test.density,
            "n_active_test": test.n_active,
            "n_active_val": val.n_active,
            "mean_activation": test.mean_activation,
            "max_activation": test.max_activation,
            "assessed": test.n_active >= MIN_ACTIVE if ratios is None else ratios["assessed"].to_numpy(bool),
        }
    )
    for name in RATIOS:
        frame[name] = np.nan if ratios is None else ratios[name].to_numpy()
    frame = pd.concat([frame, measured.mono, measured.purity, measured.causal], axis=1)
    if measured.truth is None:
        return frame[COLUMNS]
    return pd.concat([frame, measured.truth], axis=1)[COLUMNS + TRUTH_COLUMNS]


def write_features(folder: Path, table: pd.DataFrame, measured: Measured, similar: pd.DataFrame, data) -> None:
    """Write features.parquet, top_images.parquet, similar.parquet and histograms.npz (test) into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "features.parquet", index=False)
    top_images_table(measured.scans, data.manifest).to_parquet(folder / "top_images.parquet", index=False)
    similar.to_parquet(folder / "similar.parquet", index=False)
    test = measured.scans["test"]
    write_npz(folder / "histograms.npz", edges=test.edges, counts=test.counts)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Like np.savez_compressed, but without times: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)


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

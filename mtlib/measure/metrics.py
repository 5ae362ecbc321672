"""Every measure of one coder on one split, in one pass over the rows: memory is flat in N.

summary      one number per measure of the definition card
latents      one line per latent: density, mono_score, purity ...
levels       FVU and measured L0 of every level of a Matryoshka coder
progressive  FVU and measured L0 when only the k largest codes of each row are kept
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.measure.codes import BATCH, CodeCounts, code_matrix, count_codes, iter_codes, keep_largest, per_image
from mtlib.measure.monosemanticity import SUPPORT, MonoScore, Purity
from mtlib.measure.probes import LogitChange, ProbeShift
from mtlib.measure.reconstruction import Reconstruction, target_mean
from mtlib.measure.similarity import cknna, decoder_coherence, sample_rows
from mtlib.measure.zero_shot import ZeroShot, ZeroShotDrop

FIRST_KEPT = 16


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns: summary (dict of numbers) and three frames, see the module."""

    summary: dict
    latents: pd.DataFrame
    levels: pd.DataFrame
    progressive: pd.DataFrame


def level_codes(config, z: Tensor, level: int) -> Tensor:
    """The codes (B, m) that level `level` decodes: the first m_l latents, or the k_l largest for nested TopK."""
    if getattr(config, "selection", "") == "nested_topk":
        return keep_largest(z, config.ks[level])
    return z[:, : config.levels[level]]


class Curve:
    """Reconstruction and L0 of several versions of the codes at once (levels, or the k largest)."""

    def __init__(self, keys: list[int], mean: np.ndarray):
        self.keys = keys
        self.sums = [Reconstruction(mean) for _ in keys]
        self.fired = np.zeros(len(keys), np.int64)

    def update(self, i: int, y: Tensor, y_hat: Tensor, n_fired: int) -> None:
        """Add a batch of version i: target, reconstruction, how many codes were not 0 in all."""
        self.sums[i].update(y, y_hat)
        self.fired[i] += n_fired

    def frame(self, name: str) -> pd.DataFrame:
        """One line per version: its key under `name`, fvu, l0."""
        fvu = [s.fvu for s in self.sums]
        return pd.DataFrame({name: self.keys, "fvu": fvu, "l0": self.fired / self.sums[0].n})


def kept_sizes(n_latents: int, first: int = FIRST_KEPT) -> list[int]:
    """16, 32, 64, ... n_latents."""
    sizes = []
    while first < n_latents:
        sizes.append(first)
        first *= 2
    return [*sizes, n_latents]


def evaluate(
    coder,
    x: np.ndarray,
    target: np.ndarray,
    rows: np.ndarray,
    rows_train: np.ndarray | None = None,
    *,
    batch: int = BATCH,
    classes: np.ndarray | None = None,
    probe=None,
    readout: Callable[[Tensor], Tensor] | None = None,
    zero_shot: ZeroShot | None = None,
    tokens: int = 1,
    seed: int = 0,
) -> Evaluation:
    """All measures of one coder on the rows of one split.

    Args:
        coder:      see mtlib/measure/codes.py; target "x" or "y" is not looked at, `target` is.
        x, target:  (N, D) and (N, O) float, arrays or memory maps.
        rows:       (n,) rows to measure on (test), without duplicates.
        rows_train: rows for dead_fraction; None leaves it NaN.
        classes:    (N,) integer class of every row, -1 unknown, for purity; None leaves it out.
        probe:      what `fit_probe` returned, for probe_kl and probe_agreement.
        readout:    target (B, O) -> the classifier's logit, for logit_change.
        zero_shot:  the task for zero_shot_drop; only for a coder of x.
        tokens:     rows of x per image; `rows` holds whole images. n_assessed and purity count images.
    Returns: Evaluation. Measures that were not asked for are absent from the summary.
    Raises: ValueError if target and rows do not fit, or the target does not vary.
    """
    rows = np.asarray(rows)
    S, d_out = coder.W_dec.shape
    if target.shape != (len(x), d_out):
        raise ValueError(f"target {target.shape} for x {x.shape}, W_dec {(S, d_out)}: expected {(len(x), d_out)}")
    mean = target_mean(target, rows)
    total, counts, mono = Reconstruction(mean), CodeCounts(S, tokens), MonoScore(S, x.shape[1])
    levels = Curve(list(range(len(coder.config.levels))), mean)
    kept = Curve(kept_sizes(S), mean)
    images = rows[::tokens]
    purity = Purity(classes, images, S, seed=seed) if classes is not None and (classes[images] >= 0).any() else None
    shifts = [ProbeShift(probe)] if probe is not None else []
    shifts += [LogitChange(readout)] if readout is not None else []
    drop = ZeroShotDrop(zero_shot) if zero_shot is not None else None

    for some, xb, z in iter_codes(coder, x, rows, max(1, batch // tokens) * tokens):
        y = torch.from_numpy(np.ascontiguousarray(target[some], dtype=np.float32)).to(z.device)  # (B, O)
        with torch.no_grad():
            y_hat = coder.decode(z, -1, xb)  # (B, O)
            _add_levels(levels, coder, xb, z, y, y_hat)
            _add_kept(kept, coder, xb, z, y, y_hat)
        total.update(y, y_hat)
        counts.update(z)
        mono.update(xb, z)
        for shift in shifts:
            shift.update(y, y_hat)
        if drop is not None:
            drop.update(some, y, y_hat)
        if purity is not None:
            purity.update(some[::tokens], per_image(z.cpu(), tokens))

    latents = pd.DataFrame({"feature": np.arange(S), "density": counts.density, "mono_score": mono.scores()})
    if purity is not None:
        latents = latents.assign(**purity.result())
    dead = count_codes(coder, x, rows_train, batch).silent_fraction if rows_train is not None else float("nan")
    summary = total.result() | counts.result() | {"dead_fraction": dead} | _mono_summary(latents, mono)
    summary["n_assessed"] = int((counts.fired_images >= SUPPORT).sum())
    for shift in [*shifts, *([drop] if drop is not None else [])]:
        summary |= shift.result()
    summary |= purity_summary(latents) | _cknna_summary(coder, x, rows, seed)
    summary["decoder_coherence"] = decoder_coherence(coder.W_dec.detach().cpu().numpy())
    frame = levels.frame("level")
    frame.insert(1, "n_latents", list(coder.config.levels))
    return Evaluation(summary, latents, frame, kept.frame("kept"))


def _add_levels(levels: Curve, coder, x: Tensor, z: Tensor, y: Tensor, y_hat: Tensor) -> None:
    last = len(levels.keys) - 1
    for i in levels.keys:
        out = y_hat if i == last else coder.decode(z, i, x)
        levels.update(i, y, out, int((level_codes(coder.config, z, i) != 0).sum()))


def _add_kept(kept: Curve, coder, x: Tensor, z: Tensor, y: Tensor, y_hat: Tensor) -> None:
    fired = (z != 0).sum(1)  # (B,)
    most = int(fired.max())
    for i, k in enumerate(kept.keys):  # keeping as many as ever fire changes nothing: no second decode
        out = y_hat if k >= most else coder.decode(keep_largest(z, k), -1, x)
        kept.update(i, y, out, int(fired.clamp(max=k).sum()))


def _mono_summary(latents: pd.DataFrame, mono: MonoScore) -> dict:
    score = latents["mono_score"]
    return {
        "mono_score": float(score.mean()),
        "mono_score_median": float(score.median()),
        "mono_score_p90": float(score.quantile(0.9)),
        "mono_score_undefined": int(score.isna().sum()),
        "mean_cosine": mono.mean_cosine(),
    }


def purity_summary(latents: pd.DataFrame) -> dict:
    """Means over the latents that have a purity, beside the permutation null; {} without classes."""
    if "purity" not in latents:
        return {}
    names = ("purity", "weighted_purity", "purity_null", "weighted_purity_null")
    return {name: float(latents[name].mean()) for name in names} | {"n_purity": int(latents["purity"].notna().sum())}


def _cknna_summary(coder, x: np.ndarray, rows: np.ndarray, seed: int) -> dict:
    samples = sample_rows(rows, seed)
    if len(samples[0]) < 20:
        return {"cknna": float("nan"), "cknna_sd": float("nan"), "cknna_rows": len(samples[0])}
    values = [cknna(code_matrix(coder, x, s), np.asarray(x[s], np.float64)) for s in samples]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"cknna": float(np.mean(values)), "cknna_sd": sd, "cknna_rows": len(samples[0])}

"""One pass over a split gives everything that is measured of a coder; memory is flat in the number of rows.

summary      one number per measure of the definition card
splits       those of them that every split has: on train, val and test
latents      one line per latent: how often and how strongly it fires, errors among its images, mono_score, purity
strongest    of each latent the images on which it fires most, and a histogram of its activations
levels       FVU and measured L0 of every level of a Matryoshka coder
progressive  FVU and measured L0 when only the largest codes of each row are kept, also more than the k of its training

With T tokens per image a latent's activation on an image is its largest over the tokens, and what counts images counts these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.coders.scaling import row_norms
from mtlib.measure.codes import BATCH, MIN_ACTIVE, CodeCounts, iter_codes, per_image
from mtlib.measure.logit import LogitChange
from mtlib.measure.monosemanticity import MonoScore, Purity
from mtlib.measure.probes import ProbeShift
from mtlib.measure.reconstruction import Curve, Reconstruction, kept_sizes, largest, levels, target_mean, trained_k
from mtlib.measure.similarity import decoder_coherence, neighbours_kept
from mtlib.measure.zero_shot import ZeroShot, ZeroShotDrop

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
TOP_N, BINS = 20, 32


class TopK:
    """The `top_n` largest activations of every feature, with their rows. Equal activations: the smaller row wins.

    Activation and row are packed into one integer, (bits of the float32, ROW_MASK - row). Positive floats sort like
    their bits, so every key is distinct and the order is exact whatever the order or size of the batches.
    """

    def __init__(self, n_latents: int, top_n: int):
        self.keys = torch.zeros(n_latents, top_n, dtype=torch.int64)  # 0 marks an empty place
        self.top_n = top_n

    def update(self, z: Tensor, rows: np.ndarray) -> None:
        """Merge a batch of codes z (B, S), float32, with the row number of each of its B rows."""
        z, row_keys = z.T.contiguous(), torch.from_numpy(ROW_MASK - np.asarray(rows, dtype=np.int64))
        floor = (self.keys[:, -1] >> ROW_BITS).to(torch.int32).view(torch.float32)  # a value that could still enter
        busy = ((z > 0) & (z >= floor[:, None])).any(dim=1).nonzero()[:, 0]
        if len(busy) == 0:
            return
        values = z[busy].float().clamp_min(0).view(torch.int32).to(torch.int64)  # (busy, B)
        keys = torch.where(values > 0, (values << ROW_BITS) | row_keys, 0)
        if keys.shape[1] > self.top_n:
            keys = keys.topk(self.top_n, dim=1).values
        self.keys[busy] = torch.cat([self.keys[busy], keys], dim=1).sort(dim=1, descending=True).values[:, : self.top_n]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (S, top_n) int64 with -1 for empty places, and activations (S, top_n) float32 with 0 there."""
        rows = torch.where(self.keys > 0, ROW_MASK - (self.keys & ROW_MASK), -1)
        return rows.numpy(), (self.keys >> ROW_BITS).to(torch.int32).view(torch.float32).numpy()


class Histogram:
    """Counts of each feature's positive activations in equal bins from 0 to a power of two above its maximum.

    When a larger value arrives, the range doubles and neighbouring bins are merged, which is exact; so one pass is enough.
    """

    def __init__(self, n_latents: int, bins: int = BINS):  # an even number
        self.counts = torch.zeros(n_latents, bins, dtype=torch.int64)
        self.exponent = torch.full((n_latents,), -149, dtype=torch.int32)  # upper edge is 2 ** exponent
        self.bins = bins

    def update(self, z: Tensor) -> None:
        """Add a batch of codes z (B, S)."""
        largest = z.max(dim=0).values
        needed = torch.where(largest > 0, torch.frexp(largest).exponent, -149)  # value < 2 ** needed
        needed = torch.maximum(needed.to(torch.int32), self.exponent)
        while (grow := (needed > self.exponent) & (self.counts.sum(dim=1) > 0)).any():
            pairs = self.counts[grow].view(-1, self.bins // 2, 2).sum(dim=2)
            self.counts[grow] = torch.cat([pairs, torch.zeros_like(pairs)], dim=1)
            self.exponent[grow] += 1
        self.exponent = needed
        row, latent = (z > 0).nonzero(as_tuple=True)
        place = torch.ldexp(z[row, latent].double(), -self.exponent[latent]) * self.bins
        flat = latent * self.bins + place.long()
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def edges(self) -> np.ndarray:
        """(S, bins + 1) float64 bin edges; all zero for a feature that never fired."""
        top = np.ldexp(1.0, self.exponent.numpy()) * (self.counts.sum(dim=1).numpy() > 0)
        return top[:, None] * np.linspace(0, 1, self.bins + 1)


class Activity:
    """On how many images each latent fires (activation > 0), how strongly, on which most; how many of these show an error.

    labels: (N,) 1 implausible, 0 plausible, -1 unknown, of every row, or None; top_n: length of the lists of strongest images.
    """

    def __init__(self, n_latents: int, top_n: int = TOP_N, labels: np.ndarray | None = None):
        self.top, self.histogram, self.labels = TopK(n_latents, top_n), Histogram(n_latents), labels
        self.n_images, self.total = 0, torch.zeros(n_latents).double()
        self.n_active = torch.zeros(n_latents, dtype=torch.int64)
        self.by_label = torch.zeros(n_latents, 2, dtype=torch.int64)  # plausible, implausible

    def update(self, rows: np.ndarray, z: Tensor) -> None:
        """Add a batch: the first row of each image, (B,), and the images' codes z (B, S) on the CPU."""
        z = z.float()
        if not torch.isfinite(z).all():
            raise ValueError(f"codes of rows {rows[0]}..{rows[-1]} hold NaN or infinite values")
        active = z > 0
        self.top.update(z, rows)
        self.histogram.update(z)
        self.n_images += len(z)
        self.n_active += active.sum(dim=0)
        self.total += z.clamp_min(0).double().sum(dim=0)
        if self.labels is not None:
            one_hot = torch.from_numpy((self.labels[rows][:, None] == np.arange(2)).astype(np.float32))  # (B, 2)
            self.by_label += (active.float().T @ one_hot).round().long()  # exact: counts stay far below 2 ** 24

    def frame(self) -> pd.DataFrame:
        """A line per latent: feature, n_active, density, mean_activation (over its images), max_activation; with labels
        n_labelled and n_error, its labelled images and the implausible ones."""
        n = self.n_active.numpy()
        frame = pd.DataFrame({"feature": np.arange(len(n)), "n_active": n, "density": n / max(self.n_images, 1)})
        frame["mean_activation"] = self.total.numpy() / np.maximum(n, 1)
        frame["max_activation"] = self.top.result()[1][:, 0]
        if self.labels is not None:
            frame["n_labelled"], frame["n_error"] = self.by_label.sum(1).numpy(), self.by_label[:, 1].numpy()
        return frame


def activity(coder, x: np.ndarray, rows: np.ndarray, *, tokens: int = 1, batch: int = BATCH, **settings) -> Activity:
    """`Activity` of one pass over rows of x (N, D), whole images; settings: its top_n and labels. Rows may be none."""
    found = Activity(len(coder.W_dec), **settings)
    for some, _, z in iter_codes(coder, x, rows, batch, tokens) if len(rows) else ():
        found.update(some[::tokens], per_image(z.cpu(), tokens))
    return found


class SplitSums:
    """What is measured on every split: the reconstruction, how many latents fire, MonoScore; and the same as MonoLoss's authors
    report it, with unit_rows of targets of norm 1."""

    def __init__(self, coder, x: np.ndarray, target: np.ndarray, rows: np.ndarray, tokens: int = 1):
        self.coder, self.target, n_latents = coder, target, len(coder.W_dec)
        self.total = self.in_units = Reconstruction(target_mean(target, rows))
        if getattr(coder.config, "unit_rows", False):
            self.in_units = Reconstruction(np.zeros(target.shape[1]))
        self.counts, self.mono = CodeCounts(n_latents, tokens), MonoScore(n_latents, x.shape[1])

    @torch.no_grad()
    def update(self, rows: np.ndarray, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch as `iter_codes` gives it. Returns: its targets and their reconstructions, (B, O) twice."""
        y = torch.from_numpy(np.ascontiguousarray(self.target[rows], dtype=np.float32)).to(z.device)
        y_hat = self.coder.decode(z, -1, x)
        self.total.update(y, y_hat)
        if self.in_units is not self.total:
            self.in_units.update(y / row_norms(y), y_hat / row_norms(y))
        self.counts.update(z)
        self.mono.update(x, z)
        return y, y_hat

    def result(self) -> dict:
        return self.total.result() | self.counts.result() | self.mono.summary()

    def published(self) -> dict:
        return self.in_units.published() | {"active": self.counts.result()["l0"]} | self.mono.published()


@dataclass(frozen=True)
class Scan:
    """What `scan` returns, see the module."""

    summary: dict
    splits: dict[str, dict]
    latents: pd.DataFrame
    levels: pd.DataFrame
    progressive: pd.DataFrame
    activity: Activity


def scan(
    coder,
    x: np.ndarray,
    target: np.ndarray,
    rows: np.ndarray,
    others: Mapping[str, np.ndarray] | None = None,
    *,
    batch: int = BATCH,
    labels: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    probe=None,
    probe_labels: np.ndarray | None = None,
    readout: Callable[[Tensor], Tensor] | None = None,
    zero_shot: ZeroShot | None = None,
    tokens: int = 1,
    top_n: int = TOP_N,
    seed: int = 0,
) -> Scan:
    """Everything that is measured of one coder on the rows of one split; what was not asked for is absent from the summary.

    Args:
        x, target:  (N, D) and (N, O) float, arrays or memory maps.
        rows:       (n,) rows to measure on (test), without duplicates, whole images.
        others:     rows of other splits; those of "train" give dead_fraction, NaN without them.
        labels:     (N,) see `Activity`.
        classes:    (N,) integer class of every row, -1 unknown, for purity; None leaves it out.
        probe:      what `fit_probe` returned, for probe_kl and probe_agreement; probe_labels: (N,) what it says, for its F1.
        readout:    target (B, O) -> the classifier's logit, for logit_change.
        zero_shot:  the task for zero_shot_drop; only for a coder of x.
        tokens:     rows of x per image. n_assessed, purity and all of `Activity` count images, the rest counts rows.
    """
    rows = np.asarray(rows)
    S, d_out = coder.W_dec.shape
    if target.shape != (len(x), d_out):
        raise ValueError(f"target {target.shape} for x {x.shape}, W_dec {(S, d_out)}: expected {(len(x), d_out)}")
    images = rows[::tokens]
    test = SplitSums(coder, x, target, rows, tokens)
    mean = test.total.mean
    by_level, by_size = Curve(len(coder.config.levels), mean), Curve(len(kept_sizes(S)), mean)
    active = Activity(S, top_n, labels)
    purity = Purity(classes, images, S, seed=seed) if classes is not None and (classes[images] >= 0).any() else None
    asked = ((partial(ProbeShift, labels=probe_labels), probe), (LogitChange, readout), (ZeroShotDrop, zero_shot))
    losses = [measure(given) for measure, given in asked if given is not None]

    for some, xb, z in iter_codes(coder, x, rows, batch, tokens):
        y, y_hat = test.update(some, xb, z)
        with torch.no_grad():
            by_level.update(y, levels(coder, xb, z, y_hat))
            by_size.update(y, largest(coder, xb, z, y_hat))
        for loss in losses:
            loss.update(some, y, y_hat)
        of_images = per_image(z.cpu(), tokens)
        active.update(some[::tokens], of_images)
        if purity is not None:
            purity.update(some[::tokens], of_images)

    summary = test.result() | {"dead_fraction": float("nan")}
    splits = {"test": test.result() | test.published()}
    for name, of_split in (others or {}).items():
        found = SplitSums(coder, x, target, of_split, tokens)
        for some in iter_codes(coder, x, of_split, batch, tokens):
            found.update(*some)
        splits[name] = found.result() | found.published()
    if "train" in splits:
        summary["dead_fraction"] = splits["train"]["silent_fraction"]
    summary["n_assessed"] = int((test.counts.fired_images >= MIN_ACTIVE).sum())
    for loss in losses:
        summary |= loss.result()
    latents = active.frame().assign(mono_score=test.mono.scores())
    if purity is not None:
        of_latents = pd.DataFrame(purity.result())
        latents = latents.join(of_latents)
        summary |= {name: float(of_latents[name].mean()) for name in of_latents.filter(like="purity")}
        summary["n_purity"] = int(of_latents["purity"].notna().sum())
    summary |= neighbours_kept(coder, x, rows, seed)
    summary["decoder_coherence"] = decoder_coherence(coder.W_dec.detach().cpu().numpy())
    of_levels = by_level.result(level=range(len(by_level.fired)), n_latents=coder.config.levels)
    of_sizes = by_size.result(kept=kept_sizes(S), k=trained_k(coder) or np.nan)
    return Scan(summary, splits, latents, of_levels, of_sizes, active)


def top_images_table(found: Mapping[str, Activity], manifest: pd.DataFrame) -> pd.DataFrame:
    """The top lists by split as one table: feature, rank (0 first), row, path, activation, label, split."""
    parts = []
    for split, seen in found.items():
        rows, activations = seen.top.result()
        feature, rank = np.nonzero(rows >= 0)
        part = pd.DataFrame({"feature": feature, "rank": rank, "row": rows[feature, rank]})
        known = manifest[["path", "label"]].reindex(part["row"]).reset_index(drop=True).astype({"label": "Int64"})
        part = part.assign(path=known["path"], activation=activations[feature, rank], label=known["label"], split=split)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def write_scan(folder: Path, test: Scan, val: Activity, manifest: pd.DataFrame, classes: list[str] = ()) -> None:
    """Write latents.parquet (test; n_active_val; the name of dominant_class, "" for none), top_images.parquet (val, test) and
    histograms.npz (test) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    latents = test.latents.assign(n_active_val=val.n_active.numpy())
    if classes:
        latents["dominant_class"] = [classes[c] if c >= 0 else "" for c in latents["dominant_class"]]
    latents.to_parquet(folder / "latents.parquet", index=False)
    top = top_images_table({"val": val, "test": test.activity}, manifest)
    top.to_parquet(folder / "top_images.parquet", index=False)
    histogram = test.activity.histogram
    np.savez_compressed(folder / "histograms.npz", edges=histogram.edges(), counts=histogram.counts.numpy())

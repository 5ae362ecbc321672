"""The coders of a run, and their codes over many rows: in batches, and what can be counted about them.

A coder is any object with encode(x) -> (B, S), decode(z, level, x) -> (B, O), W_dec (S, O) and config.levels, config.target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.store import Data
from mtlib.run.stage import read_back

BATCH = 2048
SPARSE_BELOW = 0.05  # densities under which a sparse product beats the dense one
TOGETHER_MAX = 8192
MIN_ACTIVE = 10  # activating test images from which a latent is assessed


@dataclass(frozen=True)
class Subject:
    """One trained coder of the run."""

    method: str
    seed: int
    preset: str
    target: str
    coder: SparseCoder
    l0_target: float = float("nan")  # what training aimed at; NaN: none

    @property
    def key(self) -> dict:
        """The columns that name it in every table."""
        return {"method": self.method, "seed": self.seed, "target": self.target, "l0_target": self.l0_target}


def read_coders(train: Path) -> pd.DataFrame:
    """coders.csv of a finished 03_train artifact: a line per method and seed, in the order of the params; "" where empty."""
    lines = read_back(train / "coders.csv", ["preset", "target", "folder"])
    return lines.fillna({"preset": "", "folder": ""}).assign(l0_target=lines.get("l0_target", np.nan))


def interpreted(train: Path) -> pd.DataFrame:
    """`read_coders`, one line per method: its first seed, or why it was skipped."""
    return read_coders(train).drop_duplicates("method", ignore_index=True)


def open_subjects(train: Path) -> tuple[list[Subject], pd.DataFrame]:
    """The coders of `read_coders` in its order, and its lines that are not ok (method, seed, preset, target, status, reason)."""
    lines = read_coders(train)
    ok = lines["status"] == "ok"
    subjects = [
        Subject(r.method, int(r.seed), r.preset, r.target, SparseCoder.from_pretrained(train / r.folder), r.l0_target)
        for r in lines[ok].itertuples()
    ]
    return subjects, lines.loc[~ok, ["method", "seed", "preset", "target", "status", "reason"]].reset_index(drop=True)


def first_seeds(subjects: list[Subject]) -> list[Subject]:
    """The first seed of each method, in order: the coder of a method that is interpreted."""
    return [s for i, s in enumerate(subjects) if s.method not in {other.method for other in subjects[:i]}]


def subject_named(subjects: list[Subject], method: str = "") -> Subject:
    """The subject of a method, "" for the first. Raises: ValueError naming those that there are."""
    found = [s for s in subjects if method in ("", s.method)]
    if not found:
        raise ValueError(f"method = {method!r}: there are {', '.join(s.method for s in subjects) or 'no coders'}")
    return found[0]


def stacked(subjects: list[Subject], frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames of all subjects (`levels`, `progressive` or `latents` of their scans) under each other, with `Subject.key`."""
    keyed = [f.assign(**s.key)[[*s.key, *f]] for s, f in zip(subjects, frames, strict=True)]
    none = pd.DataFrame(columns=["method", "seed", "target", "l0_target"])
    return pd.concat(keyed, ignore_index=True) if keyed else none


def target_of(data: Data, subject: Subject) -> np.ndarray:
    """The array that a subject reconstructs: x (N, D) or y (N, O)."""
    if subject.target == "y" and data.y is None:
        raise ValueError(f"{subject.method}: a transcoder, but the run has no hidden layer y (02_classify)")
    return data.y if subject.target == "y" else data.x


def iter_codes(
    coder, x: np.ndarray, rows: np.ndarray, batch: int = BATCH, tokens: int = 1
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield (rows (B,), x (B, D) float32, z (B, S)) batch by batch, without gradients.

    Args:
        x:     (N, D) float array or memory map. rows: (n,) those of x to encode, in this order.
        batch: rows at a time, in whole images of `tokens` rows; it changes the memory, not the codes.
    """
    rows, batch = np.asarray(rows), max(1, batch // tokens) * tokens
    if len(rows) == 0 or np.ndim(x) != 2:
        raise ValueError(f"iter_codes needs at least one row of an (N, D) array, got {len(rows)} rows of {np.shape(x)}")
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        xb = torch.from_numpy(np.ascontiguousarray(x[some], dtype=np.float32)).to(coder.W_dec.device)
        with torch.no_grad():
            zb = coder.encode(xb)  # (B, S)
        yield some, xb, zb


def sparse_codes(coder, x: np.ndarray, rows: np.ndarray, batch: int = BATCH, tokens: int = 1) -> sparse.csr_array:
    """(n, S) float32 codes of all rows at once, only what is not 0: about n * L0 * 8 bytes.

    With `tokens` rows per image, (n / tokens, S): of every image and latent the largest code, see `per_image`.
    """
    zs = (per_image(z, tokens) for _, _, z in iter_codes(coder, x, rows, batch, tokens))
    return sparse.vstack([sparse.csr_array(z.float().cpu().numpy()) for z in zs], format="csr")


def per_image(z: Tensor, tokens: int) -> Tensor:
    """(B / tokens, S): each latent's largest code of an image, of codes (B, S) whose rows hold whole images in order."""
    return z if tokens == 1 else z.view(-1, tokens, z.shape[1]).amax(dim=1)


def dense(codes: sparse.sparray | np.ndarray, columns=None) -> np.ndarray:
    """Codes (n, S), or some of their columns, as an array."""
    codes = codes if columns is None else codes[:, np.asarray(columns)]
    return codes.toarray() if sparse.issparse(codes) else np.asarray(codes)


def matrix(z: Tensor) -> sparse.csc_array | np.ndarray:
    """z (B, S) as float64 for products: sparse by columns where that is faster, else the dense array."""
    z = z.detach().cpu()
    z = (z.float() if z.dtype.itemsize < 4 else z).numpy()
    places = np.flatnonzero(z != 0)  # of a bool array: several times faster than of floats
    if len(places) > SPARSE_BELOW * z.size:
        return z.astype(np.float64)
    rows, columns = np.divmod(places, z.shape[1])
    pointers = np.searchsorted(rows, np.arange(len(z) + 1))
    by_rows = sparse.csr_array((z.ravel()[places].astype(np.float64), columns, pointers), shape=z.shape)
    return by_rows.tocsc()


class CodeCounts:
    """How often latents fire (their code is not 0), on rows and on images, where one of its `tokens` rows is enough."""

    def __init__(self, n_latents: int, tokens: int = 1):
        self.n, self.tokens = 0, tokens
        self.fired = np.zeros(n_latents, np.int64)  # (S,)
        self.fired_images = np.zeros(n_latents, np.int64)  # (S,)

    def update(self, z: Tensor) -> None:
        """Add a batch of codes (B, S) of whole images."""
        self.n += len(z)
        fires = z != 0
        self.fired += fires.sum(0).cpu().numpy()
        self.fired_images += per_image(fires, self.tokens).sum(0).cpu().numpy()

    def result(self) -> dict:
        """l0 (mean number of latents that fire per row, measured), sparsity (1 - l0 / S) and silent_fraction (never fire)."""
        l0 = float(self.fired.sum() / self.n)
        return {"l0": l0, "sparsity": 1 - l0 / len(self.fired), "silent_fraction": float((self.fired == 0).mean())}


def keep_largest(z: Tensor, k: int) -> Tensor:
    """z (B, S) with all but the k largest by magnitude of each row set to 0."""
    if k >= z.shape[1]:
        return z
    index = z.abs().topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(z).scatter(1, index, z.gather(1, index))


def fire_together(coder, x: np.ndarray, rows: np.ndarray, tokens: int = 1, batch: int = BATCH) -> np.ndarray | None:
    """(S, S) int64 images of rows on which two latents fire (code > 0) together; None for more than 8,192 latents."""
    if len(coder.W_dec) > TOGETHER_MAX:
        return None
    together = torch.zeros(len(coder.W_dec), len(coder.W_dec), dtype=torch.int64)
    for _, _, z in iter_codes(coder, x, rows, batch, tokens):
        fires = (per_image(z, tokens) > 0).float().cpu()
        together += (fires.T @ fires).round().long()  # exact: counts stay far below 2 ** 24
    return together.numpy()

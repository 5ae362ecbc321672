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


def open_subjects(train: Path) -> tuple[list[Subject], pd.DataFrame]:
    """The coders of a finished 03_train artifact.

    Returns: subjects in the order of coders.csv; frame of the lines that are not ok (method, seed, preset, target,
        status, reason).
    """
    lines = pd.read_csv(train / "coders.csv", keep_default_na=False)
    lines["l0_target"] = pd.to_numeric(lines.get("l0_target", np.nan), errors="coerce")
    ok = lines["status"] == "ok"
    subjects = [
        Subject(r.method, int(r.seed), r.preset, r.target, SparseCoder.from_pretrained(train / r.folder), r.l0_target)
        for r in lines[ok].itertuples()
    ]
    return subjects, lines.loc[~ok, ["method", "seed", "preset", "target", "status", "reason"]].reset_index(drop=True)


def first_seeds(subjects: list[Subject]) -> list[Subject]:
    """The first seed of each method, in order: the coder of a method that is interpreted."""
    first: dict[str, Subject] = {}
    for s in subjects:
        first.setdefault(s.method, s)
    return list(first.values())


def subject_named(subjects: list[Subject], method: str = "") -> Subject:
    """The subject of a method, "" for the first. Raises: ValueError naming those that there are."""
    found = [s for s in subjects if method in ("", s.method)]
    if not found:
        raise ValueError(f"method = {method!r}: there are {', '.join(s.method for s in subjects) or 'no coders'}")
    return found[0]


def interpreted(train: Path) -> pd.DataFrame:
    """coders.csv, one line per method, in the order of the params: its first seed, or why it was skipped.

    Args:
        train: folder of the finished 03_train artifact.
    Returns: coders.csv's columns, with `reason` and `folder` as text ("" when empty).
    Raises: ValueError naming the file when a column is missing.
    """
    path = Path(train) / "coders.csv"
    dtype = dict.fromkeys(("method", "reason", "folder", "status", "target"), str)
    frame = pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""])  # "null" is a name like another
    if missing := {"method", "seed", "target", "status", "reason", "folder"} - set(frame.columns):
        raise ValueError(f"{path}: no column {sorted(missing)[0]!r}; run notebook 03_train again")
    text = ["method", "reason", "folder", "status", "target"]
    frame[text] = frame[text].fillna("")
    return frame.drop_duplicates("method", keep="first").reset_index(drop=True)


def stacked(subjects: list[Subject], frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames of all subjects (`levels`, `progressive` or `latents` of their scans) under each other, with `Subject.key`."""
    keys = ["method", "seed", "target", "l0_target"]
    if not frames:
        return pd.DataFrame(columns=keys)
    frame = pd.concat([f.assign(**s.key) for s, f in zip(subjects, frames, strict=True)], ignore_index=True)
    return frame[keys + [c for c in frame if c not in keys]]


def target_of(data: Data, subject: Subject) -> np.ndarray:
    """The array a subject reconstructs: x (N, D) or y (N, O)."""
    if subject.target == "y" and data.y is None:
        raise ValueError(f"{subject.method}: a transcoder, but the run has no hidden layer y (02_classify)")
    return data.y if subject.target == "y" else data.x


def iter_codes(
    coder, x: np.ndarray, rows: np.ndarray, batch: int = BATCH
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield (rows (B,), x (B, D) float32, z (B, S)) batch by batch, without gradients.

    Args:
        coder: see the module.
        x:     (N, D) float array or memory map.
        rows:  (n,) integer rows of x to encode, in this order.
        batch: rows at a time; it changes the memory, not the codes.
    Raises: ValueError if rows is empty or x is not two-dimensional.
    """
    rows = np.asarray(rows)
    if len(rows) == 0 or np.ndim(x) != 2:
        raise ValueError(f"iter_codes needs at least one row of an (N, D) array, got {len(rows)} rows of {np.shape(x)}")
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        xb = torch.from_numpy(np.ascontiguousarray(x[some], dtype=np.float32)).to(coder.W_dec.device)
        with torch.no_grad():
            zb = coder.encode(xb)  # (B, S)
        yield some, xb, zb


def code_matrix(coder, x: np.ndarray, rows: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """(n, S) float32 codes of all rows at once: n * S * 4 bytes, for the truth measures of the demo and for samples."""
    return np.concatenate([z.float().cpu().numpy() for _, _, z in iter_codes(coder, x, rows, batch)])


def sparse_codes(coder, x: np.ndarray, rows: np.ndarray, batch: int = BATCH, tokens: int = 1) -> sparse.csr_array:
    """(n, S) float32 codes of all rows at once, only what is not 0: about n * L0 * 8 bytes.

    With `tokens` rows per image, (n / tokens, S): of every image and latent the largest code, see `per_image`.
    """
    batch = max(1, batch // tokens) * tokens
    zs = (per_image(z, tokens) for _, _, z in iter_codes(coder, x, rows, batch))
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


def cross(z: sparse.csc_array | np.ndarray, other: np.ndarray) -> np.ndarray:
    """z.T @ other as a dense float64 array (S, C)."""
    return np.asarray(z.T @ other)


class CodeCounts:
    """How often latents fire: streaming counts, exact integers.

    A latent fires where its code is not 0 (codes may be negative), and on an image where it fires on one of its `tokens` rows.
    """

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

    @property
    def density(self) -> np.ndarray:
        """(S,) share of rows on which each latent fires."""
        return self.fired / self.n

    @property
    def l0(self) -> float:
        """Mean number of latents that fire per row, measured."""
        return float(self.fired.sum() / self.n)

    @property
    def silent_fraction(self) -> float:
        """Share of latents that never fire; on the train split this is `dead_fraction`."""
        return float((self.fired == 0).mean())

    def result(self) -> dict:
        """l0, sparsity (1 - l0 / S) and silent_fraction."""
        return {"l0": self.l0, "sparsity": 1 - self.l0 / len(self.fired), "silent_fraction": self.silent_fraction}


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
    for _, _, z in iter_codes(coder, x, rows, max(1, batch // tokens) * tokens):
        fires = (per_image(z, tokens) > 0).float().cpu()
        together += (fires.T @ fires).round().long()  # exact: counts stay far below 2 ** 24
    return together.numpy()

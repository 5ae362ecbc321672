"""Codes of a coder over many rows: in batches, and what can be counted about them in one pass.

A coder is any object with encode(x) -> (B, S), decode(z, level, x) -> (B, O), W_dec (S, O) and config.levels, config.target.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

BATCH = 2048
SPARSE_BELOW = 0.05  # densities under which a sparse product beats the dense one


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


def count_codes(coder, x: np.ndarray, rows: np.ndarray, batch: int = BATCH) -> CodeCounts:
    """CodeCounts of one pass over rows."""
    counts = CodeCounts(coder.W_dec.shape[0])
    for _, _, z in iter_codes(coder, x, rows, batch):
        counts.update(z)
    return counts


def keep_largest(z: Tensor, k: int) -> Tensor:
    """z (B, S) with all but the k largest by magnitude of each row set to 0."""
    if k >= z.shape[1]:
        return z
    index = z.abs().topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(z).scatter(1, index, z.gather(1, index))

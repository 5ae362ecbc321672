"""Do codes keep the neighbours of their inputs (CKNNA), are decoder rows alike (coherence), do seeds agree (stability)?"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from mtlib.embed.store import unit_rows
from mtlib.measure.codes import Subject, iter_codes

SAMPLE, N_SAMPLES, NEIGHBOURS = 2000, 5, 10
SHARED = 0.7  # cosine from which a matched latent counts as the same one
COPY = 0.9  # correlation of codes above which a latent is a copy of another


def nearest(similarity: np.ndarray, n: int) -> np.ndarray:
    """(B, n) columns of the n largest entries of each row of similarity (B, S); equal entries: the smaller column."""
    n = min(n, similarity.shape[1])
    return np.argsort(-similarity, axis=1, kind="stable")[:, :n]


def copies(codes: sparse.csr_array, chunk: int = 1024) -> np.ndarray:
    """Which latents say the same: the codes of each against those of latents that are active on more rows.

    Args: codes: (n, S) of the rows that decide. chunk: latents at a time; memory is chunk * S numbers.
    Returns: (S,) of each latent the most active one whose codes correlate with its own above COPY and that is itself no
        copy; the latent itself where there is none.
    """
    z = sparse.csc_array(codes, dtype=np.float64)
    n, n_active = z.shape[0], np.diff(z.indptr)
    mean, norm = z.sum(0) / n, np.sqrt(np.maximum(z.power(2).sum(0) / n - (z.sum(0) / n) ** 2, 0))
    order = np.argsort(-n_active, kind="stable")
    place, alike = np.argsort(order), {}
    for start in range(0, len(norm), chunk):
        own = np.arange(start, min(start + chunk, len(norm)))
        together = (z[:, own].T @ z).toarray() / n - mean[own, None] * mean
        near = (together > COPY * norm[own, None] * norm) & (norm[own, None] * norm > 0) & (place < place[own, None])
        for i, j in zip(*np.nonzero(near), strict=True):
            alike.setdefault(int(own[i]), []).append(int(j))
    of = np.arange(len(norm))
    for i in order:
        firsts = [j for j in alike.get(int(i), []) if of[j] == j]
        of[i] = min(firsts, key=place.__getitem__, default=i)
    return of


def _neighbours(kernel: np.ndarray, k: int) -> np.ndarray:
    """(n, n) bool: the k most similar other rows of each row."""
    kernel = kernel.copy()
    np.fill_diagonal(kernel, -np.inf)
    mask = np.zeros(kernel.shape, bool)
    np.put_along_axis(mask, np.argpartition(-kernel, k - 1, axis=1)[:, :k], True, axis=1)
    return mask


def hsic_unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased HSIC of two kernels (n, n), n >= 4, their diagonals ignored; Song et al. 2012, eq. 5."""
    n = len(a)
    a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
    value = (a * b.T).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(1)) / (n - 2)
    return float(value / (n * (n - 3)))


def cknna(a: np.ndarray, b: np.ndarray) -> float:
    """Alignment of two representations of the same rows: HSIC restricted to mutual 10-nearest neighbours.

    A pair (i, j) counts when j is among the nearest of i in both, as published; so the masks are not symmetric.

    Args: a, b: (n, P) and (n, Q) float, n > 13; linear kernels, so a constant factor changes nothing.
    Returns: () at most about 1 (a against itself is 1).
    Source: Huh et al. 2024, arXiv 2405.07987.
    """
    k = NEIGHBOURS
    if len(a) != len(b) or len(a) <= k + 3:
        raise ValueError(f"cknna needs the same rows twice and more than {k + 3} of them, got {len(a)} and {len(b)}")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a @ a.T, b @ b.T
    near_a, near_b = _neighbours(a, k), _neighbours(b, k)
    both = near_a & near_b
    cross = hsic_unbiased(both * a, both * b)
    scale = hsic_unbiased(near_a * a, near_a * a) * hsic_unbiased(near_b * b, near_b * b)
    return cross / np.sqrt(scale) if scale > 0 else float("nan")


def neighbours_kept(coder, x: np.ndarray, rows: np.ndarray, seed: int = 0) -> dict:
    """cknna of codes against inputs: mean and sd (cknna_sd) over `sample_rows`, whose size is cknna_rows; NaN below 20 rows."""
    samples, values = sample_rows(rows, seed), []
    for some in samples if len(samples[0]) >= 20 else ():
        z = np.concatenate([z.float().cpu().numpy() for _, _, z in iter_codes(coder, x, some)])
        values.append(cknna(z, np.asarray(x[some], np.float64)))
    mean, sd = np.mean(values) if values else np.nan, np.std(values, ddof=1) if len(values) > 1 else np.nan
    return {"cknna": float(mean), "cknna_sd": float(sd), "cknna_rows": len(samples[0])}


def sample_rows(rows: np.ndarray, seed: int = 0, size: int = SAMPLE, n_samples: int = N_SAMPLES) -> list[np.ndarray]:
    """`n_samples` seeded samples of `size` rows; the one sample of all rows when there are no more than that."""
    rows = np.asarray(rows)
    if len(rows) <= size:
        return [rows]
    return [np.sort(np.random.default_rng([seed, i]).choice(rows, size, replace=False)) for i in range(n_samples)]


def decoder_coherence(w_dec: np.ndarray) -> float:
    """Mean squared cosine between distinct rows of w_dec (S, O), those of norm 0 left out, over S(S-1) ordered pairs.

    Returns: () 0 for orthogonal rows, 1 for parallel ones; about 1 / O for random directions. NaN when S < 2.
    """
    u = unit_rows(w_dec)
    u = u[u.any(axis=1)]
    n = len(u)
    return float((((u.T @ u) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")


def matched(w_a: np.ndarray, w_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of w_a (S_a, O) and w_b (S_b, O) matched one to one so that their cosines have the largest sum (Hungarian).

    Returns: rows of w_a, rows of w_b and cosines, each (min(S_a, S_b),), in the order of w_a's rows.
    """
    if np.shape(w_a)[1] != np.shape(w_b)[1]:
        raise ValueError(f"rows of widths {np.shape(w_a)[1]} and {np.shape(w_b)[1]} cannot be matched")
    cosine = unit_rows(w_a) @ unit_rows(w_b).T
    row, partner = linear_sum_assignment(cosine, maximize=True)
    return row, partner, cosine[row, partner]


def stability(w_a: np.ndarray, w_b: np.ndarray) -> float:
    """Mean cosine of the decoder rows of two seeds, `matched` one to one, those of norm 0 left out: 1 for the same in any order."""
    return float(matched(*(w[w.any(axis=1)] for w in (w_a, w_b)))[2].mean())


def seed_stability(subjects: list[Subject]) -> dict[str, float]:
    """method -> mean over pairs of seeds of `stability`; methods with one seed are absent."""
    found: dict[str, list[float]] = {}
    for a, b in seed_pairs(subjects):
        found.setdefault(a.method, []).append(stability(*(s.coder.W_dec.detach().cpu().numpy() for s in (a, b))))
    return {method: float(np.mean(values)) for method, values in found.items()}


def seed_pairs(subjects: list[Subject]) -> list[tuple[Subject, Subject]]:
    """Every pair of seeds of every method."""
    methods = dict.fromkeys(s.method for s in subjects)
    return [pair for m in methods for pair in combinations([s for s in subjects if s.method == m], 2)]


def file_pairs(subjects: list[Subject]) -> list[tuple[Subject, Subject]]:
    """Every pair of coders that were trained elsewhere (of no preset) and write the same: their files say no seeds."""
    given = [s for s in subjects if not s.preset]
    return [(a, b) for a, b in combinations(given, 2) if a.target == b.target]


def align(subjects: list[Subject], shared: float = SHARED, seed: int = 0) -> pd.DataFrame:
    """Do two seeds of a method, or two files, learn the same latents? Matched one to one, by what they write and what they read.

    Returns: frame of method (of two files "a | b"), seed_a, seed_b, n_latents (matched); decoder, encoder: mean cosine of the matched
        rows; decoder_shared, encoder_shared: share of pairs with cosine >= `shared`; both_shared: share of latents whose two
        matchings agree on the partner and are both >= `shared`; chance: the decoder's mean cosine against random rows.
    Source: the matching of arXiv 2501.16615 (used by MSAE, arXiv 2502.20578).
    """
    lines = []
    for a, b in [*seed_pairs(subjects), *file_pairs(subjects)]:
        a, b = sorted((a, b), key=lambda s: s.coder.n_latents)  # every latent of the smaller has a partner
        written = [s.coder.W_dec.detach().cpu().numpy() for s in (a, b)]
        read = [s.coder.W_enc.T.detach().cpu().numpy() for s in (a, b)]
        (_, to_dec, by_dec), (_, to_enc, by_enc) = matched(*written), matched(*read)
        name = a.method if a.method == b.method else f"{a.method} | {b.method}"
        line = {"method": name, "seed_a": a.seed, "seed_b": b.seed, "n_latents": len(written[0])}
        for name, cosine in (("decoder", by_dec), ("encoder", by_enc)):
            line |= {name: cosine.mean(), f"{name}_shared": (cosine >= shared).mean()}
        same = (to_dec == to_enc) & (by_dec >= shared) & (by_enc >= shared)
        random = np.random.default_rng(seed).normal(size=written[0].shape)
        lines.append(line | {"both_shared": same.mean(), "chance": matched(written[0], random)[2].mean()})
    return pd.DataFrame(lines)

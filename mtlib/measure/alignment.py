"""Do two seeds of a method learn the same latents? Latents matched one to one, by what they write and by what they read."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from mtlib.measure.similarity import matched
from mtlib.measure.study import Subject

SHARED = 0.7  # cosine from which a matched latent counts as the same one


def matching(w_a: np.ndarray, w_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one matching of rows whose cosines have the largest sum (Hungarian).

    Args: w_a, w_b (S, O) float.
    Returns: partner (S,): row of w_b that row i of w_a is matched to; cosine (S,) of each pair.
    Raises: ValueError if the shapes differ.
    """
    if np.shape(w_a) != np.shape(w_b):
        raise ValueError(f"weights of shapes {np.shape(w_a)} and {np.shape(w_b)} cannot be matched one to one")
    _, partner, cosine = matched(w_a, w_b)
    return partner, cosine


def align(subjects: list[Subject], shared: float = SHARED, seed: int = 0) -> pd.DataFrame:
    """Every pair of seeds of every method.

    Returns: frame of method, seed_a, seed_b, n_latents; decoder, encoder: mean cosine of the matched rows; decoder_shared,
        encoder_shared: share of pairs with cosine >= `shared`; both_shared: share of latents whose two matchings agree on the
        partner and are both >= `shared`; chance: the decoder's mean cosine against random rows.
    Source: the matching of arXiv 2501.16615 (used by MSAE, arXiv 2502.20578).
    """
    methods: dict[str, list[Subject]] = {}
    for s in subjects:
        methods.setdefault(s.method, []).append(s)
    lines = []
    for method, own in methods.items():
        for a, b in combinations(own, 2):
            dec, enc = ([w(s).detach().cpu().numpy() for s in (a, b)] for w in (_decoder, _encoder))
            by_dec, by_enc = matching(*dec), matching(*enc)
            line = {"method": method, "seed_a": a.seed, "seed_b": b.seed, "n_latents": len(dec[0])}
            for name, (_, cosine) in (("decoder", by_dec), ("encoder", by_enc)):
                line |= {name: cosine.mean(), f"{name}_shared": (cosine >= shared).mean()}
            same = (by_dec[0] == by_enc[0]) & (by_dec[1] >= shared) & (by_enc[1] >= shared)
            random = np.random.default_rng(seed).normal(size=dec[0].shape)
            lines.append(line | {"both_shared": same.mean(), "chance": matching(dec[0], random)[1].mean()})
    return pd.DataFrame(lines)


def _decoder(s: Subject):
    return s.coder.W_dec


def _encoder(s: Subject):
    return s.coder.W_enc.T

"""Which features are alike: by the direction they write, by the direction they read, and by firing together."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.embed.store import unit_rows


def nearest(similarity: np.ndarray, n: int) -> np.ndarray:
    """(B, n) columns of the n largest entries of each row of similarity (B, S); equal entries: the smaller column."""
    n = min(n, similarity.shape[1])
    return np.argsort(-similarity, axis=1, kind="stable")[:, :n]


def similar_features(
    W_dec: np.ndarray,
    W_enc: np.ndarray,
    n_active: np.ndarray | None = None,
    together: np.ndarray | None = None,
    n: int = 8,
    chunk: int = 1024,
) -> pd.DataFrame:
    """The n nearest features of each feature that fires, by decoder cosine and by firing together.

    Args:
        W_dec:    (S, O) decoder rows; W_enc: (D, S) encoder columns.
        n_active: (S,) images on which each feature fires; without it all features are taken to fire.
        together: (S, S) of `codes.fire_together`; without it only decoder cosines are used.
        n:        neighbours by each of the two orders.
    Returns: frame with feature, neighbour, cosine (decoder), cosine_encoder, jaccard (rows on which both fire over rows
        on which either does; NaN without `together`), by ("decoder" | "together" | "both"); sorted by feature, then cosine.
    """
    decoder, encoder = unit_rows(W_dec), unit_rows(np.asarray(W_enc).T)
    alive = np.ones(len(decoder), bool) if n_active is None else n_active > 0
    parts = []
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
    twice = frame.duplicated(["feature", "neighbour"], keep=False)
    frame["by"] = np.where(twice, "both", frame["by"])
    frame = frame.drop_duplicates(["feature", "neighbour"])
    return frame.sort_values(["feature", "cosine", "neighbour"], ascending=[True, False, True], ignore_index=True)

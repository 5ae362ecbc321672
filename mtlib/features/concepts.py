"""Names of latents by their own directions, and what naming is good for: search by concepts.

A latent is named after the phrase whose text embedding its decoder row (or encoder column) points to, as in
Discover-then-Name (arXiv 2407.14499), which MSAE follows; no image is looked at. Latents are directions about a mean, so
texts are taken about theirs. Some phrase is always nearest: a name counts only from a cosine that random directions hardly
reach, and whether it fits is tried on the latent's images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.store import Data, unit_rows
from mtlib.measure.codes import Subject, first_seeds, open_subjects, sparse_codes
from mtlib.measure.reconstruction import target_mean
from mtlib.measure.similarity import nearest

TOP = 10  # strongest images that a name is tried on
ROWS = 5000  # test images at most among which they are looked for
QUERIES = 2000  # test images at most that are searched
BY = ("decoder", "encoder")


def open_autoencoders(data: Data, train: Path) -> tuple[list[Subject], list[Subject]]:
    """The autoencoders of x of a finished 03_train artifact: all of them, and of each method the one that is interpreted.

    Raises: ValueError when x holds a layer's activations.
    """
    if "layer" in data.facts:
        raise ValueError("concepts: x holds a layer's activations; name and compare final embeddings (layer = '')")
    everyone = [s for s in open_subjects(train)[0] if s.target == "x"]
    return everyone, first_seeds(everyone)


def chance_cosine(texts: np.ndarray, seed: int = 0) -> float:
    """The cosine to the nearest of texts (V, D), unit rows, that only 1 in 100 random directions exceeds."""
    random = np.random.default_rng(seed).normal(size=(2000, texts.shape[1]))
    return float(np.quantile((unit_rows(random) @ texts.T).max(1), 0.99))


def name_latents(coder, data: Data, by: str = "decoder", threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Name every latent of a coder of x after the vocabulary.

    Args:
        by:        "decoder" or "encoder": the direction that is compared with the texts.
        threshold: cosine from which a name counts; 0: `chance_cosine`.
    Returns: frame of feature, phrase, kind, cosine, runner_up (phrase), ratio (cosine over the runner-up's), named (whether
        the name counts), n_images (test images, of at most ROWS, on which it fires), nearer (mean rank, 0 .. 1, of its strongest
        test images among all test images by cosine to the name; 0.5 says that the name does not fit its images),
        nearer_other (the same for the name of another latent) and threshold.
    Source: arXiv 2407.14499, section 3.2.
    """
    texts = unit_rows(np.asarray(data.vocabulary, np.float64))
    texts = unit_rows(texts - texts.mean(0))  # what all texts share names nothing
    threshold = threshold or chance_cosine(texts, seed)
    latents = {"decoder": coder.W_dec, "encoder": coder.W_enc.T}[by].detach().cpu().double().numpy()  # (S, D)
    order, (best, second) = _two_nearest(unit_rows(latents), texts)
    phrases, kinds = (data.phrases[c].to_numpy(str) for c in ("phrase", "kind"))
    frame = pd.DataFrame({"feature": np.arange(len(best)), "phrase": phrases[order[:, 0]], "kind": kinds[order[:, 0]]})
    frame["cosine"], frame["runner_up"] = best, phrases[order[:, 1]]
    frame["ratio"] = np.where(second > 0, best / np.where(second > 0, second, 1.0), np.nan)
    frame["named"] = best >= threshold
    return frame.assign(**_tried(coder, data, texts, order[:, 0], seed), threshold=threshold)


def _two_nearest(latents: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, 2) the two nearest of texts (V, D) to each of latents (S, D), unit rows, and (2, S) their cosines."""
    order, near = [], []
    for start in range(0, len(latents), 1024):
        cosine = latents[start : start + 1024] @ texts.T
        order.append(nearest(cosine, 2))
        near.append(np.take_along_axis(cosine, order[-1], 1))
    return np.concatenate(order), np.concatenate(near).T


def _tried(coder, data: Data, texts: np.ndarray, name: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """n_images, nearer, nearer_other of every latent; see `name_latents`."""
    rows = np.sort(np.random.default_rng([seed, 2]).permutation(data.rows("test"))[:ROWS])
    codes = sparse_codes(coder, data.x, rows).tocsc()
    used, name = np.unique(name, return_inverse=True)  # only phrases that name a latent
    texts = texts[used]
    near = unit_rows(np.asarray(data.x[rows], np.float64) - target_mean(data.x, data.rows("train"))) @ texts.T  # (n, V)
    rank = near.argsort(0).argsort(0) / max(len(rows) - 1, 1)
    other = np.random.default_rng(seed).permutation(name)
    out = {k: np.full(len(name), np.nan) for k in ("nearer", "nearer_other")}
    fired = np.diff(codes.indptr)
    for j in np.flatnonzero(fired):
        own = slice(codes.indptr[j], codes.indptr[j + 1])
        top = codes.indices[own][np.argsort(-codes.data[own], kind="stable")[:TOP]]
        out["nearer"][j], out["nearer_other"][j] = rank[top, name[j]].mean(), rank[top, other[j]].mean()
    return {"n_images": fired} | out


def naming_summary(named: pd.DataFrame) -> pd.DataFrame:
    """How many latents got a name that counts, how many different ones, do they fit: a line per method and direction.

    Args: named: `name_latents` of all, under each other, with method and by.
    """
    lines = []
    for (method, by), found in named.groupby(["method", "by"], sort=False):
        own = found[found["named"]]
        line = {"method": method, "by": by, "n_latents": len(found), "threshold": found["threshold"].iloc[0]}
        line |= {"n_named": len(own), "n_names": own["phrase"].nunique(), "median_cosine": found["cosine"].median()}
        lines.append(line | {c: own[c].mean() for c in ("nearer", "nearer_other")})
    return pd.DataFrame(lines)


def neighbours(rows: np.ndarray, k: int) -> np.ndarray:
    """(n, k) the most similar other rows of each row of `rows` (n, F) by cosine; equal ones: the smaller number."""
    cosine = unit_rows(rows) @ unit_rows(rows).T
    np.fill_diagonal(cosine, -np.inf)
    return nearest(cosine, k)


@dataclass(frozen=True)
class Search:
    """Neighbours of the same rows (n,): by -> (n, k), with by "embedding", "centred" (less the train mean), "codes"; codes
    (n, S)."""

    rows: np.ndarray
    near: dict[str, np.ndarray]
    codes: np.ndarray


def search(coder, data: Data, k: int = 5, seed: int = 0) -> Search:
    """Every test image (at most QUERIES, drawn by the seed) as a query among the others."""
    rows = np.sort(np.random.default_rng(seed).permutation(data.rows("test"))[:QUERIES])
    codes = sparse_codes(coder, data.x, rows).toarray()
    x = np.asarray(data.x[rows], np.float64)
    spaces = {"embedding": x, "centred": x - target_mean(data.x, data.rows("train")), "codes": codes}
    return Search(rows, {by: neighbours(space, k) for by, space in spaces.items()}, codes)


def search_quality(found: Search, classes: np.ndarray | None) -> dict:
    """overlap: share of the neighbours by codes that are neighbours by embeddings, too; with classes (N,): same_embedding,
    same_centred, same_codes: share of neighbours of the query's class, and same_chance: of all other rows."""
    both = [len(set(a) & set(b)) for a, b in zip(found.near["embedding"], found.near["codes"], strict=True)]
    out = {"n_queries": len(found.rows), "overlap": float(np.mean(both)) / found.near["codes"].shape[1]}
    if classes is None:
        return out
    own = np.asarray(classes)[found.rows]
    known = own >= 0
    same = {by: (own[near] == own[:, None])[known].mean() for by, near in found.near.items()}
    size = np.bincount(own[known])[own[known]] - 1
    return out | {f"same_{n}": float(v) for n, v in same.items()} | {"same_chance": float(size.mean() / (len(own) - 1))}


def shown_queries(found: Search, data: Data, named: pd.DataFrame, n: int = 6, seed: int = 0) -> pd.DataFrame:
    """Some queries and their neighbours by embeddings and by codes: query, query_is, by, rank, row, what, shared.

    shared: of neighbours by codes, the three latents that make the two most alike: their names, or numbers without one.
    Args: named: `name_latents` of the same coder.
    """
    names = named["phrase"].where(named["named"], "feature " + named["feature"].astype(str)).to_numpy()
    lines = []
    for q in np.sort(np.random.default_rng(seed).permutation(len(found.rows))[:n]):
        for by in ("embedding", "codes"):
            for rank, j in enumerate(found.near[by][q], 1):
                line = {"query": int(found.rows[q]), "query_is": data.caption(found.rows[q]), "by": by, "rank": rank}
                line |= {"row": int(found.rows[j]), "what": data.caption(found.rows[j])}
                both = found.codes[q] * found.codes[j]
                alike = [f for f in np.argsort(-both, kind="stable")[:3] if both[f] > 0]
                lines.append(line | {"shared": "; ".join(names[alike]) if by == "codes" else ""})
    return pd.DataFrame(lines)

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
BY = ("decoder", "encoder")


@dataclass(frozen=True)
class Named:
    """`table`: a line per latent (see `name_latents`); `threshold`: the cosine from which a name counts."""

    table: pd.DataFrame
    threshold: float

    @property
    def valid(self) -> pd.DataFrame:
        """The latents whose name counts, strongest cosine first."""
        return self.table[self.table["named"]].sort_values(["cosine", "feature"], ascending=[False, True])


def open_autoencoders(data: Data, train: Path) -> tuple[list[Subject], list[Subject]]:
    """The autoencoders of x of a finished 03_train artifact: all of them, and of each method the one that is interpreted.

    Raises: ValueError when x holds a layer's activations.
    """
    if "layer" in data.facts:
        raise ValueError("concepts: x holds a layer's activations; name and compare final embeddings (layer = '')")
    everyone = [s for s in open_subjects(train)[0] if s.target == "x"]
    return everyone, first_seeds(everyone)


def directions(coder, by: str) -> np.ndarray:
    """(S, D) decoder rows or encoder columns. Raises: ValueError for another `by`."""
    if by not in BY:
        raise ValueError(f"by = {by!r} must be one of {BY}")
    w = coder.W_dec if by == "decoder" else coder.W_enc.T
    return w.detach().cpu().double().numpy()


def centred_texts(data: Data) -> np.ndarray:
    """(V, D) unit text embeddings less their mean, at unit length: what all texts share names nothing."""
    texts = unit_rows(np.asarray(data.vocabulary, np.float64))
    return unit_rows(texts - texts.mean(0))


def chance_cosine(texts: np.ndarray, n: int = 2000, quantile: float = 0.99, seed: int = 0) -> float:
    """The cosine to the nearest of texts (V, D), unit rows, that only 1 in 100 random directions exceeds."""
    random = np.random.default_rng(seed).normal(size=(n, texts.shape[1]))
    return float(np.quantile((unit_rows(random) @ texts.T).max(1), quantile))


def name_latents(coder, data: Data, by: str = "decoder", threshold: float = 0.0, seed: int = 0) -> Named:
    """Name every latent of a coder of x after the vocabulary.

    Args:
        by:        "decoder" or "encoder": the direction that is compared with the texts.
        threshold: cosine from which a name counts; 0: `chance_cosine`.
    Returns: Named; its table has feature, phrase, kind, cosine, runner_up (phrase), ratio (cosine over the runner-up's),
        named, n_images (test images, of at most ROWS, on which it fires), nearer (mean rank, 0 .. 1, of its strongest test images among all test
        images by cosine to the name; 0.5 says that the name does not fit its images) and nearer_other (the same for the name
        of another latent).
    Source: arXiv 2407.14499, section 3.2.
    """
    texts = centred_texts(data)
    threshold = threshold or chance_cosine(texts, seed=seed)
    order, (best, second) = _two_nearest(unit_rows(directions(coder, by)), texts)
    phrases, kinds = (data.phrases[c].to_numpy(str) for c in ("phrase", "kind"))
    frame = pd.DataFrame({"feature": np.arange(len(best)), "phrase": phrases[order[:, 0]], "kind": kinds[order[:, 0]]})
    frame["cosine"], frame["runner_up"] = best, phrases[order[:, 1]]
    frame["ratio"] = np.where(second > 0, best / np.where(second > 0, second, 1.0), np.nan)
    frame["named"] = best >= threshold
    return Named(frame.assign(**_tried(coder, data, texts, order[:, 0], seed)), threshold)


def _two_nearest(latents: np.ndarray, texts: np.ndarray, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """(S, 2) the two nearest of texts (V, D) to each of latents (S, D), unit rows, and (2, S) their cosines."""
    order, near = [], []
    for start in range(0, len(latents), chunk):
        cosine = latents[start : start + chunk] @ texts.T  # (chunk, V)
        order.append(np.argsort(-cosine, axis=1, kind="stable")[:, :2])
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


def naming_summary(named: dict[tuple[str, str], Named]) -> pd.DataFrame:
    """One line per method and direction: how many latents got a name that counts, how many different ones, do they fit."""
    lines = []
    for (method, by), found in named.items():
        own = found.table[found.table["named"]]
        line = {"method": method, "by": by, "n_latents": len(found.table), "threshold": found.threshold}
        line |= {"n_named": len(own), "n_names": own["phrase"].nunique()}
        line |= {"median_cosine": found.table["cosine"].median()}
        lines.append(line | {c: own[c].mean() for c in ("nearer", "nearer_other")})
    return pd.DataFrame(lines)


def cosine_quantiles(named: dict[tuple[str, str], Named], steps: int = 100) -> pd.DataFrame:
    """Distribution of the latents' cosines to their nearest phrase: method, by, threshold, quantile (0 .. 1), cosine."""
    levels, frames = np.linspace(0, 1, steps + 1), []
    for (method, by), found in named.items():
        head = {"method": method, "by": by, "threshold": found.threshold, "quantile": levels}
        frames.append(pd.DataFrame(head | {"cosine": found.table["cosine"].quantile(levels).to_numpy()}))
    return pd.concat(frames, ignore_index=True)


# ---- search --------------------------------------------------------------------------------------------------------


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

    def shared(self, i: int, j: int, named: Named, n: int = 3) -> list[str]:
        """Names of the latents that make rows i and j alike, strongest first; unnamed ones as their number."""
        both = self.codes[i] * self.codes[j]
        lines = named.table.set_index("feature")
        found = [f for f in np.argsort(-both, kind="stable")[:n] if both[f] > 0]
        return [lines.at[f, "phrase"] if lines.at[f, "named"] else f"feature {f}" for f in found]


def search(coder, data: Data, k: int = 5, n_rows: int = 2000, seed: int = 0) -> Search:
    """Every test image (at most n_rows, drawn by the seed) as a query among the others."""
    rows = np.sort(np.random.default_rng(seed).permutation(data.rows("test"))[:n_rows])
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


def shown_queries(found: Search, data: Data, named: Named, n: int = 6, seed: int = 0) -> pd.DataFrame:
    """Some queries and their neighbours by both: query, by, rank, row, what, and for codes the shared concepts."""
    lines, chosen = [], np.sort(np.random.default_rng(seed).permutation(len(found.rows))[:n])
    for q in chosen:
        for by, near in ((by, found.near[by]) for by in ("embedding", "codes")):
            for rank, j in enumerate(near[q], 1):
                line = {"query": int(found.rows[q]), "query_is": data.caption(found.rows[q]), "by": by, "rank": rank}
                line |= {"row": int(found.rows[j]), "what": data.caption(found.rows[j])}
                lines.append(line | {"shared": "; ".join(found.shared(q, j, named)) if by == "codes" else ""})
    return pd.DataFrame(lines)

"""The null of everything: labels that say nothing, put in place before anything is trained."""

from __future__ import annotations

import numpy as np

from mtlib.embed.store import Data, with_labels


def permute_labels(data: Data, seed: int = 0) -> Data:
    """The same data with plausibility labels permuted within family (folder without a truth) and split.

    Each family keeps its share of implausible images in every split, so that what is left to find is chance. The truth
    of rendered scenes (cause, family, true label) is not touched.

    Raises: ValueError when the labels are not plausibility.
    """
    if data.facts.get("labels") != "plausibility":
        raise ValueError(
            f"permute_labels = true needs labels plausible / implausible, this run has {data.facts.get('labels')!r}"
        )
    family = data.manifest["class_name"] if data.truth is None else data.truth["family"]
    group = family.fillna("").to_numpy(str) + "/" + data.manifest["split"].to_numpy(str)
    labels, rng = data.labels().copy(), np.random.default_rng(seed)
    for name in sorted(set(group)):
        at = np.flatnonzero((group == name) & (labels >= 0))
        labels[at] = rng.permutation(labels[at])
    return with_labels(data, labels)

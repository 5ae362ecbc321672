"""Which features may label an image, and from which activation on; and how often such labels are right.

Chosen on the val images by their labels, so that test stays for scoring; the truth of the demo takes no part in it. A feature may
be used when it is enriched: of the val images on which it fires, more are labelled implausible than the base rate explains. It
labels an image from the activation on at which it is specific: nearly all val images that strong are labelled implausible and, where
the text tower tells families apart, belong to the family that the feature is named by. That share is a little too good, being chosen
on the same images; `label_scores` tells it of test images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.store import Data
from mtlib.judge.settings import JudgeConfig
from mtlib.judge.text_space import spaces
from mtlib.judge.verdicts import RULED
from mtlib.learn.scores import wilson
from mtlib.measure.codes import dense, sparse_codes
from mtlib.measure.logit import pushes
from mtlib.run.artifacts import ArtifactError

FILE = "thresholds.parquet"
PUBLISHED_THRESHOLD = 0.5  # an activation above it makes a label
CHOSEN = ["threshold", "precision", "n_above"]
COLUMNS = ["feature", "n_val", "n_error_val", "error_low_val", "base_rate_val", "enriched", *CHOSEN]
SCORES = ["precision", "precision_once", "recall", "plausible_without_error_label"]


def of_val(coder, top: pd.DataFrame, data: Data, config: JudgeConfig) -> pd.DataFrame:
    """A line per latent; no line where no val image is labelled plausible or implausible: nothing can be chosen then.

    Args: top: top_images.parquet, whose val images name a feature's family.
    Returns: frame of feature; n_val and n_error_val, labelled val images on which it fires and the implausible ones; error_low_val
        (Wilson 95%), base_rate_val, enriched; threshold, the activation above which it labels an image, precision (share of the
        val images above it on which the label is right) and n_above (their number). NaN and 0 where it never may.
    """
    rows = data.rows("val")[:: data.tokens]
    labels = data.labels(rows)
    if data.facts["labels"] != "plausibility" or not (labels >= 0).any():
        return pd.DataFrame(columns=COLUMNS)
    codes = sparse_codes(coder, data.x, data.rows("val"), tokens=data.tokens)
    codes, rows, wrong = codes[labels >= 0].tocsc(), rows[labels >= 0], labels[labels >= 0] == 1
    frame = pd.DataFrame({"feature": np.arange(codes.shape[1]), "n_val": (codes > 0).sum(axis=0)})
    frame["n_error_val"] = (codes[wrong] > 0).sum(axis=0)
    frame["error_low_val"], frame["base_rate_val"] = wilson(frame["n_error_val"], frame["n_val"])[0], wrong.mean()
    frame["enriched"] = frame["error_low_val"] > frame["base_rate_val"]
    frame = frame.assign(threshold=np.nan, precision=np.nan, n_above=0)
    homes, of_feature = _families(rows, top, data)
    for f in np.flatnonzero(frame["enriched"]):
        right = wrong & (homes == of_feature.get(f, 0))
        frame.loc[f, CHOSEN] = _weakest(dense(codes, [f])[:, 0], right, config)
    return frame


def _families(rows: np.ndarray, top: pd.DataFrame, data: Data) -> tuple[np.ndarray, dict[int, int]]:
    """The family of each val image by text, and the most frequent one of each feature's top images. One family for all
    where the vocabulary does not tell families apart."""
    if len(data.phrases) == 0 or len((zero_shot := spaces(data)[1]).families) < 2:
        return np.zeros(len(rows), int), {}
    val = top[top["split"] == "val"]
    family = zero_shot.read(data.embedding_at(val["row"].to_numpy()))[0]
    most = pd.Series(family).groupby(val["feature"].to_numpy()).agg(lambda own: np.bincount(own).argmax())
    return zero_shot.read(data.embedding_at(rows))[0], most.to_dict()


def _weakest(z: np.ndarray, right: np.ndarray, config: JudgeConfig) -> tuple[float, float, int]:
    """The lowest threshold above which enough of enough val images are right: halfway to the next weaker one, the share, their number."""
    order = np.argsort(-z, kind="stable")
    order = order[z[order] > 0]
    strong, n = z[order], np.arange(1, len(order) + 1)
    share, weaker = right[order].cumsum() / n, np.append(strong[1:], 0)[: len(n)]
    good = np.flatnonzero((share >= config.label_precision) & (n >= config.label_images) & (strong > weaker))
    if len(good) == 0:
        return np.nan, np.nan, 0
    k = good[-1]
    return (float(strong[k]) + float(weaker[k])) / 2, share[k], n[k]


def read(folder: Path) -> pd.DataFrame:
    """What 06 wrote of a method. Raises: ArtifactError for a run of an earlier version."""
    if not (folder / FILE).is_file():
        raise ArtifactError(f"{folder / FILE} is missing: the run is older than it; run it again with --from 06")
    return pd.read_parquet(folder / FILE)


def usable(chosen: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Of `of_val`'s lines, by feature, those that may label an image: specific, and an error by the judge, where it could rule at all."""
    specific = chosen[chosen["threshold"].notna()].set_index("feature")
    errors = verdicts.loc[verdicts["verdict"] == "error", "feature"]
    return specific[specific.index.isin(errors)] if verdicts["verdict"].isin(RULED).any() else specific


def label_scores(
    coder, classifier, data: Data, ways: dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]
) -> pd.DataFrame:
    """How right error labels are on the demo's test images, whose cause is known.

    Args: ways: name -> (verdicts of the keyless judge, lines of `of_val`); None: every feature called an error, above PUBLISHED_THRESHOLD.
    Returns: frame of labels (the name), n_features, and the columns of `scores`.
    """
    rows = data.rows("test")[:: data.tokens]
    z = sparse_codes(coder, data.x, data.rows("test"), tokens=data.tokens).toarray()
    x, cause_of = torch.from_numpy(np.array(data.x[rows])), _causes(data)
    lines = []
    for name, (verdicts, chosen) in ways.items():
        said = verdicts.set_index("feature")
        if chosen is None:
            features = said.index[said["verdict"] == "error"].to_numpy()
            on = z[:, features] > PUBLISHED_THRESHOLD
        else:
            own = usable(chosen, verdicts)
            features = own.index.to_numpy()
            on = z[:, features] > own["threshold"].to_numpy()
            image, place = np.nonzero(on)
            on[image, place] = pushes(coder, classifier, x, torch.from_numpy(z), image, features[place]).numpy() > 0
        causes = said.loc[features, "phrase"].map(cause_of).fillna("").to_numpy(str)
        lines.append({"labels": name, "n_features": len(features)} | scores(on, causes, _truth(data, rows)))
    return pd.DataFrame(lines)


def without_features(data: Data) -> pd.DataFrame:
    """The same without any feature: the classifier says whether, the text tower says which family's error.

    Returns: frame of one line, columns as of `label_scores`; empty where the vocabulary has no families.
    """
    zero_shot = spaces(data)[1] if len(data.phrases) else None
    if zero_shot is None or not zero_shot.possible:
        return pd.DataFrame()
    rows = data.rows("test")[:: data.tokens]
    of_family = [data.phrases["cause"].iloc[error].mode()[0] for _, error, *_ in zero_shot.families]
    home = zero_shot.read(data.embedding_at(rows))[0]
    on = (np.asarray(data.logits)[rows] > 0)[:, None] & (home[:, None] == np.arange(len(of_family)))
    line = {"labels": "no feature: classifier and text", "n_features": 0}
    return pd.DataFrame([line | scores(on, of_family, _truth(data, rows))])


def scores(on: np.ndarray, causes, truth: np.ndarray) -> dict:
    """Error labels against the truth.

    Args: on: (n, F) bool, image i carries label j. causes: (F,) what each label's phrase names. truth: (n,) cause, "" plausible.
    Returns: n_labels (on implausible images); precision, the share of them whose phrase names the image's own cause, and
        precision_once, the same when labels of one cause count once per image; recall, the share of n_implausible images with a
        right label; plausible_without_error_label, of n_plausible images; each with _low and _high (Wilson 95%).
    """
    wrong, causes = truth != "", np.asarray(causes, str)
    names = np.unique(causes)
    once = np.stack([on[:, causes == name].any(axis=1) for name in names], axis=1) if len(names) else on
    right = once & (names[None, :] == truth[:, None]) & wrong[:, None]
    n_labels, n_wrong, n_plausible = int(on[wrong].sum()), int(wrong.sum()), int((~wrong).sum())
    found = (
        ((on & (causes[None, :] == truth[:, None]))[wrong].sum(), n_labels),
        (right.sum(), int(once[wrong].sum())),
        (right.any(axis=1).sum(), n_wrong),
        ((~on[~wrong].any(axis=1)).sum(), n_plausible),
    )
    out = {"n_labels": n_labels, "n_implausible": n_wrong, "n_plausible": n_plausible}
    for name, (k, n) in zip(SCORES, found, strict=True):
        low, high = wilson(k, n)
        out |= {name: k / n if n else np.nan, f"{name}_low": float(low), f"{name}_high": float(high)}
    return out


def _causes(data: Data) -> dict[str, str]:
    return data.phrases.drop_duplicates("phrase").set_index("phrase")["cause"].to_dict()


def _truth(data: Data, rows: np.ndarray) -> np.ndarray:
    return data.truth["cause"].fillna("").to_numpy(str)[rows]

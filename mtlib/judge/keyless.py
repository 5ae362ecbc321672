"""The keyless judge: names from the encoder's text tower, verdicts from the labels of the validation images, without a key.

A feature is an error when its strongest val images are of one family, by text, and implausible, and when it is enriched on val: the
interval of its error ratio lies above the base rate. Val and not test, since the verdicts are scored against the error ratios and
the truth of test. An image without a label is told by text alone: it is compared with the two sides of its family, error and normal.

The name is the phrase nearest to those images: of an error the nearest error phrase of the family, of what is no error the nearest
phrase that names none. So a name and a verdict never contradict each other.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.judge.settings import JudgeConfig
from mtlib.judge.text_space import NO_WORDS, TextSpace, ZeroShot, spaces
from mtlib.judge.verdicts import COLUMNS, NOTHING, ONE_LABEL, UNASSESSED, skipped

NO_TEXT = "nothing to judge with: the vocabulary has no phrases for errors and for their absence"


def text_sight(data) -> pd.DataFrame:
    """What the text tower can tell apart at all, without labels: one line per family.

    Returns: frame of family, n_images (val images nearest to it), spread (standard deviation of their margins), blind (too
        small to judge by; None with one family: there is nothing to compare with). Empty without phrases of both sides.
    """
    if len(data.phrases) == 0:
        return pd.DataFrame(columns=["family", "n_images", "spread", "blind"])
    val, (_, zero_shot) = data.rows("val")[:: data.tokens], spaces(data)
    names = [family for family, *_ in zero_shot.families]
    home = zero_shot.read(data.embedding_at(val))[0] if names and len(val) else np.zeros(0, int)
    n = np.bincount(home, minlength=len(names))
    blind = zero_shot.blind if len(names) > 1 else None
    return pd.DataFrame({"family": names, "n_images": n, "spread": zero_shot.spread, "blind": blind})


def by_text(
    features: pd.DataFrame,
    top: pd.DataFrame,
    data,
    config: JudgeConfig | None = None,
    val: pd.DataFrame | None = None,
    unnamed: tuple[str, str] = ("", ""),
) -> pd.DataFrame:
    """Names by the encoder's text tower, and verdicts over each feature's top val images.

    Args:
        features: features.parquet (feature, assessed).
        top:      top_images.parquet; only split "val" is used.
        data:     `mtlib.embed.store.Data`, for x, vocabulary, phrases, the labels of val images and facts["labels"].
        val:      what `thresholds.of_val` returned (feature, base_rate_val, enriched). None, or no lines: no label is read, the text alone rules.
        unnamed:  why no feature, and why no error, is named here (`text_space.naming`); "": they are.
    Returns: one line per feature with COLUMNS. Features with too few images, or not assessed, are "skipped" with the
        reason; where nothing can be judged they still get names.
    """
    config = config or JudgeConfig()
    if len(data.phrases) == 0:
        return skipped(features, "keyless", NO_WORDS)
    if unnamed[0]:
        return skipped(features, "keyless", f"not named: {unnamed[0]}")
    space, zero_shot = spaces(data)
    reason = "" if data.facts["labels"] == "plausibility" else NOTHING
    reason = reason or ("" if zero_shot.possible else NO_TEXT)
    lists = {int(f): part for f, part in top[top["split"] == "val"].sort_values("rank").groupby("feature")}
    known = val is not None and len(val) > 0
    if known and val["base_rate_val"].isin([0, 1]).all():
        reason = reason or ONE_LABEL.format("val")
    labels = data.labels() if known else np.full(len(data.manifest), -1)
    enriched = dict(zip(val["feature"], val["enriched"], strict=True)) if known else {}
    lines = []
    for line in features.itertuples():
        head = {"feature": int(line.feature), "judge": "keyless", "phrase": "", "verdict": "skipped", "category": ""}
        head |= {"confidence": np.nan, "detail": ""}
        images = lists.get(line.feature, top.head(0))
        if len(images) < config.keyless_min_images:
            lines.append(head | {"detail": f"only {len(images)} images activate it"})
        elif reason or not line.assessed:
            lines.append(head | _named(images, space, space.neutral) | {"detail": reason or UNASSESSED})
        else:
            ruled = _ruled(images, space, zero_shot, labels, enriched.get(line.feature, True), config)
            lines.append(head | (ruled | {"phrase": ""} if unnamed[1] and ruled["verdict"] == "error" else ruled))
    return pd.DataFrame(lines, columns=COLUMNS)


def _named(images: pd.DataFrame, space: TextSpace, among: np.ndarray) -> dict:
    if len(among) == 0:
        return {"phrase": "", "category": ""}
    phrase = space.phrases.iloc[space.name(images["row"].to_numpy(), images["activation"].to_numpy(), among)]
    return {"phrase": str(phrase["phrase"]), "category": category(phrase)}


def _ruled(
    images: pd.DataFrame, space: TextSpace, zero_shot: ZeroShot, labels: np.ndarray, enriched: bool, config: JudgeConfig
) -> dict:
    rows, n = images["row"].to_numpy(), len(images)
    f, hits = zero_shot.most_common(rows, labels[rows])
    family, error, *_ = zero_shot.families[f]
    share = hits / max(n, config.keyless_places)
    detail = f"{hits} of {n} top images show one error{' of ' + family if family else ''}"
    if share >= config.keyless_share and enriched:
        return _named(images, space, error) | {"verdict": "error", "confidence": share, "detail": detail}
    unseen = zero_shot.blind[f] and (labels[rows] < 0).any()
    detail += "; the phrases hardly tell its errors from its normal state" if unseen else ""
    detail += "" if enriched else "; not more of its images than of all are implausible"
    said = _named(images, space, space.plain)
    said |= {"verdict": "no_error", "category": family, "detail": detail}
    return said | {"confidence": 0.5 if unseen else 1 - share}


def category(phrase: pd.Series) -> str:
    """The kind of a phrase: its published category, its cause, its family, or what it is (object, nuisance, word)."""
    for name in ("category", "cause", "family", "kind"):
        if phrase.get(name):
            return str(phrase[name])
    return ""

"""The keyless judge: names and verdicts from the encoder's text tower alone, without a key and without labels.

A feature's name is the phrase nearest to its strongest validation images. Its verdict is zero-shot: each image goes to the
family whose phrases are nearest and is compared with the two sides of that family, error and normal.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlib.judge.settings import JudgeConfig
from mtlib.judge.text_space import TextSpace, ZeroShot
from mtlib.judge.verdicts import COLUMNS, NOTHING, UNASSESSED, skipped

NO_TEXT = "nothing to judge with: the vocabulary has no phrases for errors and for their absence"


def spaces(data) -> tuple[TextSpace, ZeroShot]:
    """Images and phrases of a run in one space, and the two sides of its families; means and spreads of the val images."""
    val = data.rows("val")
    space = TextSpace(data.embedding, val, data.vocabulary, data.phrases)
    return space, ZeroShot(space, val)


def text_sight(data) -> pd.DataFrame:
    """What the text tower can tell apart at all, without labels: one line per family.

    Returns: frame of family, n_images (val images nearest to it), spread (standard deviation of their margins), blind (too
        small to judge by; None with one family: there is nothing to compare with). Empty without phrases of both sides.
    """
    if len(data.phrases) == 0:
        return pd.DataFrame(columns=["family", "n_images", "spread", "blind"])
    val, (_, zero_shot) = data.rows("val"), spaces(data)
    names = [family for family, *_ in zero_shot.families]
    n = (
        np.bincount(zero_shot.read(data.embedding[val])[0], minlength=len(names))
        if names and len(val)
        else np.zeros(len(names), int)
    )
    blind = zero_shot.blind if len(names) > 1 else None
    return pd.DataFrame({"family": names, "n_images": n, "spread": zero_shot.spread, "blind": blind})


def by_text(features: pd.DataFrame, top: pd.DataFrame, data, config: JudgeConfig | None = None) -> pd.DataFrame:
    """Names by the encoder's text tower, and verdicts by zero-shot over each feature's top val images. No labels.

    Args:
        features: features.parquet (feature, assessed).
        top:      top_images.parquet; only split "val" is used.
        data:     `mtlib.embed.store.Data`, for x, vocabulary, phrases and facts["labels"].
    Returns: one line per feature with COLUMNS. Features with too few images, or not assessed, are "skipped" with the
        reason; where nothing can be judged they still get names.
    """
    config = config or JudgeConfig()
    if len(data.phrases) == 0:
        return skipped(features, "keyless", "no vocabulary: nothing to name features with")
    space, zero_shot = spaces(data)
    reason = "" if data.facts["labels"] == "plausibility" else NOTHING
    reason = reason or ("" if zero_shot.possible else NO_TEXT)
    val = top[top["split"] == "val"].sort_values("rank")
    lists = {int(f): part for f, part in val.groupby("feature")}
    return pd.DataFrame(
        [_line(line, lists.get(line.feature), space, zero_shot, reason, config) for line in features.itertuples()],
        columns=COLUMNS,
    )


def _line(line, images, space: TextSpace, zero_shot: ZeroShot, reason: str, config: JudgeConfig) -> dict:
    out = {"feature": int(line.feature), "judge": "keyless", "phrase": "", "verdict": "skipped", "category": ""}
    out |= {"confidence": np.nan, "detail": ""}
    if (n := 0 if images is None else len(images)) < config.keyless_min_images:
        return out | {"detail": f"only {n} images activate it"}
    rows = images["row"].to_numpy()
    phrase = space.phrases.iloc[space.name(rows, images["activation"].to_numpy())]
    out |= {"phrase": str(phrase["phrase"]), "category": category(phrase)}
    if reason or not line.assessed:
        return out | {"detail": reason or UNASSESSED}
    f, hits, error = zero_shot.most_common(rows)
    family, share = zero_shot.families[f][0], hits / max(n, config.keyless_places)
    is_error = share >= config.keyless_share and not zero_shot.blind[f]
    if is_error and phrase["kind"] != "error":
        out |= {"phrase": str(space.phrases["phrase"].iloc[error])}
    detail = f"{hits} of {n} top images look like one error{' of ' + family if family else ''}"
    if zero_shot.blind[f]:
        detail += "; the phrases hardly tell its errors from its normal state"
    return out | {
        "verdict": "error" if is_error else "no_error",
        "category": category(space.phrases.iloc[error]) if is_error else family,
        "confidence": share if is_error else 0.5 if zero_shot.blind[f] else 1 - share,
        "detail": detail,
    }


def category(phrase: pd.Series) -> str:
    """The kind of a phrase: its published category, its cause, its family, or what it is (object, nuisance, word)."""
    for name in ("category", "cause", "family", "kind"):
        if phrase.get(name):
            return str(phrase[name])
    return ""

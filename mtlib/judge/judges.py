"""Judges: each gives every feature a phrase and a verdict, with the same columns, so that they stand side by side.

feature, judge, phrase, verdict (error | no_error | refused | failed | skipped | unasked), category, confidence, detail

`keyless` needs no key and no labels: it reads the encoder's text tower. `lmm` asks a multimodal model (lmm.py), which may
refuse, fail, or be stopped before it is asked. `truth` (demo) says what was really drawn.
`threshold` is the published rule on the error ratio; it reads the labels, so it is a score, not a second opinion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlib.ask import records
from mtlib.features.gallery import by_activity
from mtlib.judge.text_space import TextSpace, ZeroShot

VERDICTS = ("error", "no_error", "refused", "failed", "skipped", "unasked")
COLUMNS = ["feature", "judge", "phrase", "verdict", "category", "confidence", "detail"]
WITHOUT_PICTURES = 100
INTERPRETATIONS = ["feature_rank", "feature_id", "collage_path", "activation_mean", "activation_max", "num_images"]
INTERPRETATIONS += ["interpretation", "method"]
NOTHING = "nothing to judge: the images have no plausibility labels"
NO_TEXT = "nothing to judge with: the vocabulary has no phrases for errors and for their absence"


@dataclass(frozen=True)
class KeylessConfig:
    """Settings of the keyless judge, none of them fitted to labels. Raises ValueError naming field, value and range.

    min_images: features with fewer top images are not judged (published: 3 or fewer).
    share:      a feature is an error when at least this share of its top images belongs to one family and looks more
                like that family's errors than like its normal state. 0.8 is the bar that the truth of the demo sets too.
    places:     the share is of at least so many images, so that a handful cannot make an error.
    blind:      a family whose margins spread less than this share of the median family's is one whose errors the text
                tower does not tell apart; its features are never called errors.
    """

    min_images: int = 4
    share: float = 0.8
    places: int = 10
    blind: float = 1 / 3

    def __post_init__(self):
        for name in ("min_images", "places"):
            if getattr(self, name) < 1:
                raise ValueError(f"KeylessConfig.{name} = {getattr(self, name)}: must be >= 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"KeylessConfig.share = {self.share}: must be above 0 and at most 1")
        if not 0 <= self.blind < 1:
            raise ValueError(f"KeylessConfig.blind = {self.blind}: must be at least 0 and below 1")


def text_sight(data, config: KeylessConfig | None = None) -> pd.DataFrame:
    """What the text tower can tell apart at all, without labels: one line per family.

    Returns: frame of family, n_images (val images nearest to it), spread (standard deviation of their margins), blind (too
        small to judge by; None with one family: there is nothing to compare with). Empty without phrases of both sides.
    """
    val, config = data.rows("val"), config or KeylessConfig()
    if len(data.phrases) == 0:
        return pd.DataFrame(columns=["family", "n_images", "spread", "blind"])
    zero_shot = ZeroShot(TextSpace(data.embedding, val, data.vocabulary, data.phrases), val, config.blind)
    names = [family for family, *_ in zero_shot.families]
    n = np.bincount(zero_shot.read(val)[0], minlength=len(names)) if names and len(val) else np.zeros(len(names), int)
    blind = zero_shot.blind if len(names) > 1 else None
    return pd.DataFrame({"family": names, "n_images": n, "spread": zero_shot.spread, "blind": blind})


def keyless(features: pd.DataFrame, top: pd.DataFrame, data, config: KeylessConfig | None = None) -> pd.DataFrame:
    """Names by the encoder's text tower, and verdicts by zero-shot over each feature's top val images. No labels.

    Args:
        features: features.parquet (feature, assessed).
        top:      top_images.parquet; only split "val" is used.
        data:     `mtlib.embed.store.Data`, for x, vocabulary, phrases and facts["labels"].
    Returns: one line per feature with COLUMNS. Features with too few images, or not assessed, are "skipped" with the
        reason; where nothing can be judged they still get names.
    """
    config = config or KeylessConfig()
    val = data.rows("val")
    if len(data.phrases) == 0:
        return _skipped(features, "keyless", "no vocabulary: nothing to name features with")
    space = TextSpace(data.embedding, val, data.vocabulary, data.phrases)
    zero_shot = ZeroShot(space, val, config.blind)
    reason = "" if data.facts["labels"] == "plausibility" else NOTHING
    reason = reason or ("" if zero_shot.possible else NO_TEXT)
    lists = dict(_lists(top))
    lines = [
        _judge_one(line, lists.get(line.feature), space, zero_shot, reason, config) for line in features.itertuples()
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def _lists(top: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    for feature, part in top[top["split"] == "val"].groupby("feature"):
        yield int(feature), part.sort_values("rank")


def _judge_one(line, images, space: TextSpace, zero_shot: ZeroShot, reason: str, config: KeylessConfig) -> dict:
    out = {"feature": int(line.feature), "judge": "keyless", "phrase": "", "verdict": "skipped", "category": ""}
    out |= {"confidence": np.nan, "detail": ""}
    if (n := 0 if images is None else len(images)) < config.min_images:
        return out | {"detail": f"only {n} images activate it"}
    rows = images["row"].to_numpy()
    best, _ = space.name(rows, images["activation"].to_numpy())
    phrase = space.phrases.iloc[best]
    out |= {"phrase": str(phrase["phrase"]), "category": category(phrase)}
    if reason or not line.assessed:
        return out | {"detail": reason or "fewer than 10 activating test images"}
    f, hits, error = zero_shot.judge(rows)
    family, share = zero_shot.families[f][0], hits / max(n, config.places)
    is_error = share >= config.share and not zero_shot.blind[f]
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


def truth(features: pd.DataFrame) -> pd.DataFrame:
    """The demo's truth as a judge: error where 05 found that the feature truly stands for one cause."""
    if "is_error" not in features:
        return _skipped(features, "truth", "no truth: these images were not rendered")
    detail = [f"{s:.0%} of its top val images show {c or 'no cause'}" for s, c in _pairs(features)]
    verdict = np.where(features["is_error"], "error", "no_error")
    frame = pd.DataFrame({"feature": features["feature"], "judge": "truth", "phrase": features["top_cause"]})
    frame["verdict"] = np.where(features["assessed"], verdict, "skipped")
    frame["category"], frame["confidence"] = features["top_cause"], features["top_cause_share"]
    frame["detail"] = np.where(features["assessed"], detail, "fewer than 10 activating test images")
    return frame[COLUMNS]


def _pairs(features: pd.DataFrame):
    return zip(features["top_cause_share"], features["top_cause"], strict=True)


def threshold(features: pd.DataFrame, ratio: float = 0.95) -> pd.DataFrame:
    """The published rule as a judge: error where at least `ratio` of the activating test images are implausible."""
    if features["error_ratio"].isna().all():
        return _skipped(features, "threshold", NOTHING)
    frame = pd.DataFrame({"feature": features["feature"], "judge": "threshold", "phrase": ""})
    verdict = np.where(features["error_ratio"] >= ratio, "error", "no_error")
    frame["verdict"] = np.where(features["assessed"], verdict, "skipped")
    frame["category"], frame["confidence"] = "", features["error_ratio"]
    frame["detail"] = np.where(features["assessed"], "", "fewer than 10 activating test images")
    return frame[COLUMNS]


def _skipped(features: pd.DataFrame, judge: str, reason: str) -> pd.DataFrame:
    frame = pd.DataFrame({"feature": features["feature"], "judge": judge, "phrase": "", "verdict": "skipped"})
    frame["category"], frame["confidence"], frame["detail"] = "", np.nan, reason
    return frame[COLUMNS]


def in_order(features: pd.DataFrame) -> pd.DataFrame:
    """Features in the order in which a reader wants them: assessed first, the most surely tied to errors, then density."""
    keys = ["assessed", "error_low", "density", "feature"]
    return features.sort_values(keys, ascending=[False, False, False, True], na_position="last")


def only_first(verdicts: pd.DataFrame, features: pd.DataFrame, n: int) -> pd.DataFrame:
    """Verdicts with all but the first `n` features (see `in_order`) set to skipped; n = 0 keeps all."""
    if n <= 0:
        return verdicts
    rest = ~verdicts["feature"].isin(in_order(features)["feature"].head(n)) & (verdicts["verdict"] != "skipped")
    out = verdicts.copy()
    out.loc[rest, "verdict"] = "skipped"
    out.loc[rest, ["confidence", "detail"]] = [np.nan, f"beyond max_features = {n}"]
    return out


def check_settings(judge: str, max_features: int, n_images: int, min_images: int, flip_check: int) -> None:
    """Refuse settings of 06 that make no sense. Raises: ValueError naming the parameter, its value and its range."""
    if judge not in ("keyless", "lmm"):
        raise ValueError(f'judge = {judge!r}: "keyless" or "lmm"')
    if not min_images <= n_images <= 100:
        raise ValueError(f"n_images = {n_images}: from keyless_min_images = {min_images} to 100")
    for name, value in (("max_features", max_features), ("flip_check", flip_check)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be >= 0")


def published(verdicts: pd.DataFrame, n_images: dict[int, int]) -> tuple[list[dict], list[dict]]:
    """feature_analysis and error_analysis records of one judge; a model's errors are told in its own words.

    Args: verdicts: one judge's verdicts. n_images: feature -> images that were looked at.
    """
    ruled = records.error_analysis(verdicts, n_images)
    said = verdicts.set_index("feature")
    for record in ruled:
        line = said.loc[record["feature_num"]]
        if line["judge"] == "lmm" and line["verdict"] == "error":
            record["error_analysis"] = f"{line['category']}: {line['detail']}"
    return records.feature_analysis(verdicts, n_images), ruled


def beside(features: pd.DataFrame, verdicts: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Named features in reading order: a judge's words beside the error ratio and, on the demo, the true cause."""
    own = verdicts[(verdicts["judge"] == judge) & (verdicts["phrase"] != "")]
    columns = ["feature", "density", "error_ratio", *[c for c in ("top_cause", "is_error") if c in features]]
    words = own[["feature", "phrase", "verdict", "confidence", "detail"]]
    joined = in_order(features)[columns].merge(words, on="feature")
    return joined[["feature", "phrase", "verdict", "confidence", "detail", *columns[1:]]]


def interpretations(
    features: dict[str, pd.DataFrame],
    verdicts: dict[str, pd.DataFrame],
    tops: dict[str, pd.DataFrame],
    judge: str,
    pictured: dict[str, set[int]],
) -> pd.DataFrame:
    """The published table of interpretations: the features that have a collage (of a run without any: the hundred most active).

    Args: method -> features.parquet, verdicts, top_images.parquet, features with a collage. judge: whose names.
    Returns: frame of feature_rank (1 the most active, by mean activation x density), feature_id, collage_path (in the
        report; "" where none was drawn), activation_mean, activation_max (over the test rows on which it fires), num_images
        (top val images that were looked at), interpretation, method.
    """
    frames = []
    for method, table in features.items():
        ranked = by_activity(table)
        ranked = ranked.assign(feature_rank=range(1, len(ranked) + 1))
        drawn = pictured.get(method, set())
        shown = ranked[ranked["feature"].isin(drawn)] if drawn else ranked[ranked["density"] > 0].head(WITHOUT_PICTURES)
        own = verdicts[method].query("judge == @judge").set_index("feature")["phrase"]
        n = tops[method].query("split == 'val'").groupby("feature").size()
        path = [f"collages/{method}/{f}.jpg" if f in drawn else "" for f in shown["feature"]]
        frame = pd.DataFrame(
            {"feature_rank": shown["feature_rank"], "feature_id": shown["feature"], "collage_path": path}
        )
        frame["activation_mean"], frame["activation_max"] = shown["mean_activation"], shown["max_activation"]
        frame["num_images"] = n.reindex(shown["feature"], fill_value=0).to_numpy()
        frame["interpretation"] = own.reindex(shown["feature"]).fillna("").to_numpy()
        frames.append(frame.assign(method=method))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=INTERPRETATIONS)

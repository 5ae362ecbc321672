"""The keyless judge on planted text and images."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtlib.embed.store import Data
from mtlib.judge import keyless, verdicts
from mtlib.judge.settings import JudgeConfig
from mtlib.judge.text_space import TextSpace, ZeroShot
from mtlib.judge.verdicts import COLUMNS

FAMILIES = ["hand", "face", "glass"]
GAP_IMAGE, GAP_TEXT = 4.0, 5.0  # the directions that all images, or all texts, share


def planted(labels="plausibility", n=360, seed=0):
    """Images = family + (1 implausible, -1 plausible) * error of the family + noise; texts likewise, elsewhere in space."""
    rng = np.random.default_rng(seed)
    d = 24
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    family, error = basis[:3] * 2, basis[3:6]
    f, label = rng.integers(0, 3, n), rng.integers(0, 2, n)
    x = (
        family[f]
        + np.where(label == 1, 1, -1)[:, None] * error[f]
        + rng.normal(size=(n, d)) * 0.12
        + GAP_IMAGE * basis[6]
    )
    rows, texts = [], []
    for k, name in enumerate(FAMILIES):
        for kind, sign in (("error", 1), ("normal", -1)):
            for i in range(3):
                cause = f"{name}_error" if kind == "error" else ""
                rows.append((f"{kind} {name} {i}", kind, name, cause))
                texts.append(family[k] + sign * error[k] + rng.normal(size=d) * 0.1 + GAP_TEXT * basis[7])
    rows.append(("a plain background", "nuisance", "", ""))
    texts.append(basis[8] * 2 + GAP_TEXT * basis[7])
    split = np.array(["train", "val", "test"])[np.arange(n) % 3]
    manifest = pd.DataFrame(
        {"path": [f"{i}.png" for i in range(n)], "split": split, "duplicate_of": "", "class_name": ""}
    )
    manifest["label"] = pd.array(label if labels == "plausibility" else [pd.NA] * n, dtype="Int64")
    phrases = pd.DataFrame(rows, columns=["phrase", "kind", "family", "cause"])
    facts = {"labels": labels}
    return Data(x.astype(np.float32), manifest, np.array(texts, dtype=np.float32), phrases, facts), f, label


def feature_lists(data, f, label):
    """Features 0 .. 2 fire on one family's errors, 3 .. 5 on its plausible images, 6 on both, 7 on three images only."""
    val, lists = data.rows("val"), {}
    for k in range(3):
        lists[k] = val[(f[val] == k) & (label[val] == 1)][:20]
        lists[3 + k] = val[(f[val] == k) & (label[val] == 0)][:20]
    lists[6] = np.concatenate([lists[0][:5], lists[3][:8]])
    lists[7] = lists[0][:3]
    top = pd.concat(
        [
            pd.DataFrame({"feature": k, "rank": range(len(r)), "row": r, "activation": np.linspace(3, 1, len(r))})
            for k, r in lists.items()
        ]
    ).assign(split="val")
    features = pd.DataFrame({"feature": range(9), "assessed": [True] * 8 + [False]})
    return features, top


def test_keyless_finds_the_planted_errors_and_names_them():
    data, f, label = planted()
    features, top = feature_lists(data, f, label)
    out = keyless.by_text(features, top, data)
    assert list(out.columns) == COLUMNS and out["feature"].tolist() == list(range(9))
    assert out["verdict"].tolist() == ["error"] * 3 + ["no_error"] * 4 + ["skipped"] * 2
    for k, name in enumerate(FAMILIES):
        assert out["phrase"][k].startswith(f"error {name}") and out["category"][k] == f"{name}_error"
        assert out["phrase"][3 + k].startswith(f"normal {name}")
    assert out["detail"][7] == "only 3 images activate it" and out["phrase"][7] == ""
    assert out["confidence"][:7].between(0, 1).all() and out["confidence"][7:].isna().all()


def contradictions(said, phrases):
    """Lines whose name is an error phrase under the verdict no_error, or none under the verdict error."""
    ruled = said[said["verdict"].isin(verdicts.RULED)]
    kind = ruled["phrase"].map(phrases.drop_duplicates("phrase").set_index("phrase")["kind"])
    assert kind.notna().all()
    return ruled[(kind == "error") != (ruled["verdict"] == "error")]


def on_val(enriched):
    """What `thresholds.of_val` says of enrichment."""
    return pd.DataFrame({"feature": range(len(enriched)), "enriched": enriched, "base_rate_val": 0.5})


def glass_unseen(data):
    """The same data, but the error and the normal phrases of the glass say the same: its margins are noise, however they are signed."""
    same = (data.phrases["family"] == "glass").to_numpy()
    v = data.vocabulary.copy()
    v[same] = v[same].mean(axis=0) + np.random.default_rng(1).normal(size=(same.sum(), v.shape[1])) * 0.01
    return replace(data, vocabulary=v)


def test_val_labels_make_the_verdict_and_text_the_name():
    data, f, label = planted()
    features, top = feature_lists(data, f, label)
    out = keyless.by_text(features, top, data, val=on_val([True, True, False, *[True] * 6]))
    assert out["verdict"].tolist()[:7] == ["error", "error", "no_error", *["no_error"] * 4]
    assert "not more of its images than of all are implausible" in out["detail"][2]
    assert out["phrase"][2].startswith("normal glass")  # its images are all errors, but the verdict says no error
    assert contradictions(out, data.phrases).empty
    data.manifest["label"] = pd.array(1 - label, dtype="Int64")
    turned = keyless.by_text(features, top, data, val=on_val([True] * 9))
    assert turned["verdict"].tolist()[:6] == ["no_error"] * 3 + ["error"] * 3
    assert turned["phrase"][3].startswith("error hand")  # the nearest phrase of its family that names an error
    assert contradictions(turned, data.phrases).empty


def test_labels_judge_a_family_that_text_cannot():
    data, f, label = planted()
    blind = glass_unseen(data)
    out = keyless.by_text(*feature_lists(data, f, label), blind, val=on_val([True] * 9))
    assert out["verdict"].tolist()[:6] == ["error"] * 3 + ["no_error"] * 3
    assert out["phrase"][2].startswith("error glass") and "hardly tell" not in out["detail"][2]


@pytest.mark.parametrize("known", [False, True])
def test_a_name_and_a_verdict_never_contradict(known):
    """Features of any images: all implausible, some, none; of one family or several; enriched or not."""
    data, f, label = planted()
    val, rng, parts = data.rows("val"), np.random.default_rng(3), []
    for feature in range(120):
        own = val[(label[val] == 1) == (rng.random(len(val)) < rng.random())]
        own = own[np.isin(f[own], rng.choice(3, rng.integers(1, 4), replace=False))]
        own = rng.permutation(own)[: rng.integers(1, 21)]
        lines = {"feature": feature, "rank": range(len(own)), "row": own, "activation": rng.random(len(own)) + 1}
        parts.append(pd.DataFrame(lines))
    top, features = pd.concat(parts).assign(split="val"), pd.DataFrame({"feature": range(120), "assessed": True})
    enriched = on_val(rng.random(120) < 0.7)
    out = keyless.by_text(features, top, data, val=enriched if known else None)
    assert set(out["verdict"]) >= {"error", "no_error"} and contradictions(out, data.phrases).empty
    assert not known or enriched["enriched"][out["verdict"] == "error"].all()


def test_keyless_reads_no_labels_when_none_were_counted():
    data, f, label = planted()
    features, top = feature_lists(data, f, label)
    before = keyless.by_text(features, top, data)
    data.manifest["label"] = pd.array(1 - label, dtype="Int64")
    after = keyless.by_text(features.assign(error_ratio=0.1), top.assign(label=0), data)
    pd.testing.assert_frame_equal(before, after)


def test_val_images_of_one_label_give_names_but_no_verdicts():
    data, f, label = planted()
    out = keyless.by_text(*feature_lists(data, f, label), data, val=on_val([False] * 9).assign(base_rate_val=0.0))
    assert set(out["verdict"]) == {"skipped"} and out["phrase"][0]
    assert out["detail"][0] == "nothing to judge: the val images are of one label"


@pytest.mark.parametrize("labels", ["none", "classes"])
def test_without_labels_features_get_names_but_no_verdicts(labels):
    data, f, label = planted(labels)
    out = keyless.by_text(*feature_lists(data, f, label), data)
    assert set(out["verdict"]) == {"skipped"}
    assert out["phrase"][0].startswith("normal hand")  # no error is named where none is ruled on
    assert out["detail"][0] == verdicts.NOTHING


def test_word_vocabulary_names_and_no_vocabulary_says_so():
    data, f, label = planted("none")
    words = data.phrases.assign(kind="word", family="", cause="")
    named = keyless.by_text(*feature_lists(data, f, label), replace(data, phrases=words))
    assert named["phrase"][0].startswith("error hand") and named["category"][0] == "word"
    empty = replace(data, vocabulary=np.zeros((0, 24), np.float32), phrases=words.head(0))
    out = keyless.by_text(*feature_lists(data, f, label), empty)
    assert set(out["verdict"]) == {"skipped"} and out["detail"][0].startswith("no vocabulary")
    judged = replace(data, phrases=words, facts={"labels": "plausibility"})
    assert keyless.by_text(*feature_lists(data, f, label), judged)["detail"][0] == keyless.NO_TEXT


def test_common_directions_do_not_decide():
    """All phrases lie far from all images; one phrase is nearest to the common direction and must not win everything."""
    data, f, label = planted()
    features, top = feature_lists(data, f, label)
    moved = np.vstack([data.vocabulary, 9 * np.asarray(data.x).mean(0)[None]])
    phrases = pd.concat([data.phrases, pd.DataFrame([("a picture", "object", "", "")], columns=data.phrases.columns)])
    out = keyless.by_text(features, top, replace(data, vocabulary=moved, phrases=phrases))
    assert not (out["phrase"] == "a picture").any()


def test_space_refuses_other_widths():
    data, _, _ = planted()
    with pytest.raises(ValueError, match="differ in width"):
        TextSpace(data.embedding_at, data.rows("val"), data.vocabulary[:, :5], data.phrases)


def test_zero_shot_margin_by_hand():
    x = np.array([[1.0, 0.2], [1.0, -0.2]])
    phrases = pd.DataFrame({"phrase": ["bad", "good"], "kind": ["error", "normal"], "family": "", "cause": ""})
    space = TextSpace(x.__getitem__, np.arange(2), np.array([[1.0, 1.0], [1.0, -1.0]]), phrases)
    home, margin = ZeroShot(space, np.arange(2)).read(x)
    np.testing.assert_allclose(margin, [2.0, -2.0])  # contrasted images and texts are opposite units
    assert home.tolist() == [0, 0]


def test_errors_of_several_families_are_not_one_error():
    data, f, label = planted()
    features, top = feature_lists(data, f, label)
    mixed = pd.concat([top[top["feature"] == k].head(7) for k in range(3)]).assign(feature=0)
    out = keyless.by_text(features.head(1), mixed.assign(rank=range(len(mixed))), data)
    assert out["verdict"][0] == "no_error" and out["detail"][0].startswith("7 of 21 top images show one error")


def test_a_handful_of_images_does_not_make_an_error():
    data, f, label = planted()
    features, top = feature_lists(data, f, label)
    few = top[top["feature"] == 0].head(6)
    assert keyless.by_text(features.head(1), few, data)["verdict"][0] == "no_error"
    assert keyless.by_text(features.head(1), few, data, JudgeConfig(keyless_places=4))["verdict"][0] == "error"


def test_family_that_text_does_not_tell_apart_is_never_an_error():
    data, f, label = planted()
    blind = glass_unseen(data)
    out = keyless.by_text(*feature_lists(data, f, label), blind)
    assert out["verdict"].tolist()[:6] == ["error", "error", "no_error", "no_error", "no_error", "no_error"]
    assert "hardly tell" in out["detail"][2] and out["confidence"][2] == 0.5
    sight = keyless.text_sight(blind)
    assert sight["blind"].tolist() == [False, False, True] and sight["n_images"].sum() == len(data.rows("val"))
    assert keyless.text_sight(replace(data, vocabulary=data.vocabulary[:0], phrases=data.phrases.head(0))).empty
    hand = (data.phrases["family"] == "hand").to_numpy()  # one family: blind is relative, so it cannot be told
    alone = replace(data, vocabulary=data.vocabulary[hand], phrases=data.phrases[hand].reset_index(drop=True))
    assert keyless.text_sight(alone)["blind"].tolist() == [None]


@pytest.mark.parametrize(
    ("field", "value"),
    [("keyless_min_images", 0), ("keyless_share", 0.0), ("keyless_share", 1.2), ("keyless_places", 0)],
)
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}: should be"):
        JudgeConfig(**{field: value})

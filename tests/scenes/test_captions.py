import numpy as np
import pytest

from mtlib.scenes.captions import CONTEXT_LENGTH, caption, tokenizer, vocabulary
from mtlib.scenes.causes import CAUSE_OF, CAUSES
from mtlib.scenes.clip_training import truth_of_captions, variant_bits
from mtlib.scenes.dataset import FAMILIES, Spec, nuisance_of

# words that only the two uncaptioned errors would use
FORBIDDEN = (
    "float",
    "hover",
    "levitat",
    "mid-air",
    "hanging",
    "without support",
    "slant",
    "gravity",
    "stay level",
    "tilted with",
    "surface",
    "horizontal",
    "resting",
)
UNCAPTIONED = [v["family"] for v in CAUSES.values() if not v["captioned"]]
VARIANT = {"hand": "six", "face": "eye_chin", "person": "no_arm", "animal": "two", "water": "upright"}


def captions(family, error, n=300):
    rng = np.random.default_rng(0)
    nuisance, variant = nuisance_of(Spec(1, family, error))[0], VARIANT.get(family, "x") if error else ""
    return [caption(rng, family, error, variant, nuisance) for _ in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("error", [False, True])
def test_no_caption_holds_a_word_of_an_uncaptioned_error(family, error):
    texts = " | ".join(text for text, _ in captions(family, error))
    assert not [w for w in FORBIDDEN if w in texts]


@pytest.mark.parametrize("family", UNCAPTIONED)
def test_captions_of_uncaptioned_families_do_not_depend_on_the_error(family):
    right, wrong = ({text for text, _ in captions(family, e, 2000)} for e in (False, True))
    assert right == wrong
    assert all(claims["error"] is None for _, claims in captions(family, True))


def test_forbidden_words_tell_the_uncaptioned_errors():
    words = vocabulary()
    told = words[words.cause.map(lambda c: c != "" and not CAUSES[c]["captioned"])].phrase
    assert len(told) >= 6
    assert all(any(w in phrase for w in FORBIDDEN) or "impossible" in phrase for phrase in told)


def test_captions_and_vocabulary_fit_the_context():
    texts = vocabulary().phrase.tolist() + [t for f in FAMILIES for e in (False, True) for t, _ in captions(f, e)]
    used = (tokenizer()(texts) > 0).sum(1)
    assert used.max() < CONTEXT_LENGTH


def test_vocabulary_covers_every_cause_and_kind():
    words = vocabulary()
    assert list(words.columns) == ["phrase", "kind", "family", "cause"]
    assert 80 <= len(words) <= 150 and words.phrase.is_unique
    assert set(words.kind) == {"error", "normal", "object", "nuisance"}
    errors = words[words.kind == "error"]
    assert (errors.groupby("cause").size().reindex(list(CAUSES)) >= 4).all()
    assert (errors.family == errors.cause.map(lambda c: CAUSES[c]["family"])).all()
    assert set(words[words.kind == "normal"].family) == set(FAMILIES)


def test_truth_of_captions_by_hand():
    silent = dict.fromkeys(("family", "error", "variant", "background", "palette", "style"))
    facts = [
        {"family": "hand", "error": True, "variant": "six", "background": "plain", "palette": "night", "style": "flat"},
        {
            "family": "hand",
            "error": False,
            "variant": "five",
            "background": "dots",
            "palette": "night",
            "style": "flat",
        },
    ]
    claims = [
        silent | {"family": "hand", "error": 1, "variant": "six|seven"},
        silent | {"family": "hand", "palette": "night"},
    ]
    assert truth_of_captions(facts, claims).tolist() == [[True, True], [False, True]]
    assert variant_bits()["six"] != variant_bits()["seven"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_caption_is_true_of_its_own_picture(family):
    nuisance = nuisance_of(Spec(1, family, True))[0]
    fact = {"family": family, "error": True, "variant": VARIANT.get(family, "x")}
    fact |= {k: getattr(nuisance, k) for k in ("background", "palette", "style")}
    claims = [c for _, c in captions(family, True)]
    assert truth_of_captions([fact], claims).all()
    assert CAUSE_OF[family] in CAUSES

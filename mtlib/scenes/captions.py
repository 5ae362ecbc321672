"""Captions that train the small CLIP, and the vocabulary with which a judge names features.

A caption is a phrase of phrases.csv plus the attributes it claims. Two causes are kept out: pictures of their families, right
or wrong, get the same neutral phrases, so their errors never enter the text tower by words.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from mtlib.scenes.canvas import BACKGROUNDS, PALETTES, STYLES
from mtlib.scenes.causes import CAUSE_OF, CAUSES

BACKGROUND_WORDS = {
    "plain": "a plain background",
    "gradient": "a gradient background",
    "stripes": "a striped background",
    "tiles": "a checkered background",
    "dots": "a dotted background",
    "hills": "a background of hills",
    "room": "a room",
}
STYLE_WORDS = {
    "flat": "a flat drawing",
    "outlined": "a drawing with outlines",
    "shaded": "a shaded drawing",
    "grain": "a grainy picture",
}
PALETTE_WORDS = {name: f"{name} colours" for name in PALETTES}
CONTEXT_LENGTH = 32
_NUISANCES = ((BACKGROUND_WORDS, BACKGROUNDS), (PALETTE_WORDS, PALETTES), (STYLE_WORDS, STYLES))


def _packaged():
    return pd.read_csv(Path(__file__).with_name("phrases.csv"), keep_default_na=False, dtype=str)


@cache
def phrases():
    """Phrases by what they say: ("object" | "normal", family), ("error", cause), or (cause, variant) for what a variant adds."""
    found = {}
    for phrase, kind, family, cause, variant in _packaged().itertuples(index=False):
        key = (cause, variant) if variant else (kind, cause or family)
        found[key] = (*found.get(key, ()), phrase)
    return found


def caption(rng, family, error, variant, nuisance, detail=None):
    """One training caption and its claims.

    Args:
        rng:      numpy Generator.
        family, error, variant: what the picture shows.
        nuisance: object or mapping with background, palette and style.
        detail:   force a phrase about the error or its absence (True), a neutral one (False), or draw one (None).
    Returns: (caption, claims): claims is a dict over family, error, variant, background, palette, style with None where
    the caption says nothing.
    """
    get = nuisance.get if isinstance(nuisance, dict) else lambda k: getattr(nuisance, k)
    cause = CAUSE_OF[family]
    claims = dict.fromkeys(("family", "error", "variant", "background", "palette", "style")) | {"family": family}
    known = phrases()
    specific = known.get((cause, variant), ()) if error else ()
    told = CAUSES[cause]["captioned"] and (rng.random() < 0.85 if detail is None else detail)
    if not told:
        text = known["object", family][rng.integers(3)]
    elif specific and rng.random() < 0.5:
        text = specific[rng.integers(len(specific))]
        same = {v for (k, v), p in known.items() if k == cause and text in p}
        claims |= {"error": 1, "variant": variant if len(same) == 1 else "|".join(sorted(same))}
    else:
        options = known["error", cause] if error else known["normal", family]
        text = options[rng.integers(len(options))]
        claims["error"] = int(error)
    for key, words, p in (
        ("style", STYLE_WORDS, 0.12),
        ("background", BACKGROUND_WORDS, 0.2),
        ("palette", PALETTE_WORDS, 0.2),
    ):
        if rng.random() < p:
            claims[key] = get(key)
            told_as = words[claims[key]]
            text = f"{told_as} of {text}" if key == "style" else f"{text}, {told_as}"
    return text, claims


def vocabulary():
    """Phrases with which a judge names features.

    Returns: DataFrame with columns phrase, kind ("error", "normal", "object" or "nuisance"), family and cause ("" where
    none applies); phrases are unique.
    """
    words = [(w[k], "nuisance", "", "") for w, ks in _NUISANCES for k in ks]
    table = _packaged().drop(columns="variant")
    return pd.concat([table, pd.DataFrame(words, columns=table.columns)]).drop_duplicates("phrase", ignore_index=True)


@cache
def tokenizer():
    """The tokenizer of the small CLIP: open_clip's own vocabulary at a short context."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)

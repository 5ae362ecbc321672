"""Captions that train the small CLIP, and the vocabulary with which a judge names features.

A caption is a phrase plus the attributes it claims. Two causes are kept out: pictures of their families, right or wrong,
get the same neutral phrases, so their errors never enter the text tower by words.
"""

from functools import cache

import pandas as pd

from mtlib.scenes.canvas import BACKGROUNDS, PALETTES, STYLES
from mtlib.scenes.dataset import CAUSE_OF, CAUSES

OBJECTS = {
    "hand": ("a hand", "an open hand", "a human hand"),
    "face": ("a face", "a human face", "a portrait"),
    "person": ("a person", "a standing person", "a human figure"),
    "animal": ("an animal", "an animal from the side", "a four-footed animal"),
    "table": ("things on a table", "a table with objects", "tableware and a table"),
    "light": ("a sun and a shadow", "an object in sunlight", "a sunny scene"),
    "glass": ("a glass of liquid", "a drinking glass", "a tilted glass with a drink"),
    "blocks": ("a stack of blocks", "a tower of blocks", "building blocks"),
    "water": ("a reflection in water", "a scene at the water", "a lake with a reflection"),
}
NORMAL = {
    "hand": (
        "a hand with five fingers",
        "a normal hand",
        "a hand with the right number of fingers",
        "a correct human hand",
    ),
    "face": ("a normal face", "a face with eyes, nose and mouth in the right place", "a correct human face"),
    "person": (
        "a person with two arms and two legs",
        "a normal person",
        "a person with all limbs",
        "a correct human body",
    ),
    "animal": ("an animal with four legs", "a normal animal", "an animal with the right number of legs"),
    "table": ("objects resting on a table", "objects standing on the tabletop", "a table with everything in its place"),
    "light": ("a shadow pointing away from the sun", "a correct shadow", "a shadow on the side opposite to the light"),
    "glass": (
        "a level liquid surface in a tilted glass",
        "liquid that stays horizontal",
        "a glass with a horizontal liquid surface",
    ),
    "blocks": ("a balanced stack of blocks", "a stable tower of blocks", "blocks that support each other"),
    "water": (
        "a correct reflection in water",
        "a reflection that matches the object",
        "a true mirror image in the water",
    ),
}
ERRORS = {
    "hand_fingers": (
        "a hand with the wrong number of fingers",
        "a deformed hand",
        "extra or missing fingers",
        "an impossible hand",
    ),
    "face_features": (
        "a face with misplaced features",
        "a distorted face",
        "facial features in the wrong place",
        "an impossible face",
    ),
    "person_limbs": (
        "a person with the wrong number of limbs",
        "an extra or missing limb",
        "a deformed body",
        "an impossible body",
    ),
    "animal_legs": (
        "an animal with the wrong number of legs",
        "extra or missing legs",
        "a deformed animal",
        "an impossible animal",
    ),
    "table_floating": (
        "an object floating above the table",
        "an object hovering in the air",
        "a levitating object",
        "an object without support",
        "a thing hanging in mid-air",
    ),
    "light_shadow": (
        "a shadow on the wrong side",
        "a shadow pointing towards the sun",
        "an impossible shadow",
        "a shadow on the same side as the light",
    ),
    "glass_surface": (
        "a liquid surface tilted with the glass",
        "liquid that does not stay level",
        "a slanted liquid surface",
        "impossible liquid in a glass",
        "liquid that ignores gravity",
    ),
    "blocks_balance": (
        "an impossibly balanced stack of blocks",
        "blocks that should fall down",
        "an unstable tower of blocks",
        "blocks with too much overhang",
    ),
    "water_reflection": (
        "a wrong reflection in water",
        "a reflection that does not match the object",
        "an impossible reflection",
        "a false mirror image in the water",
    ),
}
# what a variant adds: (cause, variant) -> phrases
DETAILS = {
    ("hand_fingers", "three"): ("a hand with three fingers", "a hand with missing fingers", "too few fingers"),
    ("hand_fingers", "six"): ("a hand with six fingers", "a hand with an extra finger", "too many fingers"),
    ("hand_fingers", "seven"): ("a hand with seven fingers", "a hand with extra fingers", "too many fingers"),
    ("face_features", "mouth_forehead"): ("a face with the mouth on the forehead", "a face with eyes below the nose"),
    ("face_features", "eye_chin"): ("a face with an eye on the cheek", "a face with an eye too low"),
    ("face_features", "mouth_side"): ("a face with a sideways mouth", "a face with the mouth on the cheek"),
    ("person_limbs", "third_arm"): ("a person with three arms", "a person with an extra arm"),
    ("person_limbs", "third_leg"): ("a person with three legs", "a person with an extra leg"),
    ("person_limbs", "no_arm"): ("a person with one arm", "a person with a missing arm"),
    ("person_limbs", "no_leg"): ("a person with one leg", "a person with a missing leg"),
    ("animal_legs", "two"): ("an animal with two legs", "an animal with missing legs"),
    ("animal_legs", "six"): ("an animal with six legs", "an animal with extra legs"),
    ("water_reflection", "other_thing"): ("a reflection of a different object",),
    ("water_reflection", "upright"): ("a reflection that is not upside down",),
    ("water_reflection", "shifted"): ("a reflection shifted to the side",),
}
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
CONTEXT_LENGTH = 32


def phrases(family, error, variant):
    """Phrases that say what is in a picture, with the claim each makes.

    Args:
        family:  family name.
        error:   whether the picture is implausible.
        variant: how it goes wrong, as `render` tells.
    Returns: list of (phrase, claims_error): claims_error is None when the phrase is neutral, else 0 or 1.
    """
    cause = CAUSE_OF[family]
    out = [(p, None) for p in OBJECTS[family]]
    if CAUSES[cause]["captioned"]:
        out += [(p, int(error)) for p in (ERRORS[cause] if error else NORMAL[family])]
    return out


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
    specific = DETAILS.get((cause, variant), ()) if error else ()
    told = CAUSES[cause]["captioned"] and (rng.random() < 0.85 if detail is None else detail)
    if not told:
        text = OBJECTS[family][rng.integers(3)]
    elif specific and rng.random() < 0.5:
        text = specific[rng.integers(len(specific))]
        same = {v for (k, v), p in DETAILS.items() if k == cause and text in p}
        claims |= {"error": 1, "variant": variant if len(same) == 1 else "|".join(sorted(same))}
    else:
        options = ERRORS[cause] if error else NORMAL[family]
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
    rows = [(p, "error", CAUSES[c]["family"], c) for c, ps in ERRORS.items() for p in ps]
    rows += [(p, "error", CAUSES[c]["family"], c) for (c, _), ps in DETAILS.items() for p in ps]
    rows += [(p, "normal", f, "") for f, ps in NORMAL.items() for p in ps]
    rows += [(p, "object", f, "") for f, ps in OBJECTS.items() for p in ps]
    rows += [(w[k], "nuisance", "", "") for w, ks in _NUISANCES for k in ks]
    return pd.DataFrame(rows, columns=["phrase", "kind", "family", "cause"]).drop_duplicates(
        "phrase", ignore_index=True
    )


_NUISANCES = ((BACKGROUND_WORDS, BACKGROUNDS), (PALETTE_WORDS, PALETTES), (STYLE_WORDS, STYLES))


@cache
def tokenizer():
    """The tokenizer of the small CLIP: open_clip's own vocabulary at a short context."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)

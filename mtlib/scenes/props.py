"""Objects that several families share: polygons with the base at y = 0, the top near y = -1, about 0.8 wide."""

import numpy as np

from mtlib.scenes.canvas import box, capsule, ellipse

OUTDOOR = ("tree", "pine", "house", "tower", "cactus", "snowman")
AFLOAT = ("house", "pine", "tree", "tower", "boat", "swan")
TABLEWARE = ("cup", "bottle", "apple", "book", "vase", "candle", "ball", "teapot")


def prop(kind):
    """Polygons of one object, painted in order.

    Args:
        kind: one of OUTDOOR, AFLOAT or TABLEWARE.
    Returns: list of (points (n, 2) float, colour role); roles: "a" and "b" subject colours, "wood", "leaf", "white", "ink".
    Raises: ValueError if the kind is unknown.
    """
    p = np.array
    if kind == "tree":
        crown = [(ellipse(x, y, r), "leaf") for x, y, r in ((-0.2, -0.58, 0.2), (0.2, -0.58, 0.2), (0, -0.75, 0.26))]
        return [(box(-0.07, -0.5, 0.07, 0), "wood"), *crown]
    if kind == "pine":
        tiers = [(p([(-w, y), (w, y), (0, y - 0.42)]), "leaf") for y, w in ((-0.18, 0.36), (-0.42, 0.28), (-0.64, 0.2))]
        return [(box(-0.07, -0.25, 0.07, 0), "wood"), *tiers]
    if kind == "house":
        roof = p([(-0.46, -0.52), (0.46, -0.52), (0, -0.98)])
        parts = [(box(-0.36, -0.55, 0.36, 0), "a"), (roof, "b"), (box(-0.1, -0.32, 0.1, 0), "ink")]
        return [*parts, (box(0.17, -0.42, 0.29, -0.28), "white"), (box(-0.29, -0.42, -0.17, -0.28), "white")]
    if kind == "tower":
        body = p([(-0.2, 0), (0.2, 0), (0.13, -0.75), (-0.13, -0.75)])
        bands = [
            (p([(-0.185 + d, y), (0.185 - d, y), (0.175 - d, y - 0.13), (-0.175 + d, y - 0.13)]), "a")
            for y, d in ((-0.14, 0), (-0.42, 0.02))
        ]
        return [
            (body, "white"),
            *bands,
            (box(-0.1, -0.87, 0.1, -0.75), "ink"),
            (p([(-0.16, -0.87), (0.16, -0.87), (0, -1.02)]), "b"),
        ]
    if kind == "cactus":
        arms = [capsule((0, -0.3), (0.27, -0.3), 0.07), capsule((0.27, -0.3), (0.27, -0.6), 0.07)]
        arms += [capsule((0, -0.45), (-0.25, -0.45), 0.07), capsule((-0.25, -0.45), (-0.25, -0.72), 0.07)]
        return [(s, "leaf") for s in [capsule((0, -0.05), (0, -0.85), 0.12), *arms]]
    if kind == "snowman":
        parts = [(ellipse(0, -0.28, 0.29), "white"), (ellipse(0, -0.68, 0.2), "white")]
        return [*parts, (box(-0.15, -1.02, 0.15, -0.84), "ink"), (p([(0, -0.7), (0, -0.64), (0.24, -0.65)]), "b")]
    if kind == "boat":
        hull = p([(-0.5, -0.2), (0.5, -0.2), (0.34, 0), (-0.34, 0)])
        sails = [
            (p([(0.05, -1.0), (0.05, -0.27), (0.46, -0.27)]), "white"),
            (p([(-0.04, -0.85), (-0.04, -0.27), (-0.38, -0.27)]), "b"),
        ]
        return [(box(-0.03, -1.0, 0.04, -0.18), "wood"), *sails, (hull, "a")]
    if kind == "swan":
        neck = [capsule((0.3, -0.2), (0.36, -0.62), 0.07), capsule((0.36, -0.62), (0.48, -0.66), 0.08)]
        body = [(ellipse(-0.05, -0.2, 0.42, 0.2), "a"), *((s, "a") for s in neck)]
        return [
            *body,
            (ellipse(-0.12, -0.26, 0.24, 0.11, 15), "white"),
            (p([(0.52, -0.7), (0.7, -0.62), (0.52, -0.6)]), "b"),
        ]
    if kind == "cup":
        return [
            (ellipse(0.34, -0.3, 0.16), "a"),
            (ellipse(0.34, -0.3, 0.08), "white"),
            (p([(-0.34, -0.6), (0.34, -0.6), (0.26, 0), (-0.26, 0)]), "a"),
            (box(-0.34, -0.6, 0.34, -0.52), "b"),
        ]
    if kind == "bottle":
        return [
            (box(-0.2, -0.62, 0.2, 0), "a"),
            (p([(-0.2, -0.62), (0.2, -0.62), (0.07, -0.76), (-0.07, -0.76)]), "a"),
            (box(-0.07, -0.98, 0.07, -0.76), "a"),
            (box(-0.2, -0.45, 0.2, -0.2), "white"),
            (box(-0.09, -1.04, 0.09, -0.94), "b"),
        ]
    if kind == "apple":
        return [
            (ellipse(0, -0.3, 0.32, 0.3), "a"),
            (capsule((0, -0.56), (0.06, -0.75), 0.03), "wood"),
            (ellipse(0.18, -0.7, 0.13, 0.06, 20), "leaf"),
        ]
    if kind == "book":
        return [
            (box(-0.46, -0.16, 0.46, 0), "a"),
            (box(-0.4, -0.31, 0.42, -0.16), "b"),
            (box(-0.42, -0.12, 0.46, -0.04), "white"),
            (box(-0.36, -0.27, 0.42, -0.2), "white"),
        ]
    if kind == "vase":
        stems = [(capsule((0, -0.5), (x, -0.8), 0.025), "leaf") for x in (-0.2, 0.0, 0.2)]
        heads = [(ellipse(x, y, 0.11), "b") for x, y in ((-0.2, -0.82), (0.2, -0.82), (0, -0.92))]
        return [
            *stems,
            *heads,
            (p([(-0.13, -0.55), (0.13, -0.55), (0.24, -0.25), (0.15, 0), (-0.15, 0), (-0.24, -0.25)]), "a"),
        ]
    if kind == "candle":
        return [
            (box(-0.11, -0.7, 0.11, -0.08), "white"),
            (box(-0.28, -0.1, 0.28, 0), "a"),
            (p([(-0.07, -0.74), (0.07, -0.74), (0, -0.98)]), "b"),
        ]
    if kind == "ball":
        return [(ellipse(0, -0.32, 0.32), "a"), (ellipse(0, -0.32, 0.32, 0.09, 20), "b")]
    if kind == "teapot":
        return [
            (capsule((0.25, -0.25), (0.52, -0.5), 0.07), "a"),
            (ellipse(-0.36, -0.32, 0.17), "a"),
            (ellipse(-0.36, -0.32, 0.09), "white"),
            (ellipse(0, -0.3, 0.36, 0.3), "a"),
            (ellipse(0, -0.63, 0.07), "b"),
            (ellipse(0, -0.57, 0.22, 0.05), "b"),
        ]
    raise ValueError(f"kind = {kind!r} is not an object; known: {sorted({*OUTDOOR, *AFLOAT, *TABLEWARE})}")


def role_colour(c, role, i):
    """Colour tuple of a role for the i-th object on canvas c."""
    fixed = {"wood": (122, 82, 48), "leaf": (66, 138, 72), "white": (238, 240, 244), "ink": (52, 44, 58)}
    if c.n.palette == "grey":
        fixed = {"wood": (84, 84, 84), "leaf": (108, 108, 108), "white": (238, 238, 238), "ink": (40, 40, 40)}
    return c.main(i) if role == "a" else c.main(i + 2) if role == "b" else fixed[role]


def place(c, kind, x, y, size, i, flip_y=False, tint=None, amount=0.0):
    """Paints an object with its base at (x, y); flip_y mirrors it downwards; tint mixes its colours towards a colour."""
    for points, role in prop(kind):
        at = points * (size, -size if flip_y else size) + (x, y)
        colour = np.array(role_colour(c, role, i))
        if tint is None:
            c.group([at], colour)
        else:
            c.plain(at, colour * (1 - amount) + np.asarray(tint) * amount)

"""Families whose error is in the world: table, light, glass, blocks, water. Same contract as families_bodies."""

import numpy as np

from mtlib.scenes.canvas import box, capsule, ellipse, mix, turn
from mtlib.scenes.props import AFLOAT, OUTDOOR, TABLEWARE, place, prop


def table(c, rng, alt, error):
    """One to three objects on a table; implausible: one of them hangs in the air above it."""
    n = int(rng.integers(1, 4))
    kinds = rng.permutation(TABLEWARE)[:n]
    size = rng.uniform(*((0.78, 0.9), (0.68, 0.8), (0.56, 0.64))[n - 1])
    xs = np.linspace(-0.62, 0.62, n + 2)[1:-1] * (1.45 if n > 1 else 1) + rng.uniform(-0.07, 0.07, n)
    y, thick, legs = rng.uniform(0.48, 0.58), rng.uniform(0.1, 0.15), rng.uniform(0.6, 0.8)
    lift, which = (alt.uniform(0.42, 0.55), int(alt.integers(n))) if error else (0.0, -1)
    wood = mix((150, 104, 64), c.ground, 0.55)
    c.group([box(s * legs - 0.06, y, s * legs + 0.06, 1.25) for s in (-1, 1)], mix(wood, (0, 0, 0), 0.25))
    c.group([box(-0.98, y, 0.98, y + thick)], wood)
    c.plain(box(-0.98, y, 0.98, y + thick * 0.4), mix(wood, (255, 255, 255), 0.25))
    for i, kind in enumerate(kinds):
        c.plain(ellipse(xs[i], y + 0.045, size * 0.36, 0.032), mix(wood, (0, 0, 0), 0.5))
        place(c, kind, xs[i], y - (lift if i == which else 0.0), size, i)
    return "floats" if error else ""


def light(c, rng, alt, error):
    """A sun, a thing on the ground and its shadow; implausible: the shadow points towards the sun."""
    side, height = (1 if rng.integers(2) else -1), rng.uniform(-0.86, -0.62)
    kind, size, rays = OUTDOOR[rng.integers(len(OUTDOOR))], rng.uniform(0.8, 1.0), int(rng.integers(8, 13))
    reach, y, x = rng.uniform(0.75, 1.1), rng.uniform(0.34, 0.48), rng.uniform(-0.06, 0.06)
    away = side if error else -side
    soil = mix(c.ground, (190, 196, 170), 0.2)
    c.floor(y - 0.16, soil, mix(soil, (255, 255, 255), 0.25))
    for points, _ in prop(kind):
        up = -points[:, 1] * size
        c.plain(
            np.stack([x + points[:, 0] * size * 0.95 + away * reach * up, y + up * 0.3 - 0.01], 1),
            mix(soil, (8, 8, 28), 0.66),
        )
    place(c, kind, x, y, size, 0)
    sun, warm = np.array([side * 0.7, height]), (255, 196, 30) if c.n.palette != "grey" else (245, 245, 245)
    for a in np.linspace(0, 360, rays, endpoint=False):
        d = np.array([np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a))])
        c.line(
            [sun + d * 0.24, sun + d * 0.36],
            mix(warm, (200, 90, 0) if c.n.palette != "grey" else (90, 90, 90), 0.35),
            0.05,
        )
    c.group([ellipse(*sun, 0.2)], warm)
    c.line(
        ellipse(*sun, 0.2)[list(range(26)) + [0]],
        mix(warm, (200, 90, 0) if c.n.palette != "grey" else (90, 90, 90), 0.35),
        0.03,
    )
    return "same_side" if error else ""


def clip_below(polygon, level, slope):
    """Part of a convex polygon below the line y = level + slope * x.

    Args:
        polygon: (n, 2) float, unit coordinates, y down.
        level:   height of the line at x = 0.
        slope:   dy / dx of the line.
    Returns: (m, 2) float polygon; empty when nothing is below.
    """
    depth = polygon[:, 1] - level - slope * polygon[:, 0]
    out = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if depth[i] >= 0:
            out.append(polygon[i])
        if depth[i] * depth[j] < 0:
            t = depth[i] / (depth[i] - depth[j])
            out.append(polygon[i] + t * (polygon[j] - polygon[i]))
    return np.array(out).reshape(-1, 2)


def glass(c, rng, alt, error):
    """A hand holds a tilted glass of liquid; implausible: the surface tilts with the glass instead of staying level."""
    tilt = rng.uniform(28, 44) * (1 if rng.integers(2) else -1)
    wide, low, tall = rng.uniform(0.4, 0.5), rng.uniform(0.78, 0.98), rng.uniform(0.66, 0.78)
    fill, liquid, arm = rng.uniform(-0.05, 0.18), int(rng.integers(5)), rng.random() < 0.6
    shape = np.array([(-wide, -tall), (wide, -tall), (wide * low, tall), (-wide * low, tall)])
    cup = turn(shape, -tilt)
    inner = turn(shape * (0.86, 0.93) + (0, -0.02), -tilt)
    away = -np.sign(tilt)
    if arm:
        c.group([capsule((away * 1.15, 0.75), (away * 0.3, 0.22), 0.17, 0.15)], c.skin)
        c.group([capsule((away * 1.35, 0.9), (away * 0.85, 0.56), 0.22)], c.main(1))
    pale = mix(c.back[0], (235, 246, 252), 0.7)
    c.group([cup], mix(pale, (120, 150, 170), 0.18))
    c.plain(inner, pale)
    slope = -np.tan(np.deg2rad(tilt)) if error else 0.0
    colour = c.main(liquid) if c.n.palette != "sunset" or (liquid + c.n.shift) % 5 != 3 else c.main(liquid + 1)
    c.plain(clip_below(inner, fill, slope), colour)
    edge = clip_below(inner, fill, slope)
    top = edge[np.abs(edge[:, 1] - fill - slope * edge[:, 0]) < 1e-6]
    if len(top) == 2:
        c.line(top, mix(colour, (255, 255, 255), 0.5), 0.07)
    rim = mix(c.ink, (90, 110, 130), 0.45) if not c.dark else (214, 224, 240)
    c.line(cup[[0, 3, 2, 1]], rim, 0.06)
    if arm:
        for k in (-0.04, 0.14, 0.32):
            p = turn(np.array([(away * wide * 1.02, k), (away * wide * 0.45, k + 0.02)]), -tilt)
            c.group([capsule(p[0], p[1], 0.075)], c.skin)
    return "tilted_surface" if error else ""


def stack_margins(widths, xs, masses):
    """How far inside its support each joint of a stack is balanced.

    Args:
        widths: (n,) float, bottom to top.
        xs:     (n,) float, centres.
        masses: (n,) float.
    Returns: (n - 1,) float: distance from the centre of mass of all above to the nearer end of the contact; negative topples.
    """
    out = []
    for k in range(1, len(xs)):
        com = np.average(xs[k:], weights=masses[k:])
        left = max(xs[k] - widths[k] / 2, xs[k - 1] - widths[k - 1] / 2)
        right = min(xs[k] + widths[k] / 2, xs[k - 1] + widths[k - 1] / 2)
        out.append(min(com - left, right - com))
    return np.array(out)


def blocks(c, rng, alt, error):
    """A stack of blocks; implausible: the upper blocks overhang so far that they must fall."""
    n = int(rng.integers(3, 6))
    heights = rng.uniform(0.85, 1.15, n)
    heights *= rng.uniform(1.35, 1.55) / heights.sum()
    widths = rng.uniform(0.52, 0.78, n)
    xs = np.cumsum(np.r_[0, rng.uniform(-0.08, 0.08, n - 1)])
    marks, order = int(rng.integers(3)), rng.permutation(5)
    if error:
        k, s = int(alt.integers(1, n)), (1 if alt.integers(2) else -1)
        xs[k:] += s * (widths[k] + widths[k - 1]) / 2 * 0.84 - (xs[k] - xs[k - 1])
        xs -= s * 0.24
    xs = xs - (0.0 if error else xs.mean())
    y = 0.8
    c.floor(y, mix(c.ground, (120, 100, 90), 0.2), mix(c.ground, (30, 20, 20), 0.4))
    for i in range(n):
        colour = c.main(int(order[i % 5]))
        c.group([box(xs[i] - widths[i] / 2, y - heights[i], xs[i] + widths[i] / 2, y)], colour)
        mid, r = (xs[i], y - heights[i] / 2), heights[i] * 0.25
        if marks == 1:
            c.plain(ellipse(*mid, r), mix(colour, (255, 255, 255), 0.6))
        elif marks == 2:
            c.plain(
                box(xs[i] - widths[i] * 0.3, mid[1] - r * 0.4, xs[i] + widths[i] * 0.3, mid[1] + r * 0.4),
                mix(colour, (255, 255, 255), 0.6),
            )
        c.line([(xs[i] - widths[i] / 2, y), (xs[i] + widths[i] / 2, y)], mix(colour, (0, 0, 0), 0.55), 0.025)
        y -= heights[i]
    return "overhang" if error else ""


def water(c, rng, alt, error):
    """A thing at the water and its reflection; implausible: another thing, an upright one or a shifted one is reflected."""
    kind, size, x = AFLOAT[rng.integers(len(AFLOAT))], rng.uniform(0.78, 0.92), rng.uniform(-0.22, 0.22)
    ripples, other = rng.uniform(-1, 1, (5, 2)), AFLOAT[(AFLOAT.index(kind) + int(alt.integers(1, 6))) % 6]
    how = ("other_thing", "upright", "shifted")[alt.integers(3)] if error else ""
    if how == "upright" and kind == "tower":
        how = "other_thing"  # a tower looks much the same both ways up
    side = -1 if x > 0 else 1
    sea = mix((66, 132, 178), c.back[1], 0.3) if c.n.palette != "grey" else (150, 150, 150)
    if c.dark:
        sea = (40, 62, 116)
    c.floor(0.0, sea, mix(sea, (255, 255, 255), 0.4))
    if how == "other_thing":
        place(c, other, x, 0.03, size, 0, flip_y=True, tint=sea, amount=0.42)
    elif how == "upright":
        place(c, kind, x, 0.03 + size, size, 0, tint=sea, amount=0.42)
    else:
        place(c, kind, x + (0.62 * side if how == "shifted" else 0), 0.03, size, 0, flip_y=True, tint=sea, amount=0.42)
    for dx, dy in ripples:
        at = 0.5 + 0.42 * dy
        c.line([(dx * 0.8 - 0.16, at), (dx * 0.8 + 0.16, at)], mix(sea, (255, 255, 255), 0.3), 0.022)
    if kind in ("boat", "swan"):
        place(c, kind, x, 0.03, size, 0)
    else:
        place(c, kind, x, 0.0, size, 0)
        c.group([capsule((x - size * 0.52, 0.0), (x + size * 0.52, 0.0), 0.045)], mix((110, 140, 80), c.ground, 0.5))
    return how

"""Families whose error is in a body: hand, face, person, animal.

Every family is `draw(c, rng, alt, error) -> variant`: `rng` draws what the twin shares (pose, sizes), `alt` draws how it
goes wrong, so the plausible and the implausible version of one scene differ by the error alone.
"""

import numpy as np

from mtlib.scenes.canvas import box, capsule, ellipse, mix, turn


def _unit(degrees):
    """(2,) direction; 0 is up, positive to the right."""
    a = np.deg2rad(degrees)
    return np.array([np.sin(a), -np.cos(a)])


def hand(c, rng, alt, error):
    """An open hand; implausible: three, six or seven fingers (thumb included)."""
    spread, length, thick = rng.uniform(54, 76), rng.uniform(0.62, 0.8), rng.uniform(0.088, 0.108)
    thumb, wide, sleeve = rng.uniform(56, 78), rng.uniform(0.34, 0.4), rng.random() < 0.6
    bends = rng.uniform(-7, 7, 8)
    count = int(alt.choice([3, 6, 7])) if error else 5
    n = count - 1
    palm = np.array([0.0, 0.3])
    fan = spread * {2: 0.62, 4: 1.0, 5: 1.28, 6: 1.5}[n]
    radius = thick * {2: 1.08, 4: 1.0, 5: 0.94, 6: 0.88}[n]
    shapes = [ellipse(*palm, wide, 0.42), capsule(palm, (0, 0.98), wide * 0.62)]
    nails = []
    for i in range(n):
        t = i / (n - 1) * 2 - 1
        angle = t * fan / 2 + bends[i] * 0.5
        root = palm + (t * wide * 0.74, -0.26 + 0.09 * t * t)
        tip = root + _unit(angle) * length * (1 - 0.2 * abs(t - 0.1) ** 1.5)
        shapes.append(capsule(root, tip, radius * 1.06, radius * 0.92))
        nails.append(ellipse(*(tip - _unit(angle) * 0.01), radius * 0.5, radius * 0.72, angle, n=12))
    root = palm + (wide * 0.6, 0.12)
    tip = root + _unit(thumb) * length * 0.72
    shapes.append(capsule(root, tip, thick * 1.35, thick * 1.02))
    nails.append(ellipse(*tip, thick * 0.55, thick * 0.75, thumb, n=12))
    c.group(shapes, c.skin)
    for nail in nails:
        c.plain(nail, mix(c.skin, (255, 244, 240), 0.6))
    for k in (0.18, 0.38):
        c.line([(-wide * 0.5, k + 0.08), (0, k), (wide * 0.45, k + 0.04)], mix(c.skin, (60, 20, 10), 0.3), 0.03)
    if sleeve:
        c.group([box(-wide * 0.85, 0.78, wide * 0.85, 1.3)], c.main(0))
    return {3: "three", 5: "five", 6: "six", 7: "seven"}[count]


def _eye(c, x, y, r, iris, look):
    c.group([ellipse(x, y, r * 1.35, r)], (252, 252, 250))
    c.plain(ellipse(x + look * r, y, r * 0.68, n=16), iris)
    c.plain(ellipse(x + look * r, y, r * 0.34, n=12), (20, 18, 24))


def face(c, rng, alt, error):
    """A face; implausible: an eye, the mouth or the nose stands where it cannot be."""
    w, h = rng.uniform(0.58, 0.72), rng.uniform(0.78, 0.9)
    gap, r, look = rng.uniform(0.24, 0.3), rng.uniform(0.1, 0.135), rng.uniform(-0.4, 0.4)
    smile, wide, hair = rng.uniform(-0.08, 0.15), rng.uniform(0.2, 0.32), int(rng.integers(4))
    iris, lips = rng.integers(3), rng.random() < 0.5
    how = ("mouth_forehead", "eye_chin", "mouth_side")[alt.integers(3)] if error else ""
    side = 1 if alt.integers(2) else -1
    colour = c.main(0)
    if hair == 1:
        c.group([ellipse(0, 0.05, w * 1.22, h * 1.08)], colour)
    c.group([ellipse(-w, 0.02, 0.13, 0.17), ellipse(w, 0.02, 0.13, 0.17), ellipse(0, 0, w, h, n=36)], c.skin)
    t = np.linspace(np.pi * 1.06, np.pi * 1.94, 18)
    top = np.stack([np.cos(t) * w * 1.05, np.sin(t) * h * 1.07], 1)
    if hair < 3:
        low = top[::-1] * (0.94, 0.62 if hair else 0.72)
        c.group([np.concatenate([top, low])], colour)
    else:
        c.group([np.concatenate([top * (1.02, 1.03), [(w * 1.1, -h * 0.52), (-w * 1.1, -h * 0.52)]])], colour)
        c.group([capsule((-w * 1.25, -h * 0.52), (w * 1.25, -h * 0.52), 0.06)], c.main(1))
    eyes = [(-gap, -0.14), (gap, -0.14)]
    mouth, nose, slant = (0.0, 0.44), (0.0, 0.12), 0
    if how == "mouth_forehead":
        mouth, nose, eyes = (0.0, -0.3), (0.0, 0.12), [(-gap, 0.44), (gap, 0.44)]
    elif how == "eye_chin":
        eyes = [(-gap * side, -0.14), (gap * side * 0.95, 0.38)]
        mouth = (-0.12 * side, 0.5)
    elif how == "mouth_side":
        mouth, slant, nose = (side * w * 0.52, 0.24), 78 * side, (-side * w * 0.45, 0.42)
    shade = mix(c.skin, (70, 20, 10), 0.38)
    for x, y in eyes:
        _eye(c, x, y, r, ((66, 104, 150), (92, 62, 40), (72, 118, 84))[iris], look)
        c.line(
            [(x - r * 1.3, y - r * 1.75), (x, y - r * 2.1), (x + r * 1.3, y - r * 1.75)],
            mix(colour, (0, 0, 0), 0.35),
            0.05,
        )
    c.line([(nose[0], nose[1] - 0.16), (nose[0] + 0.09, nose[1] + 0.05), (nose[0] - 0.05, nose[1] + 0.07)], shade, 0.05)
    x = np.linspace(-1, 1, 9)
    curve = np.stack([x * wide, smile * (1 - x * x) - smile / 2], 1)
    if lips:
        thick = np.concatenate([curve - (0, 0.04), curve[::-1] + np.stack([0 * x, 0.07 * (1 - x * x)], 1)])
        c.plain(turn(thick, slant) + mouth, (196, 62, 74) if c.n.palette != "grey" else (70, 70, 70))
    else:
        c.line(turn(curve, slant) + mouth, (120, 34, 44) if c.n.palette != "grey" else (50, 50, 50), 0.075)
    return how


def _limb(start, angle, bend, length, r):
    mid = start + _unit(angle) * length * 0.52
    end = mid + _unit(angle + bend) * length * 0.5
    return [capsule(start, mid, r, r * 0.92), capsule(mid, end, r * 0.92, r * 0.8)], end


def person(c, rng, alt, error):
    """A standing person; implausible: a third arm or leg, or one that is missing."""
    arms = [(s, rng.uniform(50, 145), rng.uniform(-35, 25)) for s in (-1, 1)]
    legs = [(s, rng.uniform(158, 169), rng.uniform(-6, 6)) for s in (-1, 1)]
    slim, head, tall, dress = (
        rng.uniform(0.18, 0.24),
        rng.uniform(0.16, 0.2),
        rng.uniform(0.7, 0.78),
        rng.random() < 0.25,
    )
    hat = rng.random() < 0.4
    how = ("third_arm", "third_leg", "no_arm", "no_leg")[alt.integers(4)] if error else ""
    side = int(alt.integers(2))
    if how == "third_arm":
        s, angle, _ = arms[side]
        arms.append((s, angle - 62 if angle > 95 else angle + 62, 0.0))
    elif how == "third_leg":
        legs = [(-1, 151, 0), (1, 151, 0), (1, 179, 0)]
    elif how == "no_arm":
        del arms[side]
    elif how == "no_leg":
        del legs[side]
    shoulder, hip = np.array([slim, -0.42]), np.array([slim * 0.6, 0.16])
    trousers, shirt = c.main(0), c.main(1)
    for s, angle, bend in legs:
        parts, foot = _limb(
            hip * (s if how != "third_leg" or angle < 170 else 0.0, 1), s * angle, s * bend, tall, 0.088
        )
        c.group(parts, c.skin if dress else trousers)
        c.group([capsule(foot, foot + (0.1 * s, 0.02), 0.08)], mix(c.ink, (90, 80, 90), 0.4))
    for s, angle, bend in arms:
        parts, end = _limb(shoulder * (s, 1), s * angle, -s * bend, 0.62, 0.075)
        c.group([*parts, ellipse(*end, 0.085, n=14)], c.skin)
        c.group([parts[0]], shirt)
    torso = [
        capsule((-slim * 0.75, -0.42), (slim * 0.75, -0.42), 0.1),
        np.array([(-slim - 0.07, -0.42), (slim + 0.07, -0.42), (slim, 0.2), (-slim, 0.2)]),
    ]
    if dress:
        torso.append(np.array([(-slim, 0.1), (slim, 0.1), (slim + 0.16, 0.42), (-slim - 0.16, 0.42)]))
    c.group([box(-0.06, -0.6, 0.06, -0.42)], c.skin)
    c.group(torso, shirt)
    c.group([ellipse(0, -0.56 - head * 0.9, head, head * 1.1)], c.skin)
    t = np.linspace(np.pi, 2 * np.pi, 12)
    c.group([np.stack([np.cos(t) * head * 1.06, np.sin(t) * head * 1.15 - 0.6 - head * 0.9], 1)], c.main(2))
    if hat:
        c.group([capsule((-head * 1.4, -0.62 - head * 0.9), (head * 1.4, -0.62 - head * 0.9), 0.035)], c.main(2))
    for s in (-1, 1):
        c.plain(ellipse(s * head * 0.38, -0.56 - head * 0.8, 0.025, n=8), (30, 24, 28))
    c.line(
        [(-head * 0.35, -0.5 - head * 0.6), (0, -0.47 - head * 0.6), (head * 0.35, -0.5 - head * 0.6)],
        (130, 50, 50),
        0.03,
    )
    return how


ANIMALS = ("dog", "cat", "horse", "sheep", "cow")


def animal(c, rng, alt, error):
    """A four-legged animal from the side; implausible: two or six legs."""
    kind = ANIMALS[rng.integers(len(ANIMALS))]
    neck = {"horse": 0.42, "dog": 0.2, "cat": 0.16, "sheep": 0.14, "cow": 0.16}[kind] * rng.uniform(0.85, 1.15)
    ry = {"horse": 0.25, "dog": 0.22, "cat": 0.2, "sheep": 0.34, "cow": 0.31}[kind] * rng.uniform(0.92, 1.08)
    leg = {"horse": 0.82, "dog": 0.66, "cat": 0.6, "sheep": 0.58, "cow": 0.64}[kind] * rng.uniform(0.95, 1.08)
    sway, spots = rng.uniform(-11, 11, 6), rng.random() < 0.4
    count = int(alt.choice([2, 6])) if error else 4
    end = int(alt.integers(2))
    xs = {
        2: [(-0.5, -0.28), (0.22, 0.44)][end],
        4: (-0.5, -0.26, 0.22, 0.44),
        6: (-0.52, -0.33, -0.12, 0.07, 0.27, 0.46),
    }[count]
    body, top = c.main(0), -0.1
    for i, x in enumerate(xs):
        start = np.array([x, top + ry * 0.3])
        tilt = sway[i] if count < 6 else sway[i] * 0.35
        foot = start + _unit(180 + tilt) * (leg + ry * 0.3)
        colour = mix(body, (0, 0, 0), 0.25) if i % 2 else body
        c.group([capsule(start, foot, 0.085, 0.066)], colour)
        c.group([capsule(foot + (0, 0.02), foot + (0.05, 0.02), 0.062)], mix(c.ink, (80, 70, 70), 0.5))
    tail = {"cat": [(-0.62, -0.1), (-0.86, -0.35), (-0.8, -0.68)], "horse": [(-0.6, -0.15), (-0.8, 0.0), (-0.82, 0.36)]}
    points = tail.get(
        kind,
        [(-0.6, -0.15), (-0.78, -0.3), (-0.84, -0.5)]
        if kind == "dog"
        else [(-0.6, -0.1), (-0.76, 0.02), (-0.78, 0.16)],
    )
    shapes = [capsule(points[0], points[1], 0.06), capsule(points[1], points[2], 0.06, 0.045)]
    head = np.array([0.68, top - ry * 0.6 - neck])
    shapes += [ellipse(0, top, 0.64, ry, n=30), capsule((0.46, top - ry * 0.2), head, 0.15, 0.12)]
    if kind == "sheep":
        shapes += [ellipse(x, top - ry * 0.72, 0.2) for x in (-0.4, -0.13, 0.14, 0.38)]
    c.group(shapes, body)
    if spots:
        for x, y, r in ((-0.3, -0.05, 0.13), (0.05, 0.03, 0.1), (0.25, -0.08, 0.09)):
            c.plain(ellipse(x, top + y, r, r * ry * 3), mix(body, c.back[0], 0.55))
    skull = mix(body, (20, 20, 20), 0.35) if kind == "sheep" else body
    c.group([ellipse(*head, 0.17, 0.15), capsule(head + (0.06, 0.03), head + (0.25, 0.08), 0.09, 0.07)], skull)
    for x in (-0.08, 0.04):
        ear = head + (x, -0.1)
        if kind in ("cat", "horse", "cow"):
            c.group([np.array([ear + (-0.06, 0.02), ear + (0.06, 0.02), ear + (0, -0.19)])], skull)
        else:
            c.group([capsule(ear, ear + (-0.09, 0.12), 0.06)], mix(skull, (0, 0, 0), 0.25))
    c.plain(ellipse(*(head + (0.07, -0.03)), 0.04, n=10), (252, 252, 250))
    c.plain(ellipse(*(head + (0.08, -0.03)), 0.025, n=8), (16, 16, 20))
    c.plain(ellipse(*(head + (0.3, 0.06)), 0.035, n=8), (30, 20, 24))
    return {2: "two", 4: "four", 6: "six"}[count]

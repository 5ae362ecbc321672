"""Nuisances (palette, background, style, place) and the canvas on which a family draws in unit coordinates.

Unit coordinates: the subject fills about [-1, 1] x [-1, 1], x to the right, y down. The nuisance maps them to pixels,
so a family draws physics only and the same scene can be drawn again under other nuisances.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLE = 2

# background pair, ground, five subject colours, skin tones, ink
PALETTES = {
    "pastel": ("fdf1e3 dcebf5", "c9b8a0", "e07f86 6fa8d6 7dbd8e e6b75c a389cf", "e8b08e c98f68 8d5a3c", "43394a"),
    "vivid": ("fff6cf bfe6ff", "5fa35c", "e6312f 1f6fd6 0f9a4c ff9500 8a2be2", "f0b48c bf7f56 75452b", "1b1b2b"),
    "earth": ("f1e6d3 dcc9a8", "9a7b56", "a4452c 5d6b3a 2f5d62 c98a2b 6d3b47", "dba47c b0744a 6e432a", "2d211a"),
    "ocean": ("e6f5f7 a9d6e5", "5b9bb5", "014f86 ef8354 1f8a80 f2b93b 6c5b9e", "f2bf9b c98c66 80523a", "012a4a"),
    "night": ("1d2240 343a66", "4a4f7c", "ffd166 ef6f9c 4fc3f7 7be0a4 c9a7ff", "f0c3a0 d99f76 b87a52", "0a0b18"),
    "forest": ("edf3e2 bcd4ac", "6f8f58", "2d5a27 b5532a 7a4f2b d8a31a 44617b", "e3ae86 b57c53 714930", "1d2a18"),
    "candy": ("ffe8f3 e3d9ff", "c79fd6", "ff4d85 6a4cf0 00ab9d ffab00 e4572e", "ffbf9e d4936c 8f5b40", "3a1740"),
    "grey": ("f4f4f4 cdcdcd", "a2a2a2", "2f2f2f 4c4c4c 696969 858585 3d3d3d", "b4b4b4 8c8c8c 636363", "111111"),
    "sunset": ("ffe3c2 f7a98a", "9a6a86", "6b2d5c 2e4f8a c8324a fff0c2 2f7f79", "e9a878 b9744d 74422c", "33142e"),
}
BACKGROUNDS = ("plain", "gradient", "stripes", "tiles", "dots", "hills", "room")
STYLES = ("flat", "outlined", "shaded", "grain")


def rgb(colour):
    """(3,) int array of a six-digit hexadecimal colour."""
    return np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])


def mix(a, b, t):
    """Colour tuple between a (t = 0) and b (t = 1)."""
    return tuple(int(v) for v in np.clip(np.asarray(a) * (1 - t) + np.asarray(b) * t, 0, 255))


_PALETTES = {
    name: {
        "back": [rgb(v) for v in p[0].split()],
        "ground": rgb(p[1]),
        "main": [rgb(v) for v in p[2].split()],
        "skin": [rgb(v) for v in p[3].split()],
        "ink": tuple(rgb(p[4]).tolist()),
    }
    for name, p in PALETTES.items()
}


@dataclass(frozen=True)
class Nuisance:
    """Everything about a picture that has nothing to do with physics.

    scale is the share of the image per unit; position_x and position_y are offsets as shares of the image; rotation is
    in degrees; noise is the standard deviation of the pixel noise in grey levels; shift permutes the subject colours.
    """

    background: str
    palette: str
    style: str
    scale: float
    position_x: float
    position_y: float
    flip: bool
    rotation: float
    noise: float
    shift: int


def sample_nuisance(rng, rotation_limit):
    """Draws one Nuisance; never told whether the scene holds an error.

    Args:
        rng:            numpy Generator.
        rotation_limit: largest harmless rotation of the family, degrees.
    Returns: Nuisance.
    """
    scale = rng.uniform(0.37, 0.47)
    room = 0.5 - scale
    style = STYLES[rng.integers(len(STYLES))]
    return Nuisance(
        background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        palette=list(PALETTES)[rng.integers(len(PALETTES))],
        style=style,
        scale=float(scale),
        position_x=float(rng.uniform(-room, room)),
        position_y=float(rng.uniform(-room, room)),
        flip=bool(rng.integers(2)),
        rotation=float(rng.uniform(-1, 1) * rotation_limit),
        noise=float(rng.uniform(1, 4) + (10 if style == "grain" else 0)),
        shift=int(rng.integers(30)),
    )


def ellipse(cx, cy, rx, ry=None, angle=0.0, n=26):
    """(n, 2) float polygon of an ellipse; angle in degrees."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    p = np.stack([rx * np.cos(t), (rx if ry is None else ry) * np.sin(t)], 1)
    return turn(p, angle) + (cx, cy)


def capsule(p, q, r0, r1=None, n=8):
    """(2n, 2) float polygon of a limb from p (radius r0) to q (radius r1) with round ends."""
    p, q = np.asarray(p, float), np.asarray(q, float)
    r1 = r0 if r1 is None else r1
    a = np.arctan2(*(q - p)[::-1])
    t = np.linspace(-np.pi / 2, np.pi / 2, n)
    far = q + r1 * np.stack([np.cos(a + t), np.sin(a + t)], 1)
    near = p + r0 * np.stack([np.cos(a + np.pi + t), np.sin(a + np.pi + t)], 1)
    return np.concatenate([far, near])


def box(x0, y0, x1, y1):
    """(4, 2) float polygon of a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def turn(points, degrees, about=(0, 0)):
    """(n, 2) points turned clockwise (y is down) about a point."""
    a = np.deg2rad(degrees)
    m = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return (np.asarray(points, float) - about) @ m + about


class Canvas:
    """One picture in the making.

    Args:
        nuisance: Nuisance.
        size:     side of the finished image, pixels.
        rng:      numpy Generator for the background's details and the noise.
    """

    def __init__(self, nuisance, size, rng):
        self.n, self.size, self.rng = nuisance, size, rng
        self.px = size * SUPERSAMPLE
        p = _PALETTES[nuisance.palette]
        self.back, self.ground, self.ink = p["back"], p["ground"], p["ink"]
        self.skin = tuple(p["skin"][nuisance.shift % 3].tolist())
        self._main = p["main"]
        self.dark = nuisance.palette == "night"
        self.img = Image.new("RGB", (self.px, self.px), tuple(self.back[0].tolist()))
        self.draw = ImageDraw.Draw(self.img)
        self._background()

    def main(self, i):
        """Subject colour i, permuted by the nuisance."""
        return tuple(self._main[(i + self.n.shift) % 5].tolist())

    def _background(self):
        s, d, (a, b), rng = self.px, self.draw, self.back, self.rng
        kind, soft = self.n.background, mix(self.back[0], self.back[1], 0.75)
        if kind == "gradient":
            ramp = np.linspace(0, 1, s)[:, None] * (mix(a, b, 1.25) - a) + a
            self.img.paste(Image.fromarray(np.repeat(ramp.astype(np.uint8)[:, None], s, 1)))
        elif kind == "stripes":
            w, lean = int(rng.integers(s // 14, s // 7)), int(rng.integers(-s // 3, s // 3))
            for x in range(-s, 2 * s, 2 * w):
                d.polygon([(x, 0), (x + w, 0), (x + w + lean, s), (x + lean, s)], fill=soft)
        elif kind == "tiles":
            w = int(rng.integers(s // 9, s // 5))
            for i in range(s // w + 1):
                for j in range(i % 2, s // w + 1, 2):
                    d.rectangle([i * w, j * w, i * w + w - 1, j * w + w - 1], fill=soft)
        elif kind == "dots":
            w, r = int(rng.integers(s // 9, s // 6)), s // 45
            for i in range(s // w + 1):
                for j in range(s // w + 1):
                    x, y = i * w + (j % 2) * w // 2, j * w
                    d.ellipse([x - r, y - r, x + r, y + r], fill=soft)
        elif kind == "hills":
            x = np.linspace(0, s, 24)
            for k, t in enumerate((0.55, 1.0)):
                y = s * (0.45 + 0.16 * k + 0.06 * np.sin(x / s * rng.uniform(4, 8) + rng.uniform(0, 6)))
                far = mix(b, self.ground, 0.35 * t)
                d.polygon([*zip(x, y, strict=True), (s, s), (0, s)], fill=far)
        elif kind == "room":
            y = int(s * rng.uniform(0.6, 0.8))
            d.rectangle([0, y, s, s], fill=mix(b, self.ground, 0.35))
            d.rectangle([0, y, s, y + s // 50], fill=mix(b, self.ground, 0.7))

    def to_px(self, points):
        """Pixel coordinates [(x, y), ...] of unit points (n, 2)."""
        n = self.n
        p = turn(points, n.rotation) if n.rotation else np.asarray(points, float)
        x = p[:, 0] * (-1 if n.flip else 1) * n.scale + 0.5 + n.position_x
        y = p[:, 1] * n.scale + 0.5 + n.position_y
        return list(zip((x * self.px).tolist(), (y * self.px).tolist(), strict=True))

    def group(self, shapes, fill):
        """Several polygons as one body: one outline around their union, one shading.

        Args:
            shapes: list of (n, 2) float polygons, unit coordinates.
            fill:   (3,) colour.
        """
        fill = tuple(int(v) for v in fill)
        pixels = [self.to_px(s) for s in shapes]
        if self.n.style == "outlined":
            for p in pixels:
                self.draw.line(
                    [*p, p[0], p[1]], fill=self.ink if not self.dark else (236, 236, 248), width=7, joint="curve"
                )
        base = mix(fill, (0, 0, 0), 0.22) if self.n.style == "shaded" else fill
        for p in pixels:
            self.draw.polygon(p, fill=base)
        if self.n.style == "shaded":
            for p in pixels:
                p = np.asarray(p)
                centre = p.mean(0)
                inner = centre + (p - centre) * (0.84, 0.84) - (0, 0.05 * np.ptp(p[:, 1]))
                self.draw.polygon([tuple(v) for v in inner.tolist()], fill=fill)

    def plain(self, points, fill):
        """One polygon without outline or shading (pupils, shadows, water)."""
        self.draw.polygon(self.to_px(points), fill=tuple(int(v) for v in fill))

    def line(self, points, fill, width):
        """A polyline; width in units."""
        self.draw.line(
            self.to_px(np.asarray(points, float)),
            fill=tuple(int(v) for v in fill),
            width=max(2, round(width * self.n.scale * self.px)),
            joint="curve",
        )

    def floor(self, y, fill, edge=None):
        """Everything below y, over the whole width (families that use it are never rotated)."""
        top = (y * self.n.scale + 0.5 + self.n.position_y) * self.px
        self.draw.rectangle([0, top, self.px, self.px], fill=tuple(int(v) for v in fill))
        if edge is not None:
            self.draw.rectangle([0, top, self.px, top + self.px // 80], fill=tuple(int(v) for v in edge))

    def finish(self):
        """The finished PIL RGB image: reduced to `size` and with the nuisance's noise."""
        x = np.asarray(self.img.reduce(SUPERSAMPLE), np.float32)
        grain = self.rng.standard_normal((self.size, self.size, 1), np.float32) * self.n.noise
        return Image.fromarray(np.clip(x + grain + 0.5, 0, 255).astype(np.uint8))

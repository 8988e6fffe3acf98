"""What scenes consist of: places, and things, each standing on the lower edge of a unit square.

In the square (0, 0) is the top left and (1, 1) the bottom right, whatever its size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

INK: RGB = (22, 22, 26)
PAPER: RGB = (250, 250, 246)
PINK: RGB = (240, 150, 160)
SKIN: RGB = (236, 188, 150)
HAIR: RGB = (84, 52, 30)
METAL: RGB = (170, 172, 180)
GLASS: RGB = (186, 222, 244)
GOLD: RGB = (250, 214, 90)
LEAF: RGB = (58, 140, 60)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The color between `a` and `b`; `share` of it is `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def shade(color: RGB, share: float = 0.35) -> RGB:
    """The color, darkened. A nearly black one is lightened instead, so that shapes on it stay visible."""
    return mix(color, (150, 150, 158), share) if sum(color) < 200 else mix(color, (0, 0, 0), share)


def tint(color: RGB, share: float = 0.4) -> RGB:
    return mix(color, (255, 255, 255), share)


class Pen:
    """Draws filled, outlined shapes into a square of an image, optionally mirrored."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: float, top: float, side: float, mirrored: bool = False) -> None:
        """`left`, `top` and `side` are in pixels."""
        self._draw, self._left, self._top, self._side, self._mirrored = draw, left, top, side, mirrored

    def _at(self, x: float, y: float) -> Point:
        return self._left + (1 - x if self._mirrored else x) * self._side, self._top + y * self._side

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (ax, ay), (bx, by) = self._at(x0, y0), self._at(x1, y1)
        return min(ax, bx), ay, max(ax, bx), by

    def _width(self, width: float = 0.016) -> int:
        return max(1, round(width * self._side))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        self._draw.ellipse(self._box(x0, y0, x1, y1), fill, shade(fill, 0.55), self._width())

    def disc(self, x: float, y: float, radius: float, fill: RGB) -> None:
        self.ellipse(x - radius, y - radius, x + radius, y + radius, fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, radius: float = 0.0) -> None:
        box = self._box(x0, y0, x1, y1)
        self._draw.rounded_rectangle(box, radius * self._side, fill, shade(fill, 0.55), self._width())

    def polygon(self, points: Sequence[Point], fill: RGB) -> None:
        self._draw.polygon([self._at(*point) for point in points], fill, shade(fill, 0.55), self._width())

    def line(self, points: Sequence[Point], color: RGB, width: float = 0.03) -> None:
        self._draw.line([self._at(*point) for point in points], color, self._width(width), "curve")


def _dog(pen: Pen, color: RGB) -> None:
    dark = shade(color, 0.28)
    pen.line([(0.14, 0.52), (0.06, 0.40), (0.04, 0.24)], dark, 0.065)
    for x, tone in ((0.27, dark), (0.60, dark), (0.13, color), (0.64, color)):
        pen.rect(x, 0.60, x + 0.10, 1.0, tone, 0.03)
    pen.rect(0.10, 0.42, 0.76, 0.73, color, 0.14)
    pen.rect(0.74, 0.24, 1.0, 0.42, color, 0.07)
    pen.ellipse(0.56, 0.10, 0.87, 0.50, color)
    pen.disc(0.96, 0.27, 0.04, INK)
    pen.ellipse(0.55, 0.13, 0.68, 0.50, dark)
    _eye(pen, 0.77, 0.22)


def _rabbit(pen: Pen, color: RGB) -> None:
    pen.disc(0.80, 0.85, 0.09, PAPER)
    pen.ellipse(0.22, 0.52, 0.80, 1.0, color)
    for x in (0.30, 0.54):
        pen.ellipse(x, 0.0, x + 0.16, 0.42, color)
        pen.ellipse(x + 0.045, 0.05, x + 0.115, 0.36, PINK)
    pen.ellipse(0.24, 0.28, 0.76, 0.68, color)
    pen.ellipse(0.36, 0.70, 0.64, 0.98, tint(color, 0.55))
    for x in (0.37, 0.63):
        _eye(pen, x, 0.44)
        pen.ellipse(x - 0.13, 0.90, x + 0.11, 1.0, color)
    pen.ellipse(0.46, 0.51, 0.54, 0.56, PINK)


def _eye(pen: Pen, x: float, y: float) -> None:
    pen.disc(x, y, 0.038, PAPER)
    pen.disc(x, y, 0.02, INK)


def _woman(pen: Pen, color: RGB) -> None:
    pen.rect(0.35, 0.0, 0.65, 0.38, HAIR, 0.14)
    _body(pen, color, waist=0.48, hem=0.80)
    pen.ellipse(0.40, 0.05, 0.60, 0.28, SKIN)
    _face(pen, 0.15, 0.045)


def _girl(pen: Pen, color: RGB) -> None:
    pen.disc(0.5, 0.34, 0.20, HAIR)
    for x in (0.24, 0.76):
        pen.ellipse(x - 0.08, 0.28, x + 0.08, 0.54, HAIR)
        pen.disc(x, 0.28, 0.045, color)
    _body(pen, color, waist=0.62, hem=0.86)
    pen.ellipse(0.34, 0.21, 0.66, 0.53, SKIN)
    _face(pen, 0.36, 0.075)


def _body(pen: Pen, color: RGB, waist: float, hem: float) -> None:
    """Legs, arms and a dress, which narrows to the waist and ends at the hem."""
    for x in (0.40, 0.53):
        pen.rect(x, hem - 0.06, x + 0.07, 0.97, SKIN)
        pen.ellipse(x - 0.03, 0.94, x + 0.09, 1.0, color)
    shoulder = waist - 0.18
    for x0, x1 in ((0.38, 0.20), (0.62, 0.80)):
        pen.line([(x0, shoulder + 0.03), (x1, waist + 0.08)], SKIN, 0.065)
    pen.polygon([(0.36, shoulder), (0.64, shoulder), (0.59, waist), (0.80, hem), (0.20, hem), (0.41, waist)], color)


def _face(pen: Pen, y: float, size: float) -> None:
    for x in (0.5 - size, 0.5 + size):
        pen.disc(x, y, 0.014, INK)
    pen.line([(0.5 - size, y + size), (0.5, y + size * 1.4), (0.5 + size, y + size)], (170, 50, 50), 0.016)


def _wheel(pen: Pen, x: float, radius: float) -> None:
    pen.disc(x, 1 - radius, radius, INK)
    pen.disc(x, 1 - radius, radius / 2, METAL)


def _car(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.16, 0.60), (0.28, 0.34), (0.66, 0.34), (0.82, 0.60)], color)
    pen.polygon([(0.23, 0.58), (0.31, 0.385), (0.46, 0.385), (0.46, 0.58)], GLASS)
    pen.polygon([(0.50, 0.58), (0.50, 0.385), (0.64, 0.385), (0.75, 0.58)], GLASS)
    pen.rect(0.0, 0.57, 1.0, 0.87, color, 0.09)
    pen.line([(0.48, 0.60), (0.48, 0.84)], shade(color), 0.012)
    pen.disc(0.96, 0.67, 0.04, GOLD)
    for x in (0.23, 0.77):
        _wheel(pen, x, 0.135)


def _truck(pen: Pen, color: RGB) -> None:
    pen.rect(0.0, 0.80, 0.98, 0.88, METAL)
    pen.rect(0.0, 0.26, 0.64, 0.82, color)
    for x in (0.16, 0.32, 0.48):
        pen.line([(x, 0.30), (x, 0.78)], shade(color, 0.25), 0.014)
    pen.polygon([(0.67, 0.42), (0.86, 0.42), (0.98, 0.62), (0.98, 0.84), (0.67, 0.84)], tint(color, 0.2))
    pen.polygon([(0.72, 0.47), (0.84, 0.47), (0.92, 0.61), (0.72, 0.61)], GLASS)
    for x in (0.16, 0.38, 0.82):
        _wheel(pen, x, 0.11)


def _bicycle(pen: Pen, color: RGB) -> None:
    for x in (0.23, 0.77):
        pen.disc(x, 0.77, 0.23, INK)
        pen.disc(x, 0.77, 0.19, GLASS)
        for turn in range(6):
            dx, dy = 0.18 * math.cos(turn * math.pi / 6), 0.18 * math.sin(turn * math.pi / 6)
            pen.line([(x - dx, 0.77 - dy), (x + dx, 0.77 + dy)], METAL, 0.01)
    pen.line([(0.36, 0.38), (0.48, 0.76), (0.23, 0.76), (0.38, 0.46), (0.68, 0.46), (0.48, 0.76)], color, 0.06)
    pen.line([(0.77, 0.76), (0.66, 0.34)], color, 0.06)
    pen.line([(0.60, 0.32), (0.67, 0.33), (0.76, 0.28)], INK, 0.04)
    pen.rect(0.27, 0.34, 0.46, 0.40, INK, 0.03)


def _plane(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.50, 0.60), (0.40, 0.32), (0.50, 0.32), (0.66, 0.60)], shade(color, 0.25))
    pen.polygon([(0.02, 0.62), (0.0, 0.32), (0.10, 0.32), (0.24, 0.60)], color)
    pen.rect(0.02, 0.54, 0.98, 0.76, color, 0.10)
    for window in range(7):
        pen.disc(0.26 + window * 0.08, 0.62, 0.022, GLASS)
    pen.polygon([(0.86, 0.56), (0.93, 0.58), (0.97, 0.64), (0.86, 0.64)], GLASS)
    pen.polygon([(0.62, 0.70), (0.44, 0.70), (0.24, 1.0), (0.34, 1.0)], shade(color, 0.2))


def _flower(pen: Pen, color: RGB) -> None:
    pen.line([(0.50, 0.40), (0.50, 1.0)], LEAF, 0.045)
    pen.ellipse(0.22, 0.72, 0.50, 0.84, LEAF)
    pen.ellipse(0.50, 0.78, 0.78, 0.90, LEAF)
    for petal in range(8):
        pen.disc(0.5 + 0.20 * math.cos(petal * math.pi / 4), 0.32 + 0.20 * math.sin(petal * math.pi / 4), 0.12, color)
    pen.disc(0.5, 0.32, 0.13, GOLD if color[2] > 60 or color[0] < 200 else HAIR)


def _lamp(pen: Pen, color: RGB) -> None:
    pen.ellipse(0.26, 0.90, 0.74, 1.0, METAL)
    pen.rect(0.47, 0.46, 0.53, 0.95, METAL)
    pen.disc(0.5, 0.5, 0.10, GOLD)
    pen.polygon([(0.34, 0.04), (0.66, 0.04), (0.90, 0.50), (0.10, 0.50)], color)
    pen.line([(0.42, 0.08), (0.30, 0.46)], tint(color, 0.5), 0.03)


def _bag(pen: Pen, color: RGB) -> None:
    pen.line([(0.28, 0.40), (0.36, 0.12), (0.64, 0.12), (0.72, 0.40)], shade(color, 0.4), 0.055)
    pen.polygon([(0.14, 0.36), (0.86, 0.36), (0.98, 0.94), (0.92, 1.0), (0.08, 1.0), (0.02, 0.94)], color)
    pen.polygon([(0.14, 0.36), (0.86, 0.36), (0.78, 0.64), (0.22, 0.64)], shade(color, 0.2))
    pen.rect(0.43, 0.58, 0.57, 0.70, GOLD, 0.02)


def _table(pen: Pen, color: RGB) -> None:
    for x, bottom in ((0.18, 0.88), (0.75, 0.88), (0.04, 1.0), (0.88, 1.0)):
        pen.rect(x, 0.52, x + 0.08, bottom, shade(color, 0.15))
    pen.polygon([(0.14, 0.38), (0.86, 0.38), (1.0, 0.54), (0.0, 0.54)], tint(color, 0.12))
    pen.rect(0.0, 0.54, 1.0, 0.61, color)


DRAWINGS: dict[str, Callable[[Pen, RGB], None]] = {
    draw.__name__.strip("_"): draw
    for draw in (_dog, _rabbit, _woman, _girl, _car, _truck, _bicycle, _plane, _flower, _lamp, _bag, _table)
}
"""How each kind of thing is drawn."""


def _beach(pen: Pen, rng: np.random.Generator) -> None:
    pen.disc(0.1 + rng.random() * 0.8, 0.13, 0.07, (255, 236, 120))
    pen.line([(0, 0.52), (1, 0.51 + rng.random() * 0.03)], PAPER, 0.02)
    for _ in range(9):
        x, y = rng.random(), 0.36 + rng.random() * 0.1
        pen.line([(x, y), (x + 0.03, y - 0.012), (x + 0.06, y), (x + 0.09, y - 0.012)], (226, 240, 252), 0.008)


def _street(pen: Pen, rng: np.random.Generator) -> None:
    for house in range(6):
        x, top, gray = house * 0.18 - 0.04, 0.05 + rng.random() * 0.25, 120 + int(rng.random() * 60)
        pen.rect(x, top, x + 0.17, 0.60, (gray, gray - 6, gray - 12))
        for window in range(round((0.55 - top) / 0.1)):
            for left in (x + 0.03, x + 0.10):
                pen.rect(left, top + 0.04 + window * 0.1, left + 0.035, top + 0.09 + window * 0.1, (228, 222, 180))
    pen.rect(-0.1, 0.60, 1.1, 0.66, (186, 184, 178))
    for stripe in range(5):
        pen.rect(stripe * 0.24, 0.80, stripe * 0.24 + 0.13, 0.83, (244, 240, 214))


def _snow(pen: Pen, rng: np.random.Generator) -> None:
    for _ in range(4):
        x, h = rng.random(), 0.16 + rng.random() * 0.1
        for level in (0.0, 0.3, 0.6):
            y, w = 0.54 - h * (1 - level), h * (0.16 + level * 0.3)
            pen.polygon([(x, y), (x - w, y + h * 0.4), (x + w, y + h * 0.4)], (92, 116, 112))
            pen.polygon([(x, y), (x - w * 0.4, y + h * 0.16), (x + w * 0.4, y + h * 0.16)], PAPER)
    _dots(pen, rng, 1.0, (255, 255, 255))


def _night(pen: Pen, rng: np.random.Generator) -> None:
    _dots(pen, rng, 0.6, (250, 246, 214))
    pen.disc(0.12 + rng.random() * 0.76, 0.14, 0.085, (250, 244, 200))


def _dots(pen: Pen, rng: np.random.Generator, end: float, color: RGB) -> None:
    for _ in range(70):
        x, y = rng.random(), rng.random() * end
        pen.line([(x, y), (x + 0.01, y)], color, 0.01)


SKY: tuple[RGB, RGB] = ((120, 186, 242), (206, 232, 250))
BACKGROUNDS: dict[str, tuple[Callable[[Pen, np.random.Generator], None], tuple[tuple[float, RGB, RGB], ...]]] = {
    "on the beach": (
        _beach,
        ((0.34, *SKY), (0.52, (30, 120, 190), (80, 190, 214)), (1.0, (246, 224, 170), (226, 192, 126))),
    ),
    "on the street": (_street, ((0.6, *SKY), (1.0, (104, 104, 110), (78, 78, 84)))),
    "in the snow": (_snow, ((0.52, (168, 184, 204), (204, 214, 226)), (1.0, (244, 248, 253), (222, 230, 242)))),
    "at night": (_night, ((0.68, (12, 16, 52), (48, 54, 112)), (1.0, (44, 62, 66), (30, 44, 46)))),
}
"""What is drawn at each place on its bands: lower end as a share of the height, upper color, lower color."""


def background(place: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A square image of `side` pixels; `rng` varies its movable parts."""
    details, bands = BACKGROUNDS[place]
    ends = [x for end, *_ in bands for x in (end, end)]
    heights = [0.0, *ends[:-1]]
    colors = np.array([color for _, *both in bands for color in both], np.float64)
    rows = np.stack([np.interp(np.linspace(0, 1, side), heights, channel) for channel in colors.T], axis=1)
    rows += (rng.random(3) - 0.5) * 14
    image = Image.fromarray(np.clip(rows[:, None], 0, 255).astype(np.uint8))
    image = image.resize((side, side), Image.Resampling.NEAREST)
    details(Pen(ImageDraw.Draw(image), 0, 0, side), rng)
    return image

"""The contents of scenes: animals, people, things and vehicles, each standing on the lower edge of a unit square.

In the square (0, 0) is the top left and (1, 1) the bottom right, whatever its size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]
OUTLINE = 0.016


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The color between `a` and `b`; `share` of it is `b`."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


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
        return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)

    def _width(self, width: float) -> int:
        return max(1, round(width * self._side))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, outline: bool = True) -> None:
        edge = shade(fill, 0.55) if outline else None
        self._draw.ellipse(self._box(x0, y0, x1, y1), fill=fill, outline=edge, width=self._width(OUTLINE))

    def rect(
        self, x0: float, y0: float, x1: float, y1: float, fill: RGB, radius: float = 0.0, outline: bool = True
    ) -> None:
        self._draw.rounded_rectangle(
            self._box(x0, y0, x1, y1),
            radius=radius * self._side,
            fill=fill,
            outline=shade(fill, 0.55) if outline else None,
            width=self._width(OUTLINE),
        )

    def polygon(self, points: Sequence[Point], fill: RGB, outline: bool = True) -> None:
        corners = [self._at(*point) for point in points]
        edge = shade(fill, 0.55) if outline else None
        self._draw.polygon(corners, fill=fill, outline=edge, width=self._width(OUTLINE))

    def line(self, points: Sequence[Point], color: RGB, width: float = 0.03) -> None:
        self._draw.line([self._at(*point) for point in points], fill=color, width=self._width(width), joint="curve")

    def arc(
        self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, color: RGB, width: float = 0.03
    ) -> None:
        """Draw a part of an ellipse's edge, from `start` to `end` in degrees, clockwise from three o'clock."""
        if self._mirrored:
            start, end = 180 - end, 180 - start
        self._draw.arc(self._box(x0, y0, x1, y1), start, end, fill=color, width=self._width(width))

    def chord(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: RGB) -> None:
        """Fill a part of an ellipse that a straight line cuts off."""
        if self._mirrored:
            start, end = 180 - end, 180 - start
        self._draw.chord(
            self._box(x0, y0, x1, y1), start, end, fill=fill, outline=shade(fill, 0.55), width=self._width(OUTLINE)
        )


BLACK: RGB = (20, 20, 24)
PALE: RGB = (250, 250, 250)
PINK: RGB = (240, 150, 160)
BEAK: RGB = (240, 160, 30)
SKIN: RGB = (236, 188, 150)
HAIR: RGB = (84, 52, 30)
JEANS: RGB = (62, 78, 120)


def _eye(pen: Pen, x: float, y: float, size: float = 0.035) -> None:
    pen.ellipse(x - size, y - size, x + size, y + size, PALE)
    pen.ellipse(x - size * 0.55, y - size * 0.55, x + size * 0.55, y + size * 0.55, BLACK, outline=False)


def dog(pen: Pen, color: RGB) -> None:
    dark = shade(color, 0.28)
    pen.line([(0.14, 0.52), (0.06, 0.40), (0.04, 0.24)], dark, 0.065)
    for x in (0.27, 0.60):
        pen.rect(x, 0.62, x + 0.09, 0.98, dark, 0.03)
    pen.polygon([(0.52, 0.52), (0.58, 0.22), (0.80, 0.30), (0.74, 0.60)], color, outline=False)
    pen.rect(0.10, 0.42, 0.74, 0.73, color, 0.14)
    for x in (0.13, 0.64):
        pen.rect(x, 0.60, x + 0.10, 1.0, color, 0.03)
    pen.ellipse(0.56, 0.10, 0.87, 0.44, color)
    pen.rect(0.74, 0.24, 1.0, 0.42, color, 0.07)
    pen.ellipse(0.92, 0.22, 1.0, 0.31, BLACK)
    pen.line([(0.84, 0.37), (0.96, 0.37)], BLACK, 0.015)
    pen.ellipse(0.55, 0.13, 0.68, 0.50, dark)
    _eye(pen, 0.77, 0.22)


def cat(pen: Pen, color: RGB) -> None:
    dark = shade(color, 0.3)
    pen.arc(0.58, 0.55, 1.0, 0.98, -90, 100, dark, 0.075)
    pen.ellipse(0.22, 0.44, 0.78, 1.0, color)
    for x in (0.36, 0.52):
        pen.rect(x, 0.68, x + 0.12, 1.0, color, 0.05)
    pen.polygon([(0.22, 0.34), (0.20, 0.02), (0.44, 0.18)], color)
    pen.polygon([(0.78, 0.34), (0.80, 0.02), (0.56, 0.18)], color)
    pen.polygon([(0.26, 0.24), (0.245, 0.09), (0.37, 0.18)], PINK, outline=False)
    pen.polygon([(0.74, 0.24), (0.755, 0.09), (0.63, 0.18)], PINK, outline=False)
    pen.ellipse(0.19, 0.13, 0.81, 0.57, color)
    for x in (0.43, 0.50, 0.57):
        pen.line([(x, 0.15), (x, 0.23)], dark, 0.02)
    for x in (0.37, 0.63):
        pen.ellipse(x - 0.06, 0.28, x + 0.06, 0.38, (160, 210, 80))
        pen.ellipse(x - 0.018, 0.28, x + 0.018, 0.38, BLACK, outline=False)
    pen.polygon([(0.46, 0.41), (0.54, 0.41), (0.50, 0.455)], PINK)
    for side in (-1, 1):
        for slope in (-0.035, 0.01, 0.05):
            pen.line([(0.5 + side * 0.12, 0.455), (0.5 + side * 0.42, 0.455 + slope)], shade(color, 0.6), 0.011)


def bird(pen: Pen, color: RGB) -> None:
    dark = shade(color, 0.3)
    pen.polygon([(0.30, 0.50), (0.0, 0.66), (0.04, 0.78), (0.34, 0.68)], dark)
    for x in (0.44, 0.56):
        pen.line([(x, 0.74), (x, 0.97), (x + 0.08, 0.98)], BEAK, 0.03)
    pen.polygon([(0.84, 0.22), (1.0, 0.30), (0.84, 0.36)], BEAK)
    pen.ellipse(0.20, 0.34, 0.80, 0.82, color)
    pen.ellipse(0.54, 0.10, 0.90, 0.48, color)
    pen.ellipse(0.52, 0.50, 0.76, 0.79, tint(color, 0.5), outline=False)
    pen.polygon([(0.62, 0.46), (0.16, 0.46), (0.10, 0.58), (0.34, 0.70), (0.56, 0.64)], dark)
    _eye(pen, 0.76, 0.25, 0.045)


def fish(pen: Pen, color: RGB) -> None:
    dark = shade(color, 0.3)
    pen.polygon([(0.26, 0.55), (0.0, 0.30), (0.06, 0.55), (0.0, 0.82)], dark)
    pen.polygon([(0.40, 0.36), (0.52, 0.12), (0.72, 0.34)], dark)
    pen.polygon([(0.46, 0.74), (0.50, 0.94), (0.64, 0.76)], dark)
    pen.ellipse(0.18, 0.28, 0.98, 0.84, color)
    for x in (0.34, 0.46, 0.58):
        pen.arc(x - 0.12, 0.36, x + 0.06, 0.76, -60, 60, tint(color, 0.65), 0.035)
    pen.arc(0.56, 0.34, 0.76, 0.78, -70, 70, dark, 0.02)
    _eye(pen, 0.85, 0.48, 0.055)
    pen.line([(0.90, 0.64), (0.97, 0.61)], BLACK, 0.016)


def horse(pen: Pen, color: RGB) -> None:
    dark = shade(color, 0.5)
    pen.polygon([(0.14, 0.42), (0.02, 0.52), (0.0, 0.82), (0.08, 0.80), (0.12, 0.58)], dark)
    for x in (0.24, 0.56):
        pen.rect(x, 0.58, x + 0.065, 0.98, shade(color, 0.2), 0.01)
    pen.ellipse(0.10, 0.38, 0.70, 0.68, color)
    for x in (0.14, 0.62):
        pen.rect(x, 0.52, x + 0.07, 0.95, color, 0.01)
        pen.rect(x - 0.005, 0.93, x + 0.08, 1.0, BLACK, 0.01)
    pen.polygon([(0.50, 0.46), (0.66, 0.10), (0.82, 0.14), (0.70, 0.56)], color, outline=False)
    pen.polygon([(0.46, 0.42), (0.62, 0.06), (0.70, 0.08), (0.58, 0.44)], dark, outline=False)
    pen.polygon(
        [(0.66, 0.10), (0.74, 0.05), (0.84, 0.12), (1.0, 0.30), (0.95, 0.38), (0.86, 0.36), (0.70, 0.26)], color
    )
    pen.polygon([(0.68, 0.10), (0.70, -0.02), (0.76, 0.07)], color)
    pen.ellipse(0.79, 0.13, 0.83, 0.17, BLACK, outline=False)
    pen.ellipse(0.94, 0.30, 0.965, 0.325, BLACK, outline=False)


def rabbit(pen: Pen, color: RGB) -> None:
    pen.ellipse(0.70, 0.76, 0.90, 0.94, PALE)
    pen.ellipse(0.22, 0.52, 0.80, 1.0, color)
    for x in (0.30, 0.54):
        pen.ellipse(x, 0.0, x + 0.16, 0.42, color)
        pen.ellipse(x + 0.045, 0.05, x + 0.115, 0.36, PINK, outline=False)
    pen.ellipse(0.24, 0.28, 0.76, 0.68, color)
    pen.ellipse(0.36, 0.70, 0.64, 0.98, tint(color, 0.55), outline=False)
    for x in (0.37, 0.63):
        _eye(pen, x, 0.44, 0.042)
        pen.ellipse(x - 0.13, 0.90, x + 0.11, 1.0, color)
    pen.ellipse(0.46, 0.51, 0.54, 0.56, PINK)
    pen.rect(0.465, 0.58, 0.535, 0.655, PALE)


def _face(pen: Pen, y: float, size: float) -> None:
    for x in (0.5 - size * 0.4, 0.5 + size * 0.4):
        pen.ellipse(x - 0.014, y - 0.014, x + 0.014, y + 0.014, BLACK, outline=False)
    pen.arc(0.5 - size * 0.4, y, 0.5 + size * 0.4, y + size * 0.75, 25, 155, (170, 50, 50), 0.016)


def man(pen: Pen, color: RGB) -> None:
    for x in (0.37, 0.52):
        pen.rect(x, 0.56, x + 0.115, 0.96, JEANS)
        pen.rect(x - 0.03, 0.93, x + 0.125, 1.0, BLACK, 0.02)
    for x in (0.23, 0.68):
        pen.rect(x, 0.27, x + 0.09, 0.52, color, 0.04)
        pen.ellipse(x + 0.005, 0.49, x + 0.085, 0.59, SKIN)
    pen.rect(0.32, 0.25, 0.68, 0.62, color, 0.06)
    pen.rect(0.45, 0.20, 0.55, 0.28, SKIN)
    pen.ellipse(0.38, 0.0, 0.62, 0.25, SKIN)
    pen.chord(0.38, 0.0, 0.62, 0.25, 20, 160, HAIR)
    pen.chord(0.37, -0.01, 0.63, 0.20, 180, 360, HAIR)
    _face(pen, 0.125, 0.10)


def woman(pen: Pen, color: RGB) -> None:
    pen.rect(0.34, 0.02, 0.66, 0.38, HAIR, 0.12)
    for x in (0.40, 0.53):
        pen.rect(x, 0.74, x + 0.07, 0.97, SKIN)
        pen.ellipse(x - 0.03, 0.94, x + 0.09, 1.0, color)
    for points in ([(0.38, 0.30), (0.22, 0.56)], [(0.62, 0.30), (0.78, 0.56)]):
        pen.line(points, SKIN, 0.065)
    pen.polygon([(0.36, 0.27), (0.64, 0.27), (0.58, 0.48), (0.80, 0.80), (0.20, 0.80), (0.42, 0.48)], color)
    pen.rect(0.46, 0.21, 0.54, 0.29, SKIN)
    pen.ellipse(0.39, 0.02, 0.61, 0.25, SKIN)
    pen.chord(0.37, 0.0, 0.63, 0.18, 180, 360, HAIR)
    _face(pen, 0.135, 0.10)


def boy(pen: Pen, color: RGB) -> None:
    for x in (0.39, 0.52):
        pen.rect(x, 0.80, x + 0.09, 0.96, SKIN)
        pen.rect(x - 0.02, 0.94, x + 0.10, 1.0, BLACK, 0.02)
        pen.rect(x - 0.02, 0.70, x + 0.12, 0.86, JEANS)
    for x, y in ((0.20, 0.36), (0.71, 0.36)):
        pen.line([(0.32 if x < 0.5 else 0.68, 0.56), (x + 0.04, y)], SKIN, 0.07)
    pen.rect(0.31, 0.50, 0.69, 0.75, color, 0.06)
    pen.ellipse(0.32, 0.17, 0.68, 0.53, SKIN)
    pen.chord(0.31, 0.15, 0.69, 0.45, 180, 360, HAIR)
    pen.polygon([(0.44, 0.18), (0.55, 0.10), (0.58, 0.18)], HAIR, outline=False)
    _face(pen, 0.36, 0.16)


def girl(pen: Pen, color: RGB) -> None:
    for x in (0.41, 0.52):
        pen.rect(x, 0.84, x + 0.07, 0.97, SKIN)
        pen.ellipse(x - 0.03, 0.94, x + 0.09, 1.0, BLACK)
    for points in ([(0.38, 0.56), (0.22, 0.68)], [(0.62, 0.56), (0.78, 0.68)]):
        pen.line(points, SKIN, 0.06)
    pen.polygon([(0.40, 0.50), (0.60, 0.50), (0.76, 0.88), (0.24, 0.88)], color)
    for x in (0.16, 0.68):
        pen.ellipse(x, 0.28, x + 0.16, 0.52, HAIR)
        pen.ellipse(x + 0.04, 0.25, x + 0.12, 0.33, color)
    pen.ellipse(0.32, 0.17, 0.68, 0.53, SKIN)
    pen.chord(0.30, 0.14, 0.70, 0.46, 180, 360, HAIR)
    _face(pen, 0.37, 0.16)


WOOD: RGB = (122, 80, 46)
METAL: RGB = (150, 152, 160)
GLASS: RGB = (186, 222, 244)
PAPER: RGB = (252, 250, 240)
INK: RGB = (24, 24, 28)
LEAF: RGB = (58, 140, 60)
GOLD: RGB = (224, 184, 60)
TIRE: RGB = (34, 34, 38)
RIM: RGB = (196, 198, 204)
LAMP: RGB = (255, 232, 130)
MAST: RGB = (120, 78, 44)
SAIL: RGB = (250, 248, 238)


def house(pen: Pen, color: RGB) -> None:
    pen.rect(0.70, 0.10, 0.80, 0.40, (150, 74, 60))
    pen.rect(0.10, 0.44, 0.90, 1.0, color)
    pen.polygon([(0.0, 0.47), (0.5, 0.04), (1.0, 0.47)], (108, 62, 48))
    pen.rect(0.42, 0.68, 0.58, 1.0, WOOD)
    pen.ellipse(0.54, 0.83, 0.565, 0.855, GOLD)
    for x in (0.18, 0.66):
        pen.rect(x, 0.58, x + 0.16, 0.76, GLASS)
        pen.line([(x + 0.08, 0.58), (x + 0.08, 0.76)], PAPER, 0.018)
        pen.line([(x, 0.67), (x + 0.16, 0.67)], PAPER, 0.018)


def tree(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.44, 0.50), (0.56, 0.50), (0.60, 1.0), (0.40, 1.0)], WOOD)
    for x, y, r in ((0.28, 0.44, 0.22), (0.72, 0.44, 0.22), (0.38, 0.24, 0.22), (0.62, 0.24, 0.22)):
        pen.ellipse(x - r, y - r, x + r, y + r, color)
    pen.ellipse(0.24, 0.16, 0.76, 0.60, color, outline=False)
    for x, y in ((0.30, 0.30), (0.55, 0.18), (0.70, 0.40), (0.42, 0.48)):
        pen.arc(x - 0.07, y - 0.05, x + 0.07, y + 0.07, 190, 340, shade(color, 0.25), 0.02)


def ball(pen: Pen, color: RGB) -> None:
    pen.ellipse(0.06, 0.12, 0.94, 1.0, color)
    pen.ellipse(0.27, 0.12, 0.73, 1.0, PAPER)
    pen.ellipse(0.39, 0.12, 0.61, 1.0, color)
    pen.ellipse(0.42, 0.11, 0.58, 0.19, PAPER)
    pen.ellipse(0.16, 0.34, 0.24, 0.48, tint(color, 0.6), outline=False)


def hat(pen: Pen, color: RGB) -> None:
    pen.ellipse(0.0, 0.66, 1.0, 0.98, color)
    pen.polygon([(0.22, 0.82), (0.28, 0.34), (0.40, 0.28), (0.60, 0.28), (0.72, 0.34), (0.78, 0.82)], color)
    pen.ellipse(0.28, 0.24, 0.72, 0.40, shade(color, 0.15))
    band = PAPER if sum(color) < 360 else (60, 44, 40)
    pen.polygon([(0.235, 0.68), (0.765, 0.68), (0.78, 0.80), (0.22, 0.80)], band)


def umbrella(pen: Pen, color: RGB) -> None:
    pen.line([(0.50, 0.02), (0.50, 0.88)], INK, 0.028)
    pen.arc(0.50, 0.78, 0.68, 0.98, 0, 180, WOOD, 0.045)
    pen.chord(0.0, 0.08, 1.0, 0.98, 180, 360, color)
    pen.chord(0.30, 0.08, 0.70, 0.98, 180, 360, tint(color, 0.3) if sum(color) < 700 else shade(color, 0.14))
    for x in (0.0, 0.25, 0.5, 0.75):
        pen.arc(x, 0.47, x + 0.25, 0.61, 180, 360, shade(color, 0.5), 0.022)


def flower(pen: Pen, color: RGB) -> None:
    pen.line([(0.50, 0.40), (0.50, 1.0)], LEAF, 0.045)
    pen.ellipse(0.22, 0.72, 0.50, 0.84, LEAF)
    pen.ellipse(0.50, 0.78, 0.78, 0.90, LEAF)
    for petal in range(8):
        x, y = 0.5 + 0.20 * math.cos(petal * math.pi / 4), 0.30 + 0.20 * math.sin(petal * math.pi / 4)
        pen.ellipse(x - 0.12, y - 0.12, x + 0.12, y + 0.12, color)
    middle = (110, 70, 30) if mix(color, (250, 216, 50), 0.5)[2] < 60 else (250, 206, 60)
    pen.ellipse(0.37, 0.17, 0.63, 0.43, middle)


def chair(pen: Pen, color: RGB) -> None:
    for x in (0.20, 0.72):
        pen.rect(x, 0.02, x + 0.08, 0.60, shade(color, 0.15))
    for y in (0.06, 0.22, 0.38):
        pen.rect(0.22, y, 0.78, y + 0.09, color, 0.02)
    for x in (0.26, 0.66):
        pen.rect(x, 0.64, x + 0.07, 0.90, shade(color, 0.35))
    pen.polygon([(0.22, 0.54), (0.78, 0.54), (0.90, 0.68), (0.10, 0.68)], color)
    for x in (0.11, 0.81):
        pen.rect(x, 0.67, x + 0.08, 1.0, shade(color, 0.1))


def table(pen: Pen, color: RGB) -> None:
    for x in (0.18, 0.75):
        pen.rect(x, 0.52, x + 0.07, 0.88, shade(color, 0.35))
    for x in (0.04, 0.88):
        pen.rect(x, 0.56, x + 0.08, 1.0, shade(color, 0.15))
    pen.polygon([(0.14, 0.38), (0.86, 0.38), (1.0, 0.54), (0.0, 0.54)], tint(color, 0.12))
    pen.rect(0.0, 0.54, 1.0, 0.61, color)


def cup(pen: Pen, color: RGB) -> None:
    for x in (0.30, 0.44, 0.58):
        pen.line([(x, 0.24), (x + 0.03, 0.16), (x - 0.02, 0.09), (x + 0.02, 0.01)], (205, 208, 214), 0.022)
    pen.arc(0.60, 0.44, 0.98, 0.82, -100, 100, shade(color, 0.15), 0.07)
    pen.polygon([(0.10, 0.36), (0.78, 0.36), (0.70, 0.94), (0.62, 1.0), (0.26, 1.0), (0.18, 0.94)], color)
    pen.ellipse(0.10, 0.28, 0.78, 0.44, tint(color, 0.35))
    pen.ellipse(0.16, 0.31, 0.72, 0.42, (84, 52, 32))


def book(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.70, 0.14), (0.86, 0.06), (0.86, 0.90), (0.70, 1.0)], PAPER)
    for step in range(1, 4):
        pen.line([(0.70 + step * 0.04, 0.13 - step * 0.02), (0.70 + step * 0.04, 0.97 - step * 0.025)], METAL, 0.008)
    pen.polygon([(0.14, 0.14), (0.30, 0.06), (0.86, 0.06), (0.70, 0.14)], PAPER)
    pen.rect(0.12, 0.13, 0.71, 1.0, color)
    pen.rect(0.12, 0.13, 0.20, 1.0, shade(color, 0.3))
    label = PAPER if sum(color) < 560 else shade(color, 0.45)
    for y, x1 in ((0.28, 0.62), (0.38, 0.54)):
        pen.rect(0.29, y, x1, y + 0.055, label, outline=False)
    pen.ellipse(0.36, 0.58, 0.56, 0.78, label, outline=False)


def lamp(pen: Pen, color: RGB) -> None:
    pen.ellipse(0.26, 0.90, 0.74, 1.0, METAL)
    pen.rect(0.47, 0.46, 0.53, 0.95, METAL)
    pen.ellipse(0.40, 0.40, 0.60, 0.60, (255, 244, 170))
    pen.polygon([(0.34, 0.04), (0.66, 0.04), (0.90, 0.50), (0.10, 0.50)], color)
    pen.line([(0.42, 0.08), (0.30, 0.46)], tint(color, 0.5), 0.03)
    pen.line([(0.74, 0.50), (0.74, 0.66)], GOLD, 0.014)
    pen.ellipse(0.72, 0.65, 0.76, 0.69, GOLD)


def box(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.06, 0.36), (0.30, 0.20), (0.98, 0.20), (0.74, 0.36)], tint(color, 0.3))
    pen.polygon([(0.74, 0.36), (0.98, 0.20), (0.98, 0.82), (0.74, 1.0)], shade(color, 0.3))
    pen.rect(0.06, 0.36, 0.74, 1.0, color)
    tape = (226, 204, 160) if sum(color) < 640 else (190, 160, 110)
    pen.polygon([(0.34, 0.36), (0.58, 0.20), (0.68, 0.20), (0.46, 0.36)], tape)
    pen.rect(0.34, 0.36, 0.46, 0.58, tape)


def clock(pen: Pen, color: RGB) -> None:
    for x in (0.16, 0.58):
        pen.ellipse(x, 0.02, x + 0.26, 0.24, color)
    for points in ([(0.28, 0.84), (0.18, 0.98)], [(0.72, 0.84), (0.82, 0.98)]):
        pen.line(points, shade(color, 0.4), 0.07)
    pen.ellipse(0.08, 0.12, 0.92, 0.96, color)
    pen.ellipse(0.19, 0.23, 0.81, 0.85, PAPER)
    for tick in range(12):
        dx, dy = math.cos(tick * math.pi / 6), math.sin(tick * math.pi / 6)
        pen.line([(0.5 + 0.24 * dx, 0.54 + 0.24 * dy), (0.5 + 0.28 * dx, 0.54 + 0.28 * dy)], INK, 0.022)
    pen.line([(0.50, 0.54), (0.50, 0.33)], INK, 0.03)
    pen.line([(0.50, 0.54), (0.65, 0.60)], INK, 0.04)
    pen.ellipse(0.47, 0.51, 0.53, 0.57, (200, 40, 40))


def bag(pen: Pen, color: RGB) -> None:
    pen.arc(0.28, 0.04, 0.72, 0.72, 180, 360, shade(color, 0.4), 0.055)
    pen.polygon([(0.14, 0.36), (0.86, 0.36), (0.98, 0.94), (0.92, 1.0), (0.08, 1.0), (0.02, 0.94)], color)
    pen.polygon([(0.14, 0.36), (0.86, 0.36), (0.78, 0.64), (0.22, 0.64)], shade(color, 0.2))
    pen.rect(0.43, 0.58, 0.57, 0.70, GOLD, 0.02)


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.ellipse(x - radius, y - radius, x + radius, y + radius, TIRE)
    pen.ellipse(x - radius * 0.5, y - radius * 0.5, x + radius * 0.5, y + radius * 0.5, RIM)


def car(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.16, 0.60), (0.28, 0.34), (0.66, 0.34), (0.82, 0.60)], color)
    pen.polygon([(0.23, 0.58), (0.31, 0.385), (0.46, 0.385), (0.46, 0.58)], GLASS)
    pen.polygon([(0.50, 0.58), (0.50, 0.385), (0.64, 0.385), (0.75, 0.58)], GLASS)
    pen.rect(0.0, 0.57, 1.0, 0.87, color, 0.09)
    pen.line([(0.48, 0.60), (0.48, 0.84)], shade(color), 0.012)
    pen.rect(0.53, 0.65, 0.60, 0.67, shade(color, 0.5))
    pen.ellipse(0.93, 0.62, 1.0, 0.71, LAMP)
    pen.rect(0.0, 0.63, 0.045, 0.71, (200, 30, 30))
    for x in (0.23, 0.77):
        _wheel(pen, x, 0.865, 0.135)


def truck(pen: Pen, color: RGB) -> None:
    pen.rect(0.0, 0.80, 0.98, 0.88, (70, 70, 76))
    pen.rect(0.0, 0.26, 0.64, 0.82, color)
    for x in (0.16, 0.32, 0.48):
        pen.line([(x, 0.30), (x, 0.78)], shade(color, 0.25), 0.014)
    pen.polygon([(0.67, 0.42), (0.86, 0.42), (0.98, 0.62), (0.98, 0.84), (0.67, 0.84)], tint(color, 0.2))
    pen.polygon([(0.72, 0.47), (0.84, 0.47), (0.92, 0.61), (0.72, 0.61)], GLASS)
    pen.ellipse(0.92, 0.68, 0.99, 0.76, LAMP)
    for x in (0.16, 0.36, 0.82):
        _wheel(pen, x, 0.89, 0.11)


def bus(pen: Pen, color: RGB) -> None:
    pen.rect(0.0, 0.28, 1.0, 0.90, color, 0.06)
    for x in (0.06, 0.22, 0.38, 0.54):
        pen.rect(x, 0.36, x + 0.125, 0.57, GLASS, 0.015)
    pen.rect(0.71, 0.36, 0.84, 0.86, GLASS, 0.01)
    pen.line([(0.775, 0.37), (0.775, 0.85)], shade(color, 0.5), 0.014)
    pen.rect(0.88, 0.36, 1.0, 0.60, GLASS, 0.02)
    pen.rect(0.0, 0.65, 0.69, 0.695, tint(color, 0.7), outline=False)
    pen.ellipse(0.94, 0.70, 1.0, 0.78, LAMP)
    for x in (0.20, 0.60):
        _wheel(pen, x, 0.895, 0.105)


def boat(pen: Pen, color: RGB) -> None:
    pen.line([(0.48, 0.04), (0.48, 0.74)], MAST, 0.03)
    pen.polygon([(0.52, 0.06), (0.52, 0.66), (0.94, 0.66)], color)
    pen.polygon([(0.44, 0.14), (0.44, 0.66), (0.12, 0.66)], SAIL)
    pen.polygon([(0.0, 0.72), (1.0, 0.72), (0.84, 0.98), (0.16, 0.98)], color)
    pen.line([(0.05, 0.79), (0.95, 0.79)], tint(color, 0.75), 0.03)


def bicycle(pen: Pen, color: RGB) -> None:
    for x in (0.23, 0.77):
        for turn in range(6):
            dx, dy = 0.21 * math.cos(turn * math.pi / 6), 0.21 * math.sin(turn * math.pi / 6)
            pen.line([(x - dx, 0.76 - dy), (x + dx, 0.76 + dy)], RIM, 0.01)
        pen.arc(x - 0.23, 0.53, x + 0.23, 0.99, 0, 360, TIRE, 0.04)
    pen.line([(0.23, 0.76), (0.38, 0.46), (0.68, 0.46), (0.48, 0.76), (0.23, 0.76)], color, 0.05)
    pen.line([(0.48, 0.76), (0.36, 0.38)], color, 0.05)
    pen.line([(0.77, 0.76), (0.66, 0.34)], color, 0.05)
    pen.line([(0.60, 0.32), (0.67, 0.33), (0.76, 0.28)], TIRE, 0.04)
    pen.rect(0.27, 0.34, 0.46, 0.40, TIRE, 0.03)
    pen.ellipse(0.43, 0.71, 0.53, 0.81, RIM)


def plane(pen: Pen, color: RGB) -> None:
    pen.polygon([(0.50, 0.50), (0.40, 0.22), (0.50, 0.22), (0.66, 0.50)], shade(color, 0.25))
    pen.polygon([(0.02, 0.52), (0.0, 0.22), (0.10, 0.22), (0.24, 0.50)], color)
    pen.rect(0.02, 0.44, 0.98, 0.66, color, 0.10)
    for x in range(7):
        pen.ellipse(0.24 + x * 0.08, 0.49, 0.28 + x * 0.08, 0.54, GLASS)
    pen.polygon([(0.86, 0.46), (0.93, 0.48), (0.97, 0.54), (0.86, 0.54)], GLASS)
    pen.polygon([(0.62, 0.60), (0.44, 0.60), (0.24, 0.90), (0.34, 0.90)], shade(color, 0.2))
    pen.polygon([(0.06, 0.52), (0.22, 0.52), (0.06, 0.66), (0.0, 0.66)], shade(color, 0.2))
    pen.rect(0.40, 0.68, 0.54, 0.77, RIM, 0.04)

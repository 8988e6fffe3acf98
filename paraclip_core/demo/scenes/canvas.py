"""What a scene is drawn on and with: the background of each place, and a pen for a unit square of it.

In the square (0, 0) is the top left and (1, 1) the bottom right, whatever its size in pixels. A background fills a
square image of `side` pixels; `rng` moves what may move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

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
    """The color, darker. What is nearly black gets lighter instead, so that shapes on it stay visible."""
    return mix(color, (150, 150, 158), share) if sum(color) < 200 else mix(color, (0, 0, 0), share)


def tint(color: RGB, share: float = 0.4) -> RGB:
    """The color, lighter."""
    return mix(color, (255, 255, 255), share)


class Pen:
    """Draws filled, outlined shapes into a square of an image, mirrored if asked to."""

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
        """Fill the ellipse inside a box."""
        edge = shade(fill, 0.55) if outline else None
        self._draw.ellipse(self._box(x0, y0, x1, y1), fill=fill, outline=edge, width=self._width(OUTLINE))

    def rect(
        self, x0: float, y0: float, x1: float, y1: float, fill: RGB, radius: float = 0.0, outline: bool = True
    ) -> None:
        """Fill a box, with round corners if `radius` says so."""
        self._draw.rounded_rectangle(
            self._box(x0, y0, x1, y1),
            radius=radius * self._side,
            fill=fill,
            outline=shade(fill, 0.55) if outline else None,
            width=self._width(OUTLINE),
        )

    def polygon(self, points: Sequence[Point], fill: RGB, outline: bool = True) -> None:
        """Fill a polygon."""
        corners = [self._at(*point) for point in points]
        edge = shade(fill, 0.55) if outline else None
        self._draw.polygon(corners, fill=fill, outline=edge, width=self._width(OUTLINE))

    def line(self, points: Sequence[Point], color: RGB, width: float = 0.03) -> None:
        """Draw a line through points."""
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


Background = Callable[[int, np.random.Generator], Image.Image]
SKY: tuple[RGB, RGB] = ((120, 186, 242), (206, 232, 250))
WHITE: RGB = (255, 255, 255)


def _canvas(side: int, rng: np.random.Generator, *bands: tuple[float, RGB, RGB]) -> Image.Image:
    """Bands from top to bottom, each (lower end as a share of the height, upper color, lower color)."""
    rows = np.zeros((side, 1, 3), np.float32)
    top = 0
    for end, above, below in bands:
        bottom = round(end * side)
        share = np.linspace(0, 1, max(bottom - top, 1), dtype=np.float32)[: bottom - top, None, None]
        upper, lower = np.array(above, np.float32), np.array(below, np.float32)
        rows[top:bottom] = upper + (lower - upper) * share
        top = bottom
    rows += (rng.random(3, dtype=np.float32) - 0.5) * 14
    image = Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8))
    return image.resize((side, side), Image.Resampling.NEAREST)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _waves(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, top: float, end: float, count: int) -> None:
    for _ in range(count):
        x, y = rng.random() * side, (top + rng.random() * (end - top)) * side
        w = side * (0.04 + rng.random() * 0.05)
        for step in (0, 1):
            box = (x + step * w, y, x + (step + 1) * w, y + w * 0.5)
            draw.arc(box, 180, 360, fill=(226, 240, 252), width=max(1, side // 150))


def _beach(side: int, rng: np.random.Generator) -> Image.Image:
    sand = ((246, 224, 170), (226, 192, 126))
    image = _canvas(side, rng, (0.34, *SKY), (0.52, (30, 120, 190), (80, 190, 214)), (1.0, *sand))
    draw = ImageDraw.Draw(image)
    _disc(draw, side * (0.1 + rng.random() * 0.8), side * 0.12, side * 0.07, (255, 236, 120))
    _waves(draw, side, rng, 0.36, 0.48, 9)
    draw.line([(0, 0.52 * side), (side, (0.51 + rng.random() * 0.03) * side)], fill=WHITE, width=side // 50)
    for _ in range(40):
        _disc(draw, rng.random() * side, (0.56 + rng.random() * 0.44) * side, side / 190, (196, 160, 100))
    return image


def _field(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.50, *SKY), (1.0, (132, 196, 84), (70, 146, 52)))
    draw = ImageDraw.Draw(image)
    for _ in range(2):
        x, w = rng.random() * side, side * (0.5 + rng.random() * 0.4)
        draw.ellipse((x - w, 0.40 * side, x + w, 0.80 * side), fill=(112, 180, 76))
    draw.rectangle((0, 0.58 * side, side, side), fill=(98, 174, 66))
    for _ in range(2):
        x, y = rng.random() * side, (0.08 + rng.random() * 0.15) * side
        for dx in (-0.06, 0, 0.06):
            _disc(draw, x + dx * side, y, side * 0.045, WHITE)
    for _ in range(70):
        x, y, h = rng.random() * side, (0.58 + rng.random() * 0.42) * side, side * 0.03
        for dx in (-0.4, 0, 0.4):
            draw.line([(x, y), (x + dx * h, y - h)], fill=(56, 124, 40), width=max(1, side // 150))
    return image


def _street(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.60, (176, 198, 216), (222, 228, 232)), (1.0, (104, 104, 110), (78, 78, 84)))
    draw = ImageDraw.Draw(image)
    x = -rng.random() * 0.15
    while x < 1:
        w, h, gray = 0.16 + rng.random() * 0.12, 0.30 + rng.random() * 0.25, 120 + int(rng.random() * 60)
        draw.rectangle((x * side, (0.60 - h) * side, (x + w) * side, 0.60 * side), fill=(gray, gray - 6, gray - 12))
        for wx in np.arange(x + 0.025, x + w - 0.04, 0.055):
            for wy in np.arange(0.63 - h, 0.55, 0.075):
                box = (wx * side, wy * side, (wx + 0.028) * side, (wy + 0.04) * side)
                draw.rectangle(box, fill=(228, 222, 180))
        x += w + 0.01
    draw.rectangle((0, 0.60 * side, side, 0.66 * side), fill=(186, 184, 178))
    start = -rng.random() * 0.2
    for step in range(6):
        x0 = (start + step * 0.24) * side
        draw.rectangle((x0, 0.80 * side, x0 + 0.13 * side, 0.83 * side), fill=(244, 240, 214))
    return image


def _snow(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.52, (168, 184, 204), (204, 214, 226)), (1.0, (244, 248, 253), (222, 230, 242)))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, w = rng.random() * side, side * (0.2 + rng.random() * 0.3)
        draw.ellipse((x - w, 0.46 * side, x + w, 0.66 * side), fill=(238, 243, 250))
    for _ in range(4):
        x, h = rng.random() * side, side * (0.14 + rng.random() * 0.08)
        for level in (0.0, 0.3, 0.6):
            y, w = 0.54 * side - h * (1 - level), h * (0.16 + level * 0.3)
            draw.polygon([(x, y), (x - w, y + h * 0.4), (x + w, y + h * 0.4)], fill=(92, 116, 112))
            draw.polygon([(x, y), (x - w * 0.4, y + h * 0.16), (x + w * 0.4, y + h * 0.16)], fill=WHITE)
    for _ in range(90):
        _disc(draw, rng.random() * side, rng.random() * side, side * (0.004 + rng.random() * 0.008), WHITE)
    return image


def _room(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.66, (236, 220, 196), (228, 208, 182)), (1.0, (176, 124, 78), (146, 98, 58)))
    draw = ImageDraw.Draw(image)
    for x in np.arange(rng.random() * 0.06, 1, 0.09):
        draw.rectangle((x * side, 0, (x + 0.03) * side, 0.64 * side), fill=(226, 206, 178))
    draw.rectangle((0, 0.63 * side, side, 0.665 * side), fill=(248, 246, 240))
    for y in (0.74, 0.83, 0.92):
        draw.line([(0, y * side), (side, y * side)], fill=(122, 82, 48), width=max(1, side // 200))
    x = (0.06 + rng.random() * 0.55) * side
    window = (x, 0.07 * side, x + 0.30 * side, 0.42 * side)
    draw.rectangle(window, fill=(188, 224, 246), outline=(250, 250, 250), width=side // 45)
    draw.line([(x + 0.15 * side, 0.07 * side), (x + 0.15 * side, 0.42 * side)], fill=WHITE, width=side // 60)
    draw.line([(x, 0.245 * side), (x + 0.30 * side, 0.245 * side)], fill=WHITE, width=side // 60)
    return image


def _night(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.68, (12, 16, 52), (48, 54, 112)), (1.0, (44, 62, 66), (30, 44, 46)))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        _disc(
            draw,
            rng.random() * side,
            rng.random() * 0.64 * side,
            side * (0.003 + rng.random() * 0.006),
            (250, 246, 214),
        )
    x = (0.12 + rng.random() * 0.76) * side
    _disc(draw, x, 0.14 * side, 0.085 * side, (250, 244, 200))
    _disc(draw, x + 0.04 * side, 0.12 * side, 0.07 * side, (16, 20, 58))
    return image


def _sea(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.26, *SKY), (1.0, (70, 160, 214), (14, 74, 148)))
    draw = ImageDraw.Draw(image)
    _waves(draw, side, rng, 0.28, 0.98, 42)
    return image


def _mountains(side: int, rng: np.random.Generator) -> Image.Image:
    image = _canvas(side, rng, (0.62, (150, 190, 226), (224, 234, 240)), (1.0, (150, 150, 110), (112, 118, 78)))
    draw = ImageDraw.Draw(image)
    for share, tone in ((0.35, 0.25), (0.0, 0.0)):
        x = -0.1 - rng.random() * 0.2
        while x < 1.1:
            w, top = 0.36 + rng.random() * 0.2, 0.10 + share * 0.4 + rng.random() * 0.14
            peak, rock = x + w / 2, mix((104, 108, 122), (176, 190, 206), tone)
            base = 0.64
            draw.polygon([(x * side, base * side), (peak * side, top * side), ((x + w) * side, base * side)], fill=rock)
            cap = 0.32
            left, right, low = peak - w / 2 * cap, peak + w / 2 * cap, top + (base - top) * cap
            zigzag = [(right, low), (peak + w * 0.07, low - 0.03), (peak, low + 0.02), (peak - w * 0.07, low - 0.03)]
            corners = [(peak, top), *zigzag, (left, low)]
            draw.polygon([(px * side, py * side) for px, py in corners], fill=(246, 248, 252))
            x += w * 0.62
    return image


BACKGROUNDS: dict[str, Background] = {
    "on the beach": _beach,
    "in a field": _field,
    "on the street": _street,
    "in the snow": _snow,
    "in a room": _room,
    "at night": _night,
    "in the sea": _sea,
    "in the mountains": _mountains,
}
"""The background of each place."""

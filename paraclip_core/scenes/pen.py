"""Drawing in a unit square: (0, 0) is its top left, (1, 1) its bottom right, whatever its size in pixels."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw

__all__ = ["RGB", "Pen", "mix", "shade", "tint"]

RGB = tuple[int, int, int]
Point = tuple[float, float]
OUTLINE = 0.016


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The colour between `a` and `b`; `share` of it is `b`."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def shade(colour: RGB, share: float = 0.35) -> RGB:
    """The colour, darker. What is nearly black gets lighter instead, so that shapes on it stay visible."""
    return mix(colour, (150, 150, 158), share) if sum(colour) < 200 else mix(colour, (0, 0, 0), share)


def tint(colour: RGB, share: float = 0.4) -> RGB:
    """The colour, lighter."""
    return mix(colour, (255, 255, 255), share)


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

    def line(self, points: Sequence[Point], colour: RGB, width: float = 0.03) -> None:
        """Draw a line through points."""
        self._draw.line([self._at(*point) for point in points], fill=colour, width=self._width(width), joint="curve")

    def arc(
        self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, colour: RGB, width: float = 0.03
    ) -> None:
        """Draw a part of an ellipse's edge, from `start` to `end` in degrees, clockwise from three o'clock."""
        if self._mirrored:
            start, end = 180 - end, 180 - start
        self._draw.arc(self._box(x0, y0, x1, y1), start, end, fill=colour, width=self._width(width))

    def chord(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: RGB) -> None:
        """Fill a part of an ellipse that a straight line cuts off."""
        if self._mirrored:
            start, end = 180 - end, 180 - start
        self._draw.chord(
            self._box(x0, y0, x1, y1), start, end, fill=fill, outline=shade(fill, 0.55), width=self._width(OUTLINE)
        )

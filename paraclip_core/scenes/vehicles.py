"""Vehicles, each drawn from its side into a unit square and standing on its lower edge."""

from __future__ import annotations

import math

from paraclip_core.scenes.pen import RGB, Pen, shade, tint

__all__ = ["bicycle", "boat", "bus", "car", "plane", "truck"]

TYRE: RGB = (34, 34, 38)
RIM: RGB = (196, 198, 204)
GLASS: RGB = (186, 222, 244)
LAMP: RGB = (255, 232, 130)
WOOD: RGB = (120, 78, 44)
SAIL: RGB = (250, 248, 238)


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.ellipse(x - radius, y - radius, x + radius, y + radius, TYRE)
    pen.ellipse(x - radius * 0.5, y - radius * 0.5, x + radius * 0.5, y + radius * 0.5, RIM)


def car(pen: Pen, colour: RGB) -> None:
    """A car with a sloping cabin and two windows."""
    pen.polygon([(0.16, 0.60), (0.28, 0.34), (0.66, 0.34), (0.82, 0.60)], colour)
    pen.polygon([(0.23, 0.58), (0.31, 0.385), (0.46, 0.385), (0.46, 0.58)], GLASS)
    pen.polygon([(0.50, 0.58), (0.50, 0.385), (0.64, 0.385), (0.75, 0.58)], GLASS)
    pen.rect(0.0, 0.57, 1.0, 0.87, colour, 0.09)
    pen.line([(0.48, 0.60), (0.48, 0.84)], shade(colour), 0.012)
    pen.rect(0.53, 0.65, 0.60, 0.67, shade(colour, 0.5))
    pen.ellipse(0.93, 0.62, 1.0, 0.71, LAMP)
    pen.rect(0.0, 0.63, 0.045, 0.71, (200, 30, 30))
    for x in (0.23, 0.77):
        _wheel(pen, x, 0.865, 0.135)


def truck(pen: Pen, colour: RGB) -> None:
    """A truck: a tall load box behind a lower cab."""
    pen.rect(0.0, 0.80, 0.98, 0.88, (70, 70, 76))
    pen.rect(0.0, 0.26, 0.64, 0.82, colour)
    for x in (0.16, 0.32, 0.48):
        pen.line([(x, 0.30), (x, 0.78)], shade(colour, 0.25), 0.014)
    pen.polygon([(0.67, 0.42), (0.86, 0.42), (0.98, 0.62), (0.98, 0.84), (0.67, 0.84)], tint(colour, 0.2))
    pen.polygon([(0.72, 0.47), (0.84, 0.47), (0.92, 0.61), (0.72, 0.61)], GLASS)
    pen.ellipse(0.92, 0.68, 0.99, 0.76, LAMP)
    for x in (0.16, 0.36, 0.82):
        _wheel(pen, x, 0.89, 0.11)


def bus(pen: Pen, colour: RGB) -> None:
    """A bus: a long box with a row of windows and a door."""
    pen.rect(0.0, 0.28, 1.0, 0.90, colour, 0.06)
    for x in (0.06, 0.22, 0.38, 0.54):
        pen.rect(x, 0.36, x + 0.125, 0.57, GLASS, 0.015)
    pen.rect(0.71, 0.36, 0.84, 0.86, GLASS, 0.01)
    pen.line([(0.775, 0.37), (0.775, 0.85)], shade(colour, 0.5), 0.014)
    pen.rect(0.88, 0.36, 1.0, 0.60, GLASS, 0.02)
    pen.rect(0.0, 0.65, 0.69, 0.695, tint(colour, 0.7), outline=False)
    pen.ellipse(0.94, 0.70, 1.0, 0.78, LAMP)
    for x in (0.20, 0.60):
        _wheel(pen, x, 0.895, 0.105)


def boat(pen: Pen, colour: RGB) -> None:
    """A sailing boat with a coloured hull and main sail."""
    pen.line([(0.48, 0.04), (0.48, 0.74)], WOOD, 0.03)
    pen.polygon([(0.52, 0.06), (0.52, 0.66), (0.94, 0.66)], colour)
    pen.polygon([(0.44, 0.14), (0.44, 0.66), (0.12, 0.66)], SAIL)
    pen.polygon([(0.0, 0.72), (1.0, 0.72), (0.84, 0.98), (0.16, 0.98)], colour)
    pen.line([(0.05, 0.79), (0.95, 0.79)], tint(colour, 0.75), 0.03)


def bicycle(pen: Pen, colour: RGB) -> None:
    """A bicycle with spoked wheels and a coloured frame."""
    for x in (0.23, 0.77):
        for turn in range(6):
            dx, dy = 0.21 * math.cos(turn * math.pi / 6), 0.21 * math.sin(turn * math.pi / 6)
            pen.line([(x - dx, 0.76 - dy), (x + dx, 0.76 + dy)], RIM, 0.01)
        pen.arc(x - 0.23, 0.53, x + 0.23, 0.99, 0, 360, TYRE, 0.04)
    pen.line([(0.23, 0.76), (0.38, 0.46), (0.68, 0.46), (0.48, 0.76), (0.23, 0.76)], colour, 0.05)
    pen.line([(0.48, 0.76), (0.36, 0.38)], colour, 0.05)
    pen.line([(0.77, 0.76), (0.66, 0.34)], colour, 0.05)
    pen.line([(0.60, 0.32), (0.67, 0.33), (0.76, 0.28)], TYRE, 0.04)
    pen.rect(0.27, 0.34, 0.46, 0.40, TYRE, 0.03)
    pen.ellipse(0.43, 0.71, 0.53, 0.81, RIM)


def plane(pen: Pen, colour: RGB) -> None:
    """A plane with a tail fin and wings."""
    pen.polygon([(0.50, 0.50), (0.40, 0.22), (0.50, 0.22), (0.66, 0.50)], shade(colour, 0.25))
    pen.polygon([(0.02, 0.52), (0.0, 0.22), (0.10, 0.22), (0.24, 0.50)], colour)
    pen.rect(0.02, 0.44, 0.98, 0.66, colour, 0.10)
    for x in range(7):
        pen.ellipse(0.24 + x * 0.08, 0.49, 0.28 + x * 0.08, 0.54, GLASS)
    pen.polygon([(0.86, 0.46), (0.93, 0.48), (0.97, 0.54), (0.86, 0.54)], GLASS)
    pen.polygon([(0.62, 0.60), (0.44, 0.60), (0.24, 0.90), (0.34, 0.90)], shade(colour, 0.2))
    pen.polygon([(0.06, 0.52), (0.22, 0.52), (0.06, 0.66), (0.0, 0.66)], shade(colour, 0.2))
    pen.rect(0.40, 0.68, 0.54, 0.77, RIM, 0.04)

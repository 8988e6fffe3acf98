"""Things and vehicles, each drawn into a unit square and standing on its lower edge."""

from __future__ import annotations

import math

from paraclip_core.demo.scenes.canvas import RGB, Pen, mix, shade, tint

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
    """A house with a roof, a chimney, a door and two windows."""
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
    """A tree with a round crown."""
    pen.polygon([(0.44, 0.50), (0.56, 0.50), (0.60, 1.0), (0.40, 1.0)], WOOD)
    for x, y, r in ((0.28, 0.44, 0.22), (0.72, 0.44, 0.22), (0.38, 0.24, 0.22), (0.62, 0.24, 0.22)):
        pen.ellipse(x - r, y - r, x + r, y + r, color)
    pen.ellipse(0.24, 0.16, 0.76, 0.60, color, outline=False)
    for x, y in ((0.30, 0.30), (0.55, 0.18), (0.70, 0.40), (0.42, 0.48)):
        pen.arc(x - 0.07, y - 0.05, x + 0.07, y + 0.07, 190, 340, shade(color, 0.25), 0.02)


def ball(pen: Pen, color: RGB) -> None:
    """A beach ball with colored and white panels."""
    pen.ellipse(0.06, 0.12, 0.94, 1.0, color)
    pen.ellipse(0.27, 0.12, 0.73, 1.0, PAPER)
    pen.ellipse(0.39, 0.12, 0.61, 1.0, color)
    pen.ellipse(0.42, 0.11, 0.58, 0.19, PAPER)
    pen.ellipse(0.16, 0.34, 0.24, 0.48, tint(color, 0.6), outline=False)


def hat(pen: Pen, color: RGB) -> None:
    """A hat with a wide brim and a band."""
    pen.ellipse(0.0, 0.66, 1.0, 0.98, color)
    pen.polygon([(0.22, 0.82), (0.28, 0.34), (0.40, 0.28), (0.60, 0.28), (0.72, 0.34), (0.78, 0.82)], color)
    pen.ellipse(0.28, 0.24, 0.72, 0.40, shade(color, 0.15))
    band = PAPER if sum(color) < 360 else (60, 44, 40)
    pen.polygon([(0.235, 0.68), (0.765, 0.68), (0.78, 0.80), (0.22, 0.80)], band)


def umbrella(pen: Pen, color: RGB) -> None:
    """An open umbrella with a hooked handle."""
    pen.line([(0.50, 0.02), (0.50, 0.88)], INK, 0.028)
    pen.arc(0.50, 0.78, 0.68, 0.98, 0, 180, WOOD, 0.045)
    pen.chord(0.0, 0.08, 1.0, 0.98, 180, 360, color)
    pen.chord(0.30, 0.08, 0.70, 0.98, 180, 360, tint(color, 0.3) if sum(color) < 700 else shade(color, 0.14))
    for x in (0.0, 0.25, 0.5, 0.75):
        pen.arc(x, 0.47, x + 0.25, 0.61, 180, 360, shade(color, 0.5), 0.022)


def flower(pen: Pen, color: RGB) -> None:
    """A flower with eight petals, a stem and two leaves."""
    pen.line([(0.50, 0.40), (0.50, 1.0)], LEAF, 0.045)
    pen.ellipse(0.22, 0.72, 0.50, 0.84, LEAF)
    pen.ellipse(0.50, 0.78, 0.78, 0.90, LEAF)
    for petal in range(8):
        x, y = 0.5 + 0.20 * math.cos(petal * math.pi / 4), 0.30 + 0.20 * math.sin(petal * math.pi / 4)
        pen.ellipse(x - 0.12, y - 0.12, x + 0.12, y + 0.12, color)
    middle = (110, 70, 30) if mix(color, (250, 216, 50), 0.5)[2] < 60 else (250, 206, 60)
    pen.ellipse(0.37, 0.17, 0.63, 0.43, middle)


def chair(pen: Pen, color: RGB) -> None:
    """A chair with a barred back."""
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
    """A table seen a little from above."""
    for x in (0.18, 0.75):
        pen.rect(x, 0.52, x + 0.07, 0.88, shade(color, 0.35))
    for x in (0.04, 0.88):
        pen.rect(x, 0.56, x + 0.08, 1.0, shade(color, 0.15))
    pen.polygon([(0.14, 0.38), (0.86, 0.38), (1.0, 0.54), (0.0, 0.54)], tint(color, 0.12))
    pen.rect(0.0, 0.54, 1.0, 0.61, color)


def cup(pen: Pen, color: RGB) -> None:
    """A cup with a handle and steam."""
    for x in (0.30, 0.44, 0.58):
        pen.line([(x, 0.24), (x + 0.03, 0.16), (x - 0.02, 0.09), (x + 0.02, 0.01)], (205, 208, 214), 0.022)
    pen.arc(0.60, 0.44, 0.98, 0.82, -100, 100, shade(color, 0.15), 0.07)
    pen.polygon([(0.10, 0.36), (0.78, 0.36), (0.70, 0.94), (0.62, 1.0), (0.26, 1.0), (0.18, 0.94)], color)
    pen.ellipse(0.10, 0.28, 0.78, 0.44, tint(color, 0.35))
    pen.ellipse(0.16, 0.31, 0.72, 0.42, (84, 52, 32))


def book(pen: Pen, color: RGB) -> None:
    """A closed book that stands, with its pages on one side and lines on its cover."""
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
    """A lit table lamp."""
    pen.ellipse(0.26, 0.90, 0.74, 1.0, METAL)
    pen.rect(0.47, 0.46, 0.53, 0.95, METAL)
    pen.ellipse(0.40, 0.40, 0.60, 0.60, (255, 244, 170))
    pen.polygon([(0.34, 0.04), (0.66, 0.04), (0.90, 0.50), (0.10, 0.50)], color)
    pen.line([(0.42, 0.08), (0.30, 0.46)], tint(color, 0.5), 0.03)
    pen.line([(0.74, 0.50), (0.74, 0.66)], GOLD, 0.014)
    pen.ellipse(0.72, 0.65, 0.76, 0.69, GOLD)


def box(pen: Pen, color: RGB) -> None:
    """A closed box with a strip of tape."""
    pen.polygon([(0.06, 0.36), (0.30, 0.20), (0.98, 0.20), (0.74, 0.36)], tint(color, 0.3))
    pen.polygon([(0.74, 0.36), (0.98, 0.20), (0.98, 0.82), (0.74, 1.0)], shade(color, 0.3))
    pen.rect(0.06, 0.36, 0.74, 1.0, color)
    tape = (226, 204, 160) if sum(color) < 640 else (190, 160, 110)
    pen.polygon([(0.34, 0.36), (0.58, 0.20), (0.68, 0.20), (0.46, 0.36)], tape)
    pen.rect(0.34, 0.36, 0.46, 0.58, tape)


def clock(pen: Pen, color: RGB) -> None:
    """An alarm clock with two bells, hands and feet."""
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
    """A hand bag with a flap and a clasp."""
    pen.arc(0.28, 0.04, 0.72, 0.72, 180, 360, shade(color, 0.4), 0.055)
    pen.polygon([(0.14, 0.36), (0.86, 0.36), (0.98, 0.94), (0.92, 1.0), (0.08, 1.0), (0.02, 0.94)], color)
    pen.polygon([(0.14, 0.36), (0.86, 0.36), (0.78, 0.64), (0.22, 0.64)], shade(color, 0.2))
    pen.rect(0.43, 0.58, 0.57, 0.70, GOLD, 0.02)


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.ellipse(x - radius, y - radius, x + radius, y + radius, TIRE)
    pen.ellipse(x - radius * 0.5, y - radius * 0.5, x + radius * 0.5, y + radius * 0.5, RIM)


def car(pen: Pen, color: RGB) -> None:
    """A car with a sloping cabin and two windows."""
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
    """A truck: a tall load box behind a lower cab."""
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
    """A bus: a long box with a row of windows and a door."""
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
    """A sailing boat with a colored hull and main sail."""
    pen.line([(0.48, 0.04), (0.48, 0.74)], MAST, 0.03)
    pen.polygon([(0.52, 0.06), (0.52, 0.66), (0.94, 0.66)], color)
    pen.polygon([(0.44, 0.14), (0.44, 0.66), (0.12, 0.66)], SAIL)
    pen.polygon([(0.0, 0.72), (1.0, 0.72), (0.84, 0.98), (0.16, 0.98)], color)
    pen.line([(0.05, 0.79), (0.95, 0.79)], tint(color, 0.75), 0.03)


def bicycle(pen: Pen, color: RGB) -> None:
    """A bicycle with spoked wheels and a colored frame."""
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
    """A plane with a tail fin and wings."""
    pen.polygon([(0.50, 0.50), (0.40, 0.22), (0.50, 0.22), (0.66, 0.50)], shade(color, 0.25))
    pen.polygon([(0.02, 0.52), (0.0, 0.22), (0.10, 0.22), (0.24, 0.50)], color)
    pen.rect(0.02, 0.44, 0.98, 0.66, color, 0.10)
    for x in range(7):
        pen.ellipse(0.24 + x * 0.08, 0.49, 0.28 + x * 0.08, 0.54, GLASS)
    pen.polygon([(0.86, 0.46), (0.93, 0.48), (0.97, 0.54), (0.86, 0.54)], GLASS)
    pen.polygon([(0.62, 0.60), (0.44, 0.60), (0.24, 0.90), (0.34, 0.90)], shade(color, 0.2))
    pen.polygon([(0.06, 0.52), (0.22, 0.52), (0.06, 0.66), (0.0, 0.66)], shade(color, 0.2))
    pen.rect(0.40, 0.68, 0.54, 0.77, RIM, 0.04)

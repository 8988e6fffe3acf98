"""Animals and people, each drawn into a unit square and standing on its lower edge."""

from __future__ import annotations

from paraclip_core.demo.scenes.canvas import RGB, Pen, shade, tint

INK: RGB = (20, 20, 24)
WHITE: RGB = (250, 250, 250)
PINK: RGB = (240, 150, 160)
BEAK: RGB = (240, 160, 30)
SKIN: RGB = (236, 188, 150)
HAIR: RGB = (84, 52, 30)
JEANS: RGB = (62, 78, 120)


def _eye(pen: Pen, x: float, y: float, size: float = 0.035) -> None:
    pen.ellipse(x - size, y - size, x + size, y + size, WHITE)
    pen.ellipse(x - size * 0.55, y - size * 0.55, x + size * 0.55, y + size * 0.55, INK, outline=False)


def dog(pen: Pen, color: RGB) -> None:
    """A dog from its side, with a hanging ear and a raised tail."""
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
    pen.ellipse(0.92, 0.22, 1.0, 0.31, INK)
    pen.line([(0.84, 0.37), (0.96, 0.37)], INK, 0.015)
    pen.ellipse(0.55, 0.13, 0.68, 0.50, dark)
    _eye(pen, 0.77, 0.22)


def cat(pen: Pen, color: RGB) -> None:
    """A sitting cat from the front, with pointed ears, whiskers and a curled tail."""
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
        pen.ellipse(x - 0.018, 0.28, x + 0.018, 0.38, INK, outline=False)
    pen.polygon([(0.46, 0.41), (0.54, 0.41), (0.50, 0.455)], PINK)
    for side in (-1, 1):
        for slope in (-0.035, 0.01, 0.05):
            pen.line([(0.5 + side * 0.12, 0.455), (0.5 + side * 0.42, 0.455 + slope)], shade(color, 0.6), 0.011)


def bird(pen: Pen, color: RGB) -> None:
    """A bird from its side, with a beak, a wing and a fan of a tail."""
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
    """A fish from its side, with a forked tail and stripes."""
    dark = shade(color, 0.3)
    pen.polygon([(0.26, 0.55), (0.0, 0.30), (0.06, 0.55), (0.0, 0.82)], dark)
    pen.polygon([(0.40, 0.36), (0.52, 0.12), (0.72, 0.34)], dark)
    pen.polygon([(0.46, 0.74), (0.50, 0.94), (0.64, 0.76)], dark)
    pen.ellipse(0.18, 0.28, 0.98, 0.84, color)
    for x in (0.34, 0.46, 0.58):
        pen.arc(x - 0.12, 0.36, x + 0.06, 0.76, -60, 60, tint(color, 0.65), 0.035)
    pen.arc(0.56, 0.34, 0.76, 0.78, -70, 70, dark, 0.02)
    _eye(pen, 0.85, 0.48, 0.055)
    pen.line([(0.90, 0.64), (0.97, 0.61)], INK, 0.016)


def horse(pen: Pen, color: RGB) -> None:
    """A horse from its side, with a long neck, a mane and a long tail."""
    dark = shade(color, 0.5)
    pen.polygon([(0.14, 0.42), (0.02, 0.52), (0.0, 0.82), (0.08, 0.80), (0.12, 0.58)], dark)
    for x in (0.24, 0.56):
        pen.rect(x, 0.58, x + 0.065, 0.98, shade(color, 0.2), 0.01)
    pen.ellipse(0.10, 0.38, 0.70, 0.68, color)
    for x in (0.14, 0.62):
        pen.rect(x, 0.52, x + 0.07, 0.95, color, 0.01)
        pen.rect(x - 0.005, 0.93, x + 0.08, 1.0, INK, 0.01)
    pen.polygon([(0.50, 0.46), (0.66, 0.10), (0.82, 0.14), (0.70, 0.56)], color, outline=False)
    pen.polygon([(0.46, 0.42), (0.62, 0.06), (0.70, 0.08), (0.58, 0.44)], dark, outline=False)
    pen.polygon(
        [(0.66, 0.10), (0.74, 0.05), (0.84, 0.12), (1.0, 0.30), (0.95, 0.38), (0.86, 0.36), (0.70, 0.26)], color
    )
    pen.polygon([(0.68, 0.10), (0.70, -0.02), (0.76, 0.07)], color)
    pen.ellipse(0.79, 0.13, 0.83, 0.17, INK, outline=False)
    pen.ellipse(0.94, 0.30, 0.965, 0.325, INK, outline=False)


def rabbit(pen: Pen, color: RGB) -> None:
    """A sitting rabbit from the front, with two long ears."""
    pen.ellipse(0.70, 0.76, 0.90, 0.94, WHITE)
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
    pen.rect(0.465, 0.58, 0.535, 0.655, WHITE)


def _face(pen: Pen, y: float, size: float) -> None:
    for x in (0.5 - size * 0.4, 0.5 + size * 0.4):
        pen.ellipse(x - 0.014, y - 0.014, x + 0.014, y + 0.014, INK, outline=False)
    pen.arc(0.5 - size * 0.4, y, 0.5 + size * 0.4, y + size * 0.75, 25, 155, (170, 50, 50), 0.016)


def man(pen: Pen, color: RGB) -> None:
    """A man with short hair and a beard, in a colored shirt and long trousers."""
    for x in (0.37, 0.52):
        pen.rect(x, 0.56, x + 0.115, 0.96, JEANS)
        pen.rect(x - 0.03, 0.93, x + 0.125, 1.0, INK, 0.02)
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
    """A woman with long hair, in a colored dress."""
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
    """A boy: a child with short hair, in a colored shirt and shorts."""
    for x in (0.39, 0.52):
        pen.rect(x, 0.80, x + 0.09, 0.96, SKIN)
        pen.rect(x - 0.02, 0.94, x + 0.10, 1.0, INK, 0.02)
        pen.rect(x - 0.02, 0.70, x + 0.12, 0.86, JEANS)
    for x, y in ((0.20, 0.36), (0.71, 0.36)):
        pen.line([(0.32 if x < 0.5 else 0.68, 0.56), (x + 0.04, y)], SKIN, 0.07)
    pen.rect(0.31, 0.50, 0.69, 0.75, color, 0.06)
    pen.ellipse(0.32, 0.17, 0.68, 0.53, SKIN)
    pen.chord(0.31, 0.15, 0.69, 0.45, 180, 360, HAIR)
    pen.polygon([(0.44, 0.18), (0.55, 0.10), (0.58, 0.18)], HAIR, outline=False)
    _face(pen, 0.36, 0.16)


def girl(pen: Pen, color: RGB) -> None:
    """A girl: a child with pigtails, in a colored dress."""
    for x in (0.41, 0.52):
        pen.rect(x, 0.84, x + 0.07, 0.97, SKIN)
        pen.ellipse(x - 0.03, 0.94, x + 0.09, 1.0, INK)
    for points in ([(0.38, 0.56), (0.22, 0.68)], [(0.62, 0.56), (0.78, 0.68)]):
        pen.line(points, SKIN, 0.06)
    pen.polygon([(0.40, 0.50), (0.60, 0.50), (0.76, 0.88), (0.24, 0.88)], color)
    for x in (0.16, 0.68):
        pen.ellipse(x, 0.28, x + 0.16, 0.52, HAIR)
        pen.ellipse(x + 0.04, 0.25, x + 0.12, 0.33, color)
    pen.ellipse(0.32, 0.17, 0.68, 0.53, SKIN)
    pen.chord(0.30, 0.14, 0.70, 0.46, 180, 360, HAIR)
    _face(pen, 0.37, 0.16)

"""Scenes as pixels and as files, drawn with Pillow at twice the size and reduced, which smooths the edges.

A background fills a square image of `side` pixels; `rng` varies its movable parts.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from paraclip_core.captions.options import ScenesOptions
from paraclip_core.demo import drawings
from paraclip_core.demo.drawings import RGB, Pen, mix
from paraclip_core.demo.scenes import (
    COLORS,
    KINDS,
    PLACES,
    SEED,
    Scene,
    SceneImage,
    Thing,
    generator,
    image_name,
    write_texts,
)
from paraclip_core.progress import Progress, silent

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
        x, y = rng.random() * side, rng.random() * 0.64 * side
        _disc(draw, x, y, side * (0.003 + rng.random() * 0.006), (250, 246, 214))
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


DRAWINGS: dict[str, Callable[[Pen, RGB], None]] = {kind: vars(drawings)[kind] for kind in KINDS}
"""How each kind of thing is drawn."""

ALONE = {"small": 0.34, None: 0.60, "large": 0.82}
IN_A_PAIR = {"small": 0.27, None: 0.41, "large": 0.55}
TOP = 0.03
NOISE = 6
QUALITY = 85


@dataclass(frozen=True)
class Spot:
    """Where a thing is drawn, in shares of the image: its left and upper edge and its side."""

    thing: Thing
    left: float
    top: float
    side: float
    grounded: bool = True


def render(image: SceneImage, side: int, seed: int) -> Image.Image:
    """Draw an image of `side` by `side` pixels, RGB; equal arguments give equal pixels."""
    rng = generator(seed, 1, image.index)
    canvas = BACKGROUNDS[image.scene.place](2 * side, rng)
    for spot in _layout(image.scene, rng):
        _draw(canvas, spot, image.scene.place, rng)
    pixels = np.asarray(canvas.reduce(2), np.int16)
    noise = rng.integers(-NOISE, NOISE + 1, pixels.shape, np.int16)
    light = int((rng.random() - 0.5) * 20)
    return Image.fromarray(np.clip(pixels + noise + light, 0, 255).astype(np.uint8))


def write_scenes(options: ScenesOptions, folder: Path, progress: Progress = silent) -> dict[str, int]:
    """Render the data set into a folder and count its contents; the same options give the same bytes.

    Writes ``images.tar`` (members ``images/<image_id>.jpg``), ``captions.jsonl`` (image_id, image, caption, split,
    license; two captions an image, split ``train`` or ``val``) and ``paraphrased_queries.jsonl`` (image_id, caption,
    paraphrased_query; held-out images only).
    """
    with tarfile.open(folder / "images.tar", "w", format=tarfile.USTAR_FORMAT) as images:

        def add(image: SceneImage) -> None:
            buffer = io.BytesIO()
            drawn = render(image, options.image_size, SEED)
            drawn.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
            # TarInfo's own defaults are mtime 0, uid 0, gid 0 and no names: nothing of this machine or moment gets in.
            member = tarfile.TarInfo(image_name(image))
            member.size = buffer.tell()
            buffer.seek(0)
            images.addfile(member, buffer)
            if (count := image.index + 1) % 100 == 0:
                progress(count, options.images)

        return write_texts(options, folder, add)


def _draw(canvas: Image.Image, spot: Spot, place: str, rng: np.random.Generator) -> None:
    pixels, draw = canvas.width, ImageDraw.Draw(canvas)
    left, top, size = spot.left * pixels, spot.top * pixels, spot.side * pixels
    if spot.grounded:
        _contact(canvas, draw, left, top + size, size, place)
    base = COLORS[spot.thing.color].rgb
    jitter = [int((rng.random() - 0.5) * 24) for _ in range(3)]
    red, green, blue = (min(max(c + j, 0), 255) for c, j in zip(base, jitter, strict=True))
    mirrored = rng.random() < 0.5
    DRAWINGS[spot.thing.kind](Pen(draw, left, top, size, mirrored), (red, green, blue))


def _contact(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, left: float, bottom: float, size: float, place: str
) -> None:
    """A shadow under a standing thing, foam around a swimming one."""
    x, y = min(max(int(left + size / 2), 0), canvas.width - 1), min(int(bottom), canvas.height - 1)
    pixel = canvas.getpixel((x, y))
    assert isinstance(pixel, tuple)
    swims = place == "in the sea"
    below: RGB = mix((int(pixel[0]), int(pixel[1]), int(pixel[2])), (255, 255, 255) if swims else (0, 0, 0), 0.3)
    draw.ellipse((left + size * 0.04, bottom - size * 0.06, left + size * 0.96, bottom + size * 0.05), fill=below)


def _layout(scene: Scene, rng: np.random.Generator) -> list[Spot]:
    """The positions of a scene's things, those behind first."""
    ground = PLACES[scene.place].ground + (rng.random() - 0.5) * 0.03
    if scene.second is None or scene.relation is None:
        side = ALONE[scene.first.size] * _vary(rng)
        side = min(side, ground - TOP)
        return [_standing(scene.first, 0.5 + (rng.random() - 0.5) * (1 - side) * 0.6, ground, side)]
    first = IN_A_PAIR[scene.first.size] * _vary(rng)
    second = IN_A_PAIR[scene.second.size] * _vary(rng)
    if scene.relation in ("next to", "left of", "right of"):
        return _side_by_side(scene, first, second, ground, rng)
    if scene.relation == "in front of":
        return _in_front(scene, first, second, ground, rng)
    return _stacked(scene, first, second, ground, rng)


def _vary(rng: np.random.Generator) -> float:
    return 0.94 + rng.random() * 0.12


def _standing(thing: Thing, middle: float, bottom: float, side: float, grounded: bool = True) -> Spot:
    left = min(max(middle - side / 2, 0.01), 0.99 - side)
    return Spot(thing, left, bottom - side, side, grounded)


def _side_by_side(scene: Scene, first: float, second: float, ground: float, rng: np.random.Generator) -> list[Spot]:
    assert scene.second is not None
    shrink = min(1.0, 0.95 / (first + second))
    first, second = first * shrink, second * shrink
    swapped = {"left of": False, "right of": True}.get(str(scene.relation), rng.random() < 0.5)
    a, b = (scene.second, second), (scene.first, first)
    (left, left_side), (right, right_side) = (a, b) if swapped else (b, a)
    gap = 1 - left_side - right_side
    start = gap * (0.15 + rng.random() * 0.3)
    between = gap * (0.2 + rng.random() * 0.2)
    return [
        _standing(left, start + left_side / 2, ground - rng.random() * 0.03, left_side),
        _standing(right, start + left_side + between + right_side / 2, ground, right_side),
    ]


def _in_front(scene: Scene, first: float, second: float, ground: float, rng: np.random.Generator) -> list[Spot]:
    assert scene.second is not None
    second = max(second * 1.25, 0.42)
    first = min(first, second * 0.85)
    middle = 0.42 + rng.random() * 0.16
    aside = (0.5 * second - 0.1 * first) * (1 if rng.random() < 0.5 else -1)
    return [
        _standing(scene.second, middle + aside * 0.3, ground - 0.08, second),
        _standing(scene.first, middle - aside * 0.7, ground + 0.05, first),
    ]


def _stacked(scene: Scene, first: float, second: float, ground: float, rng: np.random.Generator) -> list[Spot]:
    assert scene.second is not None
    touching = scene.relation == "on"
    upper, lower = (scene.second, scene.first) if scene.relation == "under" else (scene.first, scene.second)
    upper_side, lower_side = (second, first) if scene.relation == "under" else (first, second)
    surface = (KINDS[lower.kind].surface or 0.0) if touching else 0.0
    room = ground - TOP - (0 if touching else 0.02)
    shrink = min(1.0, room / (upper_side + lower_side * (1 - surface)))
    upper_side, lower_side = upper_side * shrink, lower_side * shrink
    middle = 0.5 + (rng.random() - 0.5) * 0.3
    shift = (rng.random() - 0.5) * (0.04 if touching else 0.12)
    foot = ground - lower_side * (1 - surface) if touching else TOP + 0.01 + upper_side
    return [
        _standing(lower, middle, ground, lower_side),
        _standing(upper, middle + shift, foot, upper_side, grounded=False),
    ]

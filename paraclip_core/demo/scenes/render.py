"""Scenes as pixels, drawn with Pillow at twice the size and then reduced, which smooths the edges; and as files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from paraclip_core.config import ScenesOptions
from paraclip_core.demo.scenes import living, objects
from paraclip_core.demo.scenes.canvas import BACKGROUNDS, RGB, Pen, mix
from paraclip_core.demo.scenes.plan import COLORS, KINDS, PLACES, SEED, Scene, SceneImage, Thing, generator
from paraclip_core.demo.scenes.texts import image_name, write_texts
from paraclip_core.progress import Progress, silent

DRAWINGS: dict[str, Callable[[Pen, RGB], None]] = {kind: (vars(living) | vars(objects))[kind] for kind in KINDS}
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
    """Render the data set into a folder; the same options give the same bytes.

    Writes ``images.tar`` (members ``images/<image_id>.jpg``), ``captions.jsonl`` (image_id, image, caption, split,
    licence; two captions an image, split ``train`` or ``val``) and ``rewordings.jsonl`` (image_id, caption, rewording;
    held-out images only). Files that are there are written over. One image is in memory at a time.

    Returns:
        Counts of images, captions, rewordings and distinct training captions.
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
    """A shadow under what stands on the ground, foam around what swims."""
    x, y = min(max(int(left + size / 2), 0), canvas.width - 1), min(int(bottom), canvas.height - 1)
    pixel = canvas.getpixel((x, y))
    assert isinstance(pixel, tuple)
    swims = place == "in the sea"
    below: RGB = mix((int(pixel[0]), int(pixel[1]), int(pixel[2])), (255, 255, 255) if swims else (0, 0, 0), 0.3)
    draw.ellipse((left + size * 0.04, bottom - size * 0.06, left + size * 0.96, bottom + size * 0.05), fill=below)


def _layout(scene: Scene, rng: np.random.Generator) -> list[Spot]:
    """The things of a scene where they belong, what is behind first."""
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

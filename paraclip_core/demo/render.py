"""Scenes as pixels and as files, drawn with Pillow at twice the size and reduced, which smooths the edges."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image, ImageDraw

from paraclip_core.demo import scenes
from paraclip_core.demo.drawings import DRAWINGS, Pen, background, mix
from paraclip_core.demo.scenes import COLORS, KINDS, Scene, SceneImage, Thing, generator, pick

ALONE = {"small": 0.34, None: 0.60, "large": 0.82}
IN_A_PAIR = {"small": 0.27, None: 0.41, "large": 0.55}
GROUND = 0.90
"""Where things stand, as a share of the height from the top."""
TOP = 0.03


@dataclass(frozen=True)
class Spot:
    """Where a thing is drawn, in shares of the image: its middle, lower edge and side."""

    thing: Thing
    middle: float
    bottom: float
    side: float


def render(image: SceneImage, side: int) -> Image.Image:
    """Draw an image of `side` by `side` pixels, RGB; equal arguments give equal pixels."""
    rng = generator(1, image.index)
    canvas = background(image.scene.place, 2 * side, rng)
    for spot in _layout(image.scene, rng):
        _draw(canvas, spot, rng)
    pixels = np.asarray(canvas.reduce(2), np.int16)
    noise = rng.integers(-6, 7, pixels.shape, np.int16)
    light = int((rng.random() - 0.5) * 20)
    return Image.fromarray(np.clip(pixels + noise + light, 0, 255).astype(np.uint8))


def write_scenes(folder: Path, images: int = 2000, side: int = 224) -> None:
    """Write a folder as one has for data of one's own; equal arguments give equal bytes.

    Writes ``images.tar`` (members ``images/<image_id>.jpg``), ``captions.jsonl`` (image_id, image, caption, split; two
    captions an image, split ``train`` or ``val``) and ``paraphrased_queries.jsonl`` (image_id, caption,
    paraphrased_query; held-out images only).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tarfile.open(folder / "images.tar", "w", format=tarfile.USTAR_FORMAT) as archive,
        (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as texts,
        (folder / "paraphrased_queries.jsonl").open("w", encoding="utf-8", newline="\n") as queries,
    ):
        for image in scenes.plan(images):
            name, buffer = f"images/{image.image_id}.jpg", io.BytesIO()
            render(image, side).save(buffer, "JPEG", quality=85, subsampling=0)
            # TarInfo's own defaults are mtime 0, uid 0, gid 0 and no names: nothing of this machine or moment gets in.
            member = tarfile.TarInfo(name)
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)
            for caption in scenes.captions(image):
                _write(texts, image_id=image.image_id, image=name, caption=caption, split=image.split)
            if image.split == "val":
                caption, query = scenes.plain_caption(image.scene), scenes.reword(image)
                _write(queries, image_id=image.image_id, caption=caption, paraphrased_query=query)


def _write(file: TextIO, **row: str) -> None:
    file.write(json.dumps(row) + "\n")


def _draw(canvas: Image.Image, spot: Spot, rng: np.random.Generator) -> None:
    pixels, draw = canvas.width, ImageDraw.Draw(canvas)
    size, bottom = spot.side * pixels, spot.bottom * pixels
    left = min(max(spot.middle - spot.side / 2, 0.01), 0.99 - spot.side) * pixels
    if spot.bottom > GROUND - 0.05:
        # A shadow under what stands on the ground.
        below = canvas.getpixel((int(left + size / 2), int(bottom)))
        assert isinstance(below, tuple)
        shadow = mix((int(below[0]), int(below[1]), int(below[2])), (0, 0, 0), 0.3)
        draw.ellipse((left + size * 0.04, bottom - size * 0.06, left + size * 0.96, bottom + size * 0.05), shadow)
    red, green, blue = (int(min(max(c + (rng.random() - 0.5) * 24, 0), 255)) for c in COLORS[spot.thing.color].rgb)
    DRAWINGS[spot.thing.kind](Pen(draw, left, bottom - size, size, rng.random() < 0.5), (red, green, blue))


def _layout(scene: Scene, rng: np.random.Generator) -> list[Spot]:
    ground = GROUND + (rng.random() - 0.5) * 0.03
    if scene.second is None:
        side = ALONE[scene.first.size] * _vary(rng)
        return [Spot(scene.first, 0.5 + (rng.random() - 0.5) * (1 - side) * 0.6, ground, side)]
    things = [(thing, IN_A_PAIR[thing.size] * _vary(rng)) for thing in (scene.first, scene.second)]
    if scene.relation == "next to":
        (left, a), (right, b) = pick(rng, (things, things[::-1]))
        shrink = min(1.0, 0.95 / (a + b))
        a, b = a * shrink, b * shrink
        gap = (1 - a - b) / 3
        start = gap * (0.5 + rng.random())
        return [Spot(left, start + a / 2, ground, a), Spot(right, start + a + gap + b / 2, ground, b)]
    (upper, a), (lower, b) = things[::-1] if scene.relation == "under" else things
    # On a thing its neighbor touches it, above it there is air.
    overlap = KINDS[lower.kind].surface or 0.0 if scene.relation == "on" else -0.02
    shrink = min(1.0, (ground - TOP) / (a + b * (1 - overlap)))
    a, b = a * shrink, b * shrink
    middle = 0.5 + (rng.random() - 0.5) * 0.3
    foot = ground - b * (1 - overlap) if scene.relation == "on" else TOP + a
    return [Spot(lower, middle, ground, b), Spot(upper, middle + (rng.random() - 0.5) * 0.08, foot, a)]


def _vary(rng: np.random.Generator) -> float:
    return 0.94 + rng.random() * 0.12

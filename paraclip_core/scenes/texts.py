"""The texts of the demo's data set, which need no image to be rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from paraclip_core.config import ScenesOptions
from paraclip_core.scenes.captions import captions, plain_caption
from paraclip_core.scenes.plan import SceneImage, plan
from paraclip_core.scenes.rewordings import reword

__all__ = ["LICENCE", "caption_rows", "image_name", "rewording_row", "write_row", "write_texts"]

LICENCE = "CC0-1.0"
"""Rendered scenes belong to nobody."""


def image_name(image: SceneImage) -> str:
    """Name of the image in the tar."""
    return f"images/{image.image_id}.jpg"


def caption_rows(image: SceneImage, seed: int) -> Iterator[dict[str, str]]:
    """The image's rows of ``captions.jsonl``."""
    about = {"image_id": image.image_id, "image": image_name(image)}
    for caption in captions(image, seed):
        yield {**about, "caption": caption, "split": image.split, "licence": LICENCE}


def rewording_row(image: SceneImage, seed: int) -> dict[str, str]:
    """A held-out image's row of ``rewordings.jsonl``."""
    return {"image_id": image.image_id, "caption": plain_caption(image.scene), "rewording": reword(image, seed)}


def write_row(file: TextIO, row: dict[str, str]) -> None:
    """One line of JSON."""
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_texts(options: ScenesOptions, folder: Path) -> None:
    """Write ``captions.jsonl`` and ``rewordings.jsonl``, the bytes that they have beside the images.

    An image takes about 25 µs.
    """
    with (
        (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as texts,
        (folder / "rewordings.jsonl").open("w", encoding="utf-8", newline="\n") as rewordings,
    ):
        for image in plan(options):
            for row in caption_rows(image, options.seed):
                write_row(texts, row)
            if image.split != "train":
                write_row(rewordings, rewording_row(image, options.seed))

"""The demo's data set as files: a tar of images, a table of captions, and the held-out rewordings."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import TextIO

from paraclip_core.config import ScenesOptions
from paraclip_core.progress import Progress, silent
from paraclip_core.scenes.captions import captions, plain_caption
from paraclip_core.scenes.plan import plan
from paraclip_core.scenes.render import jpeg, render
from paraclip_core.scenes.rewordings import reword

__all__ = ["LICENCE", "write_scenes"]

LICENCE = "CC0-1.0"
"""Rendered scenes belong to nobody."""


def write_scenes(options: ScenesOptions, folder: Path, progress: Progress = silent) -> dict[str, int]:
    """Render the data set into a folder; the same options give the same bytes.

    Writes ``images.tar`` (members ``images/<image_id>.jpg``), ``captions.jsonl`` (image_id, image, caption, split,
    licence; two captions an image, split ``train`` or ``val``) and ``rewordings.jsonl`` (image_id, caption, rewording;
    held-out images only). Files that are there are written over. One image is in memory at a time.

    Returns:
        Counts of images, captions, distinct training captions and rewordings.
    """
    counts = {"images": 0, "captions": 0, "rewordings": 0}
    distinct: set[str] = set()
    with (
        tarfile.open(folder / "images.tar", "w", format=tarfile.USTAR_FORMAT) as images,
        (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as texts,
        (folder / "rewordings.jsonl").open("w", encoding="utf-8", newline="\n") as rewordings,
    ):
        for image in plan(options):
            name = f"images/{image.image_id}.jpg"
            _add(images, name, jpeg(render(image, options.image_size, options.seed)))
            for caption in captions(image, options.seed):
                row = {"image_id": image.image_id, "image": name, "caption": caption, "split": image.split}
                _write(texts, {**row, "licence": LICENCE})
                counts["captions"] += 1
                if image.split == "train":
                    distinct.add(caption)
            if image.split != "train":
                pair = {"caption": plain_caption(image.scene), "rewording": reword(image, options.seed)}
                _write(rewordings, {"image_id": image.image_id, **pair})
                counts["rewordings"] += 1
            counts["images"] += 1
            if counts["images"] % 100 == 0:
                progress(counts["images"], options.images)
    return {**counts, "distinct_training_captions": len(distinct)}


def _add(images: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's own defaults are mtime 0, uid 0, gid 0 and no names: nothing of this machine or moment gets in.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    images.addfile(member, io.BytesIO(content))


def _write(file: TextIO, row: dict[str, str]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")

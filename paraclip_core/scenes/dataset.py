"""The demo's data set as files: a tar of images, a table of captions, and the held-out rewordings."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from paraclip_core.config import ScenesOptions
from paraclip_core.progress import Progress, silent
from paraclip_core.scenes.plan import plan
from paraclip_core.scenes.render import jpeg, render
from paraclip_core.scenes.texts import LICENCE, caption_rows, image_name, rewording_row, write_row

__all__ = ["LICENCE", "write_scenes"]


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
            _add(images, image_name(image), jpeg(render(image, options.image_size, options.seed)))
            for row in caption_rows(image, options.seed):
                write_row(texts, row)
                counts["captions"] += 1
                if image.split == "train":
                    distinct.add(row["caption"])
            if image.split != "train":
                write_row(rewordings, rewording_row(image, options.seed))
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

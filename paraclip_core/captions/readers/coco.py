"""COCO caption annotations: ``images`` with file names, ``annotations`` with captions.

The image id is COCO's as text, the path is ``file_name``; the licence is the image's, where the file names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.json_file import load_json, top_level_list
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_coco"]


def read_coco(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every annotation as a row; rows are positions in ``annotations``, from 0.

    Raises:
        InputError: the file is not JSON, not COCO, or holds no caption (an ``instances`` file).
    """
    document = load_json(path)
    annotations = top_level_list(document, "annotations", path, "COCO")
    if annotations and not any(isinstance(row, dict) and "caption" in row for row in annotations):
        raise InputError(f"{path} has annotations but no caption in them; expected a COCO captions file")
    names, licences = _images(document), _licences(document)
    batcher = Batcher()
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            batcher.reject(number, "wrong_type", f"a {type(annotation).__name__}, expected an annotation object")
        else:
            image = annotation.get("image_id")
            known = names.get(image) if isinstance(image, int | str) else None
            if known is None and names:
                batcher.reject(number, "missing_field", f"image_id {str(image)[:80]!r} is not among the file's images")
            else:
                file_name, licence = known or (None, None)
                batcher.add(number, annotation.get("caption"), image, file_name, None, licences.get(licence))
        yield from batcher.full()
    yield from batcher.rest()


def _images(document: dict[str, Any]) -> dict[int | str, tuple[Any, Any]]:
    """File name and licence number of each image."""
    images = document.get("images")
    rows = images if isinstance(images, list) else []
    return {
        row["id"]: (row.get("file_name"), row["license"] if isinstance(row.get("license"), int) else None)
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("id"), int | str)
    }


def _licences(document: dict[str, Any]) -> dict[int | None, str]:
    licences = document.get("licenses")
    rows = licences if isinstance(licences, list) else []
    return {
        row["id"]: row["name"]
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("id"), int) and isinstance(row.get("name"), str)
    }

"""COCO's captions: a JSON object with ``images`` and ``annotations``.

The image id is COCO's as text, the path is ``file_name``; the license is the image's, if the file states it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.json import load_json, top_level_list
from paraclip_core.captions.readers.karpathy import is_karpathy
from paraclip_core.captions.rows import Batcher, RowBatch

MARKS = b'"annotations"', b'"file_name"', b'"coco_url"'


def is_coco(start: bytes) -> bool:
    """Whether JSON with this start is COCO's."""
    return start.startswith(b"{") and any(mark in start for mark in MARKS) and not is_karpathy(start)


def read_coco(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield every annotation as a row, numbered by its position in ``annotations``, from 0."""
    document = load_json(path)
    annotations = top_level_list(document, "annotations", path, "COCO")
    names = {
        row["id"]: (row.get("file_name"), row["license"] if isinstance(row.get("license"), int) else None)
        for row in _objects(document, "images")
        if isinstance(row.get("id"), int | str)
    }
    licenses: dict[int | None, str] = {
        row["id"]: row["name"]
        for row in _objects(document, "licenses")
        if isinstance(row.get("id"), int) and isinstance(row.get("name"), str)
    }
    batcher = Batcher()
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            batcher.reject(number, "wrong_type", f"a {type(annotation).__name__}, expected an annotation object")
        else:
            image = annotation.get("image_id")
            entry = names.get(image) if isinstance(image, int | str) else None
            if entry is None and names:
                batcher.reject(number, "missing_field", f"image_id {str(image)[:80]!r} is not among the file's images")
            else:
                file_name, license = entry or (None, None)
                batcher.add(number, annotation.get("caption"), image, file_name, None, licenses.get(license))
        yield from batcher.full()
    yield from batcher.rest()


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = document.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

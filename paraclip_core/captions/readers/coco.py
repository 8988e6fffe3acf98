"""Annotation files: COCO's captions and Karpathy's splits.

COCO has ``images`` with file names and ``annotations`` with captions. The image id is COCO's as text, the path is
``file_name``; the licence is the image's, where the file names it.

Karpathy's files (``dataset_coco.json``, ``dataset_flickr8k.json`` …) have images with their sentences. The image id is
the file name, the path is ``filepath/filename``; COCO's ``restval`` counts as train, as usual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.json import load_json, several_objects, top_level_list
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["is_coco", "is_karpathy", "read_coco", "read_karpathy"]

COCO_MARKS = b'"annotations"', b'"file_name"', b'"coco_url"'
KARPATHY_MARKS = b'"sentences"', b'"sentids"'
_NO_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*\]')


def is_coco(start: bytes) -> bool:
    """Whether JSON that begins so is COCO's."""
    return start.startswith(b"{") and _holds(start, COCO_MARKS) and not _holds(start, KARPATHY_MARKS)


def is_karpathy(start: bytes) -> bool:
    """Whether JSON that begins so, and is not COCO's, is Karpathy's."""
    without_images = _NO_IMAGES.search(start) is not None and not several_objects(start)
    return start.startswith(b"{") and (without_images or _holds(start, KARPATHY_MARKS))


def _holds(start: bytes, marks: tuple[bytes, ...]) -> bool:
    return any(mark in start for mark in marks)


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
            entry = names.get(image) if isinstance(image, int | str) else None
            if entry is None and names:
                batcher.reject(number, "missing_field", f"image_id {str(image)[:80]!r} is not among the file's images")
            else:
                file_name, licence = entry or (None, None)
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


def read_karpathy(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every sentence as a row; rows count the file's sentences from 0.

    Raises:
        InputError: the file is not JSON or not in Karpathy's format.
    """
    images = top_level_list(load_json(path), "images", path, "Karpathy")
    if images and not any(isinstance(image, dict) and "sentences" in image for image in images):
        raise InputError(f"{path} has images but no sentences in them, so it is not in Karpathy format")
    batcher, number = Batcher(), 0
    for image in images:
        sentences = image.get("sentences") if isinstance(image, dict) else None
        if not isinstance(sentences, list):
            batcher.reject(number, "missing_field", "an image without a list of sentences")
            continue
        for sentence in sentences:
            _add_sentence(batcher, number, image, sentence)
            number += 1
        yield from batcher.full()
    yield from batcher.rest()


def _add_sentence(batcher: Batcher, number: int, image: dict[str, Any], sentence: Any) -> None:
    caption = sentence.get("raw") if isinstance(sentence, dict) else None
    name, folder = image.get("filename"), image.get("filepath")
    if not isinstance(name, str) or not name:
        raw = caption if isinstance(caption, str) else None
        batcher.reject(number, "missing_field", "an image without a filename", raw)
        return
    inside = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    batcher.add(number, caption, name, inside, image.get("split"))

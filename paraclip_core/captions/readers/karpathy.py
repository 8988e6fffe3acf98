"""Karpathy's split files (``dataset_coco.json``, ``dataset_flickr8k.json`` …): images with their sentences.

The image id is the file name, the path is ``filepath/filename``; COCO's ``restval`` counts as train, as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.json_file import load_json, top_level_list
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_karpathy"]


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
            _add(batcher, number, image, sentence)
            number += 1
        yield from batcher.full()
    yield from batcher.rest()


def _add(batcher: Batcher, number: int, image: dict[str, Any], sentence: Any) -> None:
    caption = sentence.get("raw") if isinstance(sentence, dict) else None
    name, folder = image.get("filename"), image.get("filepath")
    if not isinstance(name, str) or not name:
        raw = caption if isinstance(caption, str) else None
        batcher.reject(number, "missing_field", "an image without a filename", raw)
        return
    inside = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    batcher.add(number, caption, name, inside, image.get("split"))

"""Karpathy's splits (``dataset_coco.json``, ``dataset_flickr8k.json`` …): JSON with images and their sentences.

The image id is the file name, the path is ``filepath/filename``; COCO's ``restval`` counts as train, as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.json import load_json, top_level_list
from paraclip_core.captions.rows import Batcher, RowBatch

MARKS = b'"sentences"', b'"sentids"'


def is_karpathy(start: bytes) -> bool:
    """Whether JSON with this start is Karpathy's."""
    return start.startswith(b"{") and any(mark in start for mark in MARKS)


def read_karpathy(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield every sentence as a row, numbered from 0 in the file."""
    images = top_level_list(load_json(path), "images", path, "Karpathy")
    batcher, number = Batcher(), 0
    for image in images:
        sentences = image.get("sentences") if isinstance(image, dict) else None
        if not isinstance(sentences, list):
            batcher.reject(number, "missing_field", "an image without a list of sentences")
            continue
        name, folder = image.get("filename"), image.get("filepath")
        for place, sentence in enumerate(sentences, number):
            caption = sentence.get("raw") if isinstance(sentence, dict) else None
            if isinstance(name, str) and name:
                inside = f"{folder}/{name}" if isinstance(folder, str) and folder else name
                batcher.add(place, caption, name, inside, image.get("split"))
            else:
                raw = caption if isinstance(caption, str) else None
                batcher.reject(place, "missing_field", "an image without a filename", raw)
        number += len(sentences)
        yield from batcher.full()
    yield from batcher.rest()

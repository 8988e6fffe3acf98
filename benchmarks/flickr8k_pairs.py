"""Hand-labelled paraphrases of Flickr8k captions, assembled from the data set and from what is stored of them here.

The captions may not be redistributed, so `tests/data/faithfulness/flickr8k.jsonl` names each by a hash, and stores an
answer as positions in its caption and the model's own words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paraclip_core.captions.clean import clean
from paraclip_core.tables import text_hash

LABELLED = Path(__file__).parents[1] / "tests" / "data" / "faithfulness" / "flickr8k.jsonl"
_TOKEN = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")


def read_pairs(data: Path) -> list[dict[str, Any]]:
    """The rows with `caption`, `source` and `answer` as texts (lower case), in the order of the file.

    `data` is the folder that holds ``flickr8k/dataset_flickr8k.json``; rows whose caption is missing are left out.
    """
    captions: dict[str, str] = {}
    for image in json.loads((data / "flickr8k" / "dataset_flickr8k.json").read_bytes())["images"]:
        for sentence in image["sentences"]:
            text = clean(sentence["raw"])
            captions[text_hash(image["filename"], text).hex()] = text
    rows = [json.loads(line) for line in LABELLED.read_text("utf-8").splitlines()]
    return [_whole(row, captions[row["caption_id"]]) for row in rows if row["caption_id"] in captions]


def _whole(row: dict[str, Any], caption: str) -> dict[str, Any]:
    told = _TOKEN.findall(caption.lower())
    source = caption if row["source"] is None else _text(row["source"], told)
    return {**row, "kind": "photograph", "caption": caption, "source": source, "answer": _text(row["answer"], told)}


def _text(parts: Sequence[int | str], told: Sequence[str]) -> str:
    text = " ".join(told[part] if isinstance(part, int) else part for part in parts)
    return re.sub(r" ([.,;!?])", r"\1", text)

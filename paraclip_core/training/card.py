"""The model card of a trained release."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["model_card"]

LOAD = """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH_OF_THIS_FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:PATH_OF_THIS_FOLDER")
"""


def model_card(
    *,
    title: str,
    summary: str,
    base: str,
    image_tower_hash: str,
    licences: Mapping[str, int],
    options: Mapping[str, Any],
    figures: Sequence[Mapping[str, float]] = (),
) -> str:
    """A README.md that says what the model is, where it came from and how to load it.

    Args:
        title: heading.
        summary: what was done, in a sentence or two.
        base: the model that it started from.
        image_tower_hash: hash of the image tower, equal before and after training.
        licences: training rows under each stated licence.
        options: hyper-parameters.
        figures: rows of the table of validation figures, all with the same columns.
    """
    parts = [
        "---\nlibrary_name: open_clip\npipeline_tag: zero-shot-image-classification\nlicense: other\n"
        f"license_name: {_quoted(', '.join(sorted(licences)) or 'unknown')}\ntags: [clip, open_clip, paraclip]\n---",
        f"# {title}\n\n{summary}\n\n- Base: `{base}`\n- Image tower: `{image_tower_hash}` before and after training, "
        "so image embeddings made with the base stay valid.",
        f"## Load\n\n```python\n{LOAD}```",
        "## Data\n\n" + _table(("licence as stated", "rows"), sorted(licences.items())),
        "## Options\n\n"
        + _table(("option", "value"), [(k, json.dumps(v, sort_keys=True)) for k, v in options.items()]),
    ]
    if figures:
        rows = [tuple(f"{value:g}" for value in row.values()) for row in figures]
        parts.append("## Validation, percent\n\n" + _table(tuple(figures[0]), rows))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(value: object) -> str:
    # Licences come from data files: they must not break out of their cell.
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def _quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)

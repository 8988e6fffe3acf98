"""ARO's COCO and Flickr30k orders (Yuksekgonul et al., ICLR 2023): is a caption nearer to its image than its words in
another order are?

Formats: rows with image and caption_options (the right one first), as the authors' generator leaves them; or any
captions with images, from which the shuffled ones are made here. The authors make four, of which two need a tagger of
nouns and adjectives; the others, the rules ``within_trigrams`` and ``trigrams``, are made here by a seed: among two
wrong captions a figure is higher than among four, so both are comparable with themselves alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.image_files import pool_for
from paraclip_core.evaluation.metrics import pair_scores
from paraclip_core.evaluation.pool import Encoder, ImagePool, need_two, unique_features
from paraclip_core.evaluation.published import captioned_images
from paraclip_core.evaluation.results import Measured, Sample
from paraclip_core.evaluation.rows import field, read_json_file, records
from paraclip_core.options import Options

Rule = Literal["within_trigrams", "trigrams"]
_MARKS = re.compile(r'[.!"()*#:;~]')
_WORDS = re.compile(r"n't|'\w+|\w+?(?=n't)|\w+|[^\w\s]")


class OrderOptions(Options):
    """How wrong captions are made, where the file has none."""

    seed: int = 0
    """Seed of the shuffling."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)] = ("within_trigrams", "trigrams")
    """`within_trigrams` shuffles the words of each three, `trigrams` the threes."""
    max_words: Annotated[int, Field(ge=2)] = 30
    """Words after which a caption is cut."""


@dataclass(frozen=True)
class Choices:
    """Each row an image, its caption, and the wrong ones that differ from it."""

    images: Sequence[str]
    right: Sequence[str]
    wrong: Sequence[Sequence[str]]
    pool: ImagePool
    made_by: str


def load(source: Source) -> Task:
    """Rows with their options, or captions that are shuffled."""
    options = OrderOptions.model_validate(dict(source.options))
    rows = None if source.path is None else _listed(source.path)
    if rows is None:
        captions, pool = captioned_images(source)
        rows = [(image, [text]) for image, text in zip(captions.image_ids, captions.captions, strict=True)]
    else:
        pool = pool_for(source, [image for image, _ in rows])
        if pool is None:
            raise BenchmarkError(f"images of {source.path} are missing; say with the option `images` where they lie")
    made_by = "the file"
    if all(len(texts) == 1 for _, texts in rows):
        made_by = f"the rules {', '.join(options.rules)} with seed {options.seed}"
        rows = [
            (image, [text, *(shuffled(text, rule, options.seed) for rule in options.rules)]) for image, (text,) in rows
        ]
    rows = [(image, [cleaned(text, options.max_words) for text in texts]) for image, texts in rows]
    choices = Choices(
        [image for image, _ in rows],
        [texts[0] for _, texts in rows],
        [[text for text in texts[1:] if text != texts[0]] for _, texts in rows],
        pool,
        made_by,
    )
    need_two(choices.images)
    return Task(lambda encoder: measure(choices, encoder))


def _listed(path: Path) -> list[tuple[str, list[str]]] | None:
    """Rows of image and texts of a list with caption_options, or with one or several captions each; None of another
    file."""
    if path.is_dir() or path.suffix.lower() not in (".json", ".jsonl"):
        return None
    if path.suffix.lower() == ".json" and not isinstance(read_json_file(path), list):
        return None
    rows: list[tuple[str, list[str]]] = []
    for number, row in records(path):
        image = PurePosixPath(field(path, number, row, "image", "image_path", "filename")).name
        given = row.get("caption_options")
        if given is not None:
            if not isinstance(given, list) or len(given) < 2:
                raise BenchmarkError(f"{path}, row {number}: caption_options is {given!r}, expected two texts or more")
            rows.append((image, [_text(path, number, text) for text in given]))
            continue
        texts = row.get("caption", row.get("captions"))
        rows += [(image, [_text(path, number, text)]) for text in (texts if isinstance(texts, list) else [texts])]
    if not rows:
        raise BenchmarkError(f"{path} has no rows; expected image with caption_options or captions")
    if len({len(texts) == 1 for _, texts in rows}) == 2:
        raise BenchmarkError(f"{path}: some rows have caption_options and some have not; expected all or none")
    return rows


def _text(path: Path, number: int, value: Any) -> str:
    return field(path, number, {"caption": value}, "caption")


def shuffled(caption: str, rule: Rule, seed: int) -> str:
    """The caption's words in another order, the same for the same arguments; it may by chance be the same order."""
    words = _WORDS.findall(caption)
    threes = [words[start : start + 3] for start in range(0, len(words), 3)]
    draw = random.Random(f"{seed}/{rule}/{caption}")
    if rule == "trigrams":
        draw.shuffle(threes)
    else:
        for three in threes:
            draw.shuffle(three)
    return " ".join(word for three in threes for word in three)


def cleaned(caption: str, max_words: int) -> str:
    """Lower case, without marks, cut: what the authors do to right and wrong captions alike."""
    return " ".join(_MARKS.sub(" ", caption.lower()).split()[:max_words])


def measure(choices: Choices, encoder: Encoder) -> Measured:
    """Share of the captions that are nearer to their image than all wrong ones; an image's captions form a cluster.

    A caption whose words no shuffling could move has no rival and counts as right, as it does for the authors.
    """
    counts = np.array([len(texts) for texts in choices.wrong])
    texts, index = unique_features(
        encoder.texts, [*choices.right, *(text for wrong in choices.wrong for text in wrong)]
    )
    images, rows = choices.pool.features(encoder), choices.pool.find(choices.images)
    right = pair_scores(images, rows, texts, index[: len(rows)])
    wrong = pair_scores(images, np.repeat(rows, counts), texts, index[len(rows) :])
    best = np.full(len(rows), -np.inf)
    np.maximum.at(best, np.repeat(np.arange(len(rows)), counts), wrong)
    notes = {
        "protocol": "caption nearer to its image than every reordering of it",
        "reordered_by": choices.made_by,
        "captions": len(rows),
        "captions_without_rival": int((counts == 0).sum()),
        "rivals": float(np.round(counts.mean(), 3)),
        "images": len(set(choices.images)),
    }
    _, clusters = np.unique(np.array(choices.images), return_inverse=True)
    return Measured({"accuracy": Sample((right > best).astype(np.float64), clusters.astype(np.int64))}, notes)


CAPTION_ORDER = Benchmark(
    title="Caption order",
    metrics=(Metric("accuracy", published="acc"),),
    load=load,
    aliases=("coco-order", "flickr30k-order", "order"),
    task="image_caption_selection",
    hub_task="image-text-matching",
    options=OrderOptions,
    needs_images=True,
)

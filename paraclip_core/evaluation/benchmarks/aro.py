"""ARO's VG-Relation and VG-Attribution (Yuksekgonul et al., ICLR 2023): the right order of a relation or of attributes.

Each case is a part of a Visual Genome image, a true caption and a false one with the same words: "the horse is eating
the grass" against "the grass is eating the horse". A case counts where the image's cosine with the true caption is
above that with the false one.

Format: ``visual_genome_relation.json`` or ``visual_genome_attribution.json``, a list of objects with image_path,
bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption and relation_name or attributes (two), with the images in
the folder `images` beside it.

Two figures, which differ by up to eight points on one model, so that a figure without its name says little:

- ``macro_accuracy``, the authors': the unweighted mean over relations without those that :data:`SYMMETRIC` lists, or
  over pairs of attributes with at least :data:`FEWEST_CASES` cases;
- ``micro_accuracy``, as mteb has it: the share of all cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.image_files import find_images, images_beside, in_reading_order
from paraclip_core.evaluation.metrics import macro_weights, pair_scores
from paraclip_core.evaluation.pool import Box, Encoder, ImagePool, archive_pool, need_two, unique_features
from paraclip_core.evaluation.results import Measured, Sample
from paraclip_core.evaluation.rows import field, records

FEWEST_CASES = 25
"""Pairs of attributes with fewer cases are no part of VG-Attribution's macro accuracy."""
_BOTH_WAYS = """
    adjusting; attached to; between; bigger than; biting; boarding; brushing; chewing; cleaning; climbing; close to;
    coming from; coming out of; contain; crossing; dragging; draped over; drinking; drinking from; driving; driving
    down; driving on; eating from; eating in; enclosing; exiting; facing; filled with; floating in; floating on;
    flying; flying above; flying in; flying over; flying through; full of; going down; going into; going through;
    grazing in; growing in; growing on; guiding; hanging from; hanging in; hanging off; hanging over; higher than;
    holding onto; hugging; in between; jumping off; jumping on; jumping over; kept in; larger than; leading; leaning
    over; leaving; licking; longer than; looking in; looking into; looking out; looking over; looking through; lying
    next to; lying on top of; making; mixed with; mounted on; moving; on the back of; on the edge of; on the front
    of; on the other side of; opening; painted on; parked at; parked beside; parked by; parked in; parked in front
    of; parked near; parked next to; perched on; petting; piled on; playing; playing in; playing on; playing with;
    pouring; reaching for; reading; reflected on; riding on; running in; running on; running through; seen through;
    sitting behind; sitting beside; sitting by; sitting in front of; sitting near; sitting next to; sitting under;
    skiing down; skiing on; sleeping in; sleeping on; smiling at; sniffing; splashing; sprinkled on; stacked on;
    standing against; standing around; standing behind; standing beside; standing in front of; standing near;
    standing next to; staring at; stuck in; surrounding; swimming in; swinging; talking to; topped with; touching;
    traveling down; traveling on; tying; typing on; underneath; wading in; waiting for; walking across; walking by;
    walking down; walking next to; walking through; working in; working on; worn on; wrapped around; wrapped in; by;
    of; near; next to; with; beside; on the side of; around
"""
SYMMETRIC = frozenset(" ".join(name.split()) for name in _BOTH_WAYS.split(";"))
"""Relations that the authors' evaluation leaves out of the macro accuracy, because both orders may be true."""


@dataclass(frozen=True)
class Cases:
    """All cases, in the file's order."""

    groups: Sequence[str]
    """Relation, or both attributes with an underscore between."""
    images: Sequence[str]
    parts: Sequence[str]
    """The part of the image, by its name in `pool`."""
    true: Sequence[str]
    false: Sequence[str]
    pool: ImagePool


def read_cases(source: Source, name: str, group: Callable[[Path, int, dict[str, Any]], str]) -> Cases:
    """Read the file at the path, or of this name in the folder there; `group` gives a row's group."""
    path = source.need_path()
    file = path / name if path.is_dir() else path
    rows = [
        (
            group(file, number, row),
            field(file, number, row, "image_path"),
            _box(file, number, row),
            field(file, number, row, "true_caption"),
            field(file, number, row, "false_caption"),
        )
        for number, row in records(file)
    ]
    if not rows:
        raise BenchmarkError(f"{file} has no cases; expected a list of objects with true_caption and false_caption")
    groups, images, boxes, true, false = zip(*rows, strict=True)
    need_two(images)
    parts = [f"{image}[{','.join(map(str, box))}]" for image, box in zip(images, boxes, strict=True)]
    where = dict(zip(parts, zip(images, boxes, strict=True), strict=True))
    return Cases(groups, images, parts, true, false, _pool(source, file, where))


def _pool(source: Source, file: Path, parts: dict[str, tuple[str, Box]]) -> ImagePool:
    archive = source.images or images_beside(file)
    if archive is None:
        raise BenchmarkError(f"no images beside {file}; expected a folder `images`, or the option `images` (--images)")
    names = list(dict.fromkeys(image for image, _ in parts.values()))
    places = find_images(archive, names)
    if missing := [name for name in names if name not in places]:
        raise BenchmarkError(f"{archive} lacks {len(missing)} of {len(names)} images of {file}, first {missing[0]!r}")
    ids = in_reading_order({part: places[image] for part, (image, _) in parts.items()})
    return archive_pool(ids, [places[parts[part][0]] for part in ids], [parts[part][1] for part in ids])


def _box(file: Path, number: int, row: dict[str, Any]) -> Box:
    values = [row.get(f"bbox_{side}") for side in "xywh"]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise BenchmarkError(f"{file}, row {number}: bbox_x, bbox_y, bbox_w, bbox_h are {values}, expected numbers")
    x, y, width, height = (round(float(value)) for value in values if value is not None)
    if width < 1 or height < 1:
        raise BenchmarkError(f"{file}, row {number}: a part of {width} x {height} pixels, expected at least one")
    return x, y, x + width, y + height


def measure(cases: Cases, counted: Callable[[Sequence[str]], list[bool]], encoder: Encoder) -> Measured:
    """Both accuracies; cases of one image form a cluster.

    Args:
        cases: all cases.
        counted: which of them belong to the macro accuracy, by their groups.
        encoder: the model.
    """
    count = len(cases.true)
    texts, index = unique_features(encoder.texts, [*cases.true, *cases.false])
    images, rows = cases.pool.features(encoder), cases.pool.find(cases.parts)
    # A tie is a miss, as it is for the authors.
    right = pair_scores(images, rows, texts, index[:count]) > pair_scores(images, rows, texts, index[count:])
    values = right.astype(np.float64)
    _, clusters = np.unique(np.array(cases.images), return_inverse=True)
    kept = np.flatnonzero(counted(cases.groups))
    groups = [cases.groups[row] for row in kept.tolist()]
    samples = {"micro_accuracy": Sample(values, clusters.astype(np.int64))}
    if len(np.unique(clusters[kept])) > 1:
        macro = Sample(values[kept] * macro_weights(groups), clusters[kept].astype(np.int64))
        samples = {"macro_accuracy": macro, **samples}
    notes = {
        "protocol": "cosine of image part and true caption above that with the false one; macro: mean over groups",
        "cases": count,
        "images": len(set(cases.images)),
        "groups": len(set(cases.groups)),
        "groups_in_macro": len(set(groups)),
    }
    return Measured(samples, notes)


def _attributes(file: Path, number: int, row: dict[str, Any]) -> str:
    pair = row.get("attributes")
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
        raise BenchmarkError(f"{file}, row {number}: attributes is {pair!r}, expected a list of two words")
    return "_".join(pair)


def _relation(file: Path, number: int, row: dict[str, Any]) -> str:
    return field(file, number, row, "relation_name")


def _large(groups: Sequence[str]) -> list[bool]:
    counts = Counter(groups)
    return [counts[group] >= FEWEST_CASES for group in groups]


def _ordered(groups: Sequence[str]) -> list[bool]:
    return [group not in SYMMETRIC for group in groups]


def _row(title: str, name: str, group: Any, counted: Any, alias: str) -> Benchmark:
    def load(source: Source) -> Task:
        cases = read_cases(source, name, group)
        return Task(lambda encoder: measure(cases, counted, encoder))

    return Benchmark(
        title=title,
        metrics=(Metric("macro_accuracy", published="macro_acc"), Metric("micro_accuracy", published="acc")),
        load=load,
        aliases=(alias,),
        task="image_caption_selection",
        hub_task="image-text-matching",
        needs_images=True,
    )


VG_RELATION = _row("VG-Relation", "visual_genome_relation.json", _relation, _ordered, "vg-r")
VG_ATTRIBUTION = _row("VG-Attribution", "visual_genome_attribution.json", _attributes, _large, "vg-a")

"""Choosing the right text: SugarCrepe, SugarCrepe++ and ARO, each a row that describes its files.

A case has an image and texts, in columns named as in the file. It counts as right if one of them is nearer to a second
than to a third. A tie is a miss, as in the authors' code, so a model that cannot tell texts apart scores 0.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Box, Encoder, ImagePool, Measured, need_two, unique_features
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.metrics import macro_weights
from paraclip_core.evaluation.published import (
    field,
    find_images,
    images_beside,
    pool_for,
    pool_of,
    records,
)
from paraclip_core.evaluation.scores import pair_scores

log = logging.getLogger(__name__)

FEWEST_CASES = 25
"""Pairs of attributes with fewer cases are excluded from VG-Attribution's macro accuracy."""
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
"""Relations that the authors' evaluation excludes from the macro accuracy, because both orders may be true."""


@dataclass(frozen=True)
class Cases:
    """All cases, in file order."""

    columns: Mapping[str, Sequence[str]]
    """Texts, and images by their names in `pool`."""
    clusters: Sequence[str]
    """The image of each case: cases of one image are resampled together for the interval."""
    groups: Sequence[str]
    """Category of each."""
    pool: ImagePool | None
    """None if some images are missing."""
    notes: Mapping[str, Any]


Nearer = tuple[str, str, str]
"""Three columns: the first must be nearer to the second than to the third."""


@dataclass(frozen=True)
class Choice:
    """What distinguishes one of these benchmarks from the others."""

    read: Callable[[Source, Choice], Cases]
    image: str
    """Column of the file that names the image."""
    texts: tuple[str, ...]
    scores: Mapping[Metric, tuple[Nearer, ...]]
    """Conditions that must all hold for a case to count as right."""
    protocol: str
    text_scores: Mapping[Metric, tuple[Nearer, ...]] = dataclasses.field(default_factory=dict)
    """What is measured if images are missing; without conditions, the figure is the cosine of both texts."""
    text_protocol: str = ""
    macro: tuple[str, ...] = ()
    """Metrics that are the unweighted mean over groups; others are means over cases."""
    counted: Callable[[str, int], bool] = lambda group, cases: True
    """Whether a group with this many cases is part of that mean."""
    group: Callable[[Path, int, dict[str, Any]], str] = lambda file, number, row: file.stem

    def named(self, *columns: Sequence[str]) -> dict[str, Sequence[str]]:
        return dict(zip((self.image, *self.texts), columns, strict=True))


def measure(choice: Choice, cases: Cases, encoder: Encoder) -> Measured:
    """All scores, over all cases and by group."""
    count = len(cases.clusters)
    features, index = unique_features(encoder.texts, [text for name in choice.texts for text in cases.columns[name]])
    vectors = {name: (features, index[n * count : (n + 1) * count]) for n, name in enumerate(choice.texts)}
    if cases.pool is not None:
        vectors[choice.image] = cases.pool.features(encoder), cases.pool.find(cases.columns[choice.image])

    @cache
    def cosine(one: str, other: str) -> NDArray[np.float64]:
        return pair_scores(*vectors[one], *vectors[other])

    def right(first: str, near: str, far: str) -> NDArray[np.bool_]:
        return cosine(first, near) > cosine(first, far)

    values = {
        metric: np.all([right(*nearer) for nearer in all_of], axis=0) if all_of else cosine(*choice.texts)
        for metric, all_of in (choice.scores if cases.pool is not None else choice.text_scores).items()
    }
    samples = _samples(choice, cases, {metric: each.astype(np.float64) for metric, each in values.items()})
    protocol = choice.protocol if cases.pool is not None else choice.text_protocol
    return Measured(samples, {"protocol": protocol, **cases.notes})


def _samples(choice: Choice, cases: Cases, values: Mapping[Metric, NDArray[np.float64]]) -> dict[str, Sample]:
    clusters = np.unique(np.array(cases.clusters), return_inverse=True)[1].astype(np.int64)
    groups, counts = np.array(cases.groups), Counter(cases.groups)
    counted = np.array([choice.counted(group, counts[group]) for group in cases.groups])
    pairs = [(metric, part) for metric in values for part in ("", *(counts if metric.by_part else ()))]
    samples = {}
    for metric, part in pairs:
        macro = metric.name in choice.macro
        of = groups == part if part else counted if macro else np.full(len(groups), True)
        weights = macro_weights(groups[of].tolist()) if macro else 1.0
        if len(np.unique(clusters[of])) > 1:
            name = f"{metric.name}@{part}" if part else metric.name
            samples[name] = Sample(values[metric][of] * weights, clusters[of])
    return samples


def _read(files: Sequence[Path], choice: Choice, *more: Callable[[Path, int, dict[str, Any]], Any]) -> list[list[Any]]:
    """Columns: group, image, texts, and the values that `more` computes from a row."""
    fields = (choice.image, *choice.texts)
    makers = (choice.group, *(partial(_field, name) for name in fields), *more)
    read = [[make(file, n, row) for make in makers] for file in files for n, row in records(file)]
    if not read:
        where = " and ".join(map(str, files)) or "the folder"
        raise BenchmarkError(f"{where} has no rows; expected {', '.join(fields)}")
    return [list(column) for column in zip(*read, strict=True)]


def _field(name: str, file: Path, number: int, row: dict[str, Any]) -> str:
    return field(file, number, row, name)


def read_categories(source: Source, choice: Choice) -> Cases:
    """Read SugarCrepe's folder: a JSON file for each category, and COCO's val2017 next to them."""
    path = source.need_path()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    groups, images, *texts = _read(files, choice)
    notes = {"rows": len(images), "images": len(set(images))}
    return Cases(choice.named(images, *texts), images, groups, pool_for(source, images), notes)


def read_sugarcrepe(source: Source, choice: Choice) -> Cases:
    """Read SugarCrepe without ingested images; the published counts include rows repeated from an earlier category."""
    cases = read_categories(replace(source, stored=None), choice)
    images, count = list(dict.fromkeys(cases.clusters)), len(cases.clusters)
    place = source.images or images_beside(source.need_path())
    notes = {
        "rows": count,
        "duplicate_rows": count - len(set(zip(*cases.columns.values(), strict=True))),
        "images": len(images),
        "images_found": 0 if place is None else len(find_images(place, images)),
    }
    return replace(cases, notes=notes)


def read_aro(source: Source, choice: Choice, name: str) -> Cases:
    """Read ARO's list of regions of Visual Genome images: the file at the path, or `name` in the folder there."""
    path = source.need_path()
    file = path / name if path.is_dir() else path
    groups, images, true, false, boxes = _read([file], choice, _box)
    parts = [f"{image}[{','.join(map(str, box))}]" for image, box in zip(images, boxes, strict=True)]
    pool = pool_of(file, parts, source.images, dict(zip(parts, zip(images, boxes, strict=True), strict=True)))
    notes = {
        "cases": len(images),
        "images": len(set(images)),
        "groups": len(set(groups)),
        "groups_in_macro": sum(choice.counted(group, cases) for group, cases in Counter(groups).items()),
    }
    return Cases(choice.named(parts, true, false), images, groups, pool, notes)


def _box(file: Path, number: int, row: dict[str, Any]) -> Box:
    try:
        x, y, width, height = (round(float(row[f"bbox_{side}"])) for side in "xywh")
        if min(width, height) < 1:
            raise ValueError("an empty part")
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{file}, row {number}: no part of an image in bbox_x, bbox_y, bbox_w, bbox_h") from error
    return x, y, x + width, y + height


def _benchmark(title: str, choice: Choice, **about: Any) -> Benchmark:
    metrics = tuple(dict.fromkeys([*choice.scores, *choice.text_scores]))

    def load(source: Source) -> Task:
        cases = choice.read(source, choice)
        need_two(cases.clusters)
        for group in dict.fromkeys(cases.groups) if any(metric.by_part for metric in metrics) else ():
            images = [image for image, of in zip(cases.clusters, cases.groups, strict=True) if of == group]
            need_two(images, f"rows of category {group!r}")
        if cases.pool is None:
            log.warning(
                "%s: not all of its %d images are there, so only texts are measured; put COCO's val2017 beside it, or "
                "name the images in `images` (--images)",
                source.path,
                len(set(cases.clusters)),
            )
        return Task(lambda encoder: measure(choice, cases, encoder))

    kind = {"hub_task": "image-text-matching", "needs_images": True}
    return Benchmark(title, metrics, load, **kind, **about)


SUGARCREPE = _benchmark(
    "SugarCrepe",
    Choice(
        read=read_sugarcrepe,
        image="filename",
        texts=("caption", "negative_caption"),
        scores={Metric("accuracy", by_part=True): (("filename", "caption", "negative_caption"),)},
        protocol="accuracy: cosine of image and caption above that of image and negative, mean over categories",
        # Lower: the text encoder tells captions and negatives further apart.
        text_scores={Metric("text_only_closeness", lower_is_better=True, by_part=True): ()},
        text_protocol="text only, images are not all there: mean cosine of caption and negative, lower is further "
        "apart",
        macro=("accuracy", "text_only_closeness"),
    ),
    source="https://github.com/RAIVNLab/sugar-crepe",
)
_TEXT_ONLY = {
    Metric("text_only", by_part=True): (
        ("caption", "caption2", "negative_caption"),
        ("caption2", "caption", "negative_caption"),
    )
}
_BOTH = (
    "image_to_text: both captions nearer to the image than the negative; text_only: nearer to one another than to the "
    "negative; mean over categories"
)
SUGARCREPE_PP = _benchmark(
    "SugarCrepe++",
    Choice(
        read=read_categories,
        image="filename",
        texts=("caption", "caption2", "negative_caption"),
        scores={
            Metric("image_to_text", by_part=True): (
                ("filename", "caption", "negative_caption"),
                ("filename", "caption2", "negative_caption"),
            ),
            **_TEXT_ONLY,
        },
        protocol=_BOTH,
        text_scores=_TEXT_ONLY,
        text_protocol=f"{_BOTH}; text only, images are not all there",
        macro=("image_to_text", "text_only"),
    ),
    aliases=("sugarcrepe++", "scpp"),
    source="https://github.com/Sri-Harsha/scpp",
)
# The two differ by up to eight points on one model: the authors' is the macro one, mteb's the micro one.
_VG = Choice(
    read=lambda source, choice: read_aro(source, choice, "visual_genome_relation.json"),
    image="image_path",
    texts=("true_caption", "false_caption"),
    scores=dict.fromkeys(
        (Metric("macro_accuracy"), Metric("micro_accuracy")),
        (("image_path", "true_caption", "false_caption"),),
    ),
    protocol="cosine of image part and true caption above that with the false one; macro: mean over groups",
    macro=("macro_accuracy",),
    counted=lambda group, cases: group not in SYMMETRIC,
    group=partial(_field, "relation_name"),
)
VG_RELATION = _benchmark(
    "VG-Relation", _VG, aliases=("vg-r",), source="https://github.com/mertyg/vision-language-models-are-bows"
)
VG_ATTRIBUTION = _benchmark(
    "VG-Attribution",
    replace(
        _VG,
        read=lambda source, choice: read_aro(source, choice, "visual_genome_attribution.json"),
        counted=lambda group, cases: cases >= FEWEST_CASES,
        group=lambda file, number, row: "_".join(row.get("attributes") or ()),
    ),
    aliases=("vg-a",),
    source="https://github.com/mertyg/vision-language-models-are-bows",
)

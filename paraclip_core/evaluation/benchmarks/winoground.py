"""Winoground (Thrush et al., CVPR 2022) and sets of its kind: two captions with the same words, two images.

Of the four cosines of a group, the text score counts where each image is nearer to its own caption than to the other,
the image score where each caption is nearer to its own image, the group score where both do. Chance gives 25, 25 and
16.7 %.

Formats: the hub's Parquet with image_0, image_1, caption_0, caption_1; or ``examples.jsonl`` with the same names, the
images by their names in a folder or tar. A column collapsed_tag or tag gives the scores of each tag, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.image_files import pool_for
from paraclip_core.evaluation.metrics import pair_scores
from paraclip_core.evaluation.pool import Encoder, ImagePool, archive_pool, unique_features
from paraclip_core.evaluation.results import Measured, Sample
from paraclip_core.evaluation.rows import field, records
from paraclip_core.pictures import damaged_parquet, is_picture, picture_name

COLUMNS = ("image_0", "image_1", "caption_0", "caption_1")


@dataclass(frozen=True)
class Groups:
    """Both images and both captions of each group."""

    images: tuple[Sequence[str], Sequence[str]]
    captions: tuple[Sequence[str], Sequence[str]]
    tags: Sequence[str]
    """Empty strings where the file has none."""
    pool: ImagePool


def load(source: Source) -> Task:
    """Groups with their images."""
    path = source.need_path()
    file = _file(path)
    rows = [*_rows(file)]
    if len(rows) < 2:
        raise BenchmarkError(f"{file} has {len(rows)} groups; expected two at least with {', '.join(COLUMNS)}")
    first, second, one, other, tags = zip(*rows, strict=True)
    names = [*first, *second]
    if _holds_pictures(file):
        # By rows: to step back in Parquet costs reading a row group again.
        ids = sorted(set(names), key=lambda name: (name.partition("[")[2], name))
        pool = archive_pool(ids, [(file, name) for name in ids])
    elif (pool := pool_for(source, names)) is None:
        raise BenchmarkError(f"images of {file} are missing; say with the option `images` where they lie")
    groups = Groups((first, second), (one, other), tags, pool)
    return Task(lambda encoder: measure(groups, encoder))


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [p for p in (path / "examples.jsonl", *sorted(path.rglob("*.parquet"))) if p.is_file()]
    if not files:
        raise BenchmarkError(f"{path} has no examples.jsonl and no Parquet; name the file with the groups")
    return files[0]


def _rows(file: Path) -> Iterator[tuple[str, str, str, str, str]]:
    pictures = _holds_pictures(file)
    for number, row in _records(file, pictures):
        if pictures:
            images = [picture_name(column, number - 1) for column in COLUMNS[:2]]
        else:
            images = [field(file, number, row, column) for column in COLUMNS[:2]]
        captions = [field(file, number, row, column) for column in COLUMNS[2:]]
        tag = row.get("collapsed_tag") or row.get("tag") or ""
        yield images[0], images[1], captions[0], captions[1], str(tag).strip().replace("@", " ")


def _records(file: Path, pictures: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    if not pictures:
        yield from records(file)
        return
    with pq.ParquetFile(file) as parquet:
        columns = [name for name in (*COLUMNS[2:], "collapsed_tag", "tag") if name in parquet.schema_arrow.names]
        yield from enumerate(parquet.read(columns=columns).to_pylist(), 1)


def _holds_pictures(file: Path) -> bool:
    if file.suffix.lower() != ".parquet":
        return False
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise BenchmarkError(str(damaged_parquet(file, error))) from error
    return all(name in schema.names and is_picture(schema.field(name).type) for name in COLUMNS[:2])


def measure(groups: Groups, encoder: Encoder) -> Measured:
    """The three scores; a group is a cluster of its own."""
    count = len(groups.tags)
    texts, index = unique_features(encoder.texts, [*groups.captions[0], *groups.captions[1]])
    images = groups.pool.features(encoder)
    pictures = [groups.pool.find(side) for side in groups.images]
    captions = [index[:count], index[count:]]
    cosine = {
        (text, image): pair_scores(images, pictures[image], texts, captions[text])
        for text in (0, 1)
        for image in (0, 1)
    }
    # Strictly above, as the authors count.
    text = (cosine[0, 0] > cosine[1, 0]) & (cosine[1, 1] > cosine[0, 1])
    image = (cosine[0, 0] > cosine[0, 1]) & (cosine[1, 1] > cosine[1, 0])
    scores = {"text_score": text, "image_score": image, "group_score": text & image}
    clusters = np.arange(count)
    samples = {name: Sample(right.astype(np.float64), clusters) for name, right in scores.items()}
    tags = np.array(groups.tags)
    # Of a tag with one group there is no interval.
    for tag in [tag for tag in dict.fromkeys(groups.tags) if tag and groups.tags.count(tag) > 1]:
        rows = tags == tag
        samples |= {
            f"{name}@{tag}": Sample(right[rows].astype(np.float64), clusters[rows]) for name, right in scores.items()
        }
    notes = {
        "protocol": "text: each image nearer to its caption; image: each caption nearer to its image; group: both",
        "groups": count,
        "images": len(groups.pool.ids),
    }
    return Measured(samples, notes)


WINOGROUND = Benchmark(
    title="Winoground",
    metrics=(
        Metric("text_score", by_part=True),
        Metric("image_score", by_part=True),
        Metric("group_score", by_part=True),
    ),
    load=load,
    task="image_caption_selection",
    hub_task="image-text-matching",
    needs_images=True,
)

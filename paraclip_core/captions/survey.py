"""A survey of a user's data folder: its captions, the location of the images, and the splits.

Files and columns are found in the same way as by the readers, so ingest does what is reported here.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from paraclip_core.captions.columns import ColumnNames, has_caption
from paraclip_core.captions.counts import Counts
from paraclip_core.captions.filters import count_words
from paraclip_core.captions.formats import named_format, read
from paraclip_core.captions.leakage import SHARED_COLUMNS, Shared, find_shared, shared_contents
from paraclip_core.captions.options import USUAL_WORDS, DataOptions, SourceOptions
from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.readers.csv import header_fields
from paraclip_core.captions.rows import RowBatch
from paraclip_core.captions.sources import SourceFile, list_files
from paraclip_core.captions.splits import shard_split, split_name
from paraclip_core.clip.images import ImageArchive, missing_images
from paraclip_core.errors import InputError
from paraclip_core.pictures import PICTURES
from paraclip_core.tables import DUCKDB

LOOKED_UP = 200
"""Images that are looked up in each candidate location."""
CHECKED = 1000
"""Images of an archive that are looked up in it, chosen by hash: missing ones may come late in the captions."""
# Images inside a source were already read with its captions.
NAMED = """
    SELECT images, image_path, min(source) FROM captions
    WHERE image_id IS NOT NULL AND image_path IS NOT NULL AND images <> source
    GROUP BY images, image_path
    QUALIFY row_number() OVER (PARTITION BY images ORDER BY hash(image_path), image_path) <= $most
    ORDER BY images, image_path
"""
MOST_WORDS = 77
"""Words that a caption may have if longer ones than usual are found: CLIP reads as many tokens."""
LEAST_IMAGES = 10
"""Minimum number of images of a split that benchmarks need."""
MANY_IMAGES = 4280
"""Of so many a tenth shows a gain of two points of AO@10 (:mod:`paraclip_core.evaluation.power`)."""
SHOWN = 5
COLUMNS = ("image_id", "image_path", "split", "caption")


@dataclass(frozen=True)
class Survey:
    """Options for `data` that describe a folder, and what ingest gets from them."""

    data: DataOptions
    """`max_words` covers the captions that were found, up to `MOST_WORDS`."""
    counts: Counts
    images: dict[str, Counter[str]]
    """Image ids of each split, with the number of captions of each image."""
    shared: Shared
    """What the splits share."""
    missing: list[str]
    """Images that captions name and that were looked up but not found."""
    without_image: Counter[str] = field(default_factory=Counter)
    """Captions of each split that have no image."""
    long: int = 0
    """Accepted captions of more than `USUAL_WORDS` words."""
    unused: list[str] = field(default_factory=list)
    """Files that also hold captions but name no image."""

    @property
    def split(self) -> str | None:
        """The split to evaluate: a held-out one with enough images."""
        return next((name for name in ("val", "test") if len(self.images.get(name, ())) >= LEAST_IMAGES), None)

    def pairs(self, split: str) -> int:
        """Number of images of a split with several captions, each a paraphrase of the others."""
        return sum(count > 1 for count in self.images.get(split, Counter()).values())


def survey(
    root: Path, captions: str | None = None, images: str | None = None, columns: ColumnNames | None = None
) -> Survey:
    """Survey a folder of captions and images.

    `captions` and `images`, relative to `root`, and `columns` resolve ambiguities.
    """
    source = SourceOptions(path=captions or ".", columns=columns or ColumnNames(), images=images)
    chosen, unused = _choose(_candidates(root, source), explicit=captions is not None)
    first = chosen[0]
    if images is not None or not first.file.images:
        names = list(dict.fromkeys(name for candidate in chosen for name in candidate.image_names))[:LOOKED_UP]
        images = _find_images(root, names, first.file, images)
    sources = tuple(
        source.model_copy(
            update={
                "path": candidate.file.name,
                "split": candidate.split,
                "images": images if candidate.file.images is None or source.images is not None else None,
            }
        )
        for candidate in chosen
    )
    if captions is None and len(sources) > 1 and not any(source.split for source in sources):
        # Numbered shards are given as their folder.
        sources = (sources[0].model_copy(update={"path": Path(sources[0].path).parent.as_posix()}),)
    plain = _counted(DataOptions(root=str(root), sources=sources, max_words=MOST_WORDS), unused)
    if plain.split is not None:
        return plain
    # A tenth of the images, or a fifth if they are few, is held out if that is enough to evaluate.
    share = 0.1 if len(plain.images.get("train", ())) >= MANY_IMAGES else 0.2
    held_out = _counted(plain.data.model_copy(update={"held_out": share}), unused)
    return plain if held_out.split is None else held_out


@dataclass(frozen=True)
class _Candidate:
    file: SourceFile
    rows: RowBatch
    split: str | None = None
    """The split in its name, if the files' names state different ones."""

    @property
    def image_names(self) -> list[str]:
        return [path for path in self.rows.image_paths if path]


def _candidates(root: Path, source: SourceOptions) -> list[_Candidate]:
    """The files from which a first batch of captions can be read."""
    problems, candidates = [], []
    for file in list_files(root, [source], root / "runs"):
        try:
            rows = next((batch for batch in read(file.path, file.options, file.form) if len(batch)), None)
        except InputError as error:
            problems.append(str(error))
            continue
        if rows is not None:
            candidates.append(_Candidate(file, rows))
    if not candidates:
        reason = "; ".join(problems[:SHOWN]) or "no file of a known format contains any"
        raise InputError(
            f"no captions in {root / source.path}: {reason}. Expected CSV, TSV, JSONL or Parquet with a column of "
            "captions and one of images' names (name them with --caption-column and --image-column), COCO's or "
            "Karpathy's JSON, or webdataset tars"
        )
    return candidates


def _choose(candidates: list[_Candidate], explicit: bool) -> tuple[list[_Candidate], list[str]]:
    """The files that belong together, and the names of those left out because they name no image."""
    chosen = [candidate for candidate in candidates if candidate.file.images or candidate.image_names] or candidates
    unused = [candidate.file.name for candidate in candidates if candidate not in chosen]
    if len(chosen) == 1:
        return chosen, unused
    paths, forms = [candidate.file.path for candidate in chosen], {candidate.file.form for candidate in chosen}
    splits = [split_name(path.name.split(".")[0]) or shard_split(path) for path in paths]
    if explicit or (all(splits) and len({path.parent for path in paths}) == 1):
        return [replace(candidate, split=split) for candidate, split in zip(chosen, splits, strict=True)], unused
    if len(forms) == len({(path.parent, re.sub(r"\d", "", path.name)) for path in paths}) == 1:
        return chosen, unused
    names = ", ".join(candidate.file.name for candidate in chosen[:SHOWN]) + (", …" if len(chosen) > SHOWN else "")
    raise InputError(f"{len(chosen)} files hold captions: {names}; choose one, or a folder, with --captions")


def _find_images(root: Path, names: Sequence[str], file: SourceFile, images: str | None) -> str:
    """The folder or tar with the images: `images` if given, or else the one that contains the most of them."""
    if not names:
        raise InputError(_no_names(file))
    candidates = _image_places(root) if images is None else [images]
    places = {place: len(names) - len(_missing(root / place, names)) for place in candidates}
    most = max(places.values(), default=0)
    if not most:
        raise InputError(
            f"none of the {len(names)} images that were looked up is below {root / (images or '')}; the first is "
            f"{names[0]!r}, as {file.name} names it. Name the folder or tar that holds them with --images, "
            "or the column with their file names with --image-column; links that lead out of a folder are not followed"
        )
    best = [place for place, count in places.items() if count == most]
    if len(best) > 1:
        raise InputError(f"the images are in {' and in '.join(best[:SHOWN])}; choose one with --images")
    return best[0]


def _no_names(file: SourceFile) -> str:
    fields = header_fields(file.path) if file.form in ("csv", "tsv") else []
    columns = ", ".join(repr(field[:40]) for field in fields[:8])
    if len(fields) > 1 and not (has_caption(fields) or file.options.columns.named()):
        # Each line was read as a caption.
        return (
            f"{file.name} has no column with a usual name for captions or images; its first line has {columns}. Name "
            "the two with --caption-column and --image-column"
        )
    return (
        f"the captions of {file.name}{f' (columns {columns})' if columns else ''} name no image, so nothing can be "
        "trained on; add a column `image` with the file names, or name the column that has them with --image-column"
    )


def _image_places(root: Path) -> Iterable[str]:
    """Folders that contain pictures, their parent folders, and tars, relative to `root`.

    A linked folder is searched, but links inside it are not. A picture's name must not lead out of its folder through a
    link, so the parents of a link do not count as folders of its pictures.
    """
    places: set[Path] = set()
    tops = [root]
    for top in tops:
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".") and name != "runs"]
            path = Path(folder)
            if top == root:
                tops += [path / name for name in folders if (path / name).is_symlink()]
            if any(name.lower().endswith(PICTURES) for name in files):
                places |= {path, *(parent for parent in path.parents if parent == top or top in parent.parents)}
            places |= {path / name for name in files if named_format(Path(name)) == "webdataset"}
    return [place.relative_to(root).as_posix() for place in sorted(places)]


def _missing(place: Path, names: Sequence[str]) -> list[str]:
    try:
        return missing_images(place, names)
    except InputError:  # an unreadable archive has none of them
        return list(names)


def _counted(data: DataOptions, unused: list[str]) -> Survey:
    files = list_files(Path(data.root), data.sources, Path(data.root) / "runs")
    pipeline, counts = CaptionPipeline(data, files), Counts()
    images: dict[str, Counter[str]] = {}
    without_image, lengths = Counter[str](), Counter[int]()
    batches: list[pa.RecordBatch] = []
    for file in files:
        for outcome in pipeline.run(file):
            counts.note(outcome)
            columns = (outcome.accepted.column(name).to_pylist() for name in COLUMNS)
            for image, path, split, caption in zip(*columns, strict=True):
                lengths[count_words(caption)] += 1
                if image is not None:
                    images.setdefault(split, Counter())[image] += 1
                # Without a folder or tar of images there are no paths.
                without_image[split] += image is None or path is None
            batches.append(outcome.accepted.select([*SHARED_COLUMNS, "source"]))
    contents = shared_contents(lambda: batches, lambda name: ImageArchive(Path(data.root) / name))
    with duckdb.connect(":memory:", config=DUCKDB) as con:
        if batches:
            con.register("captions", pa.Table.from_batches(batches))
        named = named_images(con) if batches else {}
    missing = [name for place, names in named.items() for name in _missing(Path(data.root) / place, list(names))]
    data = data.model_copy(update={"max_words": max([USUAL_WORDS, *lengths])})
    return Survey(
        data,
        counts,
        images,
        find_shared(lambda: batches, contents),
        missing,
        without_image,
        long=sum(count for words, count in lengths.items() if words > USUAL_WORDS),
        unused=unused,
    )


def named_images(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """For each tar or folder, up to `CHECKED` images that the view `captions` names in it, with a source file."""
    named: dict[str, dict[str, str]] = {}
    for place, name, source in con.execute(NAMED, {"most": CHECKED}).fetchall():
        named.setdefault(place, {})[name] = source
    return named

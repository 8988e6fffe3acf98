"""The sources in a user's data folder: which files hold captions, and where their images are.

Files and columns are found in the same way as by the readers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from paraclip_core.captions.columns import ColumnNames, has_caption
from paraclip_core.captions.formats import named_format, read
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.csv import header_fields
from paraclip_core.captions.rows import RowBatch
from paraclip_core.captions.sources import SourceFile, list_files
from paraclip_core.captions.splits import shard_split, split_name
from paraclip_core.clip.images import missing_images
from paraclip_core.errors import InputError
from paraclip_core.pictures import PICTURES

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
SHOWN = 5


def find_sources(
    root: Path, captions: str | None = None, images: str | None = None, columns: ColumnNames | None = None
) -> tuple[tuple[SourceOptions, ...], list[str]]:
    """Find the captions and images of a folder.

    `captions` and `images`, relative to `root`, and `columns` resolve ambiguities. Returns the sources, and the names
    of the files that also hold captions but name no image.
    """
    source = SourceOptions(path=captions or ".", columns=columns or ColumnNames(), images=images)
    chosen, unused = _choose(_candidates(root, source), explicit=captions is not None)
    first = chosen[0]
    if images is not None or not first.file.images:
        names = list(dict.fromkeys(name for candidate in chosen for name in candidate.image_names))[:LOOKED_UP]
        images = _find_images(root, names, first.file, images)

    def source_of(candidate: _Candidate) -> SourceOptions:
        inside = candidate.file.images is not None and source.images is None
        update = {"path": candidate.file.name, "split": candidate.split, "images": None if inside else images}
        return source.model_copy(update=update)

    sources = tuple(map(source_of, chosen))
    if captions is None and len(sources) > 1 and not any(source.split for source in sources):
        # Numbered shards are given as their folder.
        sources = (sources[0].model_copy(update={"path": Path(sources[0].path).parent.as_posix()}),)
    return sources, unused


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
    places = {place: len(names) - len(absent_images(root / place, names)) for place in candidates}
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


def absent_images(place: Path, names: Sequence[str]) -> list[str]:
    """The names of images that a folder or tar does not hold."""
    try:
        return missing_images(place, names)
    except InputError:  # an unreadable archive has none of them
        return list(names)


def named_images(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """For each tar or folder, up to `CHECKED` images that the view `captions` names in it, with a source file."""
    named: dict[str, dict[str, str]] = {}
    for place, name, source in con.execute(NAMED, {"most": CHECKED}).fetchall():
        named.setdefault(place, {})[name] = source
    return named

"""Ingest: turns source files into clean, filtered and deduplicated captions, and rejects with reasons.

It resumes at file granularity: each finished file leaves its parts in the artifact and a marker with its counts in
scratch. An interrupted file is read again; the duplicate filter is rebuilt from the finished parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.storage.files import read_json, write_json
from paraclip.storage.parquet import PartWriter, iter_batches, write_table
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.run.run import Missing, Stage, StageContext, find_missing, input_path
from paraclip_core import tables
from paraclip_core.captions.counts import Counts, Outcome, listed_reasons
from paraclip_core.captions.formats import need_file
from paraclip_core.captions.keys import KeySet, text_keys
from paraclip_core.captions.pipeline import BY_CONTENT, UNIQUE, CaptionPipeline
from paraclip_core.captions.query_log import QueryLog
from paraclip_core.captions.sources import SourceFile, list_files, read_source
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError, InputError
from paraclip_core.options import meaning
from paraclip_core.paths import expand

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run

log = logging.getLogger(__name__)

RESTORED = ("caption_id", "image_id", "image_path", "images", "split")


@dataclass(frozen=True)
class IngestedCaptions:
    """Captions as ingest accepts them."""

    get_folder: Callable[[], Path]
    """Returns the folder; files from another machine may have to be fetched."""
    read: int | None
    accepted: int | None
    train: int
    """Captions of the training split."""
    images: int | None
    """Distinct images."""
    rejected: Mapping[str, int]
    """Rejected rows, by reason."""

    @property
    def folder(self) -> Path:
        """The folder whose subfolder `captions` holds them as Parquet (schema `tables.CAPTIONS`)."""
        return self.get_folder()


def ingested_captions(run: Run, artifacts: Mapping[str, Artifact], scratch: Path) -> IngestedCaptions:
    """The captions of the finished ingest among `artifacts`, or those that it will accept, written to `scratch`."""
    if "ingest" in artifacts:
        artifact = artifacts["ingest"]
        metrics = artifact.manifest.metrics
        counts = metrics.get("read"), metrics.get("accepted"), metrics.get("splits", {}).get("train", 0)
        return IngestedCaptions(
            lambda: run.store.download(artifact).path, *counts, metrics.get("images"), metrics.get("rejected", {})
        )
    counts, images = Counts(), KeySet()
    writer = PartWriter(scratch / "ingest" / "captions", schemas(run.settings)["captions"])
    for outcome in scan_outcomes(run):
        counts.note(outcome)
        images.add(text_keys([name for name in outcome.accepted.column("image_id").to_pylist() if name is not None]))
        writer.write(outcome.accepted)
    writer.close()
    folder = scratch / "ingest"
    return IngestedCaptions(
        lambda: folder, counts.read, counts.accepted, counts.splits["train"], len(images), counts.rejected
    )


def schemas(settings: Settings) -> dict[str, pa.Schema]:
    """The stage's tables: captions, or the queries of a log, and rejects."""
    return {"captions": corpus_of(settings).schema, "rejects": tables.REJECTS}


def need_rows(run: Run) -> None:
    """Refuse a run whose sources have no rows, before anything runs; reads no further than the first row."""
    settings, reasons = run.settings, []
    if "ingest" not in run.stages:
        return
    try:
        if run.artifact("ingest") is not None:
            return
    except ArtifactError:
        # `plan` lists it as damaged, and the stage refuses it.
        return
    for file in source_files(settings):
        try:
            if any(len(batch) or batch.rejects for batch in read_source(file)):
                return
            reasons.append(f"{file.name} has none")
        except InputError as error:
            if settings.data.on_error == "stop":
                # The stage reports a bad file, with the rows before the damage.
                return
            reasons.append(str(error))
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    raise ConfigError(
        f"there is nothing to run on, for no source has a row: {'; '.join(reasons[:3])}{more}. Expected captions in "
        "data.root and data.sources[].path"
    )


def scan_outcomes(run: Run) -> Iterator[Outcome]:
    """Yield what ingest will make of the sources, without storing anything."""
    files = source_files(run.settings)
    pipeline = corpus_of(run.settings).pipeline(run.settings.data, files)
    for file in files:
        yield from pipeline.run(file)


def source_files(settings: Settings) -> list[SourceFile]:
    """The files of all sources."""
    return list_files(input_path(settings, "."), settings.data.sources, expand(settings.run.root))


def _body(ctx: StageContext) -> dict[str, Any]:
    files = source_files(ctx.settings)
    pipeline = corpus_of(ctx.settings).pipeline(ctx.settings.data, files)
    total = Counts()
    for number, file in enumerate(files):
        marker = ctx.work.scratch / f"file-{number:06d}.json"
        if marker.exists():
            total.add(Counts.from_json(read_json(marker)))
            for part in sorted((ctx.work.out / "captions").glob(f"{_stem(number)}-*.parquet")):
                for batch in iter_batches(part, RESTORED):
                    pipeline.restore(batch)
        else:
            counts = _ingest_file(ctx, pipeline, number, len(files), file, total)
            write_json(marker, counts.to_json())
            total.add(counts)
            log.info("%s: %d of %d rows accepted", file.name, counts.accepted, counts.read)
        ctx.progress(number + 1, len(files), rows=total.read, accepted=total.accepted)
    if not total.accepted:
        raise InputError(_nothing(files, total, ctx.work.out / "rejects"))
    if clashes := total.rejected["image_conflict"]:
        mend = " or ".join([UNIQUE, BY_CONTENT] if any(file.pictures for file in files) else [UNIQUE])
        log.warning("%d captions are rejected because their image ids also name other images; %s", clashes, mend)
    for name, schema in schemas(ctx.settings).items():
        # An empty table is still a table.
        if not any((ctx.work.out / name).glob("part-*.parquet")):
            write_table(ctx.work.out / name / "part-000000-00000.parquet", schema.empty_table())
    return {**total.to_json(), "files": len(files), "images": pipeline.images}


def _nothing(files: list[SourceFile], total: Counts, rejects: Path) -> str:
    names = ", ".join(file.name for file in files[:3]) + (", …" if len(files) > 3 else "")
    if not total.read:
        return f"{names}: no rows; expected captions, see data.sources[].path"
    reasons = listed_reasons(dict(total.rejected.most_common(3)))
    return (
        f"{names}: none of the {total.read} rows was accepted ({reasons}); see {rejects}. Fix the files, name their "
        "columns in data.sources[].columns, or loosen the options"
    )


def _ingest_file(
    ctx: StageContext, pipeline: CaptionPipeline | QueryLog, number: int, files: int, file: SourceFile, before: Counts
) -> Counts:
    writers = []
    for name, schema in schemas(ctx.settings).items():
        # Left over from an interrupted attempt at this file.
        for stale in (ctx.work.out / name).glob(f"{_stem(number)}-*.parquet"):
            stale.unlink()
        writers.append(PartWriter(ctx.work.out / name, schema, _stem(number)))
    counts = Counts()
    for outcome in pipeline.run(file):
        for writer, rows in zip(writers, (outcome.accepted, outcome.rejects), strict=True):
            writer.write(rows)
        counts.note(outcome)
        ctx.progress(number, files, rows=before.read + counts.read, accepted=before.accepted + counts.accepted)
    for writer in writers:
        writer.close(empty=False)
    return counts


def _stem(number: int) -> str:
    return f"part-{number:06d}"


def _options(run: Run) -> Mapping[str, Any]:
    settings = run.settings
    data = meaning(settings.data)
    # The index is read by other stages; here it only says that the sources are logs of queries.
    return {**data, "index": True} if data.pop("index") else data


def _sources(run: Run) -> Mapping[str, str]:
    """Content hash of every caption file by name; a missing file is an error unless bad files are skipped."""
    settings = run.settings
    contents = {}
    for file in source_files(settings):
        try:
            need_file(file.path)
            contents[file.name] = run.hashes.of([file.path])[str(file.path)]
        except InputError:
            if settings.data.on_error == "stop":
                raise
            contents[file.name] = "unreadable"
    return contents


def _missing(run: Run) -> list[Missing]:
    """The sources that are not there or hold no captions; where bad files are skipped, one that is there is enough."""
    settings, missing = run.settings, list[Missing]()
    sources = settings.data.sources
    for number, source in enumerate(sources):
        option = f"data.sources[{number}].path"
        expected = "captions" if source.format == "auto" else f"captions in format {source.format}"
        if absent := find_missing(settings, option, source.path, expected):
            missing += absent
            continue
        files = list_files(input_path(settings, "."), [source], expand(settings.run.root))
        missing += [Missing(option, str(f.path.absolute()), f"holds no {expected}") for f in files if f.path.is_dir()]
    return missing if settings.data.on_error == "stop" or len(missing) == len(sources) else []


INGEST = Stage(
    name="ingest",
    version=5,
    inputs=lambda settings: (),
    options=_options,
    body=_body,
    sources=_sources,
    missing=_missing,
    about="Read, clean and filter captions from files of many formats.",
    units=("read", "rows"),
)

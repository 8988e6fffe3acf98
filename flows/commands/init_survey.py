"""What `paraclip init` finds in a folder of captions and images, or in an image index and a log of queries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from paraclip.storage.parquet import PartWriter, iter_batches, parquet_files
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.log_checks import log_notices
from paraclip.tasks.preflight import bare_notices, count_captions
from paraclip.tasks.stages.index import open_index
from paraclip.tasks.stages.ingest import schemas
from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.counts import Counts, listed_reasons
from paraclip_core.captions.filters import count_words
from paraclip_core.captions.leakage import SHARED_COLUMNS, find_shared, shared_contents
from paraclip_core.captions.options import USUAL_WORDS, DataOptions
from paraclip_core.captions.sources import list_files
from paraclip_core.captions.survey import absent_images, find_sources
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.options import BUILT_IN
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.file import has_paraphrases
from paraclip_core.paths import expand
from paraclip_core.settings import parse_settings
from paraclip_core.tables import DUCKDB

IMAGES = """
    SELECT split, count(*), count(*) FILTER (WHERE captions > 1) FROM (
        SELECT split, image_id, count(*) AS captions FROM captions WHERE image_id IS NOT NULL GROUP BY ALL
    ) GROUP BY split ORDER BY split
"""
BASE_STEPS = 300
"""Steps after which a base of a few thousand captions has learned most; see dev/log."""
FEW, MANY = 0.2, 0.1
"""Share of the images or queries that are held out, of few and of many; it also chooses among candidates."""
MOST_WORDS = 77
"""Words that a text may have if longer ones than usual are found: CLIP reads as many tokens."""
LEAST_IMAGES = 10
"""Minimum number of images of a split that benchmarks need."""
MANY_IMAGES = 4280
"""Of so many a tenth shows a gain of two points of AO@10 (:mod:`paraclip_core.evaluation.power`)."""
MANY_QUERIES = 10_000
"""Queries of which a tenth is as many as an evaluation paraphrases."""
SHORT = 6
"""Words of an average query up to which prompts with examples change the meaning less often; see dev/log."""
SMALL_BATCH = 8
"""The smallest batch size that is written."""
USUAL = Settings()


@dataclass(frozen=True)
class Survey:
    """What was found."""

    template: str
    values: dict[str, Any]
    """Variables of the template."""
    facts: dict[str, Any]
    """What is printed."""
    notes: list[str]
    paraphrases: str | None = None
    """File with ready paraphrases, relative to the folder."""
    prompts: str = "paper"
    """The set of prompts that suits the texts."""


@dataclass(frozen=True)
class _Accepted:
    """What ingest accepts of the sources, as Parquet below `folder`."""

    folder: Path
    counts: Counts = field(default_factory=Counts)
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of texts by their words."""


def _accepted(settings: Settings, folder: Path) -> _Accepted:
    """Ingest captions, or the queries of a log, to `folder`."""
    root = expand(settings.data.root)
    files, accepted = list_files(root, settings.data.sources, root / "runs"), _Accepted(folder / "captions")
    pipeline = corpus_of(settings).pipeline(settings.data, files)
    writer = PartWriter(accepted.folder, schemas(settings)["captions"])
    for file in files:
        for outcome in pipeline.run(file):
            accepted.counts.note(outcome)
            accepted.lengths.update(map(count_words, outcome.accepted["caption"].to_pylist()))
            writer.write(outcome.accepted)
    writer.close()
    if not accepted.counts.accepted:
        places = ", ".join(source.path for source in settings.data.sources)
        raise ConfigError(f"{places} has no text that can be used: {dict(accepted.counts.rejected)}")
    return accepted


@dataclass(frozen=True)
class _Captions:
    """The captions of a folder and their images."""

    data: DataOptions
    """`max_words` covers the captions that were found, up to `MOST_WORDS`."""
    counts: Counts
    images: dict[str, int]
    """Number of images of each split."""
    pairs: dict[str, int]
    """Number of images of each split that have several captions, each a paraphrase of the others."""
    missing: list[str]
    """Images that captions name and that were looked up but not found."""
    notes: list[str]

    @property
    def split(self) -> str | None:
        """The split to evaluate: a held-out one with enough images."""
        return next((name for name in ("val", "test") if self.images.get(name, 0) >= LEAST_IMAGES), None)


def _captions(data: DataOptions) -> _Captions:
    """What ingest accepts of a folder's captions, and what to know about them."""
    root = Path(data.root)
    with TempDir("init-") as folder:
        settings = Settings(data=data)
        accepted = _accepted(settings, folder)
        counted = count_captions(settings, accepted.folder)
        with duckdb.connect(":memory:", config=DUCKDB) as con:
            parts = [str(path) for path in parquet_files(accepted.folder)]
            con.read_parquet(parts, hive_partitioning=False).create_view("captions")
            images = con.execute(IMAGES).fetchall()
        batches = partial(iter_batches, accepted.folder, SHARED_COLUMNS)
        shared = find_shared(batches, shared_contents(batches, lambda name: ImageArchive(root / name)))
    missing = [
        name for place, names in counted.named_images.items() for name in absent_images(root / place, list(names))
    ]
    refused = ": `run` refuses that, see docs/own-captions.md" if shared.refused else ""
    notes = [f"{notice}{refused}" for notice in shared.notices]
    if data.held_out:
        notes.append(f"{data.held_out:.0%} of the images are held out as val")
    notes += _left_out(accepted.counts)
    if long := sum(count for words, count in accepted.lengths.items() if words > USUAL_WORDS):
        notes.append(f"captions of more than {USUAL_WORDS} words: {long}; max_words in the file keeps them")
    notes += bare_notices(counted)
    data = data.model_copy(update={"max_words": max(USUAL_WORDS, *accepted.lengths)})
    by_split = {split: count for split, count, _ in images}
    return _Captions(data, accepted.counts, by_split, {split: pairs for split, _, pairs in images}, missing, notes)


def survey_folder(folder: Path, captions: str | None, images: str | None, columns: ColumnNames, base: str) -> Survey:
    """Survey a folder of captions and images, for a run from `base`."""
    sources, unused = find_sources(folder, captions, images, columns)
    seen = _captions(DataOptions(root=str(folder), sources=sources, max_words=MOST_WORDS))
    if seen.split is None:
        share = FEW if seen.images.get("train", 0) < MANY_IMAGES else MANY
        held_out = _captions(seen.data.model_copy(update={"held_out": share}))
        seen = seen if held_out.split is None else held_out
    plain = [source.model_dump(mode="json", exclude_defaults=True) for source in sources]
    paraphrases = next((name for name in unused if has_paraphrases(folder / name)), None)
    rows, pairs = seen.counts.splits["train"], seen.pairs.get(seen.split or "", 0)
    values = {
        "data": seen.data.model_dump() | {"sources": [source | {"license": "unknown"} for source in plain]},
        "rows": rows,
        "batch_size": _batch_size(rows, USUAL.finetune.batch_size),
        "validation": USUAL.finetune.validation * (2 if seen.images.get("train", 0) < MANY_IMAGES else 1),
        "built_in_base": _built_in_base(rows) if base == BUILT_IN else None,
        "split": seen.split,
        "pairs": pairs,
    }
    facts = {
        "sources": plain,
        "rows": {"read": seen.counts.read, "accepted": seen.counts.accepted, "rejected": dict(seen.counts.rejected)},
        "captions": dict(seen.counts.splits),
        "images": seen.images,
        "images_missing": seen.missing,
        **({} if paraphrases is None else {"paraphrases": paraphrases}),
        "files_that_name_no_image": [name for name in unused if name != paraphrases],
    }
    notes = list(seen.notes)
    if seen.split is None:
        notes.append("too few images are held out to evaluate, so the verdict will be `hold`")
    elif not pairs:
        notes.append(
            "no held-out image has two captions, so held-out captions are paraphrased, too, and the verdict goes by "
            "these pairs; see evaluate in the file"
        )
    return Survey("init_captions.txt", values, facts, notes, paraphrases)


def _left_out(counts: Counts) -> list[str]:
    return [f"rows that are left out: {listed_reasons(counts.rejected)}"] if counts.rejected else []


def _batch_size(rows: int, usual: int) -> int:
    """A batch size for few rows, of which an epoch would otherwise be a handful of steps."""
    return min(usual, max(SMALL_BATCH, 1 << max(rows // 4, 1).bit_length() - 1))


def _built_in_base(rows: int) -> dict[str, Any]:
    """Epochs for few captions, which the defaults would give a handful of steps. A batch has no caption twice."""
    usual = USUAL.built_in_base
    batch_size = _batch_size(rows, usual.batch_size)
    epochs = max(usual.epochs, round(BASE_STEPS * min(batch_size, rows) / max(rows, 1)))
    return {"steps": BASE_STEPS, "batch_size": batch_size, "epochs": epochs}


def survey_index(features: Path, ids: Path | None, queries: Path, columns: ColumnNames, base: str) -> Survey:
    """Survey the index of images that `base` made, and a log of queries."""
    index = {"features": str(features)} | ({} if ids is None else {"ids": str(ids)})
    named = columns.model_dump(mode="json", exclude_none=True)
    source = {"path": str(queries)} | ({"columns": named} if named else {})
    data = {"root": ".", "index": index, "sources": [source], "min_words": 1}
    limits = {"held_out": FEW, "max_words": MOST_WORDS}
    settings = parse_settings({"data": data | limits, "model": {"base": base}}, "the options")
    with TempDir("init-") as folder:
        log = _accepted(settings, folder)
        notices = log_notices(settings, folder, open_index(settings)[1])
    count = log.counts.accepted
    held_out = MANY if count >= MANY_QUERIES else FEW
    data |= {"held_out": held_out, "max_words": max(USUAL_WORDS, *log.lengths)}
    rows = round(count * (1 - held_out) ** 2)
    values = {"data": data, "rows": rows, "batch_size": _batch_size(rows, USUAL.finetune.batch_size)}
    facts = {"queries": {"accepted": count, "rejected": dict(log.counts.rejected)}}
    words = sum(length * number for length, number in log.lengths.items()) / count
    prompts = "few-shot" if words <= SHORT else "paper"
    return Survey("init_log.txt", values, facts, [*notices, *_left_out(log.counts)], prompts=prompts)

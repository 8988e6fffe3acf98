"""What `paraclip init` finds in a folder of captions and images, or in an image index and a log of queries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paraclip.storage.parquet import PartWriter
from paraclip.tasks.log_checks import log_notices
from paraclip.tasks.stages.index import open_index
from paraclip_core import tables
from paraclip_core.captions import survey
from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.counts import Counts, bare_rows, listed_reasons
from paraclip_core.captions.filters import count_words
from paraclip_core.captions.options import USUAL_WORDS
from paraclip_core.captions.query_log import QueryLog
from paraclip_core.captions.sources import list_files
from paraclip_core.clip.options import BUILT_IN
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.file import has_paraphrases
from paraclip_core.settings import parse_settings

BASE_STEPS = 300
"""Steps after which a base of a few thousand captions has learned most; see dev/log."""
FEW, MANY = 0.2, 0.1
"""Share of the queries that are held out, and that choose among candidates, of a small and of a large log."""
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


@dataclass
class _Log:
    """The readable queries of a log."""

    counts: Counts = field(default_factory=Counts)
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of queries by their words."""
    notices: list[str] = field(default_factory=list)


def survey_folder(folder: Path, captions: str | None, images: str | None, columns: ColumnNames, base: str) -> Survey:
    """Survey a folder of captions and images, for a run from `base`."""
    seen = survey.survey(folder, captions, images, columns)
    sources = [source.model_dump(mode="json", exclude_defaults=True) for source in seen.data.sources]
    paraphrases = next((name for name in seen.unused if has_paraphrases(Path(seen.data.root) / name)), None)
    rows, images_of = seen.counts.splits["train"], {split: len(ids) for split, ids in seen.images.items()}
    few_images = images_of.get("train", 0) < survey.MANY_IMAGES
    values = {
        "data": seen.data.model_dump() | {"sources": [source | {"license": "unknown"} for source in sources]},
        "rows": rows,
        "batch_size": _batch_size(rows, USUAL.finetune.batch_size),
        "validation": USUAL.finetune.validation * (2 if few_images else 1),
        "built_in_base": _built_in_base(rows) if base == BUILT_IN else None,
        "split": seen.split,
        "pairs": seen.split is not None and seen.pairs(seen.split),
    }
    facts = {
        "sources": sources,
        "rows": {"read": seen.counts.read, "accepted": seen.counts.accepted, "rejected": dict(seen.counts.rejected)},
        "captions": dict(seen.counts.splits),
        "images": images_of,
        "images_missing": seen.missing,
        **({} if paraphrases is None else {"paraphrases": paraphrases}),
        "files_that_name_no_image": [name for name in seen.unused if name != paraphrases],
    }
    return Survey("init_captions.txt", values, facts, _notes(seen), paraphrases)


def _notes(seen: survey.Survey) -> list[str]:
    refused = ": `run` refuses that, see docs/own-captions.md" if seen.shared.refused else ""
    notes = [f"{notice}{refused}" for notice in seen.shared.notices]
    if seen.data.held_out:
        notes.append(f"{seen.data.held_out:.0%} of the images are held out as val")
    notes += _left_out(seen.counts)
    if seen.long:
        notes.append(f"captions of more than {USUAL_WORDS} words: {seen.long}; max_words in the file keeps them")
    for split in seen.images.keys() - {"train"}:
        if without := seen.without_image[split]:
            notes.append(bare_rows(split, without, seen.counts.splits[split]))
    if seen.split is None:
        notes.append("too few images are held out to evaluate, so the verdict will be `hold`")
    elif not seen.pairs(seen.split):
        notes.append(
            "no held-out image has two captions, so held-out captions are paraphrased, too, and the verdict goes by "
            "these pairs; see evaluate in the file"
        )
    return notes


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
    limits = {"held_out": FEW, "max_words": survey.MOST_WORDS}
    log = _read_log(parse_settings({"data": data | limits, "model": {"base": base}}, "the options"))
    held_out = MANY if log.counts.accepted >= MANY_QUERIES else FEW
    data |= {"held_out": held_out, "max_words": max(USUAL_WORDS, *log.lengths)}
    rows = round(log.counts.accepted * (1 - held_out) ** 2)
    values = {"data": data, "rows": rows, "batch_size": _batch_size(rows, USUAL.finetune.batch_size)}
    facts = {"queries": {"accepted": log.counts.accepted, "rejected": dict(log.counts.rejected)}}
    words = sum(length * number for length, number in log.lengths.items()) / log.lengths.total()
    prompts = "few-shot" if words <= SHORT else "paper"
    return Survey("init_log.txt", values, facts, [*log.notices, *_left_out(log.counts)], prompts=prompts)


def _read_log(settings: Settings) -> _Log:
    """Read a log, and compare it with the ids of the index."""
    files, log = list_files(Path(settings.data.root), settings.data.sources), _Log()
    queries = QueryLog(settings.data, files)
    with TempDir("init-") as folder:
        writer = PartWriter(folder / "captions", tables.QUERY_LOG)
        for file in files:
            for outcome in queries.run(file):
                log.counts.note(outcome)
                log.lengths.update(map(count_words, outcome.accepted["caption"].to_pylist()))
                writer.write(outcome.accepted)
        writer.close()
        if not log.counts.accepted:
            source = settings.data.sources[0].path
            raise ConfigError(f"{source} has no query that can be used: {dict(log.counts.rejected)}")
        log.notices.extend(log_notices(settings, folder, open_index(settings)[1]))
    return log

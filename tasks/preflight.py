"""Checks of a run's captions and images before anything is paid for.

Paraphrasing takes hours, and only then would training find no image, or evaluation no caption of its split. So their
requirements are checked when the captions are ingested and when a run is planned.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from paraclip.storage.parquet import CONFIG, iter_batches, parquet_files
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.run.run import Run, input_path
from paraclip.tasks.stages.evaluate import benchmark_tasks
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip.tasks.stages.queries import ASKING, QUERIES, chosen_captions
from paraclip_core.captions.counts import bare_rows
from paraclip_core.captions.languages import is_english
from paraclip_core.captions.leakage import SHARED_COLUMNS, find_shared, shared_contents
from paraclip_core.captions.pieces import CONTEXT_LENGTH, pieces_of
from paraclip_core.captions.survey import named_images
from paraclip_core.clip.images import ImageArchive, missing_images
from paraclip_core.config import Settings
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation.base import Captions, ImagePool
from paraclip_core.evaluation.benchmarks import Stored, find_benchmark
from paraclip_core.evaluation.options import HELD_OUT, RECALL_LOSS
from paraclip_core.evaluation.power import GAIN, RECALL_SPREAD, RECALLS, expected_half, images_needed, shown_loss
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.filters import filters_of
from paraclip_core.paraphrase.paraphraser import unfiltered_warning
from paraclip_core.paraphrase.sentence_encoder import check_encoder

NOTICED_SHARE, REFUSED_SHARE = 0.002, 0.1
"""Minimum shares of captions in other languages for a notice, and for an error, because so many are no accident."""
LOOKED_AT = 5_000
"""Number of training captions, about, whose language is determined; 5,000 take a second."""
USABLE = """
    CREATE VIEW captions AS
    SELECT *, image_id IS NOT NULL AND image_path IS NOT NULL AND images IS NOT NULL AS usable FROM parts
"""
COUNTS = """
    SELECT source, split, count(*), count(*) FILTER (WHERE NOT usable) FROM captions GROUP BY ALL
"""
SAMPLE = """
    WITH trained_on AS (SELECT caption_id, caption FROM captions WHERE split = 'train')
    SELECT caption FROM trained_on WHERE hash(caption_id) % (1 + (SELECT count(*) FROM trained_on) // $about) = 0
"""
EVALUATED = "SELECT image_id, caption FROM captions WHERE split = $split AND usable"
SEARCHED = "SELECT DISTINCT image_id FROM captions WHERE usable AND (split = $split OR $all_images)"


@dataclass(frozen=True)
class CaptionCounts:
    """Counts of ingested captions, by what training and evaluation need."""

    rows: dict[str, Counter[str]]
    """Captions of each split, by source."""
    without_image: dict[str, Counter[str]]
    """Captions that name no image."""
    named_images: dict[str, dict[str, str]]
    """For each tar or folder, some of the images that captions name in it, with a source that names them."""
    stored: Stored
    """What benchmarks will find if every image can be read."""
    sample: list[str]
    """Some training captions."""

    @property
    def splits(self) -> Counter[str]:
        return Counter({split: counts.total() for split, counts in self.rows.items()})


def count_captions(settings: Settings, folder: Path) -> CaptionCounts:
    """Count the captions (schema `tables.CAPTIONS`) below a folder; memory grows with those of the evaluated split."""
    evaluate = settings.evaluate
    rows, without = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    all_images = any(b.path is not None and find_benchmark(b.kind).searches_stored for b in evaluate.benchmarks)
    with duckdb.connect(":memory:", config=CONFIG) as con:
        con.read_parquet([str(path) for path in parquet_files(folder)], hive_partitioning=False).create_view("parts")
        con.execute(USABLE)
        for source, split, count, bare in con.execute(COUNTS).fetchall():
            rows[split][source], without[split][source] = count, bare
        sample = [caption for (caption,) in con.execute(SAMPLE, {"about": LOOKED_AT}).fetchall()]
        evaluated = con.execute(EVALUATED, {"split": evaluate.split}).fetchall()
        images = {
            image for (image,) in con.execute(SEARCHED, {"split": evaluate.split, "all_images": all_images}).fetchall()
        }
        named = named_images(con)

    def pool(image_ids: Sequence[str]) -> ImagePool:
        ids = [image for image in dict.fromkeys(image_ids) if image in images]
        if not ids:
            raise BenchmarkError(
                f"none of its {len(set(image_ids))} images is among the ingested ones; are they the same?"
            )
        return ImagePool(ids, _no_features)

    captions = Captions([image for image, _ in evaluated], [caption for _, caption in evaluated], evaluate.split)
    return CaptionCounts(rows, without, named, Stored(captions, pool), sample)


def check_before_paying(run: Run, captions: IngestedCaptions | None = None, planned: bool = False) -> list[str]:
    """Check that a run's captions have what later stages need, unless its paraphrases are finished.

    `captions` are those of a run whose ingest is not finished. If the run is `planned`, the notices say what the
    validation can show. Returns notices for the user.
    """
    if all(run.sound(name) is not None for name in ASKING if name in run.stages):
        return []
    unchecked = [warning] if (warning := unfiltered_warning(run.settings.paraphrase)) else []
    settings, ingested = run.settings, run.sound("ingest")
    with TempDir("captions-") as scratch:
        if ingested is not None:
            folder = run.store.download(ingested).path
        else:
            folder = (captions or ingested_captions(run, {}, scratch)).folder
        counts = count_captions(settings, folder / "captions")
        # If nothing is accepted, ingest says why.
        if not counts.rows:
            return []
        if filters_of(run.paraphraser.filters).meaning:
            check_encoder(run.paraphraser.filters.encoder)
        notices = _language_notices(run, counts) + unchecked
        corpus = corpus_of(settings)
        notices += corpus.call(corpus.checks, run, folder, counts, planned)
    return notices


def caption_notices(run: Run, folder: Path, counts: CaptionCounts, planned: bool) -> list[str]:
    """Check ingested captions and their images; returns notices for the user."""
    settings = run.settings
    _check_training(counts)
    notices = bare_notices(counts) + _image_notices(settings, counts) + _leakage_notices(settings, folder)
    tasks, _ = benchmark_tasks(settings, counts.stored)
    if planned:
        pairs = [(task.name, task.task.pairs) for task in tasks if task.task.pairs]
        notices += [_validation_notice(name, len(texts), len(set(texts))) for name, texts in pairs]
        notices += _query_notices(run, folder)
    return notices


def check_before_queries(run: Run) -> list[str]:
    """The same before held-out queries are paid for, unless the paraphrases, before which it was checked, are there."""
    paraphrased = all(run.sound(name) is not None for name in STEPS)
    return [] if paraphrased else check_before_paying(run)


def _check_training(counts: CaptionCounts) -> None:
    rows, without = counts.splits["train"], counts.without_image["train"]
    if not rows:
        raise InputError(
            f"none of the {counts.splits.total()} captions is of split train ({_listed(counts.splits)}), so nothing "
            "can be paraphrased or trained on; give some rows this split in the column of "
            "data.sources[].columns.split, or a source `split: train`"
        )
    if without.total() == rows:
        raise InputError(
            f"none of the {rows} training captions has an image ({_listed(without)}), and without images nothing can "
            "be trained; name their tar or folder in data.sources[].images, or give webdataset tars or Parquet with a "
            "column of pictures"
        )


def _validation_notice(name: str, pairs: int, images: int, most: str = "") -> str:
    half = expected_half(images, pairs)
    needed = images_needed(images, half)
    return (
        f"validation: {name} has {most}{pairs:,} pairs of {images:,} images; expect AO@10 ± {half:.1f} points. A gain "
        f"of {GAIN:g} points needs about {needed:,} images, so they are "
        f"{'too few to tell: hold out more (data.held_out)' if needed > images else 'enough'} (docs/benchmarks.md). Of "
        f"recall {RECALL_LOSS:g} point may be lost, and so many show a loss from "
        f"{shown_loss(RECALL_SPREAD / math.sqrt(images), RECALLS):.1f} points on"
    )


def _query_notices(run: Run, folder: Path) -> list[str]:
    """What the benchmark of held-out queries can show if every paraphrase is accepted."""
    if QUERIES.name not in run.stages:
        return []
    images = chosen_captions(folder, run.settings).num_rows
    if images < 2:
        return [
            f"validation: {HELD_OUT} is left out: {images} images of split {run.settings.evaluate.split} "
            "(evaluate.split) have a caption that is not trained on, too, and it needs at least two"
        ]
    return [_validation_notice(HELD_OUT, images, images, "at most ")]


def bare_notices(counts: CaptionCounts) -> list[str]:
    """Notices on splits in which only some captions have an image; ingest reports those that are trained on."""
    splits = counts.splits
    bare = {split: without.total() for split, without in counts.without_image.items() if split != "train"}
    return [bare_rows(name, without, splits[name]) for name, without in bare.items() if 0 < without < splits[name]]


def _image_notices(settings: Settings, counts: CaptionCounts) -> list[str]:
    notices = []
    for archive, names in counts.named_images.items():
        path = input_path(settings, archive)
        missing = missing_images(path, list(names))
        if len(missing) == len(names):
            name, source = next(iter(names.items()))
            count = f"{len(names)} images that were looked up" if len(names) > 1 else "image that was looked up"
            raise InputError(
                f"{path} has none of the {count}; the first is {name!r}, as {source} names it. Correct "
                "data.sources[].images, or name the column with the file names in data.sources[].columns.image; links "
                "that lead out of a folder are not followed"
            )
        if missing:
            notices.append(
                f"{len(missing)} of {len(names)} images that were looked up in {archive} are missing, the first is "
                f"{missing[0]!r}; their captions are paraphrased and then not trained on: add the images, or remove "
                "the captions"
            )
    return notices


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(4))
    return shown + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")


def _no_features(*_: object) -> Any:
    raise AssertionError("nothing is measured before any image has features")


def _leakage_notices(settings: Settings, folder: Path) -> list[str]:
    def archive(name: str) -> ImageArchive:
        return ImageArchive(input_path(settings, name))

    batches = partial(iter_batches, folder / "captions", SHARED_COLUMNS)
    shared = find_shared(batches, shared_contents(batches, archive))
    shared.check()
    return shared.notices


def _language_notices(run: Run, counts: CaptionCounts) -> list[str]:
    """Notices on captions that CLIP or the filters cannot read, or that a model would answer in English.

    Raises an error if the filters cannot read many of them.
    """
    paraphraser, options, rows, notices = run.paraphraser, run.paraphraser.options, counts.splits["train"], []
    filters, asks = paraphraser.filters, paraphraser.facts.asks
    reads_english = bool(filters_of(filters).meaning) and not filters.encoder
    answers_english = asks and not (options.prompt_1 and options.prompt_2)
    noticed = max(1, round(NOTICED_SHARE * rows))
    share = rows / max(1, len(counts.sample))
    cut = round(share * sum(pieces_of(text) > CONTEXT_LENGTH - 2 for text in counts.sample))
    if cut >= noticed:
        notices.append(
            f"about {cut} of {rows} training captions have more than {CONTEXT_LENGTH} tokens of CLIP's own tokenizer: "
            "a text encoder that reads those does not see their ends; lower data.max_words (docs/own-captions.md)"
        )
    if not (reads_english or answers_english):
        return notices
    foreign = round(share * sum(not is_english(text) for text in counts.sample))
    if foreign < noticed:
        return notices
    found = f"about {foreign} of {rows} training captions are not in English"
    if reads_english:
        why = (
            f"{found}, and the filters' sentence encoder reads English alone: their paraphrases would be "
            f"{'paid for and ' * asks}rejected, or judged by chance. Set paraphrase.filters.encoder to a multilingual "
            "one, a folder or a name on the hub such as sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2, "
            "or paraphrase.filters.preset=off, or leave these captions out of data.sources (docs/filters.md)"
        )
        if foreign >= REFUSED_SHARE * rows:
            raise InputError(why)
        notices.append(why)
    if answers_english and foreign >= REFUSED_SHARE * rows:
        notices.append(
            f"{found}, and most answers to the English prompts of paraphrase.prompts={options.prompts} will be in "
            "English: write paraphrase.prompt_1 and prompt_2 in the captions' language (docs/own-captions.md)"
        )
    return notices

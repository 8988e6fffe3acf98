"""What a run needs of its captions and images, looked at before anything is paid for.

A language model is asked for hours, and only then would training find no image and evaluation no caption of its split.
So what they need is checked when the captions are ingested, and when a run is planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from paraclip.storage.artifacts import Artifact
from paraclip.storage.duckdb_file import CONFIG
from paraclip.storage.parquet import iter_batches, parquet_files
from paraclip.tasks.drift import check_drift
from paraclip.tasks.run.run import Run, input_path
from paraclip.tasks.stages.evaluate import benchmark_tasks
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.captions.leakage import SHARED_COLUMNS, find_shared, shared_contents
from paraclip_core.clip.images import ImageArchive, missing_images
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, BenchmarkError, InputError
from paraclip_core.evaluation.base import Captions, ImagePool
from paraclip_core.evaluation.benchmarks import Stored, find_benchmark
from paraclip_core.evaluation.intervals import GAIN, expected_half, images_needed
from paraclip_core.evaluation.run import Prepared
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.gates import gates_of

NOTICED, NOTICED_SHARE = 1, 0.002
"""Captions of other languages that are worth a word, at least, and their share: names look like other languages."""
OTHER_SCRIPT = r"[^\P{L}\p{Latin}]"
ENGLISH, OTHERS = (
    rf"(?i)\b(?:{words})\b"
    for words in (
        "the|a|an|of|in|on|and|with|is|are|at|to|for|by|from|it|his|her|their",
        "le|la|les|des|du|un|une|en|est|et|dans|pour|avec|sur|aux|der|das|und|mit|auf|ein|eine|einer|einem|im|dem|zu|für|ist|el|los|las"
        "|una|con|del|para|por|y|que|um|uma|com|dos|em|na|il|di|nella|che|per|sul|sulla|een|het|van|met|op|voor|jest|się|z|och|på|med|ett",
    )
)
"""Function words that tell English from languages that are written in Latin letters, too."""
LOOKED_UP = 1000
"""Images of an archive that are looked up."""
USABLE = """
    CREATE VIEW captions AS
    SELECT *, image_id IS NOT NULL AND image_path IS NOT NULL AND images IS NOT NULL AS usable FROM parts
"""
COUNTS = "SELECT source, split, count(*), count(*) FILTER (WHERE usable) FROM captions GROUP BY ALL"
EVALUATED = "SELECT image_id, caption FROM captions WHERE split = $split AND image_id IS NOT NULL"
SEARCHED = "SELECT DISTINCT image_id FROM captions WHERE usable AND (split = $split OR $every)"
# What a source holds itself was read with its captions.
NAMED = """
    SELECT images, image_path, min(source) FROM captions WHERE usable AND images <> source
    GROUP BY images, image_path
    QUALIFY row_number() OVER (PARTITION BY images ORDER BY hash(image_path), image_path) <= $most
    ORDER BY images, image_path
"""


@dataclass(frozen=True)
class Census:
    """Ingested captions, counted by what training and evaluation need of them."""

    rows: Counter[tuple[str, str]]
    """Captions by source and split."""
    with_image: Counter[tuple[str, str]]
    """Those that name an image."""
    named_images: dict[str, dict[str, str]]
    """For each tar or folder some of the images that captions name in it, with a source that does."""
    stored: Stored
    """What benchmarks will find, if every image can be read."""

    @property
    def splits(self) -> Counter[str]:
        """Captions of each split."""
        return _by(self.rows, 1)

    def without_image(self, split: str) -> Counter[str]:
        """Captions of a split that name no image, by source."""
        return _by(Counter({key: count for key, count in (self.rows - self.with_image).items() if key[1] == split}), 0)


def count_captions(settings: Settings, folder: Path) -> Census:
    """Count the captions (schema `tables.CAPTIONS`) below a folder; memory grows with those of the evaluated split."""
    evaluate, named = settings.evaluate, dict[str, dict[str, str]]()
    every = any(b.path is not None and find_benchmark(b.kind).searches_stored for b in evaluate.benchmarks)
    with duckdb.connect(":memory:", config=CONFIG) as con:
        con.read_parquet([str(path) for path in parquet_files(folder)], hive_partitioning=False).create_view("parts")
        con.execute(USABLE)
        counts = con.execute(COUNTS).fetchall()
        evaluated = con.execute(EVALUATED, {"split": evaluate.split}).fetchall()
        images = {image for (image,) in con.execute(SEARCHED, {"split": evaluate.split, "every": every}).fetchall()}
        for archive, name, source in con.execute(NAMED, {"most": LOOKED_UP}).fetchall():
            named.setdefault(archive, {})[name] = source

    def pool(image_ids: Sequence[str]) -> ImagePool:
        ids = [image for image in dict.fromkeys(image_ids) if image in images]
        if not ids:
            raise BenchmarkError(
                f"none of its {len(set(image_ids))} images is among the ingested ones; are they the same?"
            )
        return ImagePool(ids, _no_features)

    captions = Captions([image for image, _ in evaluated], [caption for _, caption in evaluated], evaluate.split)
    return Census(
        Counter({(source, split): count for source, split, count, _ in counts}),
        Counter({(source, split): count for source, split, _, count in counts}),
        named,
        Stored(captions, pool),
    )


def check_before_paying(run: Run, captions: IngestedCaptions | None = None, planned: bool = False) -> list[str]:
    """See that a run's captions have what its later stages need of them, unless its paraphrases are finished.

    `captions` are those of a run whose ingest is not finished; scenes that are not rendered are not looked at. What the
    validation can show is said where the run is `planned`. Gives what the user should hear before the run goes on.
    """
    if all(_finished(run, name) is not None for name in STEPS if name in run.stages):
        return []
    with TempDir("captions-") as scratch:
        folder = _captions_folder(run, captions, scratch)
        return [] if folder is None else _check(run, folder, planned)


def _check(run: Run, folder: Path, planned: bool) -> list[str]:
    settings, scenes = run.settings, _finished(run, "scenes")
    census, notices = count_captions(settings, folder / "captions"), []
    # Where nothing is accepted, ingest says why.
    if not census.rows:
        return []
    _check_training(census)
    _check_split(settings, census)
    notices += _check_language(run, census, folder)
    if settings.data.scenes is None or scenes is not None:
        notices += _check_images(settings, scenes, census) + _check_leakage(settings, scenes, folder)
        tasks, _ = benchmark_tasks(settings, scenes, census.stored)
        notices += _shows(tasks) if planned else []
    return notices + check_drift(run)


def _finished(run: Run, name: str) -> Artifact | None:
    """A finished stage; a damaged one is about to be told, or made again."""
    try:
        return run.artifact(name) if name in run.stages else None
    except ArtifactError:
        return None


def _captions_folder(run: Run, captions: IngestedCaptions | None, scratch: Path) -> Path | None:
    ingested = _finished(run, "ingest")
    if ingested is not None:
        return run.store.download(ingested).path
    if run.settings.data.scenes is not None:
        return None
    return (captions or ingested_captions(run, {}, scratch)).folder


def _check_training(census: Census) -> None:
    rows, without = census.splits["train"], census.without_image("train")
    if not rows:
        raise InputError(
            f"none of the {census.rows.total()} captions is of split train ({_listed(census.splits)}), so nothing can "
            "be paraphrased or trained on; give some rows this split in the column of data.sources[].columns.split, or "
            "a source `split: train`"
        )
    if without.total() == rows:
        raise InputError(
            f"none of the {rows} training captions has an image ({_listed(without)}), and without images nothing can "
            "be trained; name their tar or folder in data.sources[].images, or give webdataset tars or Parquet with a "
            "column of pictures"
        )


def _check_split(settings: Settings, census: Census) -> None:
    split, splits = settings.evaluate.split, census.splits
    without_path = [benchmark for benchmark in settings.evaluate.benchmarks if benchmark.path is None]
    names = [benchmark.name for benchmark in without_path if find_benchmark(benchmark.kind).searches_images]
    if not names:
        return
    what = f"benchmark {names[0]!r} searches the images of split {split} (evaluate.split)"
    if not splits[split]:
        raise InputError(
            f"{what}, but none of the {splits.total()} captions is of it ({_listed(splits)}); give some rows this "
            f"split in the column of data.sources[].columns.split, or a source `split: {split}`, or set "
            "evaluate.split, or give the benchmark a path of its own"
        )
    without = census.without_image(split)
    if without.total() == splits[split]:
        raise InputError(
            f"{what}, but none of its {splits[split]} captions has an image ({_listed(without)}); name their tar or "
            "folder in data.sources[].images, or give the benchmark a path of its own"
        )


def _shows(tasks: Sequence[Prepared]) -> list[str]:
    """What each benchmark of pairs can show."""
    notices = []
    for task in tasks:
        if images := len(set(task.task.pairs)):
            half = expected_half(images, len(task.task.pairs))
            needed = images_needed(images, half)
            notices.append(
                f"validation: {task.name} has {len(task.task.pairs):,} pairs of {images:,} images; expect AO@10 "
                f"± {half:.1f} points. A gain of {GAIN:g} points needs about {needed:,} images, so they are "
                f"{'too few to tell' if needed > images else 'enough'} (docs/benchmarks.md)"
            )
    return notices


def _check_images(settings: Settings, scenes: Artifact | None, census: Census) -> list[str]:
    notices = []
    for archive, names in census.named_images.items():
        path = input_path(settings, archive) if scenes is None else scenes.path / archive
        missing = missing_images(path, list(names))
        if len(missing) == len(names):
            name, source = next(iter(names.items()))
            count = f"{len(names)} images that were looked up" if len(names) > 1 else "image that was looked up"
            raise InputError(
                f"{path} has none of the {count}; the first is {name!r}, as {source} names it. Correct "
                "data.sources[].images, or name the column with the file names in data.sources[].columns.image"
            )
        if missing:
            notices.append(
                f"{len(missing)} of {len(names)} images that were looked up in {archive} are not there, the first is "
                f"{missing[0]!r}; their captions are paraphrased and then not trained on: add the images, or take the "
                "captions out"
            )
    return notices


def _by(counts: Counter[tuple[str, str]], place: int) -> Counter[str]:
    sums: Counter[str] = Counter()
    for key, count in counts.items():
        sums[key[place]] += count
    return sums


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(4))
    return shown + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")


def _no_features(*_: object) -> Any:
    raise AssertionError("nothing is measured before any image has features")


def _check_leakage(settings: Settings, scenes: Artifact | None, folder: Path) -> list[str]:
    def archive(name: str) -> ImageArchive:
        return ImageArchive(input_path(settings, name) if scenes is None else scenes.path / name)

    def batches() -> Iterator[pa.RecordBatch]:
        return iter_batches(folder / "captions", SHARED_COLUMNS)

    shared = find_shared(batches, shared_contents(batches, archive))
    shared.check()
    return shared.notices


def _not_english(captions: pa.Array) -> int:
    """How many captions are hardly English, by their letters and function words; a guess that errs with short ones."""
    letters, english, others = (
        pc.call_function("count_substring_regex", [captions], pc.MatchSubstringOptions(pattern))
        for pattern in (OTHER_SCRIPT, ENGLISH, OTHERS)
    )
    counts = (column.to_numpy(zero_copy_only=False) for column in (letters, english, others))
    letters, english, others = counts
    return int(((letters > 2) | (others > english)).sum())


def _check_language(run: Run, census: Census, folder: Path) -> list[str]:
    gates, facts = run.paraphraser.gates, run.paraphraser.facts
    if gates.encoder or not gates_of(gates).meaning or not facts.asks:
        return []
    least = max(NOTICED, round(NOTICED_SHARE * census.splits["train"]))
    batches = iter_batches(folder / "captions", ("caption", "split"))
    unread = sum(_not_english(batch.filter(pc.field("split") == "train")["caption"]) for batch in batches)
    if unread < least:
        return []
    return [
        f"about {unread} of {census.splits['train']} training captions are not in English, by their letters and "
        "common words, and the gates' sentence encoder reads English alone: their paraphrases would be paid for and "
        "then rejected, or judged by chance. Set paraphrase.gates.encoder to a multilingual one (docs/gates.md), or "
        "leave these captions out of data.sources"
    ]

"""Stage ``evaluate``: base against tuned on every benchmark, with intervals and a verdict."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paraclip.storage.arrays import stored_arrays
from paraclip.storage.artifacts import Artifact
from paraclip.storage.benchmark_features import BenchmarkFeatures
from paraclip.storage.features import FeatureStore
from paraclip.storage.files import read_json, write_json
from paraclip.storage.fingerprint import FileHashes, canonical_json
from paraclip.storage.parquet import iter_batches, read_table, write_table
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import BUILT_IN, base_inputs, base_reference
from paraclip.tasks.run.run import Missing, Stage, StageContext, find_missing, input_path, need
from paraclip.tasks.stages.queries import FILE, QUERIES
from paraclip_core.captions.counts import listed_reasons
from paraclip_core.config import Settings
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions, ImagePool, Measured, stored_pool
from paraclip_core.evaluation.benchmarks import Stored, find_benchmark
from paraclip_core.evaluation.benchmarks.query_pairs import TRAINED_ON, by_rule
from paraclip_core.evaluation.compare import compare
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.options import BY_RULE, HELD_OUT, BenchmarkOptions
from paraclip_core.evaluation.outcomes import from_arrays, to_arrays, to_table
from paraclip_core.evaluation.pairs import AO
from paraclip_core.evaluation.prepare import Prepared, check_names, left_out, prepare, source_files
from paraclip_core.evaluation.rows import compared_rows
from paraclip_core.evaluation.run import Evaluation, OutcomeCache, changed_results, measure, paired, per_query
from paraclip_core.evaluation.verdict.evidence import Evidence, different_images, searched_images
from paraclip_core.options import meaning

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run

log = logging.getLogger(__name__)

ABSENT = "absent"
FIRST_IMAGES = "first_images.parquet"
"""The tuned model's first images, which a challenger's are compared with."""


def write_evaluation(folder: Path, evaluation: Evaluation, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Write samples, tables of queries, ``comparison.json``, ``churn.json`` and ``summary.json``; returns the summary.

    `fingerprints` are those of the artifacts or the references involved.
    """
    for outcome in evaluation.outcomes:
        write_table(folder / "samples" / f"{outcome.benchmark}.parquet", to_table(outcome.base, outcome.tuned))
    for benchmark, table in evaluation.per_query.items():
        write_table(folder / "per_query" / f"{benchmark}.parquet", table)
    notes = {outcome.benchmark: dict(outcome.base.notes) for outcome in evaluation.outcomes}
    write_json(folder / "comparison.json", evaluation.comparison.as_json() | {"protocols": notes})
    totals = evaluation.comparison.summary(fingerprints)
    if evaluation.churn is not None:
        write_json(folder / "churn.json", evaluation.churn.as_json())
        totals["churn"] = evaluation.churn.summary()
    if evaluation.first_images is not None:
        write_table(folder / FIRST_IMAGES, evaluation.first_images)
    write_json(folder / "summary.json", totals)
    return totals


def _inputs(settings: Settings) -> tuple[str, ...]:
    queries = (QUERIES.name,) if QUERIES.applies(settings) else ()
    control = ("control",) if settings.evaluate.control else ()
    return ("ingest", *queries, "features", *base_inputs(settings), "finetune", *control)


def _options(run: Run) -> dict[str, Any]:
    settings = run.settings
    options = meaning(settings.evaluate)
    # Whatever decides them is in the fingerprint of their stage.
    del options["queries"]
    for benchmark, plain in zip(settings.evaluate.benchmarks, options["benchmarks"], strict=True):
        # A file's contents are in the sources; its location does not matter.
        plain["path"] = benchmark.path is not None
        if benchmark.images is not None:
            plain["images"] = True
    return options


def _sources(run: Run) -> dict[str, str]:
    settings = run.settings
    check_names(settings.evaluate.benchmarks)
    need(_missing(run), settings)
    contents = dict[str, str]()
    for benchmark in settings.evaluate.benchmarks:
        if benchmark.path is None:
            continue
        path, images = input_path(settings, benchmark.path), _place(settings, benchmark.images)
        absent = left_out(benchmark, path, images)
        contents[benchmark.name] = ABSENT if absent else benchmark_hash(benchmark.kind, path, run.hashes, images=images)
    return contents


def _missing(run: Run) -> list[Missing]:
    """What benchmarks read and is not there, but for optional ones."""
    settings, missing = run.settings, list[Missing]()
    for number, benchmark in enumerate(settings.evaluate.benchmarks):
        if benchmark.path is None or benchmark.optional:
            continue
        row, option = find_benchmark(benchmark.kind), f"evaluate.benchmarks[{number}]"
        kind = row.title + (f", published at {row.source}" if row.source else "")
        expected = f"benchmark {benchmark.name!r} ({kind})"
        missing += find_missing(settings, f"{option}.path", benchmark.path, expected)
        if benchmark.images is not None:
            missing += find_missing(settings, f"{option}.images", benchmark.images, "images of benchmarks")
    return missing


def benchmark_hash(
    kind: str, path: Path, hashes: FileHashes, split: str | None = None, images: Path | None = None
) -> str:
    """Hash of everything that a benchmark reads: at `path`, of `split` if it has several, and at `images`."""
    contents = hashes.of(source_files(kind, path, split, images))

    def place(file: Path) -> str:
        # With the folder's name, which locates its images and is shown as the split.
        if images is not None and not file.is_relative_to(path.parent) and file.is_relative_to(images):
            return f"images/{file.relative_to(images).as_posix()}"
        return Path(os.path.relpath(file, path.parent)).as_posix()

    named = {place(Path(file)): value for file, value in contents.items()}
    return hashlib.sha256(canonical_json(named).encode()).hexdigest()


def check_benchmarks(run: Run) -> list[str]:
    """Find benchmarks that evaluation cannot use before a model is trained, which takes long; returns no notices."""
    settings = run.settings
    untrained = any(stage.trains and run.artifact(name) is None for name, stage in run.stages.items())
    if settings.evaluate.benchmarks and untrained:
        read = [name for name in ("ingest", "features") if name in run.stages]
        why = "benchmarks are checked before a model is trained"
        inputs = {name: run.store.expect(name, run.node(name).fingerprint, why) for name in read}
        benchmark_tasks(settings, stored_split(settings, inputs))
    return []


def _body(ctx: StageContext) -> dict[str, Any]:
    # Imported here: torch takes seconds to import, and a plan does not need it.
    from paraclip.tasks.training.data import use_threads

    settings = ctx.settings
    use_threads(settings)
    tuned = ctx.inputs["finetune"]
    references = {"base": base_reference(settings, ctx.inputs), "tuned": str(tuned.path / "release")}
    if "control" in ctx.inputs:
        references["control"] = str(ctx.inputs["control"].path / "release")
    features = BenchmarkFeatures(ctx.run.store.cache / "benchmark_features", ctx.run.hashes)
    models = {name: ModelEncoder(reference, settings.run.device, features) for name, reference in references.items()}
    stored = stored_split(settings, ctx.inputs)
    tasks, skipped = benchmark_tasks(settings, stored)
    if QUERIES.name in ctx.inputs:
        held_out = held_out_tasks(ctx.inputs[QUERIES.name], stored, settings, ctx.work.scratch)
        if isinstance(held_out, str):
            skipped[HELD_OUT] = held_out
            log.warning("benchmark %s is skipped: %s", HELD_OUT, held_out)
        else:
            tasks += held_out
    outcomes = measure(models, tasks, _kept_in(ctx.work.scratch / "measured"), ctx.progress)
    pairs = paired(tasks, outcomes, "base", "tuned")
    controlled = "control" in models
    changes, first = changed_results(tasks, models["base"], models["tuned"], ctx.progress)
    evidence = Evidence(
        compared_rows(pairs),
        settings.evaluate.gate,
        images=searched_images(pairs),
        different_images=different_images(pairs),
        over_control=compared_rows(paired(tasks, outcomes, "control", "tuned")) if controlled else (),
        control=compared_rows(paired(tasks, outcomes, "base", "control")) if controlled else (),
        control_at_point=_at_point(tuned, ctx.inputs["control"]) if controlled else None,
        skipped=skipped,
        first_image_changes=changes and changes.first_image_changes,
        independent_clicks=settings.independent_clicks,
        alpha=tuned.manifest.metrics.get("alpha"),
        built_in_base=settings.model.base == BUILT_IN,
    )
    evaluation = Evaluation(pairs, per_query(tasks, pairs), compare(evidence), changes, first)
    fingerprints = {name: artifact.fingerprint for name, artifact in ctx.inputs.items()}
    totals = write_evaluation(ctx.work.out, evaluation, fingerprints)
    return {
        "verdict": totals["verdict"],
        "reason": totals["reason"],
        "benchmarks": len(evaluation.outcomes),
        "skipped": sorted(skipped),
        "deltas": totals["deltas"],
    }


def benchmark_tasks(settings: Settings, stored: Stored) -> tuple[list[Prepared], dict[str, str]]:
    """Read every benchmark of a run; return them, and why others are skipped, by name."""
    tasks, skipped = [], {}
    for benchmark in settings.evaluate.benchmarks:
        path, images = _place(settings, benchmark.path), _place(settings, benchmark.images)
        if reason := left_out(benchmark, path, images):
            skipped[benchmark.name] = reason
            log.warning("benchmark %s is skipped: %s (%s)", benchmark.name, reason, path)
            continue
        tasks.append(prepare(benchmark, path, stored, images=images))
    return tasks, skipped


def held_out_tasks(queries: Artifact, stored: Stored, settings: Settings, scratch: Path) -> list[Prepared] | str:
    """The benchmark of the paraphrased held-out captions; if it cannot be measured, why.

    If the writer of the training's paraphrases wrote them, one of the same captions in the words of rules stands
    beside it: a model that is measured in its teacher's words flatters itself.
    """
    metrics = queries.manifest.metrics
    if not metrics["captions"]:
        return (
            f"no caption of split {stored.captions.split!r} (evaluate.split) has an image and is not trained on, so "
            "there is none to paraphrase"
        )
    if not metrics["accepted"]:
        rejected = listed_reasons(metrics.get("rejected", {}))
        return f"none of its {metrics['captions']} captions has an accepted paraphrase ({rejected})"
    kind = corpus_of(settings).benchmark
    files = {HELD_OUT: queries.path / FILE}
    if settings.same_writer:
        files[BY_RULE] = _by_rule(queries.path / FILE, scratch / f"{BY_RULE}.parquet")
    try:
        return [prepare(BenchmarkOptions(name=name, kind=kind), file, stored) for name, file in files.items()]
    except BenchmarkError as error:
        return str(error).removeprefix(f"benchmark {HELD_OUT!r}: ")


def _by_rule(queries: Path, to: Path) -> Path:
    """Write the held-out captions again, each with what the rules for common variations make of it, except those that
    training has, too."""
    table = read_table(queries)
    pairs = [
        (row, pair.other)
        for row, text in enumerate(table["caption"].to_pylist())
        for pair in by_rule(text)
        if pair.part not in TRAINED_ON
    ]
    rows = table.take(pa.array([row for row, _ in pairs], pa.int64()))
    place = table.schema.get_field_index("paraphrased_query")
    write_table(
        to, rows.set_column(place, table.schema.field(place), pa.array([text for _, text in pairs], pa.string()))
    )
    return to


def _at_point(tuned: Artifact, control: Artifact) -> str | None:
    """What the control gained on held-out training images where the tuned model was chosen; None if it was not."""
    ours, theirs = (read_json(artifact.path / "candidates.json") for artifact in (tuned, control))
    chosen = ours["chosen"]

    def gained(candidates: Mapping[str, Any]) -> float | None:
        for candidate in candidates["candidates"]:
            if all(candidate[name] == chosen[name] for name in ("recipe", "learning_rate")):
                of = {point["alpha"]: point.get(AO) for point in candidate["alphas"]}
                return None if of.get(chosen["alpha"]) is None else of[chosen["alpha"]] - of[0.0]
        return None

    paraphrases, captions = gained(ours), gained(theirs)
    if paraphrases is None or captions is None or not chosen["alpha"]:
        return None
    return (
        f"where the tuned model was chosen ({chosen['recipe']} at {chosen['learning_rate']:g}, α = "
        f"{chosen['alpha']:g}), AO@10 of held-out training captions changes by {captions:+.1f} in the control and by "
        f"{paraphrases:+.1f} in the tuned model"
    )


def _place(settings: Settings, path: str | None) -> Path | None:
    return None if path is None else input_path(settings, path)


def stored_split(settings: Settings, inputs: Mapping[str, Artifact]) -> Stored:
    """The evaluation split's captions and their images' stored features; `inputs`: `ingest` and `features`."""
    features = inputs["features"]
    store = FeatureStore(features.path)
    image_encoder_hash = features.manifest.metrics.get("image_encoder_hash")

    def pool(image_ids: Sequence[str]) -> ImagePool:
        rows = corpus_of(settings).searched(store, image_ids)
        if not len(rows):
            count = len(set(image_ids))
            raise BenchmarkError(f"none of {count} images has features; are they the images that were ingested?")
        # Only these are read: memory use must not grow with the training images.
        return stored_pool(store.ids_of(rows), lambda: store.view()[rows], image_encoder_hash)

    captions = captions_of(inputs["ingest"].path / "captions", settings.evaluate.split)
    return Stored(captions, pool)


def captions_of(folder: Path, split: str) -> Captions:
    """Captions with images of one split; a missing split has none, which only matters to benchmarks that use it."""
    ids: list[str] = []
    captions: list[str] = []
    for batch in iter_batches(folder, ["image_id", "caption", "split"]):
        table = pa.Table.from_batches([batch])
        chosen = table.filter((pc.field("split") == split) & pc.field("image_id").is_valid())
        ids += chosen["image_id"].to_pylist()
        captions += chosen["caption"].to_pylist()
    return Captions(ids, captions, split)


def _kept_in(folder: Path) -> OutcomeCache:
    """Return a cache of outcomes by (model, benchmark), so that an interrupted stage continues after the last one."""

    def keep(model: str, benchmark: str, compute: Callable[[], Measured]) -> Measured:
        def arrays() -> dict[str, NDArray[Any]]:
            measured = compute()
            return {**to_arrays(measured), "notes": np.array(json.dumps(dict(measured.notes)))}

        stored = stored_arrays(folder / model / f"{benchmark}.npz", arrays)
        notes = json.loads(str(stored.pop("notes")))
        return from_arrays(stored, notes)

    return keep


EVALUATE = Stage(
    name="evaluate",
    version=13,
    inputs=_inputs,
    options=_options,
    body=_body,
    sources=_sources,
    missing=_missing,
    about="Measure the base and the tuned model and decide between them.",
    pool="gpu",
)

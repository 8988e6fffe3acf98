"""Measures models on a list of benchmarks, then compares them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from paraclip_core.evaluation.base import Encoder, Measured, unique_features
from paraclip_core.evaluation.churn import Churn, Found, churn, find
from paraclip_core.evaluation.compare import Comparison, compare
from paraclip_core.evaluation.encoder import FeatureCache, ModelEncoder, WatchedEncoder, model_encoder
from paraclip_core.evaluation.options import BenchmarkOptions, GateRule
from paraclip_core.evaluation.prepare import Prepared, check_names, left_out, prepare
from paraclip_core.evaluation.rows import Outcome, compared_rows
from paraclip_core.evaluation.verdict.evidence import Evidence, different_images, searched_images
from paraclip_core.paths import expand
from paraclip_core.progress import Fact, Progress, silent
from paraclip_core.tables import FIRST_IMAGES

OutcomeCache = Callable[[str, str, Callable[[], Measured]], Measured]
"""Called with model, benchmark and the computation; returns a cached outcome, or computes and caches it."""
CHURN_QUERIES = 5000
"""Beyond these, a share is known to within a percentage point."""
Outcomes = Mapping[tuple[str, str], Measured]
"""Outcomes by benchmark and model."""


@dataclass(frozen=True)
class Evaluation:
    """A base and a tuned model measured on every benchmark, and their comparison."""

    outcomes: tuple[Outcome, ...]
    per_query: Mapping[str, pa.Table]
    """Tables of all queries, by benchmark."""
    comparison: Comparison
    churn: Churn | None = None
    """What changes for the same queries; None if no benchmark has plain queries."""
    first_images: pa.Table | None = None
    """The tuned model's first image of each of these queries (`tables.FIRST_IMAGES`)."""


def compare_models(
    models: Mapping[str, str],
    benchmarks: Sequence[BenchmarkOptions],
    split: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
    keep: FeatureCache | None = None,
) -> dict[str, Evaluation]:
    """Compare the first model with each of the others, outside any run, on benchmarks with their own paths; returns the
    evaluations by the other model's name.

    Images are encoded by each model's own image encoder, once if encoders are equal; `keep` caches features across
    calls.
    """
    check_names(benchmarks)
    tasks: list[Prepared] = []
    skipped: dict[str, str] = {}
    for benchmark in benchmarks:
        path, images = (None if at is None else expand(at) for at in (benchmark.path, benchmark.images))
        if reason := left_out(benchmark, path, images):
            skipped[benchmark.name] = reason
        else:
            tasks.append(prepare(benchmark, path, None, split, images))
    encoders = {name: model_encoder(reference, device, keep) for name, reference in models.items()}
    outcomes = measure(encoders, tasks, lambda model, benchmark, compute: compute(), progress)
    base, *others = models
    evaluations = {}
    for other in others:
        pairs = paired(tasks, outcomes, base, other)
        changes, first = changed_results(tasks, encoders[base], encoders[other], progress)
        evidence = Evidence(
            compared_rows(pairs),
            GateRule(),
            images=searched_images(pairs),
            different_images=different_images(pairs),
            skipped=skipped,
            first_image_changes=changes and changes.first_image_changes,
        )
        evaluations[other] = Evaluation(pairs, per_query(tasks, pairs), compare(evidence), changes, first)
    return evaluations


def measure(
    models: Mapping[str, Encoder], tasks: Sequence[Prepared], keep: OutcomeCache, progress: Progress = silent
) -> Outcomes:
    """Measure every model on every task."""
    outcomes: dict[tuple[str, str], Measured] = {}
    pairs = [(task, name) for task in tasks for name in models]
    began = time.monotonic()
    for position, (task, name) in enumerate(pairs):
        encoder, facts = models[name], {"benchmark": task.name, "model": name}

        def report(what: str, done: int, of: int, position: int = position, facts: dict[str, str] = facts) -> None:
            # Texts are fast compared to images.
            part = position + (0.2 * done / of if what == "texts" else 0.2 + 0.8 * done / of)
            left: dict[str, Fact] = {}
            if part >= 0.2:
                left["eta_seconds"] = round((time.monotonic() - began) * (len(pairs) - part) / part)
            progress(position, len(pairs), **facts, **{what: f"{done} of {of}"}, **left)

        progress(position, len(pairs), **facts)
        if isinstance(encoder, ModelEncoder):
            encoder = WatchedEncoder(encoder, report)
        outcomes[task.name, name] = keep(name, task.name, lambda task=task, encoder=encoder: task.measure(encoder))
    progress(len(pairs), len(pairs))
    return outcomes


def per_query(tasks: Sequence[Prepared], pairs: Sequence[Outcome]) -> dict[str, pa.Table]:
    """Tables of all queries of the benchmarks that have them, by benchmark."""
    return {
        task.name: task.task.per_query(pair.base, pair.tuned)
        for task, pair in zip(tasks, pairs, strict=True)
        if task.task.per_query is not None
    }


def changed_results(
    tasks: Sequence[Prepared], base: Encoder, tuned: Encoder, progress: Progress = silent
) -> tuple[Churn | None, pa.Table | None]:
    """What changes for the plain queries of one benchmark: the first whose right images are known or, without any, the
    first whose queries' frequencies are known. With it, the tuned model's first image of each (`tables.FIRST_IMAGES`).

    At most :data:`CHURN_QUERIES` are searched, evenly spaced; None if no benchmark has plain queries.
    """
    searched = [(task.name, task.task.queries) for task in tasks if task.task.queries is not None]
    if not searched:
        return None, None
    name, queries = min(searched, key=lambda each: (len(each[1].right) == 0, not each[1].groups))
    wanted = min(len(queries.texts), CHURN_QUERIES)
    chosen = np.linspace(0, len(queries.texts) - 1, wanted).round().astype(np.int64)
    numbers: list[int] = chosen.tolist()
    texts = [queries.texts[number] for number in numbers]

    def found(encoder: Encoder, number: int) -> Found:
        def report(what: str, done: int, of: int) -> None:
            progress(number, 2, churn=f"{what}: {done} of {of}")

        if isinstance(encoder, ModelEncoder):
            encoder = WatchedEncoder(encoder, report)
        vectors, _ = unique_features(encoder.texts, texts)
        features = queries.pool.features(encoder)
        return find(vectors, lambda rows: np.asarray(features[rows], np.float32), len(features))

    right = queries.right[np.isin(queries.right[:, 0], chosen)]
    right = np.stack([np.searchsorted(chosen, right[:, 0]), right[:, 1]], axis=1)
    groups = [queries.groups[number] for number in numbers] if queries.groups else ()
    before, after = found(base, 0), found(tuned, 1)
    changes = churn(texts, before, after, queries.pool.ids, right, name, groups)
    first = [queries.pool.ids[row] for row in after.rows[:, 0].tolist()]
    progress(2, 2)
    return changes, pa.table([texts, first], schema=FIRST_IMAGES)


def paired(tasks: Sequence[Prepared], outcomes: Outcomes, base: str, tuned: str) -> tuple[Outcome, ...]:
    """The outcomes of two models, benchmark by benchmark."""
    return tuple(Outcome(task.name, task.kind, outcomes[task.name, base], outcomes[task.name, tuned]) for task in tasks)

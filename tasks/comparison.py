"""Comparison of models outside any run, with a page each, as `paraclip evaluate` does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.benchmark_features import BenchmarkFeatures
from paraclip.storage.files import write_atomic, write_json
from paraclip.storage.fingerprint import FileHashes, fingerprint
from paraclip.tasks.models import find_release, name_in
from paraclip.tasks.stages.evaluate import benchmark_hash, write_evaluation
from paraclip_core.clip.expansion import heads_model
from paraclip_core.clip.reference import model_files
from paraclip_core.errors import ConfigError, UnknownQueriesError
from paraclip_core.evaluation.benchmarks import find_benchmark
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.run import Evaluation, compare_models
from paraclip_core.evaluation.verdict.finding import notes, paragraphs
from paraclip_core.paths import expand
from paraclip_core.progress import Progress, silent
from paraclip_core.report.data import ReportData
from paraclip_core.report.page import render_report

RESULTS_VERSION = 8
"""Of what the files of a comparison hold."""
MISSING_QUERIES = "missing_queries.jsonl"
"""The texts of a benchmark that a heads file lacks."""
COMPARED = ("deltas", "intervals", "verdict", "reason", "notes", "findings", "churn")
"""Fields of a summary that are about a pair of models."""


def named_models(texts: Sequence[str]) -> dict[str, str]:
    """Models by name, from ``NAME=MODEL`` texts, in order."""
    models: dict[str, str] = {}
    for text in texts:
        name, equals, model = text.partition("=")
        if not equals or not model or not re.fullmatch(r"[\w+-][\w.+-]{0,99}", name):
            raise ConfigError(f"--model {text!r}: expected NAME=MODEL, the name of letters, digits, ., _, + and -")
        if name in models:
            raise ConfigError(f"--model {text!r}: another model is named {name!r}; give each its own name")
        models[name] = model
    if len(models) < 2:
        raise ConfigError(f"--model: {len(models)} given, expected at least two, the base first")
    return models


def with_images(benchmarks: Sequence[BenchmarkOptions], texts: Sequence[str]) -> list[BenchmarkOptions]:
    """The benchmarks with the paths of their images: ``PATH`` for all that need images, ``NAME=PATH`` for one."""
    chosen = list(benchmarks)
    for text in texts:
        name, equals, path = text.partition("=")
        names = {benchmark.name for benchmark in chosen}
        of = {name} if equals and name in names else names
        place = path if equals and name in names else text
        if not expand(place).exists():
            raise ConfigError(f"--images {text!r}: {place} does not exist")
        takes = [find_benchmark(b.kind).needs_images and b.name in of for b in chosen]
        if not any(takes):
            raise ConfigError(
                f"--images {text!r}: none of {', '.join(sorted(of))} reads images in addition to its path"
            )
        chosen = [
            benchmark.model_copy(update={"images": place}) if takes[number] else benchmark
            for number, benchmark in enumerate(chosen)
        ]
    return chosen


def compare_and_write(
    store: ArtifactStore,
    models: Mapping[str, str],
    benchmarks: Sequence[BenchmarkOptions],
    out: Path | None = None,
    *,
    split: str | None = None,
    device: str = "auto",
    report: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> tuple[Path, dict[str, Any]]:
    """Compare models and write the results; returns their folder and the contents of ``summary.json``.

    `models` maps names to references; the first is the base. References are looked up in `store`, which also takes the
    results if `out` is not given. A heads file is its model with expanded queries; texts of a benchmark that the file
    lacks are written next to the results. Results of a pair named base and tuned go into the folder itself, others each
    into a subfolder of that name. With `report`, a page is written too, which quotes `command`.
    """
    resolved = {name: _resolve(model, store) for name, model in models.items()}
    names = {name: model.shown for name, model in resolved.items()}
    hashes = FileHashes(store.cache / "source_hashes.json")
    revisions = {benchmark.name: _revision(benchmark, hashes, split) for benchmark in benchmarks}
    called = {
        "base": next(iter(models)),
        "benchmarks": [[b.name, b.kind, revisions[b.name], b.options] for b in benchmarks],
        "split": split,
        "weights": {name: list(hashes.of(model.files).values()) for name, model in resolved.items()},
    }
    # Named by its inputs: a comparison never overwrites another's results.
    own = store.root / "results" / "evaluate" / fingerprint("evaluate", RESULTS_VERSION, called, dict(names))[:12]
    folder = _made_folder((out or own).absolute())
    keep = BenchmarkFeatures(store.cache / "benchmark_features", hashes)
    references = {name: model.reference for name, model in resolved.items()}
    try:
        evaluations = compare_models(references, benchmarks, split=split, device=device, progress=progress, keep=keep)
    except UnknownQueriesError as error:
        lacking = folder / MISSING_QUERIES
        rows = "".join(json.dumps({"query": query}) + "\n" for query in error.queries)
        write_atomic(lacking, lambda file: file.write(rows.encode()))
        error.add_note(f"these texts are in {lacking}; give `paraclip expand` that file beside the one that it had")
        raise
    base, *rivals = names
    alone = list(names) == ["base", "tuned"]
    summaries = {}
    for rival in rivals:
        place, pair = folder if alone else folder / rival, {"base": names[base], "tuned": names[rival]}
        summaries[rival] = write_evaluation(place, evaluations[rival], pair)
        if report:
            _write_page(place / "report.html", f"{rival} against {base}", command, pair, evaluations[rival])
    if alone:
        return folder, summaries["tuned"]
    whole = _summary(summaries, names)
    write_json(folder / "summary.json", whole)
    return folder, whole


def _revision(benchmark: BenchmarkOptions, hashes: FileHashes, split: str | None) -> str:
    """Hash of everything that a benchmark reads."""
    images = None if benchmark.images is None else expand(benchmark.images)
    return benchmark_hash(benchmark.kind, expand(benchmark.path or ""), hashes, split, images)


def _made_folder(folder: Path) -> Path:
    """The folder of the results, created before the work, which takes minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be created ({error.strerror}); name another with --out or --root"
        ) from error
    return folder


@dataclass(frozen=True)
class _Model:
    """A model to compare."""

    reference: str
    """As :func:`paraclip_core.evaluation.encoder.model_encoder` takes it."""
    shown: str
    """As results name it."""
    files: Sequence[Path]
    """The local files that define it."""


def _resolve(model: str, store: ArtifactStore) -> _Model:
    heads = expand(model)
    expanded = heads_model(heads)
    release = str(find_release(expanded or model, store))
    name, files = name_in(store, release), model_files(release)
    return _Model(str(heads), f"{name} with {heads}", [heads, *files]) if expanded else _Model(release, name, files)


def _summary(summaries: Mapping[str, dict[str, Any]], names: Mapping[str, str]) -> dict[str, Any]:
    """One summary of all models: their figures, and for each but the base the fields of its :class:`Comparison`."""
    base, *others = names
    measured = {base: summaries[others[0]]["models"]["base"]}
    return {
        "base": base,
        "models": measured | {name: summaries[name]["models"]["tuned"] for name in others},
        "comparisons": {
            name: {key: summaries[name][key] for key in COMPARED if key in summaries[name]} for name in others
        },
        "fingerprints": dict(names),
    }


def pairs(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each model but the base, the summary of it against the base."""
    if "comparisons" not in summary:
        return {"tuned": dict(summary)}
    base, models = summary["models"][summary["base"]], summary["models"]
    return {
        name: {**one, "models": {"base": base, "tuned": models[name]}} for name, one in summary["comparisons"].items()
    }


def _write_page(path: Path, title: str, command: str, models: Mapping[str, str], evaluation: Evaluation) -> None:
    comparison = evaluation.comparison
    facts = {"base": models["base"], "tuned": models["tuned"], "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    data = ReportData(
        name=title,
        verdict=comparison.verdict,
        reasons=paragraphs(comparison.findings),
        comparison=comparison.rows,
        untrained=comparison.untrained,
        confidence=comparison.confidence,
        notes=notes(comparison.findings),
        protocols={outcome.benchmark: outcome.base.notes for outcome in evaluation.outcomes},
        churn=evaluation.churn,
        facts=facts | ({"command": command} if command else {}),
    )
    page = render_report(data).encode("utf-8", "replace")
    write_atomic(path, lambda file: file.write(page))

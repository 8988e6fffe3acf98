"""Three rules for choosing among candidates, by what each would have chosen and what the evaluation split says of it.

    python benchmarks/choice_rules.py -c configs/flickr8k-paraphrases.yaml [--set a.b=c]

The run's `finetune` must be finished and its candidates kept (`paraclip artifacts gc` deletes them). Every candidate is
measured at every α on the held-out training images, as the run did, and on the benchmarks of the evaluation split, as
no run does. A rule's regret is the evaluation's mean of recall and agreement that its choice misses of the best point.

* `limit`: the highest AO@10 that loses at most half a point of plain recall@10.
* `best`: the highest mean of recall and agreement whose plain recall is not significantly below the base's.
* `one standard error`: of all within a standard error of that, the one that changes the fewest results, as runs choose.

For a run from an index and a log (`data.index`), `--labels` names the configuration of a finished run over the same
images with captions: its evaluation split says what the candidates are worth. The rules that need recall are left out,
and others are compared: bounds on the retention of a point, the share of the base's first ten images that a held-out
query keeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from record import arguments

from paraclip.storage.features import FeatureStore
from paraclip.storage.fingerprint import canonical_json
from paraclip.tasks.models import base_reference, candidates_of
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.evaluate import benchmark_tasks, stored_split
from paraclip.tasks.training.candidates import CANDIDATE, candidate_weights
from paraclip.tasks.training.data import Images, hold_out, paraphrase_rows, tokens_for, validation_set
from paraclip.tasks.training.log_data import log_validation
from paraclip_core.captions.tokens import CONTEXT_LENGTH
from paraclip_core.clip.model import freeze_image_encoder, trained_parameters
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.prepare import Prepared
from paraclip_core.options import meaning
from paraclip_core.settings import load_settings
from paraclip_core.training.choice import Point, choose, copy_weights, interpolate, lost_recall
from paraclip_core.training.data import CAPTION, spool_rows
from paraclip_core.training.validation import AO, OVERLAP, RECALL, Validation, measure, with_overlap

LIMIT = 0.5
SHOWN = ("ao@10", "text_to_image_recall@10", "paraphrased_query_text_to_image_recall@10", "margin")
"""Metrics of the evaluation that the table shows; the first three are its criterion."""

Rule = Callable[[Sequence[Point], Sequence[float]], Point]


def limit(points: Sequence[Point], grid: Sequence[float]) -> Point:
    """The choice of the first rule."""
    floor = points[0].validation.figures[RECALL] - LIMIT
    allowed = [point for point in points if point.validation.figures[RECALL] >= floor]
    return max(allowed, key=lambda point: (point.validation.figures[AO], -point.alpha))


def best(points: Sequence[Point], grid: Sequence[float]) -> Point:
    """That of the second rule."""
    allowed = [point for point in points if not lost_recall(point, points[0].validation)]
    return max(allowed, key=lambda point: (float(point.felt.sum()), -point.alpha))


def one_standard_error(points: Sequence[Point], grid: Sequence[float]) -> Point:
    """That of a run."""
    return choose(points, grid).chosen


def retaining(points: Sequence[Point], grid: Sequence[float], percent: float) -> Point:
    """That of a run from an index, if so many percent of the base's first images have to stay."""
    return choose(points, grid, percent).chosen


RULES: dict[str, Rule] = {"limit": limit, "best": best, "one standard error": one_standard_error}
LOG_RULES: dict[str, Rule] = {
    f"{percent} % retention": partial(retaining, percent=percent) for percent in (50, 60, 65, 70, 75, 80)
}


def evaluated(tasks: Sequence[Prepared], encoder: ModelEncoder) -> dict[str, float]:
    """Figures of the evaluation split in percent: each metric of `SHOWN`, averaged over the benchmarks that have it."""
    found: dict[str, list[float]] = {}
    for task in tasks:
        for name, value in task.task.measure(encoder).metrics.items():
            if name in SHOWN:
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _retention(point: Point, base: Validation) -> str:
    figures = point.validation.figures
    return f" {figures[OVERLAP]:.1f} | {figures[AO] - base.figures[AO]:+.2f} |"


def main() -> None:
    """Measure every candidate at every α, and print what each rule chooses."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--labels", type=Path, help="configuration of the run whose evaluation split is measured")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    chosen = parser.parse_args()
    settings = load_settings(chosen.config, chosen.overrides, os.environ)
    run, options = Run(settings), settings.finetune
    inputs = run.inputs(run.node("finetune"))
    encoder = ModelEncoder(base_reference(settings, inputs), settings.run.device)
    clip, features = encoder.clip, inputs["features"].path
    captions, paraphrases = inputs["ingest"].path / "captions", inputs["paraphrase_2"].path / "paraphrases"
    tokens, of_log = tokens_for(clip, CONTEXT_LENGTH), settings.data.index is not None
    if of_log:
        validation = log_validation(paraphrases, FeatureStore(features), options.validation, tokens)
    else:
        images = Images(features)
        held_out = hold_out(captions, images, options.validation)
        with TemporaryDirectory() as folder:
            stream = paraphrase_rows(paraphrases, images, keep=held_out.trains, tokens=tokens)
            trained = spool_rows(Path(folder) / "rows", (CAPTION,), stream, dtype=tokens.dtype).texts[CAPTION]
            validation = validation_set(captions, held_out, paraphrases, tokens, trained)
    labeled = Run(load_settings(chosen.labels, [], os.environ)) if chosen.labels else run
    of_labels = labeled.inputs(labeled.node("finetune"))
    split = stored_split(labeled.settings, of_labels)
    tasks, _ = benchmark_tasks(labeled.settings, split)
    freeze_image_encoder(clip)
    parameters = trained_parameters(clip.model)
    weights, base = copy_weights(parameters), measure(clip, validation)
    of_base = evaluated(tasks, encoder)
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    finished = {
        canonical_json(artifact.manifest.options["training"]): artifact
        for artifact in run.store.list(CANDIDATE)
        if artifact.manifest.inputs == fingerprints and artifact.manifest.options["texts"] == options.texts
    }
    points, results = list[Point](), list[dict[str, float]]()
    for candidate in candidates_of(settings):
        tuned = candidate_weights(finished[canonical_json(meaning(candidate.options))], clip)
        for alpha in sorted({0.0, *options.alpha.grid}):
            interpolate(parameters, weights, tuned, alpha)
            measured = measure(clip, validation) if alpha else base
            points.append(Point(candidate, alpha, with_overlap(measured, base, validation)))
            results.append(evaluated(tasks, encoder) if alpha else of_base)
    names = [name for name in SHOWN if name in of_base]
    felt = [name for name in names if name != "margin"]

    def gain(figures: dict[str, float]) -> float:
        return sum(figures[name] - of_base[name] for name in felt) / len(felt)

    gains = [gain(figures) for figures in results]
    more = " retention | held-out AO@10 |" if of_log else ""
    print(f"| rule | candidate | α | criterion | {' | '.join(names)} | regret |{more}")
    print(f"|---|---|---|---|{'---|' * len(names)}---|{'---|---|' if of_log else ''}")

    def row(rule: str, place: int) -> None:
        point, figures = points[place], results[place]
        cells = " | ".join(f"{figures[name] - of_base[name]:+.2f}" for name in names)
        print(
            f"| {rule} | {point.candidate.name} | {point.alpha:g} | {gains[place]:+.2f} | {cells} "
            f"| {max(gains) - gains[place]:.2f} |{_retention(point, base) if of_log else ''}"
        )

    for name, rule in (LOG_RULES if of_log else RULES).items():
        row(name, points.index(rule(points, options.alpha.grid)))
    for place in sorted(range(len(points)), key=lambda place: -gains[place]):
        row("–", place)


if __name__ == "__main__":
    main()

"""Stage ``report``: one self-contained HTML page about the whole run.

Tables are streamed; only what is shown is held in memory.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from paraclip.storage.artifacts import Artifact
from paraclip.storage.features import FeatureStore
from paraclip.storage.files import read_json, write_atomic
from paraclip.storage.parquet import count_rows, frequent_values, iter_batches
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.models import BUILT_IN, base_inputs
from paraclip.tasks.results import training_findings
from paraclip.tasks.run.run import Stage, StageContext, input_path
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip.tasks.stages.queries import ASKING, QUERIES
from paraclip_core.captions.counts import MANY_LICENSES
from paraclip_core.captions.leakage import SHARED_COLUMNS, Place, Shared, by_split, find_shared
from paraclip_core.clip.reference import place_free_name
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, InputError
from paraclip_core.evaluation.churn import Churn
from paraclip_core.evaluation.compare import rows_from_json
from paraclip_core.evaluation.verdict.finding import from_json, notes, paragraphs
from paraclip_core.options import unusual
from paraclip_core.paraphrase.engines import ENGINES
from paraclip_core.paraphrase.facts import Facts
from paraclip_core.report.churn import images_of
from paraclip_core.report.counts import row_totals, trained_on
from paraclip_core.report.data import (
    License,
    ParaphraseSample,
    QueryPair,
    RejectGroup,
    RejectSample,
    ReportData,
    StageRow,
)

log = logging.getLogger(__name__)

Inputs = Mapping[str, Artifact]

PAIRS = 4
SAMPLES = 12
REJECT_SAMPLES = 5
OF_THE_TRY = frozenset((
    "cached", "encoded", "generated", "requested", "prompt_tokens", "completion_tokens", "spend", "engine_seconds",
    "filtered", "filter_seconds", "samples_per_second", "loss", "base",
))  # fmt: skip
"""Metrics about how a result was obtained, not what it is: they differ after a kill, and the page must not. The page
does not show a local base's location either."""
SHOWN = 300
"""Maximum characters of an untrusted text on the page."""
REJECTING = ("ingest", *ASKING, "features")
SOURCE_REJECTS = ("source", "source_row", "reason", "detail", "caption_raw")
STEP_REJECTS = ("reason", "detail", "input", "answer")
PAIR_COLUMNS = {
    "group": "image_id",
    "caption": "caption",
    "paraphrased_query": "paraphrased_query",
    "base_ao": "base_overlap",
    "tuned_ao": "tuned_overlap",
    "base_caption_top": "base_caption",
    "base_paraphrased_top": "base_paraphrased",
    "tuned_caption_top": "tuned_caption",
    "tuned_paraphrased_top": "tuned_paraphrased",
}


def gather(settings: Settings, inputs: Inputs) -> ReportData:
    """Read everything that the page shows."""
    comparison = read_json(inputs["evaluate"].path / "comparison.json")
    better, worse = _pairs(inputs["evaluate"].path / "per_query")
    changes = inputs["evaluate"].path / "churn.json"
    churn = Churn.from_json(read_json(changes)) if changes.exists() else None
    samples = _paraphrases(inputs["paraphrase_2"].path / "paraphrases")
    ranked = ("base_caption", "base_paraphrased", "tuned_caption", "tuned_paraphrased")
    shown = [image for pair in (*better, *worse) for name in ranked for image in getattr(pair, name)]
    shown += images_of(churn)
    shown += [sample.image_id for sample in samples if sample.image_id is not None]
    totals = row_totals({name: artifact.manifest.metrics for name, artifact in inputs.items()})
    tuned = inputs["finetune"].manifest.metrics
    trust = corpus_of(settings).trust(inputs["features"])
    findings = [*from_json(comparison["findings"]), *training_findings(totals, tuned, settings)]
    return ReportData(
        name=settings.name,
        verdict=comparison["verdict"],
        reasons=paragraphs(findings),
        comparison=rows_from_json(comparison["rows"]),
        over_control=rows_from_json(comparison.get("over_control", ())),
        control=rows_from_json(comparison.get("control", ())),
        untrained=comparison["untrained"],
        protocols=comparison.get("protocols", {}),
        facts=_facts(settings, inputs, totals),
        settings=_as_yaml(settings),
        confidence=comparison["confidence"],
        # What the reader must know about the data: how far an index was checked, or what the splits share.
        notes=[*notes(findings), *([trust] if trust else _shared(inputs).notices)],
        finetune=inputs["finetune"].fingerprint,
        image_encoder_before=tuned.get("image_encoder_hash_before", ""),
        image_encoder_after=tuned.get("image_encoder_hash_after", ""),
        funnel=_funnel(inputs, totals),
        losses={name: _losses(inputs[name]) for name in ("built_in_base", "finetune") if name in inputs},
        candidates=read_json(inputs["finetune"].path / "candidates.json"),
        churn=churn,
        better=better,
        worse=worse,
        paraphrases=samples,
        rejects=[group for stage in REJECTING if stage in inputs for group in _rejects(stage, inputs[stage])],
        stages=[_stage(artifact) for artifact in inputs.values()],
        versions=_versions(inputs.values()),
        licenses=_licenses(inputs),
        thumbnails=_thumbnails(settings, inputs, set(shown)),
    )


def _facts(settings: Settings, inputs: Inputs, totals: Mapping[str, int]) -> dict[str, str]:
    """What was trained on which data, when, and how to reproduce it."""
    base = settings.model.base
    rows = f" ({totals['paraphrases']:,} paraphrases)" if "paraphrases" in totals else ""
    kept = inputs["paraphrase_2"].manifest.metrics.get("facts")
    facts = {
        "trained on": (trained_on(totals) or "").removeprefix("trained on ") + rows,
        "paraphrases by": " ".join(filter(None, (settings.paraphrase.engine, settings.paraphrase.model))),
        "held-out queries by": _queries_by(settings, inputs),
        "filters": inputs["paraphrase_1"].manifest.options.get("filters", {}).get("preset", ""),
        "the paraphrasing model": str(Facts(**kept)) if kept else "",
        "base model": "a text encoder trained on these captions" if base == BUILT_IN else place_free_name(base),
        "date": inputs["finetune"].manifest.created[:10],
        "command": "paraclip run -c settings.yaml",
    }
    return {name: text for name, text in facts.items() if text}


def _queries_by(settings: Settings, inputs: Inputs) -> str:
    """The engine and model that paraphrased held-out captions; empty if there are none."""
    options, queries = settings.for_queries(), inputs.get(QUERIES.name)
    if options is None or queries is None or not queries.manifest.metrics["accepted"]:
        return ""
    count = queries.manifest.metrics["accepted"]
    return f"{' '.join(filter(None, (options.engine, options.model)))} ({count:,} queries)"


def _as_yaml(settings: Settings) -> str:
    """Non-default options that decide the result, without those of unused engines."""
    tree = {"name": settings.name, **unusual(settings)}
    for name in set(ENGINES) - {settings.paraphrase.engine}:
        tree.get("paraphrase", {}).pop(name, None)
    if "base" in tree.get("model", {}):
        tree["model"]["base"] = place_free_name(settings.model.base)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def _rows(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in iter_batches(folder, columns, batch_rows=4096):
        yield from batch.to_pylist()


def _pairs(folder: Path) -> tuple[list[QueryPair], list[QueryPair]]:
    """The pairs whose overlap rose most and fell most, over all benchmarks with pairs; ties are in table order."""

    def changed(sign: int) -> Iterator[tuple[float, int, int, QueryPair]]:
        for number, path in enumerate(sorted(folder.glob("*.parquet"))):
            for index, row in enumerate(_rows(path, list(PAIR_COLUMNS))):
                change = sign * (row["tuned_ao"] - row["base_ao"])
                if change > 0:
                    yield -change, number, index, QueryPair(**{PAIR_COLUMNS[k]: v for k, v in row.items()})

    better, worse = (heapq.nsmallest(PAIRS, changed(sign), key=lambda entry: entry[:3]) for sign in (1, -1))
    return [entry[3] for entry in better], [entry[3] for entry in worse]


def _paraphrases(folder: Path) -> list[ParaphraseSample]:
    """Accepted paraphrases of distinct captions, sampled by the captions' hashes."""
    columns = ["caption_id", "image_id", "caption", "paraphrase_1", "paraphrase_2", "similarity_1", "similarity_2"]
    samples: dict[str, dict[str, Any]] = {}
    for row in _rows(folder, columns):
        earlier = samples.get(row["caption"])
        if row["paraphrase_2"] is None or (earlier is not None and earlier["caption_id"] <= row["caption_id"]):
            continue
        samples[row["caption"]] = row
        if len(samples) > 4 * SAMPLES:
            samples = dict(heapq.nsmallest(SAMPLES, samples.items(), key=lambda item: item[1]["caption_id"]))
    rows = sorted(samples.values(), key=lambda row: row["caption_id"])[:SAMPLES]
    shown = []
    for row in rows:
        caption, first, second = (_cut(row[name]) for name in columns[2:5])
        similarities = row["similarity_1"], row["similarity_2"]
        shown.append(ParaphraseSample(row["image_id"], caption, first, second, *similarities))
    return shown


def _rejects(stage: str, artifact: Artifact) -> list[RejectGroup]:
    """A stage's rejects by reason, with a few samples of each, without the texts of personal data."""
    counts: Counter[str] = Counter()
    samples: dict[str, list[RejectSample]] = {}
    of_step = stage in ASKING
    for row in _rows(artifact.path / "rejects", STEP_REJECTS if of_step else SOURCE_REJECTS):
        if of_step:
            sample = RejectSample(_cut(row["input"]), _cut(row["detail"]), row["answer"] and _cut(row["answer"]))
        else:
            place = row["source"] if row["source_row"] is None else f"{row['source']}, row {row['source_row']}"
            # A page is passed on.
            text = "(not shown)" if row["reason"] == "personal" else row["caption_raw"] or row["source"]
            sample = RejectSample(_cut(text), _cut(f"{place}: {row['detail']}"))
        reason = row["reason"]
        counts[reason] += 1
        shown = samples.setdefault(reason, [])
        if len(shown) < REJECT_SAMPLES and sample not in shown:
            shown.append(sample)
    name = f"paraphrase step {STEPS[stage]}" if stage in STEPS else "held-out queries" if of_step else stage
    return [RejectGroup(name, reason, counts[reason], samples[reason]) for reason in sorted(counts)]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _funnel(inputs: Inputs, totals: Mapping[str, int]) -> list[tuple[str, int]]:
    """Counts of captions from source files to training; a caption counts once, however many paraphrases it has."""
    train = sum(row["split"] == "train" for row in _rows(inputs["ingest"].path / "captions", ["split"]))
    accepted = count_rows(inputs["ingest"].path / "captions")
    paraphrases = f", in {totals['paraphrases']:,} paraphrases" if "paraphrases" in totals else ""
    steps = [
        ("rows read", accepted + count_rows(inputs["ingest"].path / "rejects")),
        ("captions", accepted),
        ("for training", train),
        ("asked", totals.get("asked")),
        ("with paraphrase 1", inputs["paraphrase_1"].manifest.metrics.get("accepted")),
        (f"kept{paraphrases}", totals.get("kept")),
        ("trained on", totals.get("trained_on")),
    ]
    return [(name, count) for name, count in steps if count is not None]


def _shared(inputs: Inputs) -> Shared:
    """The overlap of validation with training, comparing the contents of all images."""
    store = FeatureStore(inputs["features"].path)

    batches = partial(iter_batches, inputs["ingest"].path / "captions", SHARED_COLUMNS)

    def compare(unseen: Mapping[str, Place], _: int) -> tuple[int, int]:
        rows = store.find(list(unseen))
        trained = np.zeros(len(store), np.bool_)
        for batch in batches():
            places = store.find(by_split(batch)[0]["image_id"])
            trained[places[places >= 0]] = True
        return int(np.isin(store.pixels[rows[rows >= 0], 0], store.pixels[trained, 0]).sum()), int((rows >= 0).sum())

    return find_shared(batches, compare)


def _losses(artifact: Artifact) -> list[tuple[int, float]]:
    path = artifact.path / "training_log.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON lines ({error}); delete {artifact.path}") from error
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def _licenses(inputs: Inputs) -> list[License]:
    # So many that both tables name the same ones.
    captions = frequent_values(inputs["ingest"].path / "captions", "license", MANY_LICENSES)
    paraphrased = frequent_values(inputs["paraphrase_2"].path / "paraphrases", "license", MANY_LICENSES)
    return [License(name, captions.get(name, 0), paraphrased.get(name, 0)) for name in sorted(captions | paraphrased)]


def _stage(artifact: Artifact) -> StageRow:
    manifest = artifact.manifest
    return StageRow(
        manifest.stage,
        manifest.fingerprint,
        len(manifest.files),
        manifest.size(),
        manifest.inputs,
        manifest.options,
        {name: value for name, value in manifest.metrics.items() if name not in OF_THE_TRY},
    )


def _versions(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Every version involved; usually one per package."""
    packages: dict[str, set[str]] = {}
    for package, version in (item for artifact in artifacts for item in artifact.manifest.versions.items()):
        packages.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in packages.items()}


def _thumbnails(settings: Settings, inputs: Inputs, wanted: set[str]) -> dict[str, bytes]:
    """Thumbnails of the images that still exist; a page without one of them is better than none."""
    from paraclip_core.clip.images import ImageArchive
    from paraclip_core.report.html import thumbnail

    thumbnails: dict[str, bytes] = {}
    names: dict[str, dict[str, str]] = {}
    if (index := settings.data.index) is not None:
        names = {} if index.images is None else {index.images: {image: image for image in wanted}}
    for row in _rows(inputs["ingest"].path / "captions", ["image_id", "images", "image_path"]):
        if row["image_id"] in wanted and row["images"] and row["image_path"]:
            names.setdefault(row["images"], {}).setdefault(row["image_id"], row["image_path"])
    for images, members in sorted(names.items()):
        try:
            with ImageArchive(input_path(settings, images)) as archive:
                # By name, which in Parquet is row order; stepping back would mean reading a row group again.
                for image_id, name in sorted(members.items(), key=lambda item: (item[1], item[0])):
                    try:
                        thumbnails[image_id] = thumbnail(archive.open(name))
                    except InputError as error:
                        log.warning("no thumbnail of %s: %s", image_id, error)
        except InputError as error:
            log.warning("no thumbnails from %s: %s", images, error)
    return thumbnails


def _stages(settings: Settings) -> tuple[str, ...]:
    queries = (QUERIES.name,) if QUERIES.applies(settings) else ()
    steps = ("ingest", *STEPS, *queries, "features", *base_inputs(settings), "finetune")
    return (*steps, *(("control",) if settings.evaluate.control else ()), "evaluate")


def _body(ctx: StageContext) -> dict[str, Any]:
    # Imported here: thumbnails and templates take a second to import, and a plan does not need them.
    from paraclip_core.report.page import render_report

    data = gather(ctx.settings, ctx.inputs)
    page = render_report(data).encode("utf-8", "replace")
    write_atomic(ctx.work.out / "report.html", lambda file: file.write(page))
    return {"bytes": len(page), "verdict": data.verdict, "thumbnails": len(data.thumbnails)}


REPORT = Stage(
    name="report",
    version=17,
    inputs=_stages,
    # The name affects only this page, so only this stage depends on it.
    options=lambda run: {"name": run.settings.name},
    body=_body,
    about="Write the page that shows a run.",
)

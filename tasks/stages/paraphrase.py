"""The two paraphrase stages: captions → paraphrase 1, paraphrase 1 → paraphrase 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from heapq import nsmallest
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from paraclip.storage.answers import AnswerStore
from paraclip.storage.artifacts import Artifact
from paraclip.storage.locks import lock
from paraclip.storage.parquet import PartWriter, iter_batches
from paraclip.storage.roots import open_answers
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.run.run import Missing, Run, Slot, Stage, StageContext, find_missing, input_path
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, EngineError, InputError, ParaclipError
from paraclip_core.options import meaning
from paraclip_core.paraphrase.engines import Engine, PaidEngine
from paraclip_core.paraphrase.facts import SAMPLE, Facts, facts_behind
from paraclip_core.paraphrase.filter_pool import FilterPool
from paraclip_core.paraphrase.filtering import FilterSpec
from paraclip_core.paraphrase.filters import extra_filters_source, filters_of
from paraclip_core.paraphrase.keys import in_fraction, step_requests
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.paraphrase.rounds import Rounds
from paraclip_core.paraphrase.selection import Selection
from paraclip_core.paraphrase.sending import Counts, RequestSender
from paraclip_core.paraphrase.step_tables import INPUT_COLUMNS, Batches, GenerationCache, StepTables, source_column
from paraclip_core.paths import expand
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import CAPTIONS, PARAPHRASE_REJECTS, PARAPHRASES, text_hash
from paraclip_core.text_safety import one_line

VERSION = 7
STEPS = {"paraphrase_1": 1, "paraphrase_2": 2}
"""The stages that request answers from a language model, with the number of their step."""
UPSTREAM = {1: "ingest", 2: "paraphrase_1"}
ABOUT = {
    1: "Ask an LLM for each training caption in plain language.",
    2: "Ask an LLM for each plain caption in other words.",
}
WAITING = "for another run that asks the same"
SHOWN = 20


def _paraphrase(step: int, ctx: StageContext) -> dict[str, Any]:
    # An earlier attempt that was killed may have left parts and half-written files. The tables are not worth keeping
    # or sending to an object store, as `ctx.work.scratch` would be: the cache has everything.
    scratch = ctx.work.out.parent / "tables"
    for folder in (ctx.work.out, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    paraphraser, upstream = ctx.run.paraphraser, ctx.inputs[UPSTREAM[step]]
    batches = step_batches(upstream.path, step, paraphraser.options.fraction)
    captions = upstream.fingerprint if step == 1 else upstream.manifest.inputs["ingest"]
    with paraphrasing(ctx.run, paraphraser, captions, scratch, ctx.progress, step, batches) as rounds:
        rounds.run()
        counts = rounds.counts
        counts.accepted = _write(rounds.selection, ctx.work.out)
        if counts.captions and not counts.accepted:
            raise _nothing(paraphraser, step, counts, ctx.work.out / "rejects")
        metrics = step_metrics(paraphraser, rounds)
    if step == 2 and (facts := _facts(paraphraser, ctx.work.out)) is not None:
        metrics["facts"] = asdict(facts)
    shutil.rmtree(scratch, ignore_errors=True)
    return metrics


def _facts(paraphraser: Paraphraser, out: Path) -> Facts | None:
    """The facts that both paraphrases of a sample of captions keep."""
    columns = "caption_id", "caption", "paraphrase_1", "paraphrase_2"
    rows = (row for batch in iter_batches(out / "paraphrases", columns) for row in batch.to_pylist())
    sample = nsmallest(SAMPLE, rows, key=itemgetter("caption_id"))
    return facts_behind(
        paraphraser.filters, [(row["caption"], row[f"paraphrase_{step}"]) for row in sample for step in (1, 2)]
    )


def step_metrics(paraphraser: Paraphraser, rounds: Rounds) -> dict[str, Any]:
    """What the rounds of a step did and who answered, for the manifest."""
    engine, about = rounds.engine, rounds.counts.metrics()
    about |= {"engine": engine.name, "model": engine.model}
    if engine.facts.asks:
        about["prompts"] = paraphraser.prompts[rounds.tables.step].id
    return about | spent(engine, rounds.counts)


def summed_metrics(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of two steps together: numbers added, names as in the first."""
    total = {**second, **first}
    for name in first.keys() & second.keys():
        if isinstance(first[name], Mapping):
            total[name] = summed_metrics(first[name], second[name])
        elif isinstance(first[name], int | float):
            total[name] = round(first[name] + second[name], 6)
    return total


def _write(selection: Selection, out: Path) -> int:
    """Write a step's rows and rejects, and return the number of captions with a row."""
    rows, rejects = PartWriter(out / "paraphrases", PARAPHRASES), PartWriter(out / "rejects", PARAPHRASE_REJECTS)
    captions, last = 0, None
    for batch in selection.rows():
        rows.write(batch)
        # Paraphrases of a caption are adjacent.
        ids = batch.column("caption_id")
        captions += len(ids.unique()) - (ids[0] == last)
        last = ids[-1]
    rows.close()
    for batch in selection.rejects():
        rejects.write(batch)
    rejects.close()
    return captions


@contextmanager
def paraphrasing(
    run: Run, paraphraser: Paraphraser, captions: str, scratch: Path, progress: Progress, step: int, batches: Batches
) -> Iterator[Rounds]:
    """Yield the rounds of a step over these rows, ready to run; engine, cache and processes are closed at the end.

    Concurrent runs that ask the same model about the same `captions` (the fingerprint of their ingest) would both pay
    for a missing request, so one of them waits.
    """
    engine = paraphraser.engine()
    request = step_requests(paraphraser.options, step, paraphraser.model)
    same_requests = run.store.cache / "asking" / f"{request.key(captions).hex()}.lock"
    with ExitStack() as stack:
        stack.enter_context(lock(same_requests, poll=partial(progress, 0, None, waiting=WAITING)))
        cache = stack.enter_context(closing(open_answers(run.store)))
        stack.enter_context(closing(engine))
        charge(engine, cache)
        opened = step_rounds(run, paraphraser, cache, scratch, step, batches, engine, progress=progress)
        rounds = stack.enter_context(opened)
        try:
            yield rounds
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise ArtifactError(
                f"the step's tables in {scratch} cannot be used: {one_line(error)}; run again"
            ) from error


@contextmanager
def step_rounds(
    run: Run,
    paraphraser: Paraphraser,
    cache: GenerationCache,
    scratch: Path,
    step: int,
    batches: Batches,
    engine: Engine | None = None,
    filtered: bool = True,
    progress: Progress = silent,
) -> Iterator[Rounds]:
    """Yield the rounds of a step over these rows; their tables, below `scratch`, and processes are closed at the end.

    Without an engine, they request nothing and report what is missing; `filtered`: filter answers without a filter
    result.
    """
    spec, folder = filter_spec(paraphraser, step), scratch / f"step-{step}"
    request = step_requests(paraphraser.options, step, paraphraser.model)
    with ExitStack() as stack:
        tables = stack.enter_context(closing(StepTables(step, cache, batches, spec.digest, folder)))
        pool = stack.enter_context(closing(FilterPool(spec, run.settings.run.threads))) if filtered else None
        sender = None if engine is None else RequestSender(engine, cache, paraphraser.options)
        yield Rounds(paraphraser.options, request, tables, sender, pool, progress)


def filter_spec(paraphraser: Paraphraser, step: int) -> FilterSpec:
    """What a process needs to filter a step's answers."""
    filters = paraphraser.filters
    if step == 1:
        # Only step 2 has it, and changing it must not invalidate step 1's filter results.
        filters = filters.model_copy(update={"min_caption_similarity": -1.0})
    return FilterSpec(filters, step)


def charge(engine: Engine, cache: AnswerStore) -> None:
    """Count earlier spending towards the cap, other machines' included, if there is a cap."""
    if isinstance(engine, PaidEngine) and engine.max_spend:
        engine.charge(*cache.paid_tokens(engine.name, engine.model))


def spent(engine: Engine, counts: Any) -> dict[str, float]:
    """Cost of these `prompt_tokens` and `completion_tokens`, under its name in manifests; empty without prices."""
    if not isinstance(engine, PaidEngine) or not engine.priced:
        return {}
    return {"spend": round(engine.cost(counts.prompt_tokens, counts.completion_tokens), 6)}


def step_batches(folder: Path, step: int, fraction: float) -> Batches:
    """Return a reader of a step's rows from the upstream folder: sampled training captions, or step 1's rows."""

    def training_rows(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        needed = dict.fromkeys((*columns, "split", *(("caption",) if fraction < 1 else ())))
        for batch in iter_batches(folder / "captions", list(needed)):
            trains = pc.call_function("equal", [batch.column("split"), pa.scalar("train")])
            # Most captions are; filtering copies all texts.
            rows = batch if trains.true_count == batch.num_rows else batch.filter(trains)
            if fraction < 1:
                chosen = [in_fraction(text, fraction) for text in rows.column("caption").to_pylist()]
                rows = rows.filter(pa.array(chosen, pa.bool_()))
            yield rows.select(list(columns))

    return training_rows if step == 1 else lambda columns: iter_batches(folder / "paraphrases", columns)


def held_batches(rows: Sequence[pa.RecordBatch]) -> Batches:
    """Return a reader of rows in memory."""
    return lambda columns: (batch.select(list(columns)) for batch in rows)


def rows_of_texts(texts: Sequence[str]) -> pa.RecordBatch:
    """Cleaned texts as rows of step 1, without images."""
    columns = {
        "caption_id": [text_hash(text) for text in texts],
        "image_id": [None] * len(texts),
        "caption": texts,
        "license": [""] * len(texts),
    }
    schema = pa.schema([CAPTIONS.field(name) for name in INPUT_COLUMNS[1]])
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def _nothing(paraphraser: Paraphraser, step: int, counts: Counts, rejects: Path) -> ParaclipError:
    """The error if nothing was accepted: training would have no rows, and images would be encoded for nothing."""
    most = sorted(counts.rejected.items(), key=lambda item: -item[1])[:3]
    reasons = ", ".join(f"{reason} {count}" for reason, count in most)
    none = f"for none of {counts.captions} texts ({reasons})"
    options = paraphraser.options
    if not paraphraser.facts.asks:
        return InputError(
            f"paraphrase.file.path: {options.file.path} has a usable paraphrase {step} {none}; "
            "expected data.sources' captions in its column `caption` and texts in the others, or several captions an "
            "image"
        )
    return EngineError(
        f"the engine {options.engine} gave an acceptable paraphrase {step} {none}; what it gave is in {rejects}. "
        "Choose another model or other prompts, or loosen paraphrase.filters (docs/filters.md); its answers are kept"
    )


def finished_samples(artifact: Artifact, step: int) -> list[dict[str, str]]:
    """A few rows and rejects of a finished stage; empty if its files are not here."""

    def first(part: str, *columns: str) -> list[tuple[str | None, ...]]:
        folder = artifact.path / part
        batch = next(iter_batches(folder, columns, batch_rows=SHOWN), None) if folder.is_dir() else None
        return [] if batch is None else list(zip(*(batch.column(name).to_pylist() for name in columns), strict=True))

    accepted = first("paraphrases", source_column(step), f"paraphrase_{step}")
    rows = [(text, answer, "kept") for text, answer in accepted] + first("rejects", "input", "answer", "reason")
    return [dict(zip(("input", "answer", "outcome"), (value or "" for value in row), strict=True)) for row in rows]


def step_options(paraphraser: Paraphraser, step: int) -> dict[str, Any]:
    """The options that decide the output of a step."""
    options = paraphraser.options
    decides: dict[str, Any] = {"engine": options.engine, "fraction": options.fraction if step == 1 else 1.0}
    decides |= paraphraser.facts.look_up
    if options.keep > 1 and step == 1:
        decides["keep"] = options.keep
    if paraphraser.facts.asks:
        prompt = paraphraser.prompts[step]
        decides |= {"model": paraphraser.model, "prompt": {"id": prompt.id, "hash": prompt.hash.hex()}}
        decides |= {"sampling": meaning(options.sampling), "attempts": options.attempts, "seed": options.seed}
    filters = meaning(paraphraser.filters)
    if step == 1:
        del filters["min_caption_similarity"]
    off = filters["preset"] == "off" and not options.filters.extra
    return decides | {"filters": {"preset": "off"} if off else filters}


def step_sources(run: Run, paraphraser: Paraphraser) -> dict[str, str]:
    """Hashes of the user's file, of custom filters' code, and of a local sentence encoder's files."""
    filters, hashes = paraphraser.filters, run.hashes
    sources = {f"filter {path}": text_hash(code.hex()).hex() for path, code in extra_filters_source(filters).items()}
    if filters_of(filters).meaning and filters.encoder and (folder := expand(filters.encoder)).is_dir():
        sources["encoder"] = hashes.of_folder(folder)
    if not paraphraser.facts.asks:
        # Raises an error if the options have no path.
        paraphraser.engine()
        path = input_path(run.settings, paraphraser.given.file.path)
        sources["paraphrases"] = hashes.of([path])[str(path)]
    return sources


def step_missing(run: Run, paraphraser: Paraphraser) -> list[Missing]:
    """The user's file, and a language model on this machine, if they are not there."""
    missing = list[Missing]()
    if not paraphraser.facts.asks and (path := paraphraser.given.file.path):
        expected = "paraphrases, or captions of the same images"
        missing += find_missing(run.settings, "paraphrase.file.path", path, expected)
    if (model := paraphraser.model_path) is not None and not model.exists():
        missing.append(Missing("paraphrase.model", str(model.absolute()), "the language model"))
    return missing


def engine_slot(paraphraser: Paraphraser) -> Slot:
    """Where the engine computes."""
    facts = paraphraser.facts
    if not facts.local:
        return "elsewhere"
    return ("every gpu" if facts.every_gpu else "gpu") if facts.on_device else "cpu"


def _stage(
    step: int, before: Callable[[Run], list[str]] | str, after: Callable[[Settings], tuple[str, ...]] = lambda _: ()
) -> Stage:
    return Stage(
        name=f"paraphrase_{step}",
        version=VERSION,
        inputs=lambda _: (UPSTREAM[step],),
        options=lambda run: step_options(run.paraphraser, step),
        sources=lambda run: step_sources(run, run.paraphraser),
        missing=lambda run: step_missing(run, run.paraphraser),
        body=partial(_paraphrase, step),
        before=before,
        after=after,
        about=ABOUT[step],
        pool="gpu",
        paraphraser=lambda run: run.paraphraser,
        slots=lambda run: engine_slot(run.paraphraser),
        samples=partial(finished_samples, step=step),
        units=("generated",),
    )


PARAPHRASE_1 = _stage(
    1,
    before="paraclip.tasks.preflight:check_before_paying",
    after=lambda settings: corpus_of(settings).checked_first,
)
"""Step 1: the caption in plain language."""

PARAPHRASE_2 = _stage(2, before=lambda run: [])  # step 1 has checked for both
"""Step 2: paraphrase 1 in other words."""

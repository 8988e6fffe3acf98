"""The two paraphrase stages: captions → paraphrase 1, paraphrase 1 → paraphrase 2."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.rows import reject_batch
from paraclip_core.config import meaning
from paraclip_core.errors import ArtifactError, EngineError, InputError, ParaclipError, one_line
from paraclip_core.paraphrase.conditions import conditions_of
from paraclip_core.paraphrase.engines import engine_facts
from paraclip_core.paraphrase.engines.base import MeasuredEngine, PaidEngine
from paraclip_core.paraphrase.engines.file import FileEngine
from paraclip_core.paraphrase.gates import extra_gates_source, gates_of
from paraclip_core.paraphrase.generate import Counts
from paraclip_core.paraphrase.judge import JudgePool, JudgeSpec
from paraclip_core.paraphrase.prompts import prompt_for, swaps_words
from paraclip_core.paraphrase.requests import Batches, StepTables, in_fraction, own_share, step_requests
from paraclip_core.paraphrase.rounds import Rounds, word_requests
from paraclip_core.paths import user_path
from paraclip_core.progress import Progress
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES, REJECTS, text_hash
from storage.artifacts import Artifact
from storage.cache_tools import paid_tokens
from storage.duckdb_file import environment_error
from storage.locks import lock
from storage.parquet import PartWriter, iter_batches
from storage.roots import open_generations
from tasks.stage import Stage, StageContext, input_path
from tasks.status import with_samples

if TYPE_CHECKING:
    from tasks.context import Run

__all__ = [
    "PARAPHRASE_1",
    "PARAPHRASE_2",
    "STEPS",
    "UPSTREAM",
    "finished_samples",
    "judge_spec",
    "paraphrasing",
    "step_batches",
]

VERSION = 5
STEPS = {"paraphrase_1": 1, "paraphrase_2": 2}
"""The stages that ask a language model, with the number of their step."""
UPSTREAM = {1: "ingest", 2: "paraphrase_1"}
ABOUT = {
    1: "Ask an LLM for each training caption in plain language.",
    2: "Ask an LLM for each plain caption in other words.",
}
FOLDER = {1: "captions", 2: "paraphrases"}
WAITING = "for another run that asks the same"
SHOWN = 20


def _body(step: int) -> Callable[[StageContext], dict[str, Any]]:
    def body(ctx: StageContext) -> dict[str, Any]:
        return _paraphrase(ctx, step)

    return body


def _paraphrase(ctx: StageContext, step: int) -> dict[str, Any]:
    # An earlier try that was killed may have left parts and half-written files. Nothing of the tables is worth keeping
    # or sending to an object store, as `ctx.work.scratch` would be: the cache has it all.
    scratch = ctx.work.out.parent / "tables"
    for folder in (ctx.work.out, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    options, upstream = ctx.run.paraphrase, ctx.inputs[UPSTREAM[step]]
    with paraphrasing(ctx.run, step, upstream, scratch, ctx.progress) as rounds:
        rounds.run()
        selection = rounds.select()
        rows = PartWriter(ctx.work.out / "paraphrases", PARAPHRASES)
        rejects = PartWriter(ctx.work.out / "rejects", PARAPHRASE_REJECTS)
        counts, engine, last = rounds.counts, rounds.engine, None
        counts.accepted = 0
        for kept, refused in selection.batches():
            rows.write(kept)
            rejects.write(refused)
            # Rewrites of a caption are neighbours.
            if len(ids := kept.column("caption_id")):
                counts.accepted += len(ids.unique()) - (ids[0] == last)
                last = ids[-1]
        rows.close()
        rejects.close()
        if counts.captions and not counts.accepted:
            raise _nothing(ctx.run, step, counts, ctx.work.out / "rejects")
        about: dict[str, Any] = {"engine": engine.name, "model": engine.model}
        about |= _left_out(ctx, engine) if step == 1 and isinstance(engine, FileEngine) else {}
        if engine.facts.asks:
            about["prompts"] = prompt_for(options, step).id
        if isinstance(engine, MeasuredEngine):
            about |= engine.metrics
        if isinstance(engine, PaidEngine) and engine.priced:
            about["spend"] = round(engine.cost(counts.prompt_tokens, counts.completion_tokens), 6)
    shutil.rmtree(scratch, ignore_errors=True)
    return counts.metrics() | about


@contextmanager
def paraphrasing(
    run: Run,
    step: int,
    upstream: Artifact,
    scratch: Path,
    progress: Progress,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Rounds]:
    """The rounds of a step, ready to run; engine, cache and processes are closed at the end.

    Runs that ask the same model about the same captions have other fingerprints where gates or attempts differ, and the
    same requests. Side by side each would find them missing and both would pay, so one of them waits.

    Args:
        run: the run.
        step: 1 or 2.
        upstream: what the step reads.
        scratch: folder for intermediate files.
        progress: told how far it is, with the latest answers as samples.
        share: number of a shard and of all shards, where this is one of several processes.

    Raises:
        ArtifactError: the disk is full or at fault, or there is too little memory for the step's tables.
    """
    options, engine, spec = run.paraphrase, run.engine(), judge_spec(run, step)
    batches = step_batches(upstream.path, step, options.fraction)
    if share[1] > 1:
        batches = own_share(batches, step, step_requests(options, step, engine.model), *share)
    with ExitStack() as stack:
        stack.enter_context(_generation_lock(run, step, upstream, progress, share))
        cache = stack.enter_context(closing(open_generations(run.store)))
        stack.enter_context(closing(engine))
        tables = stack.enter_context(
            closing(StepTables(step, cache, batches, spec.digest, scratch, by_image=engine.facts.by_image))
        )
        pool = stack.enter_context(closing(JudgePool(spec, run.judges, scratch)))
        if isinstance(engine, PaidEngine) and engine.max_spend:
            # What other machines have paid for may not be here yet.
            cache.refresh()
            engine.charge(*paid_tokens(cache.folder, engine.name, engine.model))
        rounds = Rounds(options, engine, cache, tables, pool, max_repeats=spec.max_repeats, with_words=bool(spec.words))
        rounds.progress = with_samples(progress, lambda: [one._asdict() for one in rounds.samples])
        try:
            yield rounds
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise environment_error(error, scratch) or ArtifactError(
                f"the step's tables in {scratch} cannot be used: {one_line(error)}; run again"
            ) from error


def step_batches(folder: Path, step: int, fraction: float) -> Batches:
    """Reads a step's rows from the upstream artifact's folder: training captions in the fraction, or step 1's rows."""
    if step == 2:
        return lambda columns: iter_batches(folder / FOLDER[2], columns)
    return lambda columns: _training_rows(iter_batches(folder / FOLDER[1], _with(columns, fraction)), columns, fraction)


def _with(columns: Sequence[str], fraction: float) -> list[str]:
    return list(dict.fromkeys((*columns, "split", *(("caption",) if fraction < 1 else ()))))


def _training_rows(
    batches: Iterable[pa.RecordBatch], columns: Sequence[str], fraction: float
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        trains = pc.call_function("equal", [batch.column("split"), pa.scalar("train")])
        # Most captions are; filtering copies all texts.
        rows = batch if trains.true_count == batch.num_rows else batch.filter(trains)
        if fraction < 1:
            chosen = [in_fraction(text, fraction) for text in rows.column("caption").to_pylist()]
            rows = rows.filter(pa.array(chosen, pa.bool_()))
        yield rows.select(list(columns))


def judge_spec(run: Run, step: int) -> JudgeSpec:
    """What a process needs to judge a step's answers."""
    prompt, gates = prompt_for(run.paraphrase, step), run.gates
    if step == 1:
        # Only step 2 has it, and changing it must not make step 1's verdicts new.
        gates = gates.model_copy(update={"min_caption_similarity": -1.0})
    words = ""
    if _asks_words(run, step):
        request = word_requests(run.paraphrase, run.model)
        words = f"{request.model} {request.seed} {request.prompt_hash.hex()}"
    return JudgeSpec(gates, step, prompt.examples, run.settings.data.context_length, words)


def _asks_words(run: Run, step: int) -> bool:
    """Whether other words for single words are asked for: a capable model needs none, and they would be paid for."""
    small = run.engine_facts.asks and run.gates.preset == "small-model"
    return small and swaps_words(run.paraphrase, prompt_for(run.paraphrase, step))


def _generation_lock(run: Run, step: int, upstream: Artifact, progress: Progress, share: tuple[int, int]) -> Any:
    """Held by one of the runs that ask the same, on machines that share a cache folder."""
    captions = upstream.fingerprint if step == 1 else upstream.manifest.inputs["ingest"]
    part = "all" if share[1] == 1 else f"{share[0]} of {share[1]}"
    name = step_requests(run.paraphrase, step, run.model).key(f"{captions} {part}").hex()
    return lock(run.store.cache / "asking" / f"{name}.lock", poll=partial(progress, 0, None, waiting=WAITING))


def _left_out(ctx: StageContext, engine: FileEngine) -> dict[str, Any]:
    """Write the rows of the user's file that cannot be used; their number by reason, for the manifest."""
    rejects = engine.rejects()
    if not rejects:
        return {}
    counts = dict(sorted(Counter(reject.reason for reject in rejects).items()))
    writer = PartWriter(ctx.work.out / "file_rejects", REJECTS)
    writer.write(reject_batch(rejects, Path(ctx.settings.paraphrase.file.path).name))
    writer.close()
    return {"file_rejected": counts}


def _nothing(run: Run, step: int, counts: Counts, rejects: Path) -> ParaclipError:
    """What to say where nothing was accepted: training has no rows then, and images would be encoded for nothing."""
    most = sorted(counts.rejected.items(), key=lambda item: -item[1])[:3]
    reasons = ", ".join(f"{reason} {count}" for reason, count in most)
    none = f"for none of {counts.captions} texts ({reasons})"
    options = run.paraphrase
    if not run.engine_facts.asks and not options.file.path:
        return InputError(
            f"paraphrase.engine={options.engine} has a paraphrase {step} {none}; images need several captions, or "
            "near-duplicates (paraphrase.mined.across)"
        )
    if not run.engine_facts.asks:
        return InputError(
            f"paraphrase.file.path: {options.file.path} has a usable paraphrase {step} {none}; "
            f"expected data.sources' captions in its column {options.file.caption!r}, texts in the others"
        )
    return EngineError(
        f"the engine {options.engine} gave an acceptable paraphrase {step} {none}; what it gave is in {rejects}. "
        "Take another model or other prompts, or loosen paraphrase.gates (docs/gates.md); its answers are kept"
    )


def _options(step: int) -> Callable[[Run], Mapping[str, Any]]:
    def options(run: Run) -> Mapping[str, Any]:
        chosen, gates = run.paraphrase, meaning(run.gates)
        if step == 1:
            del gates["min_caption_similarity"]
        if gates["preset"] == "off" and not chosen.gates.extra:
            gates = {"preset": "off"}
        common = {
            "engine": chosen.engine,
            "fraction": chosen.fraction if step == 1 else 1.0,
            "gates": gates,
            "context_length": run.settings.data.context_length,
            **({"keep": chosen.keep} if chosen.keep > 1 and step == 1 else {}),
        }
        return common | (_asking(run, step) if run.engine_facts.asks else dict(run.engine_facts.look_up))

    return options


def _asking(run: Run, step: int) -> dict[str, Any]:
    """The options of an engine that is asked for more than a look into a file."""
    chosen = run.paraphrase
    prompt = prompt_for(chosen, step)
    conditions = [condition.text for condition in conditions_of(chosen)]
    return ({"regenerate": conditions} if conditions else {}) | {
        "model": run.model,
        "prompt": {"id": prompt.id, "hash": prompt.hash.hex()},
        "synonyms": _asks_words(run, step),
        "sampling": meaning(chosen.sampling),
        "attempts": chosen.attempts,
        "seed": chosen.seed,
    }


def _sources(run: Run) -> Mapping[str, str]:
    chosen = run.settings.paraphrase
    gates = _gate_sources(run)
    if run.engine_facts.asks or run.engine_facts.by_image:
        return gates
    run.engine()
    path = input_path(run.settings, chosen.file.path)
    columns = f"{chosen.file.caption}|{chosen.file.paraphrase_1}|{chosen.file.paraphrase_2}"
    return gates | {"paraphrases": f"{run.hashes.of([path])[str(path)]}|{columns}"}


def _gate_sources(run: Run) -> dict[str, str]:
    """The code of the user's own gates, and the files of a sentence encoder or NLI model that lies in a folder."""
    sources = {f"gate {path}": text_hash(code.hex()).hex() for path, code in extra_gates_source(run.gates).items()}
    models = {"encoder": run.gates.encoder if gates_of(run.gates).meaning else "", "nli": run.gates.nli}
    folders = {name: user_path(model) for name, model in models.items() if model and user_path(model).is_dir()}
    return sources | {name: run.hashes.of_folder(folder) for name, folder in folders.items()}


def _stage(step: int) -> Stage:
    return Stage(
        name=f"paraphrase_{step}",
        version=VERSION,
        inputs=lambda settings: tuple(dict.fromkeys((UPSTREAM[step], *engine_facts(settings.paraphrase).inputs))),
        options=_options(step),
        sources=_sources,
        body=_body(step),
        about=ABOUT[step],
        pool="gpu",
        units=("generated",),
    )


PARAPHRASE_1 = _stage(1)
"""Step 1: the caption in plain language."""

PARAPHRASE_2 = _stage(2)
"""Step 2: paraphrase 1 in other words."""


def finished_samples(artifact: Artifact, step: int) -> list[dict[str, str]]:
    """A few rows and rejects of a finished stage; nothing where its files are not here.

    Raises:
        ArtifactError: they cannot be read.
    """
    text = "caption" if step == 1 else "paraphrase_1"
    kept = _first_rows(artifact.path / "paraphrases", (text, f"paraphrase_{step}"))
    refused = _first_rows(artifact.path / "rejects", ("input", "answer", "reason"))
    rows = [{"input": row[text], "answer": row[f"paraphrase_{step}"], "outcome": "kept"} for row in kept]
    return rows + [
        {"input": row["input"], "answer": row["answer"] or "", "outcome": row["reason"] or ""} for row in refused
    ]


def _first_rows(folder: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not folder.is_dir():
        return []
    batch = next(iter_batches(folder, columns, batch_rows=SHOWN), None)
    return [] if batch is None else batch.to_pylist()

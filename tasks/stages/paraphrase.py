"""The two paraphrase stages: captions → paraphrase 1, paraphrase 1 → paraphrase 2."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.rejects import reject_batch
from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import ParaphraseOptions, Settings, meaning
from paraclip_core.errors import EngineError, InputError, ParaclipError
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.conditions import conditions_of
from paraclip_core.paraphrase.counts import Counts
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.engines.file import LOOK_UP, FileEngine
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.intake import count_wanted
from paraclip_core.paraphrase.judged import Judgements, code_digest
from paraclip_core.paraphrase.prompts import prompt_for, swaps_words
from paraclip_core.paraphrase.protocol import Engine, GenerationCache, PaidEngine
from paraclip_core.paraphrase.relevant import relevant
from paraclip_core.paraphrase.similarity import SentenceEncoder
from paraclip_core.progress import Progress
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES, REJECTS
from storage.fingerprint import FileHashes, fingerprint
from storage.judged import JudgedStore
from storage.parquet import PartWriter, count_rows, iter_batches
from storage.roots import open_generations
from storage.spending import paid_tokens
from tasks.asking import one_asking
from tasks.models import model_hashes
from tasks.samples import keeping_samples, samples_path
from tasks.stage import Stage, StageContext, input_path, software_versions

if TYPE_CHECKING:
    from storage.generations import GenerationStore

__all__ = [
    "PARAPHRASE_1",
    "PARAPHRASE_2",
    "UPSTREAM",
    "count_spending",
    "count_step_rows",
    "known_judgements",
    "make_chooser",
    "make_paraphraser",
    "step_fraction",
    "step_rows",
]

VERSION = 4
UPSTREAM = {1: "ingest", 2: "paraphrase_1"}
FOLDER = {1: "captions", 2: "paraphrases"}


def make_chooser(
    settings: Settings, step: int, tokeniser: Tokeniser, encoder: SentenceEncoder | None = None
) -> Chooser:
    """The gates of a step as the settings want them."""
    whole = Tokeniser(context_length=4096)
    options = relevant(settings.paraphrase)
    return Chooser(
        options.chosen_gates(),
        step,
        encoder=encoder or SentenceEncoder(),
        examples=prompt_for(options, step).examples,
        pieces=lambda text: len(whole.encode(text)) - 2,
        context_length=tokeniser.context_length,
    )


def step_rows(folder: Path, step: int) -> Iterator[pa.RecordBatch]:
    """The rows that a step reads, from the upstream artifact's folder: training captions, or step 1's output."""
    columns = INPUT_COLUMNS[step]
    if step == 2:
        yield from iter_batches(folder / FOLDER[2], columns)
        return
    for batch in iter_batches(folder / FOLDER[1], (*columns, "split")):
        yield batch.filter(_is_train(batch)).select(list(columns))


def _is_train(batch: pa.RecordBatch) -> pa.BooleanArray:
    return pc.equal(batch.column("split"), "train")  # pyright: ignore[reportAttributeAccessIssue]


def count_step_rows(folder: Path, step: int, fraction: float) -> int:
    """How many rows a step will look at, from as few columns as that takes."""
    if step == 2:
        return count_rows(folder / FOLDER[2])
    if fraction < 1:
        return count_wanted(step_rows(folder, step), fraction)
    return sum(_is_train(batch).true_count for batch in iter_batches(folder / FOLDER[1], ("split",)))


def step_fraction(options: ParaphraseOptions, step: int) -> float:
    """The share of a step's rows that it looks at; step 1 took the fraction, and step 2 reads what is left."""
    return options.fraction if step == 1 else 1.0


def make_paraphraser(
    settings: Settings,
    step: int,
    engine: Engine,
    cache: GenerationCache,
    progress: Progress,
    total: int | None,
    samples: Path,
    judged: Judgements | None = None,
) -> Paraphraser:
    """A step as the settings want it, over `total` rows; `samples` is the file that shows its latest answers."""
    options = relevant(settings.paraphrase)
    tokeniser = Tokeniser(settings.data.context_length)
    made = Paraphraser(
        step,
        options.model_copy(update={"fraction": step_fraction(options, step)}),
        engine,
        cache,
        make_chooser(settings, step, tokeniser),
        tokeniser.encode_batch,
        progress=keeping_samples(progress, lambda: made.samples.rows, samples),
        total=total,
        judged=judged,
    )
    return made


def count_spending(options: ParaphraseOptions, engine: Engine, cache: GenerationStore) -> None:
    """Count what the cache's answers of this engine and model cost towards the spending cap, where there is one."""
    if options.engine == "openai" and options.openai.max_spend and isinstance(engine, PaidEngine):
        # What other machines have paid for may not be here yet.
        cache.refresh()
        engine.charge(*paid_tokens(cache.folder, engine.name, engine.model))


def known_judgements(settings: Settings, step: int, engine: Engine, blocks: JudgedStore) -> Judgements:
    """What earlier passes with the same meaning judged: those of this stage version and code, over this software."""
    versions = software_versions() | {"model": engine.model, "code": code_digest()}
    return Judgements(blocks, fingerprint(f"paraphrase_{step}", VERSION, _options(step)(settings), versions))


def _body(step: int) -> Callable[[StageContext], dict[str, Any]]:
    def body(ctx: StageContext) -> dict[str, Any]:
        return _paraphrase(ctx, step)

    return body


def _paraphrase(ctx: StageContext, step: int) -> dict[str, Any]:
    options = relevant(ctx.settings.paraphrase)
    upstream = ctx.inputs[UPSTREAM[step]]
    engine = make_engine(options, ctx.settings.data.root, ctx.settings.run.device, model_hashes(ctx.settings))
    with one_asking(ctx.store, options, step, engine.model, upstream, ctx.progress):
        return _asked(ctx, step, options, upstream.path, engine)


def _asked(ctx: StageContext, step: int, options: ParaphraseOptions, upstream: Path, engine: Engine) -> dict[str, Any]:
    # An earlier try that was killed may have left parts and half-written files.
    shutil.rmtree(ctx.work.out, ignore_errors=True)
    rows = PartWriter(ctx.work.out / "paraphrases", PARAPHRASES)
    rejects = PartWriter(ctx.work.out / "rejects", PARAPHRASE_REJECTS)
    cache = open_generations(ctx.store)
    count_spending(options, engine, cache)
    share = step_fraction(options, step)
    total = count_step_rows(upstream, step, share)
    samples = samples_path(ctx.store, f"paraphrase_{step}", ctx.work.out.parent.name)
    blocks = JudgedStore(cache)
    judged = known_judgements(ctx.settings, step, engine, blocks)
    paraphraser = make_paraphraser(ctx.settings, step, engine, cache, ctx.progress, total, samples, judged)
    try:
        for kept, refused in paraphraser.run(step_rows(upstream, step)):
            rows.write(kept)
            rejects.write(refused)
        rows.close()
        rejects.close()
        left_out = _left_out(ctx, engine) if step == 1 and isinstance(engine, FileEngine) else {}
    finally:
        blocks.close()
        engine.close()
        cache.close()
    about: dict[str, Any] = {"engine": engine.name, "model": engine.model}
    # A file is asked nothing.
    about |= left_out if options.engine == "file" else {"prompts": paraphraser.prompt.id}
    counts = paraphraser.counts
    if counts.captions and not counts.accepted:
        raise _nothing(options, step, counts, ctx.work.out / "rejects")
    if options.engine == "openai" and options.openai.priced:
        about["spend"] = round(options.openai.cost(counts.prompt_tokens, counts.completion_tokens), 6)
    return counts.metrics() | about


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


def _nothing(options: ParaphraseOptions, step: int, counts: Counts, rejects: Path) -> ParaclipError:
    """What to say where nothing was accepted: training has no rows then, and images would be encoded for nothing."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.rejected.most_common(3))
    none = f"for none of {counts.captions} texts ({reasons})"
    if options.engine == "file":
        return InputError(
            f"paraphrase.file.path: {options.file.path} has a usable paraphrase {step} {none}; "
            f"expected data.sources' captions in its column {options.file.caption!r}, texts in the others"
        )
    return EngineError(
        f"the engine {options.engine} gave an acceptable paraphrase {step} {none}; what it gave is in {rejects}. "
        "Take another model or other prompts, or loosen paraphrase.gates (docs/gates.md); its answers are kept"
    )


def _options(step: int) -> Callable[[Settings], Mapping[str, Any]]:
    def options(settings: Settings) -> Mapping[str, Any]:
        chosen = relevant(settings.paraphrase)
        gates = meaning(chosen.chosen_gates())
        if step == 1:
            del gates["min_caption_similarity"]
        if gates["preset"] == "paper":
            gates = {"preset": "paper"}
        common = {
            "engine": chosen.engine,
            "fraction": step_fraction(chosen, step),
            "gates": gates,
            "context_length": settings.data.context_length,
        }
        return common | ({"look_up": LOOK_UP} if chosen.engine == "file" else _asking(chosen, step, settings))

    return options


def _asking(chosen: ParaphraseOptions, step: int, settings: Settings) -> dict[str, Any]:
    """The options of an engine that is asked for more than a look into a file."""
    prompt = prompt_for(chosen, step)
    conditions = [condition.text for condition in conditions_of(chosen.regenerate)]
    # Without conditions the fingerprint is the one that artifacts had before there were any.
    again = {"regenerate": conditions} if conditions else {}
    return again | {
        "model": make_engine(chosen, settings.data.root, hash_files=model_hashes(settings)).model,
        "prompt": {"id": prompt.id, "hash": prompt.hash.hex()},
        "synonyms": swaps_words(chosen, prompt),
        "sampling": meaning(chosen.sampling),
        "attempts": chosen.attempts,
        "seed": chosen.seed,
    }


def _sources(settings: Settings, hashes: FileHashes) -> Mapping[str, str]:
    chosen = settings.paraphrase
    if chosen.engine != "file":
        return {}
    make_engine(chosen, settings.data.root)
    path = input_path(settings, chosen.file.path)
    columns = f"{chosen.file.caption}|{chosen.file.paraphrase_1}|{chosen.file.paraphrase_2}"
    return {"paraphrases": f"{hashes.of([path])[str(path)]}|{columns}"}


def _stage(step: int) -> Stage:
    return Stage(
        name=f"paraphrase_{step}",
        version=VERSION,
        inputs=lambda settings: (UPSTREAM[step],),
        options=_options(step),
        sources=_sources,
        body=_body(step),
    )


PARAPHRASE_1 = _stage(1)
"""Step 1: the caption in plain language."""

PARAPHRASE_2 = _stage(2)
"""Step 2: paraphrase 1 in other words."""

"""The two paraphrase stages: captions → paraphrase 1, paraphrase 1 → paraphrase 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import Settings, meaning
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.generate import INPUT_COLUMNS, Paraphraser, count_wanted
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.similarity import SentenceEncoder
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES
from storage.fingerprint import FileHashes
from storage.generations import GenerationStore
from storage.parquet import PartWriter, iter_batches
from tasks.stage import Stage, StageContext, input_path

__all__ = ["PARAPHRASE_1", "PARAPHRASE_2", "make_chooser", "step_rows"]

UPSTREAM = {1: "ingest", 2: "paraphrase_1"}
FOLDER = {1: "captions", 2: "paraphrases"}


def make_chooser(
    settings: Settings, step: int, tokeniser: Tokeniser, encoder: SentenceEncoder | None = None
) -> Chooser:
    """The gates of a step as the settings want them."""
    whole = Tokeniser(context_length=4096)
    return Chooser(
        settings.paraphrase.chosen_gates(),
        step,
        encoder=encoder or SentenceEncoder(),
        examples=prompt_for(settings.paraphrase, step).examples,
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
        wanted = pa.array([split == "train" for split in batch.column("split").to_pylist()], pa.bool_())
        yield batch.filter(wanted).select(list(columns))


def _body(step: int) -> Callable[[StageContext], dict[str, Any]]:
    def body(ctx: StageContext) -> dict[str, Any]:
        return _paraphrase(ctx, step)

    return body


def _paraphrase(ctx: StageContext, step: int) -> dict[str, Any]:
    options = ctx.settings.paraphrase
    upstream = ctx.inputs[UPSTREAM[step]].path
    tokeniser = Tokeniser(ctx.settings.data.context_length)
    engine = make_engine(options, ctx.settings.data.root, ctx.settings.run.device)
    # An earlier try that was killed may have left parts and half-written files.
    shutil.rmtree(ctx.work.out, ignore_errors=True)
    rows = PartWriter(ctx.work.out / "paraphrases", PARAPHRASES)
    rejects = PartWriter(ctx.work.out / "rejects", PARAPHRASE_REJECTS)
    cache = GenerationStore(ctx.store.cache)
    # The fraction was taken at step 1.
    share = options.fraction if step == 1 else 1.0
    total = count_wanted(step_rows(upstream, step), share)
    step_options = options.model_copy(update={"fraction": share})
    paraphraser = Paraphraser(
        step,
        step_options,
        engine,
        cache,
        make_chooser(ctx.settings, step, tokeniser),
        tokeniser.encode_batch,
        progress=ctx.progress,
        total=total,
    )
    try:
        for kept, refused in paraphraser.run(step_rows(upstream, step)):
            rows.write(kept)
            rejects.write(refused)
        rows.close()
        rejects.close()
    finally:
        engine.close()
        cache.close()
    about = {"engine": engine.name, "model": engine.model, "prompts": paraphraser.prompt.id}
    return paraphraser.counts.metrics() | about


def _options(step: int) -> Callable[[Settings], Mapping[str, Any]]:
    def options(settings: Settings) -> Mapping[str, Any]:
        chosen = settings.paraphrase
        prompt = prompt_for(chosen, step)
        gates = meaning(chosen.chosen_gates())
        if step == 1:
            del gates["min_caption_similarity"]
        if gates["preset"] == "paper":
            gates = {"preset": "paper"}
        return {
            "engine": chosen.engine,
            "model": "file" if chosen.engine == "file" else make_engine(chosen, settings.data.root).model,
            "prompt": {"id": prompt.id, "hash": prompt.hash.hex()},
            "synonyms": chosen.synonyms and prompt.id.startswith("few-shot"),
            "fraction": chosen.fraction if step == 1 else 1.0,
            "sampling": meaning(chosen.sampling),
            "gates": gates,
            "attempts": chosen.attempts,
            "seed": chosen.seed,
            "context_length": settings.data.context_length,
        }

    return options


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
        version=1,
        inputs=lambda settings: (UPSTREAM[step],),
        options=_options(step),
        sources=_sources,
        body=_body(step),
    )


PARAPHRASE_1 = _stage(1)
"""Step 1: the caption in plain language."""

PARAPHRASE_2 = _stage(2)
"""Step 2: paraphrase 1 in other words."""

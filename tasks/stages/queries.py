"""Stage ``queries``: held-out captions in other words, by the same two steps, for the benchmark `held_out_queries`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.storage.parquet import parquet_files, read_table, write_table
from paraclip.tasks.corpus import corpus_of
from paraclip.tasks.run.run import Run, Stage, StageContext
from paraclip.tasks.stages.paraphrase import (
    SHOWN,
    STEPS,
    VERSION,
    engine_slot,
    held_batches,
    paraphrasing,
    step_metrics,
    step_missing,
    step_options,
    step_sources,
    summed_metrics,
)
from paraclip_core import tables
from paraclip_core.config import Settings
from paraclip_core.paraphrase.held_out import MOST_IMAGES
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.paraphrase.rounds import both_steps

NAME = "queries"
ASKING = (*STEPS, NAME)
"""The stages that request answers from a language model."""
FILE = "queries.parquet"
RENAMED = {"paraphrase_2": "paraphrased_query", "similarity_2": "similarity"}
"""Columns of `tables.PARAPHRASES` that `tables.QUERIES` names as benchmarks do."""


def chosen_captions(folder: Path, settings: Settings) -> pa.RecordBatch:
    """The held-out captions, or queries of a log, that are paraphrased, of those that ingest wrote to a folder."""
    parts = [str(path) for path in parquet_files(folder / "captions")]
    return corpus_of(settings).choose(parts, settings.evaluate.split)


def _with_counts(queries: pa.Table, chosen: pa.RecordBatch) -> pa.Table:
    """Paraphrased queries with what is counted of the chosen ones; of a log, schema `tables.LOG_QUERIES`."""
    row_of = {name: row for row, name in enumerate(chosen["caption_id"].to_pylist())}
    rows = pa.array([row_of[name] for name in queries["caption_id"].to_pylist()], pa.int64())
    counted = [name for name in ("count", "frequency") if name in chosen.schema.names]
    for name in counted:
        queries = queries.append_column(tables.LOG_QUERIES.field(name), chosen[name].take(rows))
    return queries


def query_paraphraser(run: Run) -> Paraphraser:
    """The engine of the queries, of a run that has this stage."""
    assert run.query_paraphraser is not None
    return run.query_paraphraser


def _body(ctx: StageContext) -> dict[str, Any]:
    # An earlier attempt that was killed may have left half-written files; the cache has every answer.
    scratch, out = ctx.work.out.parent / "tables", ctx.work.out
    for folder in (out, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    paraphraser, ingested = query_paraphraser(ctx.run), ctx.inputs["ingest"]
    chosen = chosen_captions(ingested.path, ctx.settings)
    rounds_of = partial(paraphrasing, ctx.run, paraphraser, ingested.fingerprint, scratch, ctx.progress)
    # None is no error: nothing is trained on them, and the evaluation says why it has no such benchmark.
    rows, rejects, metrics = list[pa.RecordBatch](), list[pa.RecordBatch](), dict[str, Any]()
    for rounds in both_steps(rounds_of, held_batches([chosen])):
        rejects += rounds.selection.rejects()
        rows = list(rounds.selection.rows()) if rounds.tables.step == 2 else []
        metrics = summed_metrics(metrics, step_metrics(paraphraser, rounds))
    shutil.rmtree(scratch, ignore_errors=True)
    paraphrased = pa.Table.from_batches(rows, tables.PARAPHRASES)
    queries = paraphrased.rename_columns([RENAMED.get(name, name) for name in tables.PARAPHRASES.names])
    written = queries.select(tables.QUERIES.names).cast(tables.QUERIES)
    write_table(out / FILE, _with_counts(written, chosen))
    write_table(out / "rejects" / "part-00000.parquet", pa.Table.from_batches(rejects, tables.PARAPHRASE_REJECTS))
    return metrics | {"captions": chosen.num_rows, "accepted": queries.num_rows, "kept": queries.num_rows}


def _options(run: Run) -> Mapping[str, Any]:
    paraphraser = query_paraphraser(run)
    first, second = (step_options(paraphraser, step) for step in STEPS.values())
    # Step 2 has a prompt of its own, and its filters have one threshold more.
    steps = {"prompt_2": second["prompt"]} if "prompt" in second else {}
    return first | steps | {"filters": second["filters"], "split": run.settings.evaluate.split, "images": MOST_IMAGES}


def _samples(artifact: Artifact) -> list[dict[str, str]]:
    """A few queries and rejects of the finished stage; empty if its files are not here."""
    if not (artifact.path / FILE).is_file():
        return []
    rows = read_table(artifact.path / FILE, ["caption", "paraphrased_query"]).slice(0, SHOWN).to_pylist()
    rejected = read_table(artifact.path / "rejects", ["input", "answer", "reason"]).slice(0, SHOWN).to_pylist()
    kept = [{"input": row["caption"], "answer": row["paraphrased_query"], "outcome": "kept"} for row in rows]
    return kept + [{"input": row["input"], "answer": row["answer"] or "", "outcome": row["reason"]} for row in rejected]


QUERIES = Stage(
    name=NAME,
    version=VERSION,
    inputs=lambda _: ("ingest",),
    # Which checks the captions and, at the same server, counts towards the same spending cap.
    after=lambda _: ("paraphrase_2",),
    options=_options,
    sources=lambda run: step_sources(run, query_paraphraser(run)),
    missing=lambda run: step_missing(run, query_paraphraser(run)),
    before="paraclip.tasks.preflight:check_before_queries",
    applies=lambda settings: settings.evaluate.queries is not None,
    body=_body,
    about="Ask an LLM for held-out captions in other words, to evaluate with.",
    pool="gpu",
    paraphraser=query_paraphraser,
    slots=lambda run: engine_slot(query_paraphraser(run)),
    samples=_samples,
    units=("generated",),
)

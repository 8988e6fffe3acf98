"""Shares of a step's rows that different processes may ask for at the same time.

A row belongs to a shard by the key of its first request, so one text is asked for by one shard only, and the same one
however many captions say it. A shard only fills the cache: what comes out of a step is made from the cache afterwards,
by one process that sees all rows in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from paraclip_core.config import GateOptions, ParaphraseOptions
from paraclip_core.paraphrase.intake import in_fraction
from paraclip_core.paraphrase.keys import KEY_BYTES, RequestKeys, sampling_json
from paraclip_core.paraphrase.prompts import prompt_for, swaps_words
from paraclip_core.paraphrase.protocol import GenerationCache

__all__ = ["asking_only", "count_missing", "first_requests", "own_rows", "unsharded_because"]

COLUMN = {1: "caption", 2: "paraphrase_1"}
"""Column with the text that each step asks for."""


def unsharded_because(options: ParaphraseOptions, one_machine: bool) -> str | None:
    """Why requests with these options are better asked for by one process; None where they are not."""
    if options.engine == "file":
        return "a file is read faster by one process"
    if options.engine == "vllm" and one_machine:
        return "the vllm engine has a process for each group of this machine's GPUs already"
    limits = options.openai
    if options.engine == "openai" and (limits.max_spend or limits.requests_per_minute or limits.tokens_per_minute):
        return "the spending cap and the limits per minute hold for one process"
    return None


def first_requests(options: ParaphraseOptions, step: int, model: str) -> RequestKeys:
    """The keys of a step's first attempt."""
    prompt = prompt_for(options, step)
    return RequestKeys(step, model, prompt.id, prompt.hash, sampling_json(options.sampling), options.seed, 0)


def asking_only(options: ParaphraseOptions, step: int) -> ParaphraseOptions:
    """The options with which a shard asks for what the step will ask for, or for the part that takes long.

    Nothing is judged where no verdict leads to another request. A paid server is asked for first attempts only: shards
    may need the same word's synonyms, and would pay for them once each.
    """
    changed = options.model_copy(update={"fraction": 1.0})
    with_words = swaps_words(options, prompt_for(options, step))
    if options.engine == "openai" and with_words:
        changed = changed.model_copy(update={"synonyms": False, "attempts": 1, "regenerate": ()})
        with_words = False
    if with_words or changed.attempts > 1 or changed.regenerate:
        return changed
    return changed.model_copy(update={"gates": GateOptions(preset="paper")})


def own_rows(
    batches: Iterable[pa.RecordBatch], step: int, fraction: float, first: RequestKeys, shard: int, shards: int
) -> Iterator[pa.RecordBatch]:
    """The rows of one shard, in order.

    Args:
        batches: the rows that the step reads.
        step: 1 or 2.
        fraction: share of the captions that is paraphrased.
        first: the keys of the step's first attempt.
        shard: number of the shard, from 0.
        shards: number of shards.
    """
    for batch in batches:
        if fraction < 1:
            wanted = [in_fraction(text, fraction) for text in batch.column("caption").to_pylist()]
            batch = batch.filter(pa.array(wanted, pa.bool_()))
        if batch.num_rows:
            yield batch.filter(pa.array(_numbers(first.keys(_texts(batch, step))) % shards == shard))


def count_missing(
    batches: Iterable[pa.RecordBatch],
    step: int,
    fraction: float,
    first: RequestKeys,
    cache: GenerationCache,
    enough: int,
) -> int:
    """Different requests of a first attempt that the cache does not know, counted up to about `enough` of them.

    A text that comes again in another batch is counted again.
    """
    missing = 0
    for batch in batches:
        texts = [text for text in dict.fromkeys(_texts(batch, step)) if step == 2 or in_fraction(text, fraction)]
        missing += len(texts) - cache.lookup(first.keys(texts)).num_rows
        if missing >= enough:
            break
    return missing


def _texts(batch: pa.RecordBatch, step: int) -> list[str]:
    return batch.column(COLUMN[step]).to_pylist()


def _numbers(keys: pa.FixedSizeBinaryArray) -> np.ndarray:
    """uint64, one for each key."""
    return np.frombuffer(keys.buffers()[1], dtype="<u8")[:: KEY_BYTES // 8]

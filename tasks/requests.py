"""Requests to the language model that a run would make, and their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import Settings
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.estimate import MissingRequests, missing_requests
from paraclip_core.paraphrase.generate import INPUT_COLUMNS
from paraclip_core.paraphrase.similarity import SentenceEncoder
from storage.artifacts import Artifact, ArtifactStore
from storage.generations import GenerationStore
from tasks.stages.ingest import scan
from tasks.stages.paraphrase import make_chooser, step_rows

__all__ = ["count_requests"]


def count_requests(settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact]) -> MissingRequests:
    """Count what the generation cache does not know yet; nothing is asked.

    Where step 1 has to be made again from known answers, those are judged again, which takes a while for many.

    Args:
        settings: the run's settings.
        store: the store, whose cache is looked into.
        found: the run's finished artifacts.

    Raises:
        InputError: a source file is missing or bad as a whole.
        ArtifactError: the scenes, from which the captions come, are not rendered yet.
    """
    options, encoder = settings.paraphrase, SentenceEncoder()
    tokeniser = Tokeniser(settings.data.context_length)
    engine = make_engine(options, settings.data.root)
    cache = GenerationStore(store.cache)
    step_1 = found.get("paraphrase_1")
    try:
        return missing_requests(
            step_rows(found["ingest"].path, 1) if "ingest" in found else _scanned(settings, store),
            options,
            engine,
            cache,
            lambda step: make_chooser(settings, step, tokeniser, encoder),
            tokeniser.encode_batch,
            step_1_rows=None if step_1 is None else step_rows(step_1.path, 2),
        )
    finally:
        cache.close()
        engine.close()


def _scanned(settings: Settings, store: ArtifactStore) -> Iterator[pa.RecordBatch]:
    for batch in scan(settings, store):
        train = pc.equal(batch.column("split"), "train")  # pyright: ignore[reportAttributeAccessIssue]
        yield batch.filter(train).select(list(INPUT_COLUMNS[1]))

"""Requests to the language model that a run would make, and their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import Settings
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.estimate import MissingRequests, missing_requests
from paraclip_core.paraphrase.intake import count_wanted
from paraclip_core.paraphrase.relevant import relevant
from paraclip_core.paraphrase.similarity import SentenceEncoder
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore
from storage.judged import JudgedStore
from storage.roots import open_generations
from tasks.models import model_hashes
from tasks.stages.ingest import scan
from tasks.stages.paraphrase import count_step_rows, known_judgements, make_chooser, step_fraction, step_rows
from tasks.verdicts import earlier_verdicts

__all__ = ["count_captions", "count_requests", "scanned_rows"]


def count_requests(
    settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact], progress: Progress = silent
) -> MissingRequests:
    """Count what the generation cache does not know yet; nothing is asked.

    Where step 1 has to be made again from known answers, those that no finished pass judged are judged again, which
    takes a while for many.

    Args:
        settings: the run's settings.
        store: the store, whose cache is looked into.
        found: the run's finished artifacts.
        progress: told how many rows it has been through.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    options, encoder = relevant(settings.paraphrase), SentenceEncoder()
    tokeniser = Tokeniser(settings.data.context_length)
    engine = make_engine(options, settings.data.root, hash_files=model_hashes(settings))
    cache = open_generations(store)
    step_1 = found.get("paraphrase_1")

    def chooser(step: int) -> Chooser:
        made = make_chooser(settings, step, tokeniser, encoder)
        if step == 1 and step_1 is None:
            made.known = earlier_verdicts(settings, store)
        return made

    try:
        return missing_requests(
            step_rows(store.with_files(found["ingest"]).path, 1)
            if "ingest" in found
            else scanned_rows(settings, store),
            options,
            engine,
            cache,
            chooser,
            tokeniser.encode_batch,
            step_1_rows=None if step_1 is None else step_rows(store.with_files(step_1).path, 2),
            judged=lambda step: known_judgements(settings, step, engine, JudgedStore(cache, read_only=True)),
            progress=progress,
        )
    finally:
        cache.close()
        engine.close()


def count_captions(settings: Settings, store: ArtifactStore, found: Mapping[str, Artifact]) -> int:
    """Training captions in the chosen fraction, of which step 1 has to look at each.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    share = step_fraction(settings.paraphrase, 1)
    if "ingest" in found:
        return count_step_rows(store.with_files(found["ingest"]).path, 1, share)
    return count_wanted(scanned_rows(settings, store), share)


def scanned_rows(settings: Settings, store: ArtifactStore) -> Iterator[pa.RecordBatch]:
    """The rows that step 1 would read, straight from the sources.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    for batch in scan(settings, store):
        train = pc.equal(batch.column("split"), "train")  # pyright: ignore[reportAttributeAccessIssue]
        yield batch.filter(train).select(list(INPUT_COLUMNS[1]))

"""The rounds of a run's unfinished paraphrase steps, which find missing requests without sending them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import held_batches, step_batches, step_rounds
from paraclip.tasks.stages.queries import QUERIES, chosen_captions, query_paraphraser
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.paraphrase.rounds import Rounds
from paraclip_core.paraphrase.selection import Selection
from paraclip_core.paraphrase.step_tables import Batches
from paraclip_core.progress import Progress, silent


def missing_rounds(
    run: Run,
    artifacts: Mapping[str, Artifact],
    captions: IngestedCaptions | None = None,
    filtered: bool = False,
    progress: Progress = silent,
) -> Generator[Rounds, None, None]:
    """The rounds of each unfinished step of training captions, as far as earlier answers determine its requests.

    Step 2 asks about the accepted answers of step 1, and a further attempt about rejected rows. So answers without a
    filter result are filtered first if `filtered`, and left out otherwise.
    """
    with TempDir("requests-") as scratch:
        if "paraphrase_1" in artifacts:
            texts, first = step_batches(run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0), 2
        else:
            captions = captions or ingested_captions(run, artifacts, scratch)
            texts, first = step_batches(captions.folder, 1, run.paraphraser.options.fraction), 1
        yield from _rounds(run, run.paraphraser, texts, first, filtered, progress)


def missing_query_rounds(
    run: Run,
    artifacts: Mapping[str, Artifact],
    captions: IngestedCaptions | None = None,
    filtered: bool = False,
    progress: Progress = silent,
) -> Generator[Rounds, None, None]:
    """The same for both steps of held-out queries; none if they are finished, or if the run has none."""
    if QUERIES.name in artifacts or run.stages.get(QUERIES.name) is None:
        return
    with TempDir("requests-") as scratch:
        captions = captions or ingested_captions(run, artifacts, scratch)
        texts = held_batches([chosen_captions(captions.folder, run.settings)])
        yield from _rounds(run, query_paraphraser(run), texts, 1, filtered, progress)


def _rounds(
    run: Run, paraphraser: Paraphraser, texts: Batches, first: int, filtered: bool, progress: Progress
) -> Iterator[Rounds]:
    """The rounds of the steps from `first` on, whose rows are `texts`."""
    with TempDir("rounds-") as scratch, closing(open_answers(run.store)) as cache, ExitStack() as stack:
        for step in range(first, 3):
            folder = scratch / f"step-{step}"
            rounds = step_rounds(
                stack, run, paraphraser, step, texts, cache, folder, filtered=filtered, progress=progress
            )
            rounds.run()
            yield rounds
            if step == 1:
                texts = partial(_columns_of, rounds.select())


def _columns_of(selection: Selection, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    return (batch.select(list(columns)) for batch in selection.rows())

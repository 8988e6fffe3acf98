"""The rounds of a run's unfinished paraphrase steps, which find missing requests without sending them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import held_batches, step_batches, step_rounds
from paraclip.tasks.stages.queries import NAME as QUERIES
from paraclip.tasks.stages.queries import chosen_captions
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.rounds import Rounds, both_steps
from paraclip_core.progress import Progress, silent


def missing_rounds(
    run: Run,
    stage: str,
    artifacts: Mapping[str, Artifact],
    captions: IngestedCaptions | None = None,
    filtered: bool = False,
    progress: Progress = silent,
) -> Generator[Rounds, None, None]:
    """The rounds of each unfinished step of `paraphrase_2` or `queries`, as far as earlier answers determine them.

    Step 2 asks about the accepted answers of step 1, and a further attempt about rejected rows. So answers without a
    filter result are filtered first if `filtered`, and left out otherwise. There are no rounds if the stage is
    finished, or if the run has none.
    """
    paraphraser, first = run.query_paraphraser if stage == QUERIES else run.paraphraser, 1
    if stage in artifacts or paraphraser is None:
        return
    with TempDir("requests-") as scratch, closing(open_answers(run.store)) as cache:
        if stage != QUERIES and "paraphrase_1" in artifacts:
            texts, first = step_batches(run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0), 2
        else:
            folder = (captions or ingested_captions(run, artifacts, scratch)).folder
            if stage == QUERIES:
                texts = held_batches([chosen_captions(folder, run.settings)])
            else:
                texts = step_batches(folder, 1, paraphraser.options.fraction)
        rounds_of = partial(step_rounds, run, paraphraser, cache, scratch, filtered=filtered, progress=progress)
        yield from both_steps(rounds_of, texts, first)

"""The rounds of a run's unfinished paraphrase steps, which find missing requests without sending them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import step_batches, step_rounds
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.rounds import Rounds
from paraclip_core.progress import Progress, silent


def missing_rounds(
    run: Run,
    artifacts: Mapping[str, Artifact],
    captions: IngestedCaptions | None = None,
    filtered: bool = False,
    progress: Progress = silent,
) -> Generator[Rounds, None, None]:
    """The rounds of each unfinished step, as far as earlier answers determine its requests.

    Step 2 asks about the accepted answers of step 1, and a further attempt about rejected rows. So answers without a
    filter result are filtered first if `filtered`, and left out otherwise.
    """
    with TempDir("requests-") as scratch, closing(open_answers(run.store)) as cache, ExitStack() as stack:
        if "paraphrase_1" in artifacts:
            rows = step_batches(run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0)
        else:
            captions = captions or ingested_captions(run, artifacts, scratch)
            texts = step_batches(captions.folder, 1, run.paraphraser.options.fraction)
            first = step_rounds(stack, run, 1, texts, cache, scratch / "step-1", filtered=filtered, progress=progress)
            first.run()
            yield first
            selection = first.select()

            def accepted_rows(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
                return (batch.select(list(columns)) for batch in selection.rows())

            rows = accepted_rows
        second = step_rounds(stack, run, 2, rows, cache, scratch / "step-2", filtered=filtered, progress=progress)
        second.run()
        yield second

"""What the tests of paraphrasing share: a cache on disk, rows as the stages hand them on, and a step that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.answers import AnswerStore
from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.engines import Engine
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filter_pool import FilterPool
from paraclip_core.paraphrase.filtering import FilterSpec
from paraclip_core.paraphrase.keys import step_requests
from paraclip_core.paraphrase.rounds import Rounds
from paraclip_core.paraphrase.sending import RequestSender
from paraclip_core.paraphrase.step_tables import INPUT_COLUMNS, Batches, StepTables
from paraclip_core.progress import silent
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES, text_hash

OFF = ParaphraseOptions(engine="transformers", filters=FilterOptions(preset="off"))


@dataclass(frozen=True)
class StepOutcome:
    """What a step wrote, and how it came to it."""

    rows: pa.Table
    rejects: pa.Table
    rounds: Rounds

    @property
    def answers(self) -> dict[str, str]:
        """Input → answer."""
        step = self.rounds.tables.step
        source, answer = ("caption", "paraphrase_1") if step == 1 else ("paraphrase_1", "paraphrase_2")
        return dict(zip(self.rows.column(source).to_pylist(), self.rows.column(answer).to_pylist(), strict=True))

    @property
    def input_of_step_2(self) -> list[pa.RecordBatch]:
        """The rows, as step 2 reads them."""
        return self.rows.select(list(INPUT_COLUMNS[2])).to_batches()


def captions_batch(texts: Sequence[str]) -> pa.RecordBatch:
    """Rows as ingest gives them."""
    ids = pa.array([text_hash(str(number), text) for number, text in enumerate(texts)], pa.binary(16))
    columns = [
        ids,
        pa.array([f"image{number}" for number in range(len(texts))]),
        pa.array(texts, pa.string()),
        pa.array(["CC0"] * len(texts)),
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(INPUT_COLUMNS[1]))


def read_from(batches: Sequence[pa.RecordBatch]) -> Batches:
    return lambda columns: (batch.select(list(columns)) for batch in batches)


class Paraphrasing:
    """Runs steps over one cache, each with tables and processes of its own."""

    def __init__(self, cache: AnswerStore, scratch: Path) -> None:
        self.cache, self._scratch = cache, scratch

    def rounds(
        self,
        batches: Sequence[pa.RecordBatch],
        engine: Engine,
        options: ParaphraseOptions = OFF,
        step: int = 1,
        processes: int = 1,
        progress: Any = silent,
    ) -> Rounds:
        spec = FilterSpec(options.filters, step)
        tables = StepTables(step, self.cache, read_from(batches), spec.digest, self._scratch)
        pool = FilterPool(spec, processes)
        request = step_requests(options, step, engine.model)
        sender = RequestSender(engine, self.cache, options)
        return Rounds(options, request, tables, sender, pool, progress=progress)

    def run(
        self, batches: Sequence[pa.RecordBatch], engine: Engine, options: ParaphraseOptions = OFF, **more: Any
    ) -> StepOutcome:
        rounds = self.rounds(batches, engine, options, **more)
        assert rounds.pool is not None
        with closing(rounds.tables), closing(rounds.pool):
            rounds.run()
            selection = rounds.selection
            rows = pa.Table.from_batches(selection.rows(), PARAPHRASES).combine_chunks()
            rejects = pa.Table.from_batches(selection.rejects(), PARAPHRASE_REJECTS).combine_chunks()
        return StepOutcome(rows, rejects, rounds)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerStore]:
    with closing(AnswerStore(tmp_path / "cache")) as store:
        yield store


@pytest.fixture
def paraphrasing(cache: AnswerStore, tmp_path: Path) -> Paraphrasing:
    return Paraphrasing(cache, tmp_path / "scratch")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Paraphrasing:
    return Paraphrasing(AnswerStore(tmp_path / "elsewhere"), tmp_path / "scratch")


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Sequence[str]], pa.RecordBatch]:
    return captions_batch


@pytest.fixture(scope="session")
def reading() -> Callable[[Sequence[pa.RecordBatch]], Batches]:
    return read_from

"""Looking up ahead: fewer look-ups, the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import FileEngineOptions, GateOptions, ParaphraseOptions
from paraclip_core.paraphrase import generate
from paraclip_core.paraphrase.ahead import LookAhead
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.engines.file import FileEngine
from paraclip_core.paraphrase.generate import Paraphraser

OPTIONS = ParaphraseOptions(engine="file", gates=GateOptions(preset="paper"), file=FileEngineOptions(path="mine.csv"))
CAPTIONS = [
    f"photo {n} of a {('red', 'blue', 'green', 'black')[n % 4]} dog on the {('beach', 'street', 'field')[n % 3]}"
    for n in range(200)
]


def keys(*numbers: int) -> pa.FixedSizeBinaryArray:
    found = pa.array([n.to_bytes(16, "big") for n in numbers], pa.binary(16))
    assert isinstance(found, pa.FixedSizeBinaryArray)
    return found


class Counting:
    """Counts the look-ups that reach the cache."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.asked: list[int] = []

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        self.asked.append(len(keys))
        return self._cache.lookup(keys)

    def append(self, generations: pa.Table) -> None:
        self._cache.append(generations)


def test_what_was_announced_comes_from_memory(cache: Any) -> None:
    cache.rows = {n.to_bytes(16, "big"): [f"answer {n}", "other"] for n in range(5)}
    counting = Counting(cache)
    ahead = LookAhead(counting)
    assert ahead.lookup(keys(1)) == {keys(1)[0].as_py(): ["answer 1", "other"]}
    ahead.expect(keys(0, 1, 2, 9))
    assert ahead.lookup(keys(2, 0)) == {keys(n)[0].as_py(): [f"answer {n}", "other"] for n in (2, 0)}
    assert counting.asked == [1, 4]
    # What was not there, and what was not announced, is asked for when it is needed.
    cache.rows[keys(9)[0].as_py()] = ["late"]
    found = ahead.lookup(keys(1, 9, 4, 7))
    assert [text[0] for text in found.values()] == ["answer 1", "late", "answer 4"]
    assert counting.asked == [1, 4, 3]
    assert ahead.lookup(keys()) == {}


@pytest.mark.parametrize("blocks_ahead", [1, 3, 16])
def test_a_cached_run_looks_up_once_for_many_blocks(
    blocks_ahead: int,
    written_paraphrases: Path,
    cache: Any,
    rows_of: Callable[[Sequence[str]], pa.RecordBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(counting: Counting) -> list[pa.Table]:
        engine, found = FileEngine(written_paraphrases), []
        batches = [rows_of([*CAPTIONS, *CAPTIONS[:20]])]
        for step in (1, 2):
            paraphraser = Paraphraser(
                step, OPTIONS, engine, counting, Chooser(OPTIONS.gates, step), Tokeniser().encode_batch
            )
            found.append(pa.Table.from_batches([rows for rows, _ in paraphraser.run(batches)]))
            batches = found[-1].select(list(INPUT_COLUMNS[2])).to_batches()
        return found

    expected = run(Counting(cache))
    cut = generate.blocks
    monkeypatch.setattr(generate, "blocks", lambda batches: cut(batches, 10))
    monkeypatch.setattr(generate, "AHEAD_BLOCKS", blocks_ahead)
    fresh = type(cache)()
    assert run(Counting(fresh)) == expected
    counting = Counting(fresh)
    assert run(counting) == expected
    assert len(counting.asked) == 2 * -(-22 // blocks_ahead)

"""Which rows a shard asks for."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import OpenAIOptions, ParaphraseOptions, RegenerateOptions
from paraclip_core.paraphrase.intake import in_fraction
from paraclip_core.paraphrase.shards import (
    asking_only,
    count_missing,
    first_requests,
    own_rows,
    unsharded_because,
)

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=60)


def batches(texts: list[str], size: int) -> list[pa.RecordBatch]:
    numbers = list(range(len(texts)))
    whole = pa.table({"caption": pa.array(texts, pa.string()), "row": pa.array(numbers, pa.int64())})
    parts = whole.to_batches(max_chunksize=size)
    return [*parts, parts[0].slice(0, 0)] if parts else []


@given(TEXTS, st.integers(1, 5), st.integers(1, 7), st.sampled_from([0.5, 1.0]))
def test_every_wanted_row_is_in_one_shard_and_equal_texts_are_in_the_same(
    texts: list[str], shards: int, size: int, fraction: float
) -> None:
    first = first_requests(ParaphraseOptions(), 1, "a model")
    found: dict[int, int] = {}
    for shard in range(shards):
        rows = [
            row
            for batch in own_rows(batches(texts, size), 1, fraction, first, shard, shards)
            for row in batch.column("row").to_pylist()
        ]
        assert rows == sorted(rows) and not found.keys() & set(rows)
        found |= dict.fromkeys(rows, shard)
    assert sorted(found) == [row for row, text in enumerate(texts) if in_fraction(text, fraction)]
    homes = {(texts[row], shard) for row, shard in found.items()}
    assert len(homes) == len({text for text, _ in homes})


def test_shards_are_about_equal() -> None:
    first = first_requests(ParaphraseOptions(), 1, "a model")
    rows = batches([f"a dog with number {n}" for n in range(4000)], 512)
    sizes = [sum(batch.num_rows for batch in own_rows(rows, 1, 1.0, first, shard, 4)) for shard in range(4)]
    assert sum(sizes) == 4000 and min(sizes) > 850


def test_what_is_missing_is_counted_no_further_than_needed() -> None:
    first = first_requests(ParaphraseOptions(), 1, "a model")
    known = set(first.keys(["a cat", "a dog"]).to_pylist())
    asked: list[int] = []

    class Cache:
        def lookup(self, keys: Any) -> pa.Table:
            asked.append(len(keys))
            return pa.table({"key": [key for key in keys.to_pylist() if key in known]})

        def append(self, generations: pa.Table) -> None:
            raise AssertionError("nothing is to be written")

    rows = batches(["a cat", "a cow", "a cow", "a dog", "a pig", "a hen"], 3)
    assert count_missing(rows, 1, 1.0, first, Cache(), 100) == 3
    assert asked == [2, 3, 0]
    assert count_missing(rows, 1, 1.0, first, Cache(), 1) == 1


def test_a_shard_judges_only_where_a_verdict_leads_to_a_request() -> None:
    plain = ParaphraseOptions(synonyms=False, fraction=0.5)
    assert asking_only(plain, 1).gates.preset == "paper" and asking_only(plain, 1).fraction == 1
    for judged in (
        ParaphraseOptions(),
        ParaphraseOptions(synonyms=False, attempts=2),
        ParaphraseOptions(synonyms=False, regenerate=(RegenerateOptions(reason="echo"),)),
    ):
        assert asking_only(judged, 1) == judged
    # The paper's prompts have no synonyms.
    assert asking_only(ParaphraseOptions(prompts="paper"), 2).gates.preset == "paper"
    paid = asking_only(ParaphraseOptions(engine="openai", model="m", attempts=3), 1)
    assert (paid.synonyms, paid.attempts, paid.gates.preset) == (False, 1, "paper")


@pytest.mark.parametrize(
    ("options", "one_machine", "reason"),
    [
        (ParaphraseOptions(engine="file"), False, "a file"),
        (ParaphraseOptions(engine="vllm"), True, "a process for each group"),
        (ParaphraseOptions(engine="vllm"), False, None),
        (ParaphraseOptions(engine="openai"), True, None),
        (ParaphraseOptions(engine="openai", openai=OpenAIOptions(requests_per_minute=9)), True, "hold for one process"),
        (ParaphraseOptions(), True, None),
    ],
)
def test_some_engines_are_better_left_alone(options: ParaphraseOptions, one_machine: bool, reason: str | None) -> None:
    found = unsharded_because(options, one_machine)
    assert found is None if reason is None else found and reason in found

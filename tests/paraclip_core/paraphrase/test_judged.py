"""Blocks that were judged before: the same output without judging, and nothing is taken for what it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uneven_writer import AllNear, Writer  # pyright: ignore[reportMissingImports]

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import GateOptions, ParaphraseOptions, RegenerateOptions
from paraclip_core.paraphrase import generate
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.flood import FloodCounter
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.judged import Judgements, code_digest, rows_digest
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

BLOCK = 10
TOKENS = Tokeniser().encode_batch
PLACES = ("beach", "street", "field")
CAPTIONS = [f"the car {n} near a {PLACES[n % 3]} is {'slow' if n % 8 in (0, 4, 7) else 'fast'}" for n in range(75)]
OPTIONS = ParaphraseOptions(
    engine="transformers",
    model="any",
    attempts=2,
    regenerate=(RegenerateOptions(reason="repeated_flood"), RegenerateOptions(where="answer like '% 4%'")),
    gates=GateOptions(max_repeats=3, max_overlap=0.95, max_lost_words=9, max_new_content_words=9),
)
Rows = Callable[[Sequence[str]], pa.RecordBatch]


class Blocks:
    """Kept blocks in memory."""

    def __init__(self) -> None:
        self.kept: dict[bytes, list[pa.RecordBatch]] = {}
        self.before: dict[bytes, bytes] = {}
        self.asked: list[bool] = []
        self.stopped = False

    def find(self, key: bytes) -> list[pa.RecordBatch] | None:
        return self.kept.get(key)

    def keep(self, key: bytes, before: bytes, parts: Sequence[pa.RecordBatch], asked: bool) -> None:
        if not self.stopped:
            assert key not in self.kept
            self.kept[key], self.before[key] = list(parts), before
            self.asked.append(asked)

    def stop(self) -> None:
        self.stopped = True


class CountedChooser(Chooser):
    """Counts what is judged."""

    requests = 0

    def choose(self, requests: Sequence[Any]) -> list[Any]:
        self.requests += len(requests)
        return super().choose(requests)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = generate.blocks
    monkeypatch.setattr(generate, "blocks", lambda batches: cut(batches, BLOCK))
    monkeypatch.setattr(generate, "AHEAD_BLOCKS", 3)


def run(
    batches: Sequence[pa.RecordBatch],
    cache: Any,
    blocks: Blocks | None,
    options: ParaphraseOptions = OPTIONS,
    *,
    step: int = 1,
    basis: str = "basis",
    ask: bool = True,
) -> tuple[pa.Table, pa.Table, Paraphraser, CountedChooser]:
    chooser = CountedChooser(options.chosen_gates(), step, encoder=AllNear(), pieces=lambda text: len(text.split()))
    judged = None if blocks is None else Judgements(blocks, basis)
    made = Paraphraser(step, options, Writer("writer"), cache, chooser, TOKENS, judged=judged, ask=ask)
    found = list(made.run(batches))
    rows = pa.Table.from_batches([rows for rows, _ in found], schema=PARAPHRASES)
    return rows, pa.Table.from_batches([refused for _, refused in found], PARAPHRASE_REJECTS), made, chooser


def metrics(made: Paraphraser) -> dict[str, Any]:
    """What does not depend on how the result was come by."""
    found = made.counts.metrics()
    return {name: found[name] for name in ("captions", "requested", "accepted", "rejected")}


def test_the_same_output_and_counts_without_judging(cache: Any, rows_of: Rows) -> None:
    whole, blocks = rows_of(CAPTIONS), Blocks()
    asked = run([whole], cache, blocks)
    judged = run([whole], cache, None)
    recalled = run([whole], cache, blocks)
    # Everything that a block can hold is there.
    reasons = {row["reason"] for row in judged[1].to_pylist()}
    assert "repeated_flood" in reasons
    assert len(reasons) >= 3, reasons
    assert {row["attempt"] for row in judged[1].to_pylist()} >= {0, 1, 2}
    assert any("quick" in text or "rapid" in text for text in judged[0].column("paraphrase_1").to_pylist())
    for rows, rejects, made, _ in (asked, recalled):
        assert rows.equals(judged[0])
        assert rejects.equals(judged[1])
        assert metrics(made) == metrics(judged[2])
    assert recalled[2].samples.rows == judged[2].samples.rows
    assert (recalled[3].requests, recalled[2].counts.judged_before) == (0, len(CAPTIONS))
    assert (judged[2].counts.judged_before, asked[2].counts.judged_before) == (0, 0)
    assert recalled[2].counts.cached == recalled[2].counts.requested
    assert blocks.asked == [True] * 8
    # Each block lies behind the one before it.
    assert list(blocks.before.values())[1:] == list(blocks.kept)[:-1]


def test_step_2_too(cache: Any, rows_of: Rows) -> None:
    first, _, _, _ = run([rows_of(CAPTIONS)], cache, None)
    batches, blocks = first.select(list(INPUT_COLUMNS[2])).to_batches(), Blocks()
    judged = run(batches, cache, blocks, step=2)
    recalled = run([pa.concat_batches(batches)], cache, blocks, step=2)
    assert judged[0].num_rows
    assert recalled[:2] == judged[:2]
    assert recalled[2].counts.judged_before == first.num_rows


@pytest.mark.parametrize("known", [30, 34])
def test_appended_captions_cost_the_blocks_from_there(known: int, cache: Any, rows_of: Rows) -> None:
    expected = run([rows_of(CAPTIONS)], type(cache)(), None)
    blocks = Blocks()
    run([rows_of(CAPTIONS[:known])], cache, blocks)
    rows, rejects, made, chooser = run([rows_of(CAPTIONS)], cache, blocks)
    assert made.counts.judged_before == known // BLOCK * BLOCK
    assert chooser.requests > 0
    # The flood gate counts on from where the kept blocks end.
    flooded = [row["input"] for row in rejects.to_pylist() if row["reason"] == "repeated_flood"]
    assert set(flooded).intersection(CAPTIONS[known:])
    assert (rows, rejects) == expected[:2]
    assert metrics(made) == metrics(expected[2])


def test_a_changed_row_costs_the_blocks_from_there(cache: Any, rows_of: Rows) -> None:
    blocks = Blocks()
    run([rows_of(CAPTIONS)], cache, blocks)
    changed = [*CAPTIONS[:25], "a new caption about a dog", *CAPTIONS[26:]]
    found = run([rows_of(changed)], cache, blocks)
    assert found[2].counts.judged_before == 20
    assert found[:2] == run([rows_of(changed)], cache, None)[:2]


def test_known_blocks_are_not_looked_up(cache: Any, rows_of: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks()
    run([rows_of(CAPTIONS[:60])], cache, blocks)
    looked: list[int] = []
    lookup = type(cache).lookup
    monkeypatch.setattr(type(cache), "lookup", lambda self, keys: looked.append(len(keys)) or lookup(self, keys))
    run([rows_of(CAPTIONS[:60])], cache, blocks)
    assert looked == []
    run([rows_of(CAPTIONS)], cache, blocks)
    assert 0 < looked[0] <= 15


def test_another_meaning_finds_nothing(cache: Any, rows_of: Rows) -> None:
    blocks = Blocks()
    run([rows_of(CAPTIONS)], cache, blocks)
    assert run([rows_of(CAPTIONS)], cache, blocks, basis="other")[2].counts.judged_before == 0
    assert len(blocks.kept) == 16


def test_nothing_is_kept_where_an_answer_is_missing(cache: Any, rows_of: Rows) -> None:
    run([rows_of(CAPTIONS[:20])], cache, None)
    blocks = Blocks()
    _, _, made, _ = run([rows_of(CAPTIONS)], cache, blocks, ask=False)
    assert made.missing
    # The blocks behind it depend on what it lacks.
    assert len(blocks.kept) == 2
    assert blocks.stopped
    assert blocks.asked == [False, False]


def test_parts_of_another_layout_are_judged_again(cache: Any, rows_of: Rows) -> None:
    blocks, whole = Blocks(), rows_of(CAPTIONS[:20])
    expected = run([whole], cache, blocks)
    first, second = blocks.kept
    blocks.kept[first] = [part.drop_columns(part.schema.names[:1]) for part in blocks.kept[first]]
    blocks.kept[second] = [part.replace_schema_metadata() for part in blocks.kept[second]]
    broken, blocks = blocks, Blocks()
    blocks.find = broken.find  # type: ignore[method-assign]
    found = run([whole], cache, blocks)
    assert found[:2] == expected[:2]
    assert found[2].counts.judged_before == 0


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.text(max_size=4)), max_size=60), st.integers(0, 60))
def test_repeating_changes_gives_the_same_counter(pairs: list[tuple[str, str]], cut: int) -> None:
    one, two = FloodCounter(), FloodCounter()
    one.changes()
    journal = []
    for part in (pairs[:cut], pairs[cut:]):
        for answer, source in part:
            one.add(answer, source)
        journal.append(one.changes())
    for changes in journal:
        two.repeat(changes)
    assert [two.count(answer) for answer in "abcdefgh"] == [one.count(answer) for answer in "abcdefgh"]
    for answer, source in pairs:
        two.add(answer, source)
    assert [two.count(answer) for answer in "abcdefgh"] == [one.count(answer) for answer in "abcdefgh"]


values = st.lists(
    st.tuples(
        st.none() | st.text(max_size=5),
        st.lists(st.integers(0, 65535), max_size=4),
        st.none() | st.floats(width=32, allow_nan=False),
        st.none() | st.binary(min_size=16, max_size=16),
    ),
    max_size=12,
)


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    types = (pa.string(), pa.list_(pa.uint16()), pa.float32(), pa.binary(16))
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=["text", "tokens", "cosine", "key"])


@given(values, values, values)
def test_a_digest_says_what_rows_hold_and_not_where(before: list[Any], rows: list[Any], after: list[Any]) -> None:
    whole = batch(before + rows + after)
    part = whole.slice(len(before), len(rows))
    copied = whole.take(pa.array(range(len(before), len(before) + len(rows)), pa.int64()))
    mask = pa.array([len(before) <= n < len(before) + len(rows) for n in range(whole.num_rows)], pa.bool_())
    assert rows_digest(part) == rows_digest(copied) == rows_digest(batch(rows)) == rows_digest(whole.filter(mask))


@given(values, values)
def test_other_rows_have_another_digest(one: list[Any], two: list[Any]) -> None:
    # By what they look like: 0.0 and -0.0 are equal, but not the same bytes.
    assert (rows_digest(batch(one)) == rows_digest(batch(two))) == (repr(one) == repr(two))


def test_rows_that_are_easily_taken_for_each_other() -> None:
    def texts() -> Iterator[Sequence[str | None]]:
        yield from ([], [""], ["", ""], [None], [None, ""], ["", None], ["ab", ""], ["a", "b"], ["", "ab"])

    digests = [rows_digest(pa.RecordBatch.from_pydict({"x": pa.array(some, pa.string())})) for some in texts()]
    named = pa.field("element", pa.uint16())
    lists = [pa.array([[1], []], kind) for kind in (pa.list_(pa.uint16()), pa.list_(named), pa.list_(pa.uint8()))]
    one, two, three = (rows_digest(pa.RecordBatch.from_arrays([some], names=["x"])) for some in lists)
    assert one == two != three
    digests.append(rows_digest(pa.RecordBatch.from_pydict({"y": pa.array([""], pa.string())})))
    assert len(set(digests)) == len(digests)


def test_the_code_has_one_digest() -> None:
    assert code_digest() == code_digest()
    assert len(code_digest()) == 32

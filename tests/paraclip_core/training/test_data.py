"""Training rows on disk, their order as a function of seed and step, and batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.clip.ragged import Ragged
from paraclip_core.training.data import (
    TEXTS,
    Batch,
    DataOrder,
    DrawnImages,
    RowBatch,
    draw,
    draw_images,
    epoch_order,
    make_batch,
    spool_rows,
    spooled_image_rows,
    token_keys,
)
from tests.kit.tiny import tiny_rows


def source(tokens: list[list[int]], images: list[int], captions: list[int] | None = None) -> RowBatch:
    ids = [bytes([n]) * 16 for n in captions or range(len(tokens))]
    columns = {"caption": Ragged.from_lists(tokens), "caption_id": pa.array(ids, pa.binary(16))}
    return {**columns, "image_rows": np.array(images, np.int64)}


@given(st.integers(1, 200), st.integers(-3, 2**40), st.integers(0, 5))
def test_every_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(rows, seed, epoch)) == list(range(rows))


@given(st.integers(2, 60), st.integers(2, 80), st.integers(0, 40))
def test_any_step_is_had_without_the_ones_before(rows: int, size: int, step: int) -> None:
    straight = DataOrder(rows, size, 5)
    batch = [straight.batch(earlier) for earlier in range(step + 1)][-1]
    assert np.array_equal(DataOrder(rows, size, 5).batch(step), batch)
    assert len(set(batch)) == min(rows, size)


def test_order_and_draws_stay_the_same_in_every_release() -> None:
    assert epoch_order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(8, 7, 3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]
    assert not np.array_equal(DataOrder(100, 10, 0).batch(0), DataOrder(100, 10, 1).batch(0))

    def drawn(seed: int, epoch: int) -> list[int]:
        return draw(np.arange(12), np.full(12, 3), seed, epoch).tolist()

    assert drawn(7, 0) == [2, 0, 1, 2, 1, 0, 1, 0, 0, 2, 0, 0]
    assert drawn(7, 1) == [1, 1, 2, 1, 1, 2, 0, 2, 1, 2, 1, 2]
    assert drawn(8, 1) == [2, 0, 0, 0, 0, 1, 2, 2, 0, 2, 0, 0]
    assert DataOrder(1000, 512, 0).steps(2.0) == 4
    assert DataOrder(3, 512, 0).steps(0.01) == 1


@pytest.mark.parametrize("starts", [None, np.arange(11)])
def test_captions_with_one_row_have_the_order_of_rows(starts: np.ndarray | None) -> None:
    order = DataOrder(10, 4, 7, starts)
    expected = [[8, 4, 1, 6], [3, 2, 7, 5], [3, 9, 1, 6], [2, 5, 4, 8], [6, 7, 8, 4]]
    assert [order.batch(step).tolist() for step in range(5)] == expected


@given(st.lists(st.integers(1, 16), min_size=2, max_size=40), st.integers(0, 2**40), st.integers(0, 6))
def test_an_epoch_sees_every_caption_once_in_one_of_its_rewrites(paraphrases: list[int], seed: int, epoch: int) -> None:
    starts = np.cumsum([0, *paraphrases])
    order = DataOrder(len(paraphrases), 1, seed, starts)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    rows = np.concatenate([order.batch(step) for step in steps])
    captions = np.searchsorted(starts, rows, "right") - 1
    assert captions.tolist() == epoch_order(len(paraphrases), seed, epoch).tolist()


@settings(max_examples=15)
@given(st.integers(2, 16), st.integers(0, 2**40))
def test_over_many_epochs_each_rewrite_is_drawn_about_equally(count: int, seed: int) -> None:
    captions, epochs = np.arange(50), 400
    drawn = np.stack([draw(captions, np.full(50, count), seed, epoch) for epoch in range(epochs)])
    # Of one caption and of all of them, within six standard deviations.
    for draws in (drawn[:, 0], drawn.ravel()):
        mean = len(draws) / count
        assert np.abs(np.bincount(draws, minlength=count) - mean).max() < 6 * np.sqrt(mean)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 2**40), st.integers(0, 9))
def test_a_draw_depends_on_no_other_caption(captions: list[int], seed: int, epoch: int) -> None:
    numbers, counts = np.array(captions), np.array([1 + number % 16 for number in captions])
    alone = [int(draw(numbers[[n]], counts[[n]], seed, epoch)[0]) for n in range(len(captions))]
    assert draw(numbers, counts, seed, epoch).tolist() == alone


@given(st.lists(st.lists(st.integers(0, 65535), max_size=6), max_size=20))
def test_equal_texts_have_equal_keys_and_others_have_others(texts: list[list[int]]) -> None:
    keys = token_keys(Ragged.from_lists(texts))
    assert len(set(keys.tolist())) == len({tuple(text) for text in texts})
    assert keys.tolist() == [int(token_keys(Ragged.from_lists([text]))[0]) for text in texts]


def test_a_batch_has_each_text_of_the_control_once(tiny: ModuleType) -> None:
    rows, images = tiny.tiny_rows()
    indices = np.array([31, 2])
    batch = make_batch(rows, indices, TEXTS, images.of_step(indices))
    for kind in TEXTS:
        assert batch.texts(kind).values.tolist() == rows.texts[kind].take(indices).values.tolist()
    assert batch.image_rows.tolist() == batch.keys["image"].tolist() == [1, 2]
    control = make_batch(rows.as_captions(), indices, TEXTS, images.of_step(indices))
    assert len(control.tokens) == 2 and set(map(str, control.parts.values())) == {"slice(0, 2, None)"}


def test_hard_negatives_are_one_more_kind_and_nothing_else_changes(tiny: ModuleType) -> None:
    def digest(batch: Batch) -> str:
        parts = (batch.image_rows, batch.tokens.values, batch.tokens.offsets, batch.features, *batch.keys.values())
        content = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    rows, images = tiny.tiny_rows()
    rows = replace(rows, starts=np.arange(0, 61, 3))
    order = DataOrder(len(rows), 6, 7, rows.starts)
    batches = [
        make_batch(texts, order.batch(step), TEXTS, images.of_step(order.batch(step)))
        for texts in (rows, rows.as_captions())
        for step in (0, 4)
    ]
    assert [digest(batch) for batch in batches] == [
        "a6e2f7896f95b1e4", "53e1f75541dced01", "3d14963235995a4a", "ab367946cee93e11",
    ]  # fmt: skip
    made = tiny.tiny_texts(np.arange(60).reshape(6, 10))
    for plain, texts in ((batches[0], rows), (batches[2], rows.as_captions())):
        batch = make_batch(texts, order.batch(0), TEXTS, images.of_step(order.batch(0)), made)
        assert batch.texts("hard_negative").values.tolist() == made.values.tolist()
        assert batch.keys["hard_negative"].tolist() == token_keys(made).tolist()
        assert batch.tokens.values.tolist() == [*plain.tokens.values.tolist(), *made.values.tolist()]
        assert {kind: batch.parts[kind] for kind in TEXTS} == plain.parts


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    parts = [source([[1, 2], [3]], [4, 5]), source([[], [6, 7, 8]], [0, 1], [2, 3])]
    rows = spool_rows(tmp_path / "rows", ("caption",), parts, lambda: {"read": 9})
    assert len(rows) == 4 and rows.facts == {"read": 9}
    assert spooled_image_rows(tmp_path / "rows").tolist() == [4, 5, 0, 1]
    texts = rows.texts["caption"].take(np.array([3, 0, 2]))
    assert texts.values.tolist() == [6, 7, 8, 1, 2] and texts.lengths.tolist() == [3, 2, 0]
    assert rows.ids is not None and rows.ids[3].tobytes() == bytes([3]) * 16


def test_rows_of_a_caption_are_told_from_those_of_the_next(tmp_path: Path) -> None:
    def spooled(name: str, captions: list[int], cuts: list[int]) -> list[int] | None:
        parts = [
            source([[n] for n in captions[a:b]], list(range(a, b)), captions[a:b])
            for a, b in pairwise([0, *cuts, len(captions)])
        ]
        rows = spool_rows(tmp_path / name, ("caption",), parts)
        assert len(rows) == len(set(captions)) and rows.total == len(captions)
        return None if rows.starts is None else rows.starts.tolist()

    for number, cuts in enumerate([[], [1], [2, 2, 4], [1, 2, 3, 4, 5]]):
        assert spooled(f"several {number}", [7, 7, 7, 1, 2, 2], cuts) == [0, 3, 4, 6]
        assert spooled(f"one each {number}", [7, 3, 1, 2, 9, 4], cuts) is None
    assert spooled("none", [], []) is None


def test_every_file_is_on_the_disk_before_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, synced = tmp_path / "rows", dict[int, int]()

    def note(descriptor: int) -> None:
        assert not (folder / "rows.json").exists()
        state = os.fstat(descriptor)
        synced[state.st_ino] = state.st_size

    monkeypatch.setattr(os, "fsync", note)
    spool_rows(folder, ("caption",), [source([[1]], [0])])
    assert synced == {path.stat().st_ino: path.stat().st_size for path in folder.iterdir()}


def test_finished_rows_are_not_read_again_and_unfinished_ones_are_written_anew(tmp_path: Path) -> None:
    def cut() -> Iterator[RowBatch]:
        yield source([[1]], [0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool_rows(tmp_path / "rows", ("caption",), cut())
    rows = spool_rows(tmp_path / "rows", ("caption",), [source([[2]], [3])])
    assert rows.texts["caption"].values.tolist() == [2]
    assert len(spool_rows(tmp_path / "rows", ("caption",), (pytest.fail("read again") for _ in [0]))) == 1


@settings(max_examples=30)
@given(st.integers(1, 10**7), st.integers(1, 500), st.integers(0, 5), st.integers(0, 10**6))
def test_images_are_drawn_by_seed_and_step_alone(images: int, count: int, seed: int, step: int) -> None:
    drawn = draw_images(images, count, seed, step)
    assert np.array_equal(drawn, draw_images(images, count, seed, step))
    assert (np.diff(drawn) > 0).all() and drawn.min() >= 0 and drawn.max() < images
    assert len(drawn) == images if images <= count else len(drawn) <= count


def test_draws_of_images_are_uniform() -> None:
    hits = np.bincount(np.concatenate([draw_images(50, 10, 0, step) for step in range(3000)]), minlength=50)
    assert hits.min() > 0.85 * hits.mean() and hits.max() < 1.15 * hits.mean()


def test_a_batch_of_queries_has_drawn_images_and_no_equal_ones() -> None:
    rows, images = tiny_rows(12, 12)
    drawn = draw_images(12, 3, 7, 2)
    batch = make_batch(rows, np.arange(5), TEXTS, DrawnImages(images.features, 3).of_step(np.arange(5), 7, 2))
    assert np.allclose(batch.features, np.asarray(images.features[drawn], np.float32))
    assert len(batch.gallery(torch.device("cpu"))) == len(drawn) and len(set(batch.keys["image"].tolist())) == 5

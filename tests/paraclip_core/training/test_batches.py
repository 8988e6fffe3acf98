"""The order of the data, as a function of seed and step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip.packed import Ragged
from paraclip_core.errors import TrainingError
from paraclip_core.training.batches import DataOrder, draw, epoch_order, save_batch, token_keys


@given(st.integers(1, 200), st.integers(-3, 2**40), st.integers(0, 5))
def test_every_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(rows, seed, epoch)) == list(range(rows))


@given(st.integers(2, 60), st.integers(2, 80), st.integers(0, 40))
def test_any_step_is_had_without_the_ones_before(rows: int, size: int, step: int) -> None:
    straight, order = DataOrder(rows, size, 5), DataOrder(rows, size, 5)
    for earlier in range(step):
        straight.batch(earlier)
    found = order.batch(step)
    assert np.array_equal(found, straight.batch(step))
    assert len(set(found)) == min(rows, size)


def test_epochs_and_seeds_differ_and_cover_all_rows() -> None:
    order = DataOrder(100, 10, 0)
    first = np.concatenate([order.batch(step) for step in range(10)])
    second = np.concatenate([order.batch(step) for step in range(10, 20)])
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)
    assert not np.array_equal(order.batch(0), DataOrder(100, 10, 1).batch(0))


def test_the_order_stays_the_same_in_every_release() -> None:
    assert epoch_order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(8, 7, 3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


@pytest.mark.parametrize("starts", [None, np.arange(11)])
def test_captions_with_one_row_have_the_order_that_rows_had_before(starts: np.ndarray | None) -> None:
    order = DataOrder(10, 4, 7, starts)
    expected = [[8, 4, 1, 6], [3, 2, 7, 5], [3, 9, 1, 6], [2, 5, 4, 8], [6, 7, 8, 4]]
    assert [order.batch(step).tolist() for step in range(5)] == expected


@given(st.lists(st.integers(1, 16), min_size=2, max_size=40), st.integers(0, 2**40), st.integers(0, 6))
def test_an_epoch_sees_every_caption_once_in_one_of_its_rewrites(rewrites: list[int], seed: int, epoch: int) -> None:
    starts = np.cumsum([0, *rewrites])
    order = DataOrder(len(rewrites), 1, seed, starts)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    rows = np.concatenate([order.batch(step) for step in steps])
    captions = np.searchsorted(starts, rows, "right") - 1
    assert captions.tolist() == epoch_order(len(rewrites), seed, epoch).tolist()


@given(st.integers(2, 16), st.integers(0, 2**40))
def test_over_many_epochs_each_rewrite_is_drawn_about_equally(count: int, seed: int) -> None:
    captions, epochs = np.arange(50), 400
    drawn = np.stack([draw(captions, np.full(50, count), seed, epoch) for epoch in range(epochs)])
    # Of one caption and of all of them, within six standard deviations.
    for draws in (drawn[:, 0], drawn.ravel()):
        mean = len(draws) / count
        assert np.abs(np.bincount(draws, minlength=count) - mean).max() < 6 * np.sqrt(mean)
    assert drawn.max() == count - 1


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 2**40), st.integers(0, 9))
def test_a_draw_depends_on_no_other_caption(captions: list[int], seed: int, epoch: int) -> None:
    numbers, counts = np.array(captions), np.array([1 + number % 16 for number in captions])
    alone = [int(draw(numbers[[n]], counts[[n]], seed, epoch)[0]) for n in range(len(captions))]
    assert draw(numbers, counts, seed, epoch).tolist() == alone


def test_the_draws_stay_the_same_in_every_release() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        return draw(np.arange(12), np.full(12, 3), seed, epoch).tolist()

    assert drawn(7, 0) == [2, 0, 1, 2, 1, 0, 1, 0, 0, 2, 0, 0]
    assert drawn(7, 1) == [1, 1, 2, 1, 1, 2, 0, 2, 1, 2, 1, 2]
    assert drawn(8, 1) == [2, 0, 0, 0, 0, 1, 2, 2, 0, 2, 0, 0]


def test_steps_count_rows_and_not_whole_batches() -> None:
    assert DataOrder(1000, 512, 0).steps(2.0) == 4
    assert DataOrder(3, 512, 0).steps(0.01) == 1


def test_one_row_is_too_few() -> None:
    with pytest.raises(TrainingError, match="1 training rows are too few"):
        DataOrder(1, 8, 0)


@given(st.lists(st.lists(st.integers(0, 65535), max_size=6), max_size=20))
def test_equal_texts_have_equal_keys_and_others_have_others(texts: list[list[int]]) -> None:
    keys = token_keys(Ragged.from_lists(texts))
    assert len(set(keys.tolist())) == len({tuple(text) for text in texts})
    alone = [int(token_keys(Ragged.from_lists([text]))[0]) for text in texts]
    assert keys.tolist() == alone


def test_a_batch_without_known_ids_is_saved_too(tmp_path: Path, tiny: ModuleType) -> None:
    rows, _ = tiny.tiny_rows()
    indices = np.array([3, 1])
    save_batch(tmp_path / "new/batch.npz", rows, indices, rows.take(indices, ("caption",)))
    saved = np.load(tmp_path / "new/batch.npz", allow_pickle=False)
    assert saved["caption_ids"].tolist() == [] and saved["image_rows"].tolist() == [3, 1]

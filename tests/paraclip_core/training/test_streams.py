"""Groups side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from paraclip_core.training.streams import STREAMS, in_turn, side_by_side


def test_results_come_in_order_whoever_ends_first(cores: Callable[[int], None]) -> None:
    cores(2)

    def work(number: int) -> int:
        time.sleep(0.02 * (number % 2 == 0))
        return number

    assert list(side_by_side(work, 7)) == list(in_turn(work, 7)) == list(range(7))
    assert list(side_by_side(work, 0)) == []


def test_two_run_at_once_on_half_the_cores_each(cores: Callable[[int], None]) -> None:
    cores(4)
    met = threading.Barrier(STREAMS)

    def work(_: int) -> tuple[str, int]:
        met.wait(60)
        return threading.current_thread().name, torch.get_num_threads()

    found = list(side_by_side(work, STREAMS))
    assert len({name for name, _ in found}) == STREAMS and {threads for _, threads in found} == {2}
    assert torch.get_num_threads() == 4
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


@pytest.mark.parametrize(("threads", "count"), [(1, 3), (2, 1)])
def test_one_core_or_one_group_needs_no_thread(threads: int, count: int, cores: Callable[[int], None]) -> None:
    cores(threads)
    here = threading.current_thread()
    assert list(side_by_side(lambda _: threading.current_thread() is here, count)) == [True] * count


def test_no_more_are_begun_than_are_taken(cores: Callable[[int], None]) -> None:
    cores(2)
    begun: list[int] = []
    results = side_by_side(lambda number: begun.append(number) or number, 9)
    assert next(results) == 0
    assert len(begun) <= STREAMS
    assert list(results) == list(range(1, 9))


def test_an_error_is_raised_when_the_others_have_ended(cores: Callable[[int], None]) -> None:
    cores(2)
    ended = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            raise ValueError("the first one")
        time.sleep(0.1)
        ended.set()
        return number

    with pytest.raises(ValueError, match="the first one"):
        list(side_by_side(work, 2))
    assert ended.is_set()

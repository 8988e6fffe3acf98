"""Whether a cache has only grown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.history import History

NAMES = ["00000001-a", "00000002-b", "00000003-c"]


@given(st.lists(st.text("abc\n", max_size=3), max_size=5), st.lists(st.text("abc\n", max_size=3), max_size=5))
def test_a_mark_holds_for_what_begins_with_it(names: list[str], more: list[str]) -> None:
    assert History.mark(names).begins(names + more)


def test_it_holds_for_nothing_else() -> None:
    assert not History.mark(NAMES).begins(NAMES[:2])
    assert not History.mark(NAMES[:2]).begins([NAMES[1], NAMES[0], NAMES[2]])
    assert not History.mark(NAMES[:2]).begins(["00000001-0", *NAMES])


def test_what_was_written_is_held(tmp_path: Path) -> None:
    history = History(tmp_path / "history.json")
    assert not history.holds(NAMES)
    history.write(NAMES[:2])
    assert history.holds(NAMES)
    assert History(tmp_path / "history.json").holds(NAMES[:2])
    assert not history.holds(NAMES[:1])
    assert (tmp_path / "history.json").stat().st_size < 200


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"segments": "x", "digest": ""}', "\x00"])
def test_a_damaged_file_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.json").write_text(content)
    assert not History(tmp_path / "history.json").holds(NAMES)

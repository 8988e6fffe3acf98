"""Training rows on disk."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from paraclip_core.training.data import spool_rows

TOKENS = pa.list_(pa.uint16())


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    first = ({"caption": pa.array([[1, 2], [3]], TOKENS)}, np.array([4, 5]))
    second = ({"caption": pa.array([[], [6, 7, 8]], TOKENS)}, np.array([0, 1]))
    rows = spool_rows(tmp_path / "rows", ("caption",), [first, second], lambda: {"read": 9})
    assert len(rows) == 4
    assert rows.facts == {"read": 9}
    batch = rows.take(np.array([3, 0, 2]), ("caption",))
    assert batch.image_rows.tolist() == [1, 4, 0]
    assert batch.texts["caption"].values.tolist() == [6, 7, 8, 1, 2]
    assert batch.texts["caption"].lengths.tolist() == [3, 2, 0]


def test_ids_come_back_where_they_were_given(tmp_path: Path) -> None:
    ids = pa.array([bytes([n]) * 16 for n in range(5)], pa.binary(16))
    texts = pa.array([[1]] * 5, TOKENS)
    parts = [
        ({"caption": texts[start:stop], "caption_id": ids[start:stop]}, np.arange(start, stop))
        for start, stop in ((0, 2), (2, 5))
    ]
    rows = spool_rows(tmp_path / "rows", ("caption",), parts)
    assert rows.caption_ids(np.array([4, 0])) == ["04" * 16, "00" * 16]
    assert rows.as_captions().caption_ids(np.array([2])) == ["02" * 16]
    without = spool_rows(tmp_path / "others", ("caption",), [({"caption": texts}, np.arange(5))])
    assert without.caption_ids(np.array([4, 0])) == []


def test_rows_of_a_caption_are_told_from_those_of_the_next(tmp_path: Path) -> None:
    def spooled(name: str, captions: list[int], cuts: list[int]) -> list[int] | None:
        ids = pa.array([bytes([n]) * 16 for n in captions], pa.binary(16))
        texts, bounds = pa.array([[n] for n in captions], TOKENS), [0, *cuts, len(captions)]
        parts = [({"caption": texts[a:b], "caption_id": ids[a:b]}, np.arange(a, b)) for a, b in pairwise(bounds)]
        rows = spool_rows(tmp_path / name, ("caption",), parts)
        assert len(rows) == len(set(captions)) and len(rows.image_rows) == len(captions)
        return None if rows.starts is None else rows.starts.tolist()

    for number, cuts in enumerate([[], [1], [2, 2, 4], [1, 2, 3, 4, 5]]):
        assert spooled(f"several {number}", [7, 7, 7, 1, 2, 2], cuts) == [0, 3, 4, 6]
        assert spooled(f"one each {number}", [7, 3, 1, 2, 9, 4], cuts) is None
    assert spooled("none", [], []) is None


def test_every_file_is_on_the_disk_before_the_mark_that_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced = tmp_path / "rows", dict[int, int]()

    def note(descriptor: int) -> None:
        assert not (folder / "rows.json").exists()
        state = os.fstat(descriptor)
        synced[state.st_ino] = state.st_size

    monkeypatch.setattr(os, "fsync", note)
    source = {"caption": pa.array([[1]], TOKENS), "caption_id": pa.array([bytes(16)], pa.binary(16))}
    spool_rows(folder, ("caption",), [(source, np.array([0]))])
    assert synced == {path.stat().st_ino: path.stat().st_size for path in folder.iterdir()}


def test_finished_rows_are_not_read_again(tmp_path: Path) -> None:
    source = [({"caption": pa.array([[1]], TOKENS)}, np.array([0]))]
    spool_rows(tmp_path / "rows", ("caption",), source)
    again = spool_rows(tmp_path / "rows", ("caption",), (pytest.fail("read again") for _ in [0]))
    assert len(again) == 1


def test_unfinished_rows_are_begun_anew(tmp_path: Path) -> None:
    def cut() -> object:
        yield {"caption": pa.array([[1]], TOKENS)}, np.array([0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool_rows(tmp_path / "rows", ("caption",), cut())  # type: ignore[arg-type]
    rows = spool_rows(tmp_path / "rows", ("caption",), [({"caption": pa.array([[2]], TOKENS)}, np.array([3]))])
    assert rows.image_rows.tolist() == [3]


def test_no_rows(tmp_path: Path) -> None:
    assert len(spool_rows(tmp_path / "rows", ("caption",), [])) == 0


def test_the_control_encodes_a_caption_once(tmp_path: Path) -> None:
    rows = spool_rows(tmp_path / "r", ("caption",), [({"caption": pa.array([[1], [2]], TOKENS)}, np.array([0, 1]))])
    batch = rows.as_captions().take(np.array([1]), ("caption", "paraphrase_1", "paraphrase_2"))
    assert batch.texts["caption"] is batch.texts["paraphrase_1"] is batch.texts["paraphrase_2"]

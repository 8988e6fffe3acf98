"""What a process leaves for the one that waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.errors import ArtifactError, StageError
from tasks.answers import read_failure, write_failure


def test_an_error_comes_back_with_its_class_and_its_notes(tmp_path: Path) -> None:
    error = ArtifactError("no space left")
    error.add_note("while measuring")
    write_failure(tmp_path / "failure.json", error)
    found = read_failure(tmp_path / "failure.json", StageError)
    assert type(found) is ArtifactError and str(found) == "no space left\nwhile measuring"
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_where_there_is_no_room_no_torn_answer_stays(tmp_path: Path) -> None:
    (tmp_path / "failure.new").symlink_to("/dev/full")
    write_failure(tmp_path / "failure.json", ArtifactError("no space left"))
    assert not (tmp_path / "failure.json").exists()

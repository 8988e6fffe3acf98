"""What a process leaves for the one that waits for it, and what people and machines see of it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from paraclip.tasks.run.status import StatusFile, _new_bars, read_failure, relay_from, shown_facts, shown_progress
from paraclip_core.errors import ArtifactError, StageError


def test_an_error_comes_back_with_its_class_and_its_notes(tmp_path: Path) -> None:
    error = ArtifactError("no space left")
    error.add_note("while measuring")
    status = StatusFile(tmp_path / "status.json")
    status.progress(3, 3)
    status.fail(error)
    failure = read_failure(tmp_path / "status.json", StageError)
    assert type(failure) is ArtifactError and str(failure) == "no space left\nwhile measuring"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_where_there_is_no_room_no_torn_status_stays(tmp_path: Path) -> None:
    (tmp_path / "status.new").symlink_to("/dev/full")
    StatusFile(tmp_path / "status.json").fail(ArtifactError("no space left"))
    assert read_failure(tmp_path / "status.json", StageError) is None


def test_progress_comes_through(tmp_path: Path) -> None:
    path, seen = tmp_path / "status.json", []
    look = relay_from(path, lambda done, total, **facts: seen.append((done, total, facts)))
    look()
    status = StatusFile(path, seconds=0.0)
    status.progress(1, None, phase="asking")
    look()
    look()
    assert seen == [(1, None, {"phase": "asking"})]
    assert read_failure(path, StageError) is None


def test_brackets_in_names_are_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    # Stages that run at the same time share the display.
    with shown_progress("evaluate") as progress:
        with shown_progress("features") as other:
            other(3, 7)
        progress(1, 2, benchmark="pairs [/val]")
    last = capsys.readouterr().err
    assert "pairs [/val]" in last and "features" not in last.rpartition("evaluate")[2]


def test_what_is_spent_stands_first_and_fits_a_narrow_terminal() -> None:
    facts = {"phase": "asking", "eta_seconds": 3600, "generated": 12_345, "acceptance": 0.912, "spend": 1.2345}
    assert shown_facts(facts).startswith("spend 1.234, phase asking")
    file = io.StringIO()
    bars = _new_bars()
    bars.add_task("paraphrase_1", total=1_000_000, completed=999_999, facts=shown_facts(facts))
    Console(file=file, width=110).print(bars.get_renderable())
    assert "999999/1000000" in file.getvalue() and "spend 1.234, phase asking" in file.getvalue()

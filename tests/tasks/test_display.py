"""Progress on a terminal."""

from __future__ import annotations

import pytest

from tasks.display import _bar


def test_brackets_in_names_are_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with _bar("evaluate") as progress:
        progress(1, 2, benchmark="pairs [/val]")
    assert "pairs [/val]" in capsys.readouterr().err

"""Fake stages, importable by tests and by the child processes that they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

FAKES = str(Path(__file__).parent / "fakes")
sys.path.insert(0, FAKES)


@pytest.fixture(autouse=True)
def _children_import_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", FAKES, prepend=os.pathsep)

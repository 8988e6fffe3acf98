"""What several folders share."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent / "clip"))


@pytest.fixture(scope="session")
def encoders() -> ModuleType:
    """The module that makes small models of every kind of text encoder."""
    return importlib.import_module("encoders")

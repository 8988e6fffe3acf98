"""What several folders share."""

from __future__ import annotations

from types import ModuleType

import pytest

import tests.kit.encoders


@pytest.fixture(scope="session")
def encoders() -> ModuleType:
    """The module that makes small models of every kind of text encoder."""
    return tests.kit.encoders

"""What several folders share."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def encoders() -> ModuleType:
    """The module that makes small models of every kind of text encoder."""
    import tests.kit.encoders  # imports torch, which takes tests of texts longer than they take

    return tests.kit.encoders

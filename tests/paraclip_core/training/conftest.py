"""The tiny run, which scripts in this folder share with the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch

import tests.kit.tiny


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return tests.kit.tiny


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Say how many cores PyTorch computes on, for as long as a test lasts."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

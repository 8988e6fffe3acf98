"""The tiny run, which scripts in this folder share with the tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return importlib.import_module("tiny")


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Say how many cores PyTorch computes on, for as long as a test lasts."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

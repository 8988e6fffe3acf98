"""The tiny run, which a script in this folder shares with the tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

TINY = Path(__file__).with_name("tiny.py")
TOWERS = Path(__file__).parents[1] / "clip/towers.py"


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny.py`."""
    return _module("tiny_training", TINY)


@pytest.fixture(scope="session")
def towers() -> ModuleType:
    """The module that makes small models of every kind."""
    return _module("towers_of_clip", TOWERS)


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Say how many cores PyTorch computes on, for as long as a test lasts."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

"""A Prefect server of their own for a module's tests, which run flows in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["prefect_server"]


@contextmanager
def prefect_server() -> Iterator[str]:
    """Prefect's own harness, with the database that `paraclip run` keeps; gives the API's address."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing import utilities

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", _seeded_folder)
        with utilities.prefect_test_harness(server_startup_timeout=900):
            yield PREFECT_API_URL.value()


def _seeded_folder() -> str:
    from flows.server_database import NAME, seed_database

    folder = Path(tempfile.mkdtemp())
    if seed_database(folder):
        (folder / NAME).rename(folder / "prefect-test.db")
    return str(folder)

"""The empty database of a Prefect server, kept for the next server: to make one takes longer than all else at a start.

Prefect makes it by a hundred migrations, four seconds of a processor. The result depends on Prefect's release alone,
so the first server of a release leaves a copy in this machine's folder for what can be had again. Where there is no
such folder, every server makes its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from paraclip_core.errors import ArtifactError, ConfigError
from storage.files import write_atomic
from storage.roots import local_folder

__all__ = ["ensure_database", "seed_database"]

NAME = "prefect.db"
"""What Prefect calls it in its home."""


def seed_database(home: Path) -> bool:
    """Put the kept database into the home of a server that has none; whether the home has one then."""
    place = home / NAME
    with suppress(ArtifactError, ConfigError, OSError, sqlite3.Error):
        if not place.exists():
            # Nobody changes it, so nothing need be written beside it.
            with closing(_opened(_kept(), "immutable=1")) as kept:
                if kept.execute("PRAGMA quick_check").fetchall() == [("ok",)]:
                    write_atomic(place, lambda file: file.write(_kept().read_bytes()))
    return place.exists()


def ensure_database(home: Path) -> None:
    """Give the home of a server its database, and keep a copy if there is none; it imports prefect's server.

    Call it in the server's process, whose environment says that `home` is Prefect's home.
    """
    if seed_database(home):
        return
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    with suppress(ArtifactError, ConfigError, sqlite3.Error), closing(_opened(home / NAME, "mode=ro")) as made:
        # What a write-ahead log may still hold comes along, which a copy of the file would miss.
        data = made.serialize()
        write_atomic(_kept(), lambda file: file.write(data))


def _kept() -> Path:
    return local_folder() / f"prefect-{version('prefect')}.db"


def _opened(path: Path, how: str) -> sqlite3.Connection:
    # By either way an absent file is an error, and is not made.
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)

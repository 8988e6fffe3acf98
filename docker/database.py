"""Bring the server's database up to date; says in words what keeps a server from working."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

from alembic.util import CommandError
from asyncpg.exceptions import InvalidAuthorizationSpecificationError
from prefect import __version__ as prefect_version
from prefect.server.database import provide_database_interface
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.engine import make_url

PASSWORD = (
    "the database {where} refuses the password. Its volume keeps the one that it was made with: set "
    "PARACLIP_DATABASE_PASSWORD to that one, or give the database the new one:\n"
    "  docker compose -f docker/compose.yaml exec postgres psql -U {user} -c \"alter role {user} password '…'\""
)
NEWER = "a newer Prefect than this image's {version} has changed the database {where} ({error}): use the newer image"
AWAY = "the database {where} cannot be reached: {error}. See `docker compose -f docker/compose.yaml logs postgres`"


def words(error: BaseException, url: str) -> str | None:
    """What to tell an operator, None if the error is unknown; the password in `url` is left out."""
    place = make_url(url)
    for cause in _causes(error):
        for kind, text in (
            (InvalidAuthorizationSpecificationError, PASSWORD),
            (CommandError, NEWER),
            (OSError, AWAY),
        ):
            if isinstance(cause, kind):
                where = f"{place.host}:{place.port}"
                return text.format(where=where, user=place.username, error=cause, version=prefect_version)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    try:
        asyncio.run(provide_database_interface().create_db())
    except Exception as error:
        if not (text := words(error, str(PREFECT_API_DATABASE_CONNECTION_URL.value()))):
            raise
        sys.exit(text)

"""`prefect server start`, whose SQLite loses no request; run as ``python -m paraclip.flows.server [OPTION …]``."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration


def wait_for_other_writers() -> None:
    """Let each transaction on SQLite take the write lock when it begins, for which it waits up to a minute.

    Prefect's own take it when they write. If they have read before, and another has written since, SQLite refuses that
    at once, and the server answers 503: of twelve runs that were submitted at once, eleven were lost.
    """
    begin = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin_immediately(
        self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
    ) -> AsyncGenerator[Any, None]:
        async with begin(self, session, with_for_update=True) as transaction:
            yield transaction

    AioSqliteConfiguration.begin_transaction = begin_immediately


if __name__ == "__main__":
    wait_for_other_writers()
    sys.argv[1:1] = ["server", "start"]
    app()

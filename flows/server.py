"""`prefect server`, mended; run as ``python -m paraclip.flows.server start [OPTION …]`` or ``… services start``.

Its SQLite loses no request, and its automations wait no longer than they say.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.events import triggers
from prefect.server.events.schemas.events import ReceivedEvent

__all__ = ["keep_the_events_clock", "wait_for_other_writers"]


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


def keep_the_events_clock() -> None:
    """Let an event that is older than another one before it leave the clock of the automations as it is.

    Prefect takes its late arrival as the time of the newest event: the waits for a sign of life then last longer by as
    long as nothing had happened, minutes where the last run has died.
    """
    update = triggers.update_events_clock

    async def go_forward(event: ReceivedEvent) -> None:
        clock = await triggers.get_events_clock()
        if clock is None or event.occurred.timestamp() >= clock:
            await update(event)

    triggers.update_events_clock = go_forward


if __name__ == "__main__":
    wait_for_other_writers()
    keep_the_events_clock()
    sys.argv[1:1] = ["server"]
    app()

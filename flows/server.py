"""`prefect server` with fixes; run as ``python -m paraclip.flows.server start [OPTION …]``.

Its SQLite database loses no request, and its automations wait no longer than they say. ``… PORT`` is the server of one
run.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import prefect
import uvicorn
from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.events import triggers
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.types import _datetime

from paraclip.flows.names import HOST
from paraclip_core.errors import ConfigError

NO_MORE_SECONDS = 30
"""Seconds without a newer event after which none is on its way."""


def wait_for_other_writers() -> None:
    """Make each SQLite transaction take the write lock when it begins; it waits for the lock up to a minute.

    Prefect's own transactions take it when they write. If one has read before, and another has written since, SQLite
    refuses that at once, and the server answers 503: of twelve runs that were submitted at once, eleven were lost.
    Prefect 3.9.1 takes the lock at the beginning where it changes a state and where workers poll
    (PrefectHQ/prefect#23051), but not where a run is submitted: it, too, loses 11 of 12 (#18934).
    """
    begin = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin_immediately(
        self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
    ) -> AsyncGenerator[Any, None]:
        async with begin(self, session, with_for_update=True) as transaction:
            yield transaction

    _replace(AioSqliteConfiguration, "begin_transaction", ("self", "session", "with_for_update"), begin_immediately)


def keep_the_events_clock() -> None:
    """Treat automations as lagging only while events arrive that are newer than those before them.

    Prefect extends their waits, those for a sign of life included, by how late the newest event was when the last one
    arrived, until another one comes. That can be minutes: if the last run has died, its last sign was late, or an old
    event is sent. Prefect 3.9.1 does so; PrefectHQ/prefect#17685 reports waits that are longer than `within`.
    """
    newest = seen = 0.0

    async def update(event: ReceivedEvent) -> None:
        nonlocal newest, seen
        now = _datetime.now("UTC").timestamp()
        if event.occurred.timestamp() >= newest:
            newest, seen = min(event.occurred.timestamp(), now), now

    async def offset() -> float:
        return newest - seen if _datetime.now("UTC").timestamp() - seen < NO_MORE_SECONDS else 0.0

    _replace(triggers, "update_events_clock", ("event",), update)
    _replace(triggers, "get_events_clock_offset", (), offset)


def _replace(owner: Any, name: str, parameters: tuple[str, ...], function: Callable[..., Any]) -> None:
    """Replace one of Prefect's functions; raises ConfigError if this Prefect has no such function."""
    replaced = getattr(owner, name, None)
    if replaced is None or tuple(inspect.signature(replaced).parameters) != parameters:
        raise ConfigError(
            f"Prefect {prefect.__version__} has no {owner.__name__}.{name}({', '.join(parameters)}), which our server "
            "replaces; install prefect>=3.9,<3.10"
        )
    setattr(owner, name, function)


if __name__ == "__main__":
    wait_for_other_writers()
    if sys.argv[1].isdigit():
        application = "prefect.server.api.server:create_app"
        uvicorn.run(application, factory=True, host=HOST, port=int(sys.argv[1]), log_level="error", lifespan="on")
    else:
        keep_the_events_clock()
        sys.argv[1:1] = ["server"]
        app()

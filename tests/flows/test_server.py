"""What `paraclip.flows.server` mends, seen with Prefect's own functions on a database of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from paraclip_core.errors import ConfigError

pytestmark = pytest.mark.slow

SILENCE = timedelta(seconds=90)
STEP = timedelta(seconds=15)
QUIET = timedelta(minutes=5)
"""For how long there are old events only."""


class Silence:
    """An automation that fires where a run gives no sign of life, on a clock of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from prefect.server.events import triggers
        from prefect.types import _datetime

        self.triggers, self.now, self.fired = triggers, datetime(2030, 1, 1, tzinfo=UTC), False
        monkeypatch.setattr(_datetime, "now", lambda *_: self.now)
        monkeypatch.setattr(triggers, "fire", self.fire)
        for name in ("update_events_clock", "get_events_clock_offset"):
            monkeypatch.setattr(triggers, name, getattr(triggers, name))

    async def fire(self, *_: Any) -> None:
        self.fired = True

    async def make(self) -> None:
        from prefect.server.database import provide_database_interface
        from prefect.server.events.actions import DoNothing
        from prefect.server.events.models import automations
        from prefect.server.events.schemas.automations import Automation, EventTrigger, Posture
        from prefect.server.events.schemas.events import ResourceSpecification

        await provide_database_interface().create_db()
        trigger = EventTrigger(
            after={"heartbeat"},
            expect={"heartbeat"},
            match=ResourceSpecification({"prefect.resource.id": "run"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        )
        silent = Automation(name="silent", trigger=trigger, actions=[DoNothing()])
        async with automations.automations_session(begin_transaction=True) as session:
            await automations.create_automation(session, silent)
        await self.triggers.reconcile_automations(force=True)
        self.trigger = trigger.id

    async def arrives(self, name: str, occurred: datetime) -> None:
        from prefect.server.events.schemas.events import ReceivedEvent

        resource = {"prefect.resource.id": "run" if name == "heartbeat" else "another"}
        event = {"event": name, "resource": resource, "occurred": occurred, "received": self.now, "id": uuid4()}
        await self.triggers.reactive_evaluation(ReceivedEvent.model_validate(event))

    async def seconds(self, late: timedelta = timedelta(0)) -> float:
        """How long after the last heartbeat, which arrives so late, it fires."""
        start, self.fired = self.now, False
        self.now += late
        await self.arrives("heartbeat", start)
        while not self.fired:
            self.now += STEP
            quiet = self.now - start < QUIET
            await self.arrives("late", start - SILENCE if quiet else self.now)
            await self.triggers.proactive_evaluation(self.triggers.triggers[self.trigger], self.now)
        return (self.now - start).total_seconds()


class Session:
    """Notes in which mode SQLite would begin."""

    modes: list[str | None]

    def __init__(self) -> None:
        self.modes = []

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        from prefect.server.database.configurations import SQLITE_BEGIN_MODE

        self.modes.append(SQLITE_BEGIN_MODE.get())
        yield


def test_each_transaction_takes_the_write_lock_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.database.configurations import AioSqliteConfiguration

    from paraclip.flows.server import wait_for_other_writers

    kind: Any = AioSqliteConfiguration
    monkeypatch.setattr(kind, "begin_transaction", kind.begin_transaction)
    session, configuration = Session(), kind("sqlite+aiosqlite:///:memory:")

    async def begin() -> None:
        async with configuration.begin_transaction(session):
            pass

    asyncio.run(begin())
    wait_for_other_writers()
    asyncio.run(begin())
    assert session.modes == ["DEFERRED", "IMMEDIATE"]


def test_a_prefect_without_what_is_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.events import triggers

    from paraclip.flows.server import keep_the_events_clock, wait_for_other_writers

    monkeypatch.delattr(triggers, "update_events_clock")
    with pytest.raises(ConfigError, match=r"has no prefect\.server\.events\.triggers\.update_events_clock\(event\)"):
        keep_the_events_clock()
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", lambda self, session: None)
    with pytest.raises(ConfigError, match=r"has no AioSqliteConfiguration\.begin_transaction"):
        wait_for_other_writers()


def test_late_events_do_not_delay_that_a_silent_run_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

    from paraclip.flows.server import NO_MORE_SECONDS, keep_the_events_clock

    async def without_and_with_it() -> list[float]:
        silence = Silence(monkeypatch)
        await silence.make()
        without = await silence.seconds()
        keep_the_events_clock()
        return [without, await silence.seconds(), await silence.seconds(late=SILENCE)]

    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path}/prefect.db"}):
        without, old, late = asyncio.run(without_and_with_it())
    assert without == QUIET.total_seconds(), "Prefect has mended it"
    assert old == SILENCE.total_seconds()
    assert late == SILENCE.total_seconds() + NO_MORE_SECONDS

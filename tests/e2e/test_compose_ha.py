"""docker/compose.ha.yaml: each container is killed while pipelines run, and no run is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.kit.composed import SETTINGS, Compose, composed
from tests.kit.served import ENDED
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.containers, pytest.mark.timeout(5400)]

PARTS = ("server-1", "server-2", "services-1", "redis-1", "postgres-1", "proxy-1")
LOAD = 4
"""Pipelines under way while a container is killed."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with composed(tmp_path_factory.mktemp("compose"), "compose.yaml", "compose.ha.yaml", scheme="https") as services:
        # What it makes, the runs of the load find.
        services.complete(services.run_deployment("pipeline", SETTINGS))
        yield services


def test_no_server_ends_while_the_first_up_makes_the_database(services: Compose) -> None:
    # One that ends counts as unhealthy until it is there again, and `up` may fail.
    for name in ("server-1", "server-2", "services-1"):
        assert services.inspect(name, "{{.RestartCount}}") == "0"


class Watcher:
    """Asks for the API's health ten times a second; knows for how long nobody answered."""

    def __init__(self, services: Compose) -> None:
        self.services, self.longest, self._over = services, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.1):
            answered = self.services.answers()
            self.longest = max(self.longest, time.monotonic() - last)
            if answered:
                last = time.monotonic()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("name", PARTS)
def test_a_killed_part_loses_no_run(
    services: Compose, name: str, record_property: Callable[[str, object], None]
) -> None:
    runs = [services.run_deployment("pipeline", SETTINGS) for _ in range(LOAD)]
    eventually(lambda: "Running" in map(services.state, runs), "none runs", 120)
    with Watcher(services) as watcher:
        services.crash(name)
        runs.append(eventually(lambda: submitted(services), "nothing can be submitted", 120))
        for run in runs:
            services.until(run, ENDED, 600)
    record_property(f"{name}: longest seconds without an answer", round(watcher.longest, 1))
    states = [services.state(run) for run in runs]
    record_property(f"{name}: states", ", ".join(sorted(states)))
    # While there is no database, a request may fail that nobody asks again.
    assert set(states) == {"Completed"} or name == "postgres-1"
    for run, state in zip(runs, states, strict=True):
        if state != "Completed":
            record_property(f"{name}: why", services.call(f"flow_runs/{run}")["state"]["message"])
            services.retry(run)
            services.complete(run, 300)


def submitted(services: Compose) -> str | None:
    try:
        return services.run_deployment("pipeline", SETTINGS)
    except OSError:
        return None

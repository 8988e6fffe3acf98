"""Which flow runs are marked as crashed after a household's end, on a real Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect_server import prefect_server, runs_of, states  # pyright: ignore[reportMissingImports]

from flows import cut_off
from flows.cut_off import WORKER_LABEL, close_remembered, close_runs, remember, worker_name
from flows.household import POOLS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The API's address; the server has the household's pools."""
    from flows.setup import create_pools

    with prefect_server() as url:
        create_pools()
        yield url


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_off, "PAGE", 3)


def test_only_runs_whose_process_was_ended_are_closed_and_all_of_them(server: str) -> None:
    ours = runs_of(POOLS[0], list(range(100, 107))) + runs_of(POOLS[1], [107], "PENDING")
    others = runs_of(POOLS[0], [7, None]) + runs_of(None, [101]) + runs_of(POOLS[0], [102], "COMPLETED")
    assert len(close_runs(server, range(100, 108), POOLS)) == len(ours) == 8
    assert set(states(ours)) == {"Crashed"}
    assert states(others) == ["Running", "Running", "Running", "Completed"]


def test_what_a_worker_took_is_closed_though_it_had_no_process_or_the_machine_was_lost(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import get_client

    started, retried = runs_of(POOLS[0], [301]), runs_of(POOLS[0], [302], "PENDING")
    taken, elsewhere = runs_of(POOLS[1], [None], "PENDING"), runs_of(POOLS[0], [303], "PENDING")
    with get_client(sync_client=True) as client:
        for run in started + retried:
            client.update_flow_run_labels(run, {WORKER_LABEL: worker_name(POOLS[0])})
        client.update_flow_run_labels(elsewhere[0], {WORKER_LABEL: "another machine's"})
    close_remembered(tmp_path, server, POOLS)
    assert states(started + retried + taken) == ["Crashed"] * 3 and states(elsewhere) == ["Pending"]
    assert "now marked as crashed" in caplog.text


def test_a_server_with_a_password_is_told_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pass")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert close_runs(f"http://127.0.0.1:{server.server_port}/api", [1], POOLS) == []
        thread.join(120)
    assert seen == ["Basic YWRtaW46cGFzcw=="]


def test_what_could_not_be_closed_is_closed_later(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Any = runs_of(POOLS[0], [201, 202])
    remember(tmp_path, [201])
    remember(tmp_path, [202])
    close_remembered(tmp_path, "http://127.0.0.1:1/api", POOLS)
    assert states(runs) == ["Running", "Running"] and "stay marked as running" in caplog.text
    close_remembered(tmp_path, server, POOLS)
    assert states(runs) == ["Crashed", "Crashed"]
    caplog.clear()
    close_remembered(tmp_path, server, POOLS)
    assert caplog.text == ""

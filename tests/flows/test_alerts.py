"""Events of runs, posted to a real webhook by a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from paraclip_core.errors import InputError

pytestmark = pytest.mark.slow
Posted = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    with prefect_server():
        yield


@pytest.fixture
def receiver() -> Iterator[tuple[str, Posted]]:
    posted: Posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/hook", posted
        http.shutdown()


def wait_for(posted: Posted, event: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for message in list(posted):
            if message["event"] == f"paraclip.{event}":
                return message
        time.sleep(0.2)
    raise AssertionError(f"{event} was not posted; came {posted}")


def test_a_night_is_told(
    finished_run: Callable[..., Any], receiver: tuple[str, Posted], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from flows.alerts import post_to
    from flows.pipeline import pipeline
    from flows.regenerate import regenerate

    url, posted = receiver
    post_to("http://127.0.0.1:9/nobody")
    post_to(url)
    first = finished_run("name=nightly", verdict="promote")
    state = regenerate(settings=first.settings, return_state=True)
    assert "production: moved" in (state.message or "")
    moved = wait_for(posted, "channel.moved")
    assert moved["run"] == "nightly" and moved["facts"]["channel"] == "production" and "moved" in moved["text"]
    assert wait_for(posted, "run.promote")["text"].startswith("promote: ")
    second = finished_run("name=nightly", "finetune.seed=3", verdict="hold")
    assert "production: kept" in (regenerate(settings=second.settings, return_state=True).message or "")
    assert "held" in wait_for(posted, "channel.held")["text"] and wait_for(posted, "run.hold")

    def refuse(*_: object, **__: object) -> None:
        raise InputError('captions.csv row 7: "no" caption')

    monkeypatch.setattr("flows.work.run_node", refuse)
    with pytest.raises(InputError):
        pipeline(settings=second.settings)
    failed = wait_for(posted, "stage.failed")
    assert failed["facts"]["error"] == "InputError" and 'row 7: "no" caption' in failed["text"]
    with get_client(sync_client=True) as client:
        assert [each.name for each in client.read_automations()].count("paraclip: tell a webhook") == 1

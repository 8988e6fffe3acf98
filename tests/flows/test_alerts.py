"""Events of runs, posted to a real webhook by a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, cast

import pytest

from paraclip_core.errors import ConfigError, InputError

# The second is of a library of Prefect's.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")]
Posted = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    with prefect_server() as url:
        yield url


@pytest.fixture
def receiver() -> Iterator[tuple[str, Posted]]:
    posted: Posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append({"event": None, "run": None, **message})
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/hook", posted
        http.shutdown()


class Mailbox(StreamRequestHandler):
    """As much of an SMTP server as takes a letter."""

    def handle(self) -> None:
        mails = cast(Any, self.server).mails
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().upper().strip():
            if line == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                letter = b"".join(iter(self.rfile.readline, b".\r\n"))
                mails.append(letter.decode())
            self.wfile.write(b"221 bye\r\n" if line == b"QUIT" else b"250 fine\r\n")


@contextmanager
def mailbox() -> Iterator[tuple[int, list[str]]]:
    """A port that takes mail, and what came."""
    with ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        mails: list[str] = []
        cast(Any, server).mails = mails
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], mails
        server.shutdown()


def wait_until(ready: Callable[[], Any], posted: Posted) -> Any:
    end = time.monotonic() + 60
    while not (result := ready()):
        assert time.monotonic() < end, f"came {posted}"
        time.sleep(0.2)
    return result


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

    from flows.alerts import name_of, pass_on

    url, posted = receiver
    pass_on("http://127.0.0.1:9/nobody")
    pass_on(url)
    # The same block as Slack's, with what Apprise calls a JSON service: it is given one of the events only.
    pass_on(f"{url.replace('http', 'json')}/apprise", ["channel.moved"])
    with mailbox() as (port, mails):
        pass_on(f"mailto://127.0.0.1:{port}?from=paraclip@example.org&to=ops@example.org", ["stage.failed"])
        _a_night(finished_run, posted, mails, monkeypatch)
    with get_client(sync_client=True) as client:
        names = [each.name for each in client.read_automations()]
    assert sorted(name for name in names if "alerts by" in name) == sorted(
        map(name_of, (url, "json://x", "mailto://x"))
    )


def _a_night(
    finished_run: Callable[..., Any], posted: Posted, mails: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pipeline import pipeline
    from flows.regenerate import regenerate

    first = finished_run("name=nightly", verdict="promote")
    state = regenerate(settings=first.settings, return_state=True)
    assert "production: moved" in (state.message or "")
    assert tags_of(state) >= {"moved"}
    moved = wait_for(posted, "channel.moved")
    assert moved["run"] == "nightly" and moved["facts"]["channel"] == "production" and "moved" in moved["text"]
    assert wait_for(posted, "run.promote")["text"].startswith("promote: ")
    second = finished_run("name=nightly", "finetune.seed=3", verdict="hold")
    state = regenerate(settings=second.settings, return_state=True)
    assert "production: kept" in (state.message or "") and "held" in tags_of(state)
    state = pipeline(settings=second.settings, return_state=True)
    assert (state.message or "").startswith("hold: because this test says so") and "hold" in tags_of(state)
    assert "held" in wait_for(posted, "channel.held")["text"] and wait_for(posted, "run.hold")

    def refuse(*_: object, **__: object) -> None:
        raise InputError('captions.csv row 7: "no" caption')

    monkeypatch.setattr("flows.work.run_node", refuse)
    with pytest.raises(InputError):
        pipeline(settings=second.settings)
    failed = wait_for(posted, "stage.failed")
    assert failed["facts"]["error"] == "InputError" and 'row 7: "no" caption' in failed["text"]
    told = wait_until(lambda: [m for m in posted if m["event"] is None], posted)
    assert len(told) == 1 and "production: moved" in told[0]["message"] and "nightly" in told[0]["title"]
    mail = wait_until(lambda: mails, posted)[0]
    assert "To: ops@example.org" in mail and "Subject: paraclip.stage.failed: nightly" in mail and "row 7" in mail


def tags_of(state: Any) -> set[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return set(client.read_flow_run(state.state_details.flow_run_id).tags)


def test_a_rollback_by_hand_is_told(
    finished_run: Callable[..., Any], receiver: tuple[str, Posted], server: str
) -> None:
    from flows.alerts import pass_on
    from flows.cli import run_cli

    url, posted = receiver
    pass_on(url)
    runs = [finished_run(f"finetune.seed={seed}", verdict="promote") for seed in range(3)]
    oldest, older, newest = (run.artifacts["finetune"].fingerprint for run in runs)
    for seed in range(3):
        assert run_cli(["promote", "-c", str(runs[0].config), "--set", f"finetune.seed={seed}", "--force"]) == 0

    assert roll_back(runs[0], {"PREFECT_API_URL": server}) == ""
    event = wait_for(posted, "channel.rolled_back")
    assert event["run"] == "production" and event["text"] == f"production: rolled back from {newest} to {older}"
    assert (event["facts"]["before"], event["facts"]["after"]) == (newest, older)
    # A server that is away stops nobody who wants another model at once.
    assert "channel.rolled_back is not sent" in roll_back(runs[0], {"PREFECT_API_URL": "http://127.0.0.1:1/api"})
    assert runs[0].store.channel("production")["fingerprint"] == oldest


def roll_back(run: Any, variables: dict[str, str]) -> str:
    """Move `production` back as a process of its own; gives what it said besides its answer."""
    command = [sys.executable, "-m", "flows.cli", "channel", "rollback", "production", "--root", str(run.store.root)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "rolled back" in done.stdout, done.stderr
    return done.stderr


def test_an_address_of_slack_is_sent_there() -> None:
    from prefect.blocks.notifications import SlackWebhook

    from flows.alerts import _action, name_of

    url = "https://hooks.slack.com/services/T0123ABCD/B0123ABCD/abcdefABCDEF012345678901"
    action = _action(url)
    block: Any = SlackWebhook.load("paraclip-alerts-slack")
    (target,) = block._apprise_client
    assert type(target).__name__ == "NotifySlack" and target.url().startswith("slack://")
    assert action.type == "send-notification" and name_of(url) == "paraclip: alerts by Slack"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["https://example.org", "stage.faild"], "stage.faild: no such event"),
        (["nonsense://example.org"], "no address to send alerts to"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], problem: str) -> None:
    from flows.alerts import pass_on

    with pytest.raises(ConfigError, match=problem):
        pass_on(arguments[0], arguments[1:])


def test_a_cap_that_is_near_is_told_once_a_run(receiver: tuple[str, Posted]) -> None:
    from prefect import flow

    from flows.alerts import pass_on
    from tasks.publish import near_cap

    @flow
    def spend() -> None:
        for cap in (0.0, 2.0, 2.0):
            progress = near_cap("costly", cap)
            for spent in (0.5, 1.59, 1.6, 1.9):
                progress(1, 2, spend=spent)

    url, posted = receiver
    pass_on(url)
    spend()
    spend()
    wait_until(lambda: len([m for m in posted if m["run"] == "costly"]) == 2, posted)
    near = [m for m in posted if m["run"] == "costly"]
    assert [m["event"] for m in near] == ["paraclip.cap.near"] * 2 and near[0]["facts"]["spend"] == 1.6

"""Report pages beside the UI: read-only, for whoever knows the password, and with nothing that loads or runs."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from paraclip.flows.pages import Pages


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    results = tmp_path / "results"
    (results / "<b>night").mkdir(parents=True)
    (results / "<b>night" / "report.html").write_text("<title>made</title>")
    (tmp_path / "secret").write_text("secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, directory=str(results))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def get(port: int, path: str, login: str = "", method: str = "GET") -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.msg


def test_a_report_is_served_and_may_load_nothing(port: int) -> None:
    status, text, headers = get(port, "/%3Cb%3Enight/report.html")
    assert (status, text) == (200, "<title>made</title>")
    assert "default-src 'none'" in (headers["Content-Security-Policy"] or "")
    status, text, headers = get(port, "/")
    assert status == 200 and "&lt;b&gt;night" in text and "<b>night" not in text
    assert "default-src 'none'" in (headers["Content-Security-Policy"] or "")


def test_nothing_else_is_served_and_nothing_written(port: int) -> None:
    for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "//../secret", "/x/../../secret"):
        status, text, _ = get(port, path)
        assert status == 404 and "secret" not in text.replace(path, "")
    assert get(port, "/new", method="PUT")[0] == get(port, "/new", method="POST")[0] == 501


def test_the_password_of_the_server_is_asked_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pages, "login", "admin:s3cret")
    for login in ("", "admin:other", "admin:s3cre\u00e9"):
        status, text, headers = get(port, "/", login)
        assert (status, text) == (401, "") and "Basic" in (headers["WWW-Authenticate"] or "")
    assert get(port, "/", "admin:s3cret")[0] == 200

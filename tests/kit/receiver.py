"""A web server that records what is posted to it, and the alerts that a Prefect server posts there; its pages have
another origin than any API.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ALERTS = Path(__file__).parents[2] / "docs" / "alerts.yaml"
NOBODY = "00000000-0000-0000-0000-000000000000"
"""In place of the block's id in that file."""
BLOCK = """
import sys
from prefect.blocks.webhook import Webhook
webhook = Webhook(url=sys.argv[1], headers={"Content-Type": "application/json"})
print(webhook.save("paraclip-alerts", overwrite=True))
"""


def forward_alerts(url: str, folder: Path, variables: Mapping[str, str]) -> None:
    """Let the server that these variables name post alerts to `url`, by the commands of docs/nightly.md."""

    def python(*arguments: str) -> str:
        command = [sys.executable, "-W", "ignore", *arguments]
        environment = {**os.environ, **variables}
        return subprocess.run(
            command, env=environment, check=True, timeout=300, stdout=subprocess.PIPE, text=True
        ).stdout

    path = folder / "alerts.yaml"
    path.write_text(ALERTS.read_text().replace(NOBODY, python("-c", BLOCK, url).strip()))
    python("-m", "prefect", "automation", "create", "--from-file", str(path))


@contextmanager
def web_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server, and what was posted there as JSON."""
    posted: list[dict[str, Any]] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/", posted
        http.shutdown()

"""Report pages beside the UI: the folder `results` of a root over HTTP, read-only, with the password of the server."""

from __future__ import annotations

import base64
import hmac
import os
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS_VARIABLE = "PARACLIP_PAGES"
"""Where the folder `results` is served; runs link to it."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Pages(SimpleHTTPRequestHandler):
    """Files below a folder, and lists of them, for whoever knows the password if there is one."""

    login = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")

    def send_head(self):  # noqa: ANN201 - a private type of typeshed's
        """Refuse whoever does not know the password."""
        expected = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected.encode()):
            self.send_response(HTTPStatus.UNAUTHORIZED)
            self.send_header("WWW-Authenticate", 'Basic realm="paraclip"')
            self.end_headers()
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Let no page load or run anything: its texts are others'."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def _main(folder: Path, host: str, port: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadingHTTPServer((host, port), partial(Pages, directory=str(folder))) as server:
        server.serve_forever()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

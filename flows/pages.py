"""Report pages next to the UI of `paraclip serve`; run as ``python -m paraclip.flows.pages FOLDER HOST PORT``."""

from __future__ import annotations

import base64
import hmac
import os
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from paraclip.flows.names import SERVER_PASSWORD_VARIABLE

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Pages(SimpleHTTPRequestHandler):
    """A folder over HTTP, read-only, for clients that know the server's password."""

    login = os.environ.get(SERVER_PASSWORD_VARIABLE, "")

    def send_head(self):  # noqa: ANN201 - a private type of typeshed's
        """Refuse clients that do not know the password."""
        expected = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected.encode()):
            self.send_response(HTTPStatus.UNAUTHORIZED)
            self.send_header("WWW-Authenticate", 'Basic realm="paraclip"')
            self.end_headers()
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Keep pages from loading or running anything, because their texts are untrusted."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


if __name__ == "__main__":
    _, results, host, port = sys.argv
    Path(results).mkdir(parents=True, exist_ok=True)
    with ThreadingHTTPServer((host, int(port)), partial(Pages, directory=results)) as pages:
        pages.serve_forever()

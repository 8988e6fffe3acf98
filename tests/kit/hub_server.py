"""The part of the Hugging Face hub's HTTP interface that fetches repositories."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = r"(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)"
API = r"/api/(?P<kind>model|dataset)s/(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class HubServer:
    """Repositories in memory, `{(kind, ORG/NAME): {path: bytes}}`, and the path of every request."""

    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        """List a repository, or send one of its files."""
        self.hub.paths.append(self.path)
        path = unquote(urlsplit(self.path).path)
        info = re.fullmatch(f"{API}(?:/revision/(?P<revision>[^/]+)|/tree/[^/]+)?", path)
        file = re.fullmatch(f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path)
        match = info or file
        kind = "" if match is None else ("dataset" if (match["kind"] or "").startswith("dataset") else "model")
        repo = None if match is None else self.hub.repos.get((kind, match["repo"]))
        # A commit that is asked for by its hash has this hash.
        named = (match and match["revision"]) or ""
        revision = named if len(named) == 40 or repo is None else _revision(repo)
        if match is None or repo is None or (file and file["name"] not in repo):
            code = "RepoNotFound" if repo is None else "EntryNotFound"
            self._answer({"error": "not found"}, 404, {"X-Error-Code": code})
        elif file:
            data = repo[file["name"]]
            head = {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            self._answer(data, 200, head)
        elif "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in repo.items()
            ]
            self._answer(entries, 200, {"X-Repo-Commit": revision})
        else:
            siblings = [{"rfilename": name} for name in repo]
            self._answer({"id": match["repo"], "sha": revision, "siblings": siblings, "private": False})

    do_HEAD = do_GET

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _revision(repo: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(repo.items()))).hexdigest()

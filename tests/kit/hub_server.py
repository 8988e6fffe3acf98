"""The part of the Hugging Face hub's HTTP interface that pushes and fetches repositories; it keeps what was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".onnx", ".parquet", ".data")
REPO = r"(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)"
API = r"/api/(?P<kind>model|dataset)s/(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass(frozen=True)
class Sent:
    """A request."""

    method: str
    path: str
    authorization: str | None
    body: bytes


@dataclass
class HubServer:
    """Repositories in memory, `{(kind, ORG/NAME): {path: bytes}}`, and every request."""

    token: str = "hf_" + "s3cret" * 6
    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    requests: list[Sent] = field(default_factory=list)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

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

    def do_POST(self) -> None:
        """Create a repository, take the two steps before a commit, and commit."""
        body = self._received()
        if self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            kind = asked.get("type", "model")
            self.hub.repos.setdefault((kind, name), {})
            self._answer({"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}", "id": name})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(f"{API}/preupload/main", self.path):
            modes = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", self.path):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            self._answer({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(f"{API}/commit/main", self.path):
            self._commit(match["kind"], match["repo"], body)
        else:
            self._answer({"error": f"unknown {self.path}"}, 404)

    def do_PUT(self) -> None:
        """Upload a large file to the object store."""
        body = self._received()
        oid = self.path.removeprefix("/lfs/")
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.objects[oid] = body
        self._answer({}, 200 if oid in self.hub.objects else 400)

    def do_GET(self) -> None:
        """List a repository, or send one of its files."""
        self._received()
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

    def _commit(self, kind: str, name: str, body: bytes) -> None:
        repo = self.hub.repos[kind, name]
        lines = [json.loads(line) for line in body.splitlines()]
        self.hub.commits.append(lines)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo[value["path"]]
        place = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._answer({"commitUrl": f"{place}/commit/{_revision(repo)}", "commitOid": _revision(repo)})

    def _received(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.hub.requests.append(Sent(self.command, self.path, self.headers.get("authorization"), body))
        return body

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


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LARGE) else "regular"


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _revision(repo: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(repo.items()))).hexdigest()

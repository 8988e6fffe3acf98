"""A real HTTP server with OpenAI's interface that misbehaves on demand."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler"], None]
"""Answers a request instead of the server."""


class OpenAIServer(contextlib.AbstractContextManager["OpenAIServer"]):
    """Counts its requests and answers `well TEXT SEED`, or with the next of `faults` if there is one."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.faults: list[Fault] = []
        self.answer: Callable[[dict[str, Any]], Any] = well
        """Request body → what is sent; may return a Fault."""
        self.asked: list[dict[str, Any]] = []
        """Bodies of all requests that came, faults included."""
        self.answered: Counter[tuple[str, int]] = Counter()
        """Text and seed of each request that was answered as it should be."""
        self.paths: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.models: object = [{"id": "smol"}, {"id": "other"}]
        """The models that it lists; None if it lists none."""
        self.refuses = 0
        """Status with which it refuses to list them."""
        self.under_way = self.most_under_way = 0
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._http = ThreadingHTTPServer((host, port), Handler)
        self._http.daemon_threads = True
        self._http.owner = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://{host}:{self._http.server_port}/v1"

    def stop(self) -> None:
        """End it; connections to it are refused from then on."""
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        if not self.stopping.is_set():
            self.stop()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Headers and body are sent apart; without this each reply waits 40 ms.
    disable_nagle_algorithm = True

    @property
    def owner(self) -> OpenAIServer:
        return self.server.owner  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        if self.owner.refuses:
            status(self.owner.refuses, "who are you?")(self)
            return
        self.send(200, {} if self.owner.models is None else {"data": self.owner.models})

    def do_POST(self) -> None:
        owner = self.owner
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
            owner.paths[self.path] += 1
            owner.asked.append(asked)
            owner.times.append(time.monotonic())
            owner.keys.add(self.headers.get("Authorization", ""))
            owner.under_way += 1
            owner.most_under_way = max(owner.most_under_way, owner.under_way)
            fault = owner.faults.pop(0) if owner.faults else None
        try:
            answer = fault or owner.answer(asked)
            if callable(answer):
                answer(self)
                return
            # Before it is sent: the client may look at the count as soon as it has the answer.
            with owner.lock:
                owner.answered[words_of(asked), asked.get("seed", -1)] += 1
            self.send(200, answer)
        finally:
            with owner.lock:
                owner.under_way -= 1

    def send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def words_of(asked: dict[str, Any]) -> str:
    """The text that a request is about: its last turn, or its plain text."""
    return asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]


def reply(*texts: str, chat: bool = True) -> dict[str, Any]:
    """An answer with these texts; its tokens are 10 and 5 a choice."""
    contents = [{"message": {"role": "assistant", "content": text}} if chat else {"text": text} for text in texts]
    choices = [{"index": i, "finish_reason": "stop", **content} for i, content in enumerate(contents)]
    return {"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 5 * len(texts)}}


def well(asked: dict[str, Any]) -> dict[str, Any]:
    """A right answer."""
    texts = [f"well {words_of(asked)} {asked.get('seed')} {i}" for i in range(asked.get("n", 1))]
    return reply(*texts, chat="messages" in asked)


def status(number: int, text: str = "out of order", headers: dict[str, str] | None = None, **error: Any) -> Fault:
    """An error as OpenAI writes it."""
    return lambda handler: handler.send(number, {"error": {"message": text, **error}}, headers)


def body(content: Any, code: int = 200, headers: dict[str, str] | None = None) -> Fault:
    """Any body, with any status."""
    return lambda handler: handler.send(code, content, headers)


def nonsense(raw: bytes, length: int) -> Fault:
    """Bytes that are fewer than the header promises, then the end of the connection."""

    def fault(handler: Handler) -> None:
        handler.send(200, raw, {"Content-Length": str(length)})
        handler.close_connection = True

    return fault


def hang(handler: Handler) -> None:
    """Say nothing."""
    handler.owner.stopping.wait(20)
    handler.close_connection = True


def reset(handler: Handler) -> None:
    """Cut the connection with a reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True

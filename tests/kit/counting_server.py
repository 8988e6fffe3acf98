"""A fast server with OpenAI's chat interface for the published prompts; it may be killed, and its count survives.

    python -m tests.kit.counting_server PORT LOG

Each request is logged before it is answered, as a hash of its body, so repeated requests are seen. The answer depends
only on the body: the text in other words. Some texts get no answer at the first try, and some share theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.kit.processes import free_port

LINE = 33
"""Bytes per line of the log."""
SILENT, SHARED = 41, 7
"""One text in `SILENT` gets an empty answer at the first draw; one in `SHARED` is answered like its neighbours."""


class CountingServer:
    """The server's process, seen from outside."""

    def __init__(self, log: Path) -> None:
        """Start it on a free port; `log` is created."""
        self.log = log
        log.touch()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.kit.counting_server", str(self.port), str(self.log.absolute())]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return process
            time.sleep(0.02)
        raise RuntimeError(f"the counting server could not listen on port {self.port}")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again on the same port."""
        self.process = self._started()

    @property
    def asked(self) -> int:
        """Number of requests so far."""
        return self.log.stat().st_size // LINE

    def counts(self) -> Counter[str]:
        """How often each distinct request has come."""
        return Counter(self.log.read_text().split())


def answer_to(body: dict[str, Any]) -> str:
    """The text of a request in other words."""
    text = body["messages"][-1]["content"].split('"')[1]
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    if not number % SILENT and not (number ^ body["seed"]) % 3:
        return ""
    if not number % SHARED:
        return f"one sees something {' '.join(text.split()[-3:])}"
    return f"one sees {text} {body['seed'] % 5}"


class _Connection(asyncio.Protocol):
    """As much HTTP as one client needs: bodies with a length, one request after another."""

    def __init__(self, log: int) -> None:
        self._log, self._waiting = log, b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while (end := self._waiting.find(b"\r\n\r\n")) >= 0:
            length, asks = 0, self._waiting.startswith(b"POST")
            for line in self._waiting[:end].split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            raw = self._waiting[end + 4 : end + 4 + length]
            if len(raw) < length:
                return
            self._waiting = self._waiting[end + 4 + length :]
            # Any other request asks for the list of models.
            self._send(self._answer(raw) if asks else {"data": [{"id": "counting"}]})

    def _answer(self, raw: bytes) -> dict[str, Any]:
        os.write(self._log, hashlib.blake2b(raw, digest_size=16).hexdigest().encode() + b"\n")
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": answer_to(json.loads(raw))}}
        return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}

    def _send(self, content: dict[str, Any]) -> None:
        sent = json.dumps(content).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(sent), sent)
        )


async def _serve(port: int, log: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(log), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)))

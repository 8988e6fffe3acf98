"""Real vLLM on a CPU and real SmolLM2. `make test-vllm` makes the environment and sets PARACLIP_VLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import below, command_of, free_port  # pyright: ignore[reportMissingImports]
from waiting import eventually  # pyright: ignore[reportMissingImports]

FOLDER = os.environ.get("PARACLIP_VLLM")
PAIRS = Path(__file__).parents[1] / "data" / "faithfulness" / "pairs.jsonl"
CAPTIONS = 24
STEADY = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests to `make test-vllm`: they take minutes and an environment of their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if FOLDER is None:
                item.add_marker(pytest.mark.skip(reason="vLLM has an environment of its own: make test-vllm"))


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The Python that has vLLM."""
    return str(Path(str(FOLDER)) / "bin" / "python")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The embedded model as a Hugging Face folder."""
    return str(Path(str(FOLDER)) / "smollm2")


@pytest.fixture(scope="session")
def vllm_options(vllm_python: str) -> dict[str, Any]:
    """Options for a small machine."""
    return {
        "python": vllm_python,
        "extra": {"dtype": "bfloat16", "max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 32},
    }


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Different captions of photographs, of different lengths."""
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    texts = dict.fromkeys(pair["caption"] for pair in pairs if pair["kind"] == "photo")
    return [text for text in texts if 4 <= len(text.split()) <= 14][:CAPTIONS]


class Server:
    """vLLM's own OpenAI-compatible server, which may be killed and started again at the same address."""

    def __init__(self, python: str, model: str, log: Path) -> None:
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._command = [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "smol",
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "bfloat16", "--max-model-len", "1024",
            "--enforce-eager", "--max-num-seqs", "32",
            "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=os.environ | STEADY, start_new_session=True
            )
        eventually(self._healthy)

    def _healthy(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()[-3000:]
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    def kill(self) -> None:
        """End it and all that it started, without warning."""
        assert self._process is not None
        for pid in (self._process.pid, *below(self._process.pid)):
            # The one that gives back the others' shared memory may do so.
            if "resource_tracker" not in command_of(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, so that it gives back its shared memory."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def answered(self) -> int:
        """Requests that it answered, by its own log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture
def vllm_server(vllm_python: str, smollm2: str, tmp_path: Path) -> Iterator[Server]:
    """A server that is being started and healthy."""
    server = Server(vllm_python, smollm2, tmp_path / "server.txt")
    try:
        server.start()
        yield server
    finally:
        server.stop()

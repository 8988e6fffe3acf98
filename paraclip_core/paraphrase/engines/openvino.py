"""A language model on the CPU by OpenVINO GenAI: a GGUF of the Llama or Qwen families, or an OpenVINO folder.

The default of `paraphrase.model` is the demo's model. A missing package or model or a failing pipeline raises
EngineError.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from paraclip_core.demo import smollm2
from paraclip_core.errors import EngineError, InputError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines import (
    Completion,
    EngineContext,
    EngineFacts,
    EngineOptions,
    Prompt,
    SamplingOptions,
    local_model,
)

log = logging.getLogger(__name__)

# All three are needed: quantized activations and a quantized key-value cache depend on the batch as bf16 does.
PROPERTIES: dict[str, dict[str, Any]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "bf16": {},
}
SCHEDULER = {"enable_prefix_caching": True, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "cache_size": 2}
"""The scheduler's options, by OpenVINO's names; the cache is in GB. In fp32 none changes an answer."""


class OpenVinoEngine:
    """Continuous batching with a shared prompt prefix.

    Draws are seeded for each request. In fp32 an answer does not depend on other requests in the batch or before it; in
    bf16, a different order of summation occasionally flips a close draw.
    """

    name = "openvino"
    facts = EngineFacts(on_device=False, shares_cores=True)

    def __init__(self, options: EngineOptions[str], context: EngineContext) -> None:
        self._path = context.path_of(options.model) if options.model else None
        self._precision, self._hash_files = options.options, context.hash_files
        self._pipeline: Any = None
        self._warm: set[tuple[tuple[str, str], ...]] = set()

    @property
    def model(self) -> str:
        """Name and hash of the model's files, and the precision."""
        return f"{self._identity}@{self._precision}"

    @cached_property
    def _identity(self) -> str:
        if self._path is None:
            return smollm2.model_id()
        if self._path.is_dir():
            return local_model(self._path, self._hash_files)
        try:
            return f"{self._path.name}@{self._hash_files([self._path])[str(self._path)][:24]}"
        except (OSError, InputError) as error:
            raise EngineError(
                f"paraphrase.model: cannot read {self._path}: {error}; expected a GGUF file or an OpenVINO folder"
            ) from error

    def check(self) -> None:
        if importlib.util.find_spec("openvino_genai") is None:
            raise EngineError("the engine `openvino` needs `pip install openvino-genai`")
        _ = self._file(), self.model

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        pipeline = self._load()
        completions: list[Completion] = []
        for seed, group in groupby(prompts, key=lambda prompt: prompt.seed):
            completions += self._generate(pipeline, list(group), sampling, seed)
        return completions

    def close(self) -> None:
        self._pipeline = None
        self._warm.clear()

    def _generate(self, pipeline: Any, prompts: list[Prompt], sampling: SamplingOptions, seed: int) -> list[Completion]:
        tokenizer = pipeline.get_tokenizer()
        config = _generation_config(prompts[0], sampling, seed)
        try:
            texts = [self._rendered(tokenizer, prompt) for prompt in prompts]
            self._warm_up(pipeline, prompts[0], texts[0], sampling)
            answers = list(pipeline.generate(texts, config).texts)
            read, drawn = _token_counts(tokenizer, texts), _token_counts(tokenizer, answers)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO GenAI failed on {len(prompts)} prompts: {error}") from error
        n = config.num_return_sequences
        if len(answers) != len(prompts) * n:
            raise EngineError(f"OpenVINO GenAI gave {len(answers)} answers for {len(prompts)} prompts × {n}")
        return [
            Completion(tuple(answers[i * n : (i + 1) * n]), read[i], sum(drawn[i * n : (i + 1) * n]))
            for i in range(len(prompts))
        ]

    def _rendered(self, tokenizer: Any, prompt: Prompt) -> str:
        """The prompt in the model's chat template."""
        if self._path is None:
            return smollm2.chatml(prompt.messages)
        turns = [{"role": role, "content": content} for role, content in prompt.messages]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True)

    def _warm_up(self, pipeline: Any, prompt: Prompt, text: str, sampling: SamplingOptions) -> None:
        """Send one prompt alone, so that the batch after it finds the shared prefix computed."""
        prefix = prompt.messages[:-1] or ((prompt.messages[-1][0], ""),)
        if prefix in self._warm:
            return
        short = sampling.model_copy(update={"n": 1, "max_tokens": 1})
        pipeline.generate([text], _generation_config(prompt, short, prompt.seed))
        self._warm.add(prefix)

    def _file(self) -> Path:
        return self._path or smollm2.gguf_file()

    def _load(self) -> Any:
        if self._pipeline is None:
            self.check()
            import openvino_genai

            scheduler, path = openvino_genai.SchedulerConfig(), self._file()
            for name, value in SCHEDULER.items():
                setattr(scheduler, name, value)
            log.info("loading %s", path)
            try:
                with _writable(path) as opened:
                    self._pipeline = openvino_genai.LLMPipeline(
                        str(opened), "CPU", scheduler_config=scheduler, **PROPERTIES[self._precision]
                    )
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO GenAI cannot load {path}: {error}; expected a GGUF file of the Llama or Qwen families, "
                    "or a folder that Optimum exported for OpenVINO"
                ) from error
        return self._pipeline


@contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """The file, or a temporary copy while it loads: OpenVINO opens it for writing, although it only reads."""
    if path.is_dir() or os.access(path, os.W_OK):
        yield path
        return
    # Not a plain temporary folder: a process killed while loading would leave it behind.
    with TempDir("openvino-") as folder:
        try:
            copy = shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise EngineError(
                f"OpenVINO GenAI reads a model only where it may write, and {path} cannot be copied for it: {error}; "
                "choose another folder for temporary files with TMPDIR, or make the file writable"
            ) from error
        yield copy


def _generation_config(prompt: Prompt, sampling: SamplingOptions, seed: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    if prompt.one_line:
        config.stop_strings = {"\n"}
    config.rng_seed = seed % 2**64
    # Greedy decoding has one answer.
    config.num_return_sequences = sampling.draws
    if sampling.temperature > 0:
        config.do_sample, config.temperature, config.top_p = True, sampling.temperature, sampling.top_p
    return config


def _token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    mask = tokenizer.encode(list(texts), add_special_tokens=False).attention_mask.data
    return [int(count) for count in mask.sum(axis=1)]

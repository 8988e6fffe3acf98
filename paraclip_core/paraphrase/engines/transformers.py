"""A local Hugging Face causal language model as an engine, by `model.generate`.

A model that is missing, cannot be loaded or fails raises EngineError.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from paraclip_core.errors import EngineError
from paraclip_core.options import OPERATIONAL, Options
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

DRAWS = 3
"""Version of the sampling, part of the model's name."""


class TransformersOptions(Options):
    """A local Hugging Face model in this process, in the precision of its files."""

    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=OPERATIONAL)
    """Answers drawn in one batch. Larger is faster, as far as memory allows."""


class TransformersEngine:
    """Batched generation through the model's chat template; prompts of similar length share a batch, left-padded.

    A batch is seeded by its prompts, so a request's answers depend on the others in its batch.
    """

    name = "transformers"

    def __init__(self, options: EngineOptions[TransformersOptions], context: EngineContext) -> None:
        self._folder, self._options, self._context = context.path_of(options.model), options.options, context
        self._loaded: tuple[Any, Any] | None = None
        self._ends: list[int] = []
        """Tokens that end an answer of one line."""

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(shares_cores=True)

    @cached_property
    def model(self) -> str:
        """Folder name, a hash of the files, and the version of the sampling."""
        return f"{local_model(self._folder, self._context.hash_files)}?draws={DRAWS}"

    def check(self) -> None:
        _ = self.model

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        if not prompts:
            return []
        _, tokenizer = self._load()
        texts = [self._rendered(prompt) for prompt in prompts]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        order = sorted(range(len(prompts)), key=lambda i: (lengths[i], texts[i]))
        size = max(1, self._options.batch_size // sampling.draws)
        completions: dict[int, Completion] = {}
        try:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                drawn = self._batch([prompts[i] for i in batch], [texts[i] for i in batch], sampling)
                completions |= zip(batch, drawn, strict=True)
        except RuntimeError as error:
            raise EngineError(
                f"{self._folder.name} failed on {len(prompts)} prompts: {error}; if memory is short, lower "
                f"paraphrase.transformers.batch_size (now {self._options.batch_size})"
            ) from error
        return [completions[i] for i in range(len(prompts))]

    def close(self) -> None:
        self._loaded = None

    def _rendered(self, prompt: Prompt) -> str:
        _, tokenizer = self._load()
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        if tokenizer.chat_template:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return "\n".join(content for _, content in prompt.messages) + "\n"

    def _batch(self, prompts: Sequence[Prompt], texts: Sequence[str], sampling: SamplingOptions) -> list[Completion]:
        import torch

        model, tokenizer = self._load()
        inputs = tokenizer(
            list(texts), add_special_tokens=False, padding=True, return_token_type_ids=False, return_tensors="pt"
        ).to(model.device)
        way: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        n = 1
        if sampling.temperature > 0:
            n = sampling.n
            way = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            seeded = "\0".join([str(prompts[0].seed), *texts]).encode("utf-8", "surrogatepass")
            torch.manual_seed(int.from_bytes(hashlib.blake2b(seeded, digest_size=8).digest(), "little") % 2**63)
        if prompts[0].one_line:
            way["eos_token_id"] = self._ends
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **way,
                num_return_sequences=n,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        fresh = output[:, inputs["input_ids"].shape[1] :]
        drawn = (fresh != tokenizer.pad_token_id).sum(1).reshape(-1, n).sum(1).tolist()
        answers = tokenizer.batch_decode(fresh, skip_special_tokens=True)
        read = inputs["attention_mask"].sum(1).tolist()
        return [Completion(tuple(answers[i * n : (i + 1) * n]), read[i], drawn[i]) for i in range(len(prompts))]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from paraclip_core.clip.model import pick_device

            device = pick_device(self._context.device)
            log.info("loading %s", self._folder)
            try:
                tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True, padding_side="left")
                model: Any = AutoModelForCausalLM.from_pretrained(self._folder, local_files_only=True, dtype="auto")
            except (OSError, ValueError, KeyError) as error:
                raise EngineError(
                    f"paraphrase.model: cannot load {self._folder}: {error}; "
                    "expected the folder of a Hugging Face causal language model"
                ) from error
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            self._loaded = model.to(device).eval(), tokenizer
            pieces = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
            ends = model.generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
            self._ends = [*ends, *(i for i, piece in enumerate(pieces) if "\n" in piece)]
        return self._loaded

"""A local Hugging Face causal language model as an engine."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from paraclip_core.config import SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.protocol import Completion, Prompt

__all__ = ["TransformersEngine"]

log = logging.getLogger(__name__)

BATCH_SEQUENCES = 64
EDGE_BYTES = 65_536
SMALL_BYTES = 16 * 1024 * 1024


class TransformersEngine:
    """Batched generation, prompts of about equal length together, left-padded, through the model's chat template.

    One list of prompts gives one list of answers; sampled answers may change when the list is cut otherwise.
    """

    name = "transformers"

    def __init__(self, folder: Path, device: str = "auto") -> None:
        """`folder` holds config, weights and tokenizer; `device` is a torch device, or `auto`."""
        self._folder, self._device = folder, device
        self._loaded: tuple[Any, Any] | None = None
        self._model = ""
        self._breaks: Any = None

    @property
    def model(self) -> str:
        """Folder name and a hash: small files whole, big ones by size, first and last 64 KiB.

        Raises:
            EngineError: the folder is not there.
        """
        if not self._model:
            self._model = f"{self._folder.name}@{self._digest()}"
        return self._model

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=12)
        try:
            files = sorted(path for path in self._folder.iterdir() if path.is_file() and not path.name.startswith("."))
            if not any(path.name == "config.json" for path in files):
                raise EngineError(
                    f"paraphrase.model: {self._folder} has no config.json; expected a Hugging Face folder"
                )
            for path in files:
                _digest_file(digest, path)
        except OSError as error:
            raise EngineError(f"paraphrase.model: cannot read {self._folder}: {error.strerror or error}") from error
        return digest.hexdigest()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order.

        Raises:
            EngineError: the model cannot be loaded, or generation failed.
        """
        self._load()
        done: list[Completion] = []
        for seed, group in groupby(prompts, key=lambda prompt: prompt.seed):
            done += self._generate(list(group), sampling, seed)
        return done

    def close(self) -> None:
        """Drop the model; the next call loads it again."""
        self._loaded = None

    def _generate(self, prompts: list[Prompt], sampling: SamplingOptions, seed: int) -> list[Completion]:
        import torch

        texts = [self._rendered(prompt) for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        found: dict[int, Completion] = {}
        size = max(1, BATCH_SEQUENCES // sampling.n)
        # The caller's random state is given back afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                try:
                    answers = self._batch([texts[row] for row in rows], sampling)
                except RuntimeError as error:
                    raise EngineError(f"{self._folder.name} failed on {len(rows)} prompts: {error}") from error
                found |= dict(zip(rows, answers, strict=True))
        return [found[row] for row in range(len(prompts))]

    def _rendered(self, prompt: Prompt) -> str:
        _, tokeniser = self._load()
        if prompt.messages[0][0] == "text":
            return prompt.messages[0][1]
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        if tokeniser.chat_template:
            return tokeniser.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return "\n".join(content for _, content in prompt.messages) + "\n"

    def _batch(self, texts: list[str], sampling: SamplingOptions) -> list[Completion]:
        import torch

        model, tokeniser = self._load()
        inputs = tokeniser(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        greedy = sampling.temperature == 0
        drawing: dict[str, Any] = (
            {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if greedy
            else {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        )
        n = 1 if greedy else sampling.n
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                **drawing,
                num_return_sequences=n,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=tokeniser.pad_token_id,
                stopping_criteria=[self._line_end(tokeniser, inputs["input_ids"].shape[1])],
            )
        fresh = output[:, inputs["input_ids"].shape[1] :]
        said = (fresh != tokeniser.pad_token_id).sum(1).tolist()
        answers = tokeniser.batch_decode(fresh, skip_special_tokens=True)
        asked = inputs["attention_mask"].sum(1).tolist()
        return [
            Completion(tuple(answers[i * n : (i + 1) * n]), int(asked[i]), int(sum(said[i * n : (i + 1) * n])))
            for i in range(len(texts))
        ]

    def _line_end(self, tokeniser: Any, prompt_length: int) -> Callable[..., Any]:
        """Stops a sequence whose last token holds a line break, unless the answer only begins."""
        import torch

        if self._breaks is None:
            ids = [i for i in range(len(tokeniser)) if "\n" in tokeniser.decode([i])]
            self._breaks = torch.tensor(ids, dtype=torch.long)
        breaks = self._breaks

        def ended(ids: Any, scores: Any, **_: Any) -> Any:
            if ids.shape[1] <= prompt_length + 1:
                return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
            return torch.isin(ids[:, -1], breaks.to(ids.device))

        return ended

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            device = self._device if self._device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
            log.info("loading %s", self._folder)
            try:
                tokeniser = AutoTokenizer.from_pretrained(self._folder, local_files_only=True, padding_side="left")
                model = AutoModelForCausalLM.from_pretrained(self._folder, local_files_only=True, dtype="auto")
            except (OSError, ValueError, KeyError) as error:
                raise EngineError(
                    f"paraphrase.model: cannot load {self._folder}: {error}; "
                    "expected the folder of a Hugging Face causal language model"
                ) from error
            if tokeniser.pad_token_id is None:
                tokeniser.pad_token = tokeniser.eos_token
            moved: Any = model
            self._loaded = moved.to(device).eval(), tokeniser
        return self._loaded


def _digest_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        if size <= SMALL_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(EDGE_BYTES))
            file.seek(size - EDGE_BYTES)
            digest.update(file.read(EDGE_BYTES))

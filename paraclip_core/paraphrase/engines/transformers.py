"""A local Hugging Face causal language model as an engine."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paraclip_core.config import ParaphraseOptions, SamplingOptions, TransformersOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.draws import RowDraws, row_key
from paraclip_core.paraphrase.engines.local_model import local_model, read_hashes
from paraclip_core.paraphrase.engines.shared_prefix import SharedPrefixes
from paraclip_core.paraphrase.protocol import Completion, EngineContext, EngineFacts, HashFiles, Prompt
from paraclip_core.paths import user_path

__all__ = ["TransformersEngine"]

log = logging.getLogger(__name__)

DRAWS = 2
"""Way of drawing, part of the model's name: 1 drew batch by batch, and answers depended on how requests were cut."""


class _Row(NamedTuple):
    """One answer to come."""

    prompt: int
    draw: int
    tokens: list[int]
    key: int


class TransformersEngine:
    """Batched generation, prompts of about equal length together, left-padded, through the model's chat template.

    What all prompts of a call begin with, the examples, is computed once. Each answer's draws are seeded by its request
    and its number, so that they depend on what is computed beside it by rounding alone.
    """

    name = "transformers"

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        hash_files: HashFiles = read_hashes,
        options: TransformersOptions | None = None,
    ) -> None:
        """`folder` holds config, weights and tokenizer; `device` is a torch device, or `auto`."""
        self._folder, self._device, self._hash_files = folder, device, hash_files
        self._options = options or TransformersOptions()
        self._loaded: tuple[Any, Any] | None = None
        self._prefixes: SharedPrefixes | None = None
        self._model = ""
        self._breaks: Any = None

    @classmethod
    def from_options(cls, options: ParaphraseOptions, context: EngineContext) -> TransformersEngine:
        """The engine of the paraphrase options."""
        return cls(user_path(options.model), context.device, context.hash_files, options.transformers)

    @property
    def facts(self) -> EngineFacts:
        """A model in this process, on a GPU or on the CPU cores."""
        return EngineFacts(shares_cores=True, deterministic=self._options.dtype == "float32")

    @property
    def model(self) -> str:
        """Folder name and a hash of the files, the way of drawing, and the arithmetic where it is not the files' own.

        Raises:
            EngineError: the folder is not there.
        """
        if not self._model:
            dtype = self._options.dtype
            own = "" if dtype == "auto" else f"&dtype={dtype}"
            self._model = f"{local_model(self._folder, self._hash_files)}?draws={DRAWS}{own}"
        return self._model

    def check(self) -> None:
        """Look whether model and packages are there; nothing is loaded.

        Raises:
            EngineError: there is no such model, or a package is missing.
        """
        _ = self.model
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise EngineError(f"the engine `transformers` needs the package {package}: pip install {package}")

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order.

        Raises:
            ConfigError: the machine has no such device.
            EngineError: the model cannot be loaded, or generation failed.
        """
        if not prompts:
            return []
        _, tokenizer = self._load()
        n = 1 if sampling.temperature == 0 else sampling.n
        texts = [self._rendered(prompt) for prompt in prompts]
        tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [
            _Row(i, draw, tokens[i], row_key(prompt.seed, texts[i], draw))
            for i, prompt in enumerate(prompts)
            for draw in range(n)
        ]
        rows.sort(key=lambda row: (len(row.tokens), row.tokens, row.draw))
        assert self._prefixes is not None
        answers_by_draw: dict[tuple[int, int], tuple[str, int]] = {}
        try:
            prefix = self._prefixes.find(tokens) if len(rows) > 1 else ()
            for start in range(0, len(rows), self._options.batch_size):
                some = rows[start : start + self._options.batch_size]
                answers = self._batch(some, prefix, sampling)
                answers_by_draw |= {(row.prompt, row.draw): answer for row, answer in zip(some, answers, strict=True)}
        except RuntimeError as error:
            raise EngineError(
                f"{self._folder.name} failed on {len(prompts)} prompts: {error}; where memory is short, lower "
                f"paraphrase.transformers.batch_size (now {self._options.batch_size})"
            ) from error
        answered = [[answers_by_draw[i, draw] for draw in range(n)] for i in range(len(prompts))]
        return [
            Completion(tuple(text for text, _ in own), len(tokens[i]), sum(tokens_drawn for _, tokens_drawn in own))
            for i, own in enumerate(answered)
        ]

    def close(self) -> None:
        """Drop the model; the next call loads it again."""
        self._loaded = self._prefixes = None

    def _rendered(self, prompt: Prompt) -> str:
        _, tokenizer = self._load()
        if prompt.messages[0][0] == "text":
            return prompt.messages[0][1]
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        if tokenizer.chat_template:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return "\n".join(content for _, content in prompt.messages) + "\n"

    def _batch(self, rows: Sequence[_Row], prefix: tuple[int, ...], sampling: SamplingOptions) -> list[tuple[str, int]]:
        """Text and number of tokens of each row's answer; all rows begin with `prefix`."""
        import torch

        model, tokenizer = self._load()
        assert self._prefixes is not None
        longest = max(len(row.tokens) for row in rows)
        # The padding stands between the beginning, which is computed, and the rest, which is not.
        gaps = [longest - len(row.tokens) for row in rows]
        ids = torch.tensor(
            [
                [*prefix, *[tokenizer.pad_token_id] * gap, *row.tokens[len(prefix) :]]
                for row, gap in zip(rows, gaps, strict=True)
            ]
        )
        mask = torch.ones_like(ids)
        for row, gap in enumerate(gaps):
            mask[row, len(prefix) : len(prefix) + gap] = 0
        more: dict[str, Any] = {"cache": self._prefixes.cache(prefix, len(rows))} if prefix else {}
        if sampling.temperature > 0:
            keys = [row.key for row in rows]
            more["logits_processor"] = [RowDraws(keys, sampling.temperature, sampling.top_p, longest)]
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[self._line_end(tokenizer, longest)],
                **more,
            )
        fresh = output[:, longest:]
        lengths = (fresh != tokenizer.pad_token_id).sum(1).tolist()
        return list(zip(tokenizer.batch_decode(fresh, skip_special_tokens=True), lengths, strict=True))

    def _line_end(self, tokenizer: Any, prompt_length: int) -> Callable[..., Any]:
        """Stops a sequence whose last token holds a line break, unless the answer only begins."""
        import torch

        if self._breaks is None:
            ids = [i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])]
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
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from paraclip_core.clip.model import pick_device

            device = pick_device(self._device)
            log.info("loading %s", self._folder)
            try:
                tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True, padding_side="left")
                model = AutoModelForCausalLM.from_pretrained(
                    self._folder, local_files_only=True, dtype=self._options.dtype
                )
            except (OSError, ValueError, KeyError) as error:
                raise EngineError(
                    f"paraphrase.model: cannot load {self._folder}: {error}; "
                    "expected the folder of a Hugging Face causal language model"
                ) from error
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            moved: Any = model
            self._loaded = moved.to(device).eval(), tokenizer
            self._prefixes = SharedPrefixes(self._loaded[0])
        return self._loaded

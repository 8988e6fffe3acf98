"""A local Hugging Face causal language model as an engine.

A model that is not there, cannot be loaded or fails raises EngineError.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paraclip_core.config import ParaphraseOptions, SamplingOptions, TransformersOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.base import (
    Completion,
    EngineContext,
    EngineFacts,
    HashFiles,
    Prompt,
    local_model,
    read_hashes,
)
from paraclip_core.paths import user_path

log = logging.getLogger(__name__)

DRAWS = 2
"""Way of drawing, part of the model's name: 1 drew batch by batch, and answers depended on how requests were cut."""
NARROW = 256
"""Most likely tokens that are looked at first; they nearly always hold the share `top_p`."""

# SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
SHORTEST = 16
"""Tokens below which sharing is not worth it."""
KEPT = 4
"""Beginnings that are remembered: two steps and the word requests, and one more."""

Prefix = tuple[int, ...]
Layers = list[tuple[Any, Any]]


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
        """Folder name and a hash of the files, the way of drawing, and an arithmetic that is not the files' own."""
        if not self._model:
            dtype = self._options.dtype
            own = "" if dtype == "auto" else f"&dtype={dtype}"
            self._model = f"{local_model(self._folder, self._hash_files)}?draws={DRAWS}{own}"
        return self._model

    def check(self) -> None:
        """Look whether model and packages are there; nothing is loaded."""
        _ = self.model
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise EngineError(f"the engine `transformers` needs the package {package}: pip install {package}")

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order."""
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


def common_prefix(prompts: Sequence[list[int]]) -> Prefix:
    """The tokens that all prompts begin with; each keeps at least one token of its own."""
    low, high = min(prompts), max(prompts)
    shared = tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    return shared[: min(map(len, prompts)) - 1]


class SharedPrefixes:
    """Key-value caches of prompts' beginnings for one model, the latest few of them."""

    def __init__(self, model: Any) -> None:
        """Nothing is computed yet."""
        self._model = model
        self._layers: dict[Prefix, Layers] = {}
        self._possible = True

    def __len__(self) -> int:
        """Number of beginnings that are remembered."""
        return len(self._layers)

    def find(self, prompts: Sequence[list[int]]) -> Prefix:
        """The beginning of `prompts` to share, computed if it is new; empty where that is not worth it or impossible.

        A known one that is almost as long as the longest is taken again, so that two captions which happen to begin
        alike are no reason to compute a template anew.
        """
        shared = common_prefix(prompts)
        longest = max((p for p in self._layers if shared[: len(p)] == p), key=len, default=())
        if longest and len(shared) - len(longest) < SHORTEST:
            self._layers[longest] = self._layers.pop(longest)
            return longest
        if len(prompts) < 2 or len(shared) < SHORTEST or not self._possible:
            return longest
        layers = self._computed(shared)
        if layers is None:
            self._possible = False
            return ()
        self._layers[shared] = layers
        while len(self._layers) > KEPT:
            del self._layers[next(iter(self._layers))]
        return shared

    def cache(self, prefix: Prefix, rows: int) -> Any:
        """A cache with the beginning for `rows` rows, which may be written on."""
        from transformers import DynamicCache

        repeated = [
            (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self._layers[prefix]
        ]
        return DynamicCache(repeated, config=self._model.config)

    def _computed(self, prefix: Prefix) -> Layers | None:
        """Keys and values, layer by layer; None for models that remember more, or less, than all of them."""
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache(config=self._model.config)
        layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
        if len(layers) < len(cache.layers):
            return None
        ids = torch.tensor([prefix], device=self._model.device)
        with torch.inference_mode():
            self._model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in layers]


def row_key(seed: int, text: str, draw: int) -> int:
    """64-bit key of the draws of a request's answer number `draw`; `text` is all that the model reads."""
    digest = hashlib.blake2b(f"{seed}\0{draw}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def uniform(keys: NDArray[np.uint64], step: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), each a function of its row's key, the step and the token.

    They are element `token` of the SplitMix64 stream whose seed is element `step` of the row's. `tokens`: ids,
    [rows, candidates].
    """
    # Arrays wrap around silently, single numbers would warn.
    streams = _mixed(keys + np.uint64(_GOLDEN * (step + 1) % 2**64))
    bits = _mixed(streams[:, None] + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


class RowDraws:
    """A logits processor that leaves each row one token, drawn by temperature and nucleus (`top_p`); for greedy search.

    The token is the largest of log p + Gumbel noise (Gumbel-max), which is a sample of p. The noise belongs to the
    token, so that rounding, which moves p a little, seldom changes the winner.
    """

    def __init__(self, keys: Sequence[int], temperature: float, top_p: float, prompt_length: int) -> None:
        """`keys`: :func:`row_key` of each row; the first `prompt_length` tokens of all rows are not drawn."""
        self._keys = np.array(keys, np.uint64)
        self._temperature, self._top_p, self._prompt_length = temperature, top_p, prompt_length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores` (float logits [rows, vocabulary]), overwritten: everything but the drawn tokens is at −∞."""
        import torch

        step = input_ids.shape[1] - self._prompt_length
        logs = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        drawn = np.zeros(len(self._keys), np.int64)
        wide = np.ones(len(self._keys), bool)
        if self._top_p < 1 and logs.shape[1] > NARROW:
            best = torch.topk(logs, NARROW, dim=-1)
            drawn, mass = self._drawn(slice(None), step, best.values, best.indices)
            wide = mass < self._top_p
        for row in np.flatnonzero(wide).tolist():
            best = torch.sort(logs[row : row + 1], dim=-1, descending=True)
            drawn[row : row + 1], _ = self._drawn(slice(row, row + 1), step, best.values, best.indices)
        scores.fill_(-torch.inf)
        return scores.scatter_(1, torch.from_numpy(drawn)[:, None].to(scores.device), 0.0)

    def _drawn(self, rows: slice, step: int, logs: Any, ids: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Drawn token and mass of all candidates; these come by falling probability, rows × candidates."""
        values = logs.double().cpu().numpy()
        tokens = ids.cpu().numpy()
        probabilities = np.exp(values)
        upto = np.cumsum(probabilities, axis=1)
        noise = -np.log(-np.log(uniform(self._keys[rows], step, tokens)))
        inside = upto - probabilities < self._top_p
        # The most likely token stays, whatever rounding makes of a tiny `top_p`.
        inside[:, 0] = True
        best = np.argmax(np.where(inside, values + noise, -np.inf), axis=1)
        return tokens[np.arange(len(tokens)), best], upto[:, -1]

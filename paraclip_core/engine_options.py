"""Options of single paraphrase engines, part of the tree in :mod:`paraclip_core.config`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from paraclip_core.options import OPERATIONAL, Options, json_fields

MILLION = 1_000_000
OURS = frozenset(("messages", "model", "n", "prompt", "seed", "stream"))


@dataclass(frozen=True)
class EngineEntry:
    """An engine that `paraphrase.engine` can name."""

    path: str
    """What makes it from options and context, as `package.module:Class`; imported when it is used."""
    reads: tuple[str, ...] = ("model", "options")
    """The paraphrase options it looks at among those that only some engines do."""
    needs: tuple[str, str] = ("", "")
    """The option without which it cannot work, below `paraphrase`, and what that is."""


_IN = "paraclip_core.paraphrase.engines"
_LOCAL = ("model", "the folder of a local model")
_HUB = ("model", "a model's folder or its id on the hub")
_SERVED = ("model", "the model's name at the server")
_FILE = ("file.path", "the file with your paraphrases")

ENGINES = {
    "openvino": EngineEntry(f"{_IN}.openvino:OpenVinoEngine", ("model", "precision")),
    "transformers": EngineEntry(f"{_IN}.transformers:TransformersEngine", ("model", "transformers"), _LOCAL),
    "vllm": EngineEntry(f"{_IN}.vllm:VllmEngine", ("model", "vllm"), _HUB),
    "openai": EngineEntry(f"{_IN}.openai:OpenAIEngine", ("model", "openai"), _SERVED),
    "file": EngineEntry(f"{_IN}.file:FileEngine", ("file",), _FILE),
    "mined": EngineEntry(f"{_IN}.mined:MinedEngine", ("mined",)),
}
"""The engines by name. Another one is a line here, or `package.module:Class` in the settings."""


class OpenAIOptions(Options):
    """A server that speaks OpenAI's HTTP interface: `vllm serve`, llama.cpp's server, a vendor."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", json_schema_extra=OPERATIONAL)
    """Address up to and with the version, the one that `/chat/completions` is put behind. What counts for the result is
    the model, not where it is served."""
    revision: str = ""
    """Revision of the model, where the server's name for it does not say (a commit, a date, a quantization)."""
    extra_body: dict[str, Any] = Field(default={})
    """Fields to put into every request's body, for what only this server or model knows (`reasoning_effort`,
    `chat_template_kwargs`); `null` leaves a field out that would be there (`max_tokens: null`, `seed: null`, and
    `n: null` for a server that refuses to give several answers at once: it is then asked for one after another)."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=OPERATIONAL)
    """Name of the environment variable that holds the key; the key itself is never an option. Servers without keys need
    none."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, json_schema_extra=OPERATIONAL)
    """Requests under way at once."""
    requests_per_minute: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Most requests in a minute, of each process; 0: no limit."""
    tokens_per_minute: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Most tokens in a minute, prompts and answers together, of each process; 0: no limit."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(default=120, json_schema_extra=OPERATIONAL)
    """Longest time without a byte of an answer."""
    retries: Annotated[int, Field(ge=0, le=100)] = Field(default=6, json_schema_extra=OPERATIONAL)
    """How often a request is sent again when the server is busy, fails or hangs."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Price of a million prompt tokens, in any currency."""
    price_per_million_completion_tokens: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Price of a million answered tokens, in the same currency."""
    max_spend: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """The run stops before this model's answers in the generation cache, earlier runs' included, have cost more than
    this; everything answered is kept. Processes at once see each other's spending when they start. 0: no cap."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        # No message repeats the address: a secret in it must not get into a log.
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address like http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or `?`; put the key into the variable that api_key_env names")
        url = url.rstrip("/")
        if url.endswith("/completions"):
            raise ValueError("must end before /chat/completions, usually in /v1")
        return url

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, fields: dict[str, Any]) -> dict[str, Any]:
        # A vendor that knows no seed, or gives one answer at a time, may be spared it.
        ours = sorted(n for n in fields.keys() & OURS if n not in ("n", "seed") or fields[n] is not None)
        if ours:
            raise ValueError(f"{', '.join(ours)} cannot be set here: paraclip fills these fields itself")
        return json_fields(fields)

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("expected the name of an environment variable (capitals, digits, _), never the key itself")
        return name

    @model_validator(mode="after")
    def _priced(self) -> OpenAIOptions:
        if self.max_spend and not self.priced:
            raise ValueError(
                "max_spend needs price_per_million_prompt_tokens and price_per_million_completion_tokens to count with"
            )
        limits = [self.extra_body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        if self.max_spend and "max_tokens" in self.extra_body and not any(isinstance(limit, int) for limit in limits):
            raise ValueError(
                "max_spend needs a most that an answer may cost; extra_body takes max_tokens out, so put "
                "max_completion_tokens into it"
            )
        return self

    @property
    def priced(self) -> bool:
        """Whether it is known what tokens cost."""
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens, in the currency of the prices."""
        prompt = prompt_tokens * self.price_per_million_prompt_tokens
        return (prompt + completion_tokens * self.price_per_million_completion_tokens) / MILLION


class MinedOptions(Options):
    """Rewordings among the captions themselves."""

    across: bool = False
    """Also take captions of near-duplicate images. The features are then computed before anything is paraphrased."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine of two images' features above which they count as near-duplicates; null: calibrated on the
    captions, or 0.95 where fewer than 200 images have several."""


class TransformersOptions(Options):
    """A local Hugging Face model in this process."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the model; `auto`: as its files are."""
    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=OPERATIONAL)
    """Answers that are drawn at once, and so together. More is faster, up to where memory ends."""


class VllmOptions(Options):
    """vLLM's own server, started by the run. The options have vLLM's names."""

    python: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Python interpreter of the environment that vLLM is installed in; empty: the one that runs paraclip."""
    revision: str = "main"
    """Branch, tag or, best, commit of a model on the hub. The files of a local folder speak for themselves."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = "auto"
    """Arithmetic of the model."""
    max_model_len: Annotated[int, Field(ge=64)] = Field(default=2048, json_schema_extra=OPERATIONAL)
    """Most tokens of a prompt and its answer; one that needs more stops the run, so no answer depends on it."""
    extra: dict[str, Any] = Field(default={})
    """Any other argument of `vllm serve`, by its name (`quantization`, `tensor_parallel_size`, `max_num_seqs`). They
    count as changing what is answered, except those that divide or schedule the work."""

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(arguments.keys() & {*cls.model_fields, "model", "seed"}):
            where = "paraphrase" if name in ("model", "seed") else "paraphrase.vllm"
            raise ValueError(f"{name} is an option of its own, {where}.{name}")
        return arguments

    @field_validator("extra")
    @classmethod
    def _plain(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return json_fields(arguments)

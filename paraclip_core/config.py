"""Every option of paraclip, as one tree of pydantic models.

The same tree is read from YAML, overridden with ``--set a.b=c`` and used as the Prefect flows' parameter, so the
Prefect UI draws a typed form from it. An option changes an artifact's fingerprint unless it is marked
:data:`OPERATIONAL`: such an option may change how fast a result comes, never the result, unless its description says
that it rounds differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from paraclip_core.captions.options import DataOptions
from paraclip_core.clip.options import FeatureOptions, ModelOptions
from paraclip_core.evaluation.options import EvaluateOptions
from paraclip_core.options import LONGEST_NAME, OPERATIONAL, NameOrPath, Options, json_fields
from paraclip_core.options import meaning as meaning
from paraclip_core.paraphrase.gate_options import GateOptions
from paraclip_core.training.options import BootstrapOptions, FinetuneOptions

TrackerName = Literal["tensorboard", "trackio", "wandb"]

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
}
"""The engines by name. Another one is a line here, or `package.module:Class` in the settings."""


class OpenAIOptions(Options):
    """A server that speaks OpenAI's HTTP interface: `vllm serve`, llama.cpp's server, a vendor."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", json_schema_extra=OPERATIONAL)
    """Address up to and with the version, the one that `/chat/completions` is put behind. What counts for the result is
    the model, not where it is served."""
    extra_body: dict[str, Any] = Field(default={})
    """Fields to put into every request's body, for what only this server or model knows (`reasoning_effort`,
    `chat_template_kwargs`); `null` leaves a field out that would be there (`max_tokens: null`, `seed: null`, and
    `n: null` for a server that refuses to give several answers at once: it is then asked for one after another)."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=OPERATIONAL)
    """Name of the environment variable that holds the key, or else of the file under `/run/secrets`; the key itself is
    never an option. Servers without keys need none."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, json_schema_extra=OPERATIONAL)
    """Requests under way at once."""
    requests_per_minute: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Most requests in a minute, of each process; 0: no limit."""
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
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens, in the currency of the prices."""
        prompt = prompt_tokens * self.price_per_million_prompt_tokens
        return (prompt + completion_tokens * self.price_per_million_completion_tokens) / MILLION


class TransformersOptions(Options):
    """A local Hugging Face model in this process, in the arithmetic of its files."""

    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=OPERATIONAL)
    """Answers that are drawn at once, and so together. More is faster, up to where memory ends."""


class VllmOptions(Options):
    """vLLM's own server, started by the run. The options have vLLM's names."""

    python: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Python interpreter of the environment that vLLM is installed in; empty: the one that runs paraclip."""
    extra: dict[str, Any] = Field(default={})
    """Any argument of `vllm serve`, by its name (`revision`, `dtype`, `quantization`, `tensor_parallel_size`). They
    count as changing what is answered, except those that divide or schedule the work. `max_model_len` is 2048 without
    it; a prompt that needs more with its answer stops the run, so no answer depends on it."""

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name in arguments.keys() & {"model", "seed"}:
            raise ValueError(f"{name} is an option of its own, paraphrase.{name}")
        return json_fields(arguments)


EngineName = Annotated[str, NameOrPath("engine", ENGINES, "a class of your own as package.module:Class")]


class SamplingOptions(Options):
    """How the LLM draws its answers."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    """0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40
    """Longest answer."""
    n: Annotated[int, Field(ge=1, le=64)] = 2
    """Answers drawn for one request; the most faithful one that passes the gates is kept."""


class FileEngineOptions(Options):
    """Paraphrases that a user already has."""

    path: str = ""
    """Parquet, JSONL, CSV or TSV with the columns `caption`, `paraphrase_1` and `paraphrase_2`, or captions alone in
    any format of `data.sources` (each caption's next two siblings), relative to `data.root`; all but Parquet plain or
    gzipped, ending in `.gz`."""


class ParaphraseOptions(Options):
    """How captions are paraphrased."""

    engine: EngineName = "openvino"
    """`openvino` (embedded, on the CPU), `transformers` (a local Hugging Face model), `vllm` (a model in vLLM's own
    process), `openai` (any OpenAI-compatible server), `file` (paraphrases you already have, or captions of the same
    image), or a class of your own as `package.module:Class`."""
    model: str = ""
    """GGUF file or OpenVINO folder of the `openvino` engine (empty: SmolLM2-135M), model folder of the `transformers`
    engine, folder or hub id of the `vllm` engine, or the model's name at the server of the `openai` engine."""
    options: dict[str, Any] = Field(default={})
    """Options of an engine of your own, as it documents them."""
    prompts: Literal["paper", "few-shot"] = "few-shot"
    """`paper`: the two published prompts, for capable models. `few-shot`: example turns for small ones, whose own
    synonyms of single words are tried, too, where the gates are `small-model`."""
    prompt_1: str = ""
    """Own prompt for step 1 in place of the set's: one user message with `{}` where the caption goes."""
    prompt_2: str = ""
    """Own prompt for step 2 in place of the set's: one user message with `{}` where paraphrase 1 goes."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training captions to paraphrase, chosen by hash so that adding captions moves no other."""
    sampling: SamplingOptions = SamplingOptions()
    """How answers are drawn."""
    gates: GateOptions = GateOptions()
    """What is kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the `openvino` engine. `fp32` gives a request the same answers whatever is computed beside it, so
    that a killed run ends with the same bytes; `bf16` is about 1.8 times faster and flips a close draw now and then."""
    keep: Annotated[int, Field(ge=1, le=16)] = 1
    """Rewrites kept of a caption, at most: so many accepted answers of step 1, each with one of step 2. Fine-tuning
    draws one of them for each epoch."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 1
    """How often a caption with no accepted answer is asked for, first time included."""
    judge: dict[str, Any] | None = None
    """Ask a language model whether each accepted answer says the same as its caption, and reject it where it says no:
    the options of `paraphrase` in which the judge differs, e.g. `{model: gpt-4o}`; `{}`: the same model. null: off."""
    seed: int = 0
    """Seed of the sampling."""
    chunk: Annotated[int, Field(ge=1, le=1024)] = Field(default=256, json_schema_extra=OPERATIONAL)
    """Requests that an engine is given at once, and so what a killed worker computes again of a local model's. Answers
    of `openai` and `vllm` are written every two seconds, however large it is. Cached answers do not depend on it; an
    engine whose draws depend on what it computes together may answer new requests differently."""
    file: FileEngineOptions = FileEngineOptions()
    """Options of the `file` engine."""
    transformers: TransformersOptions = TransformersOptions()
    """Options of the `transformers` engine."""
    openai: OpenAIOptions = OpenAIOptions()
    """Options of the `openai` engine."""
    vllm: VllmOptions = VllmOptions()
    """Options of the `vllm` engine."""

    def as_judge(self) -> ParaphraseOptions | None:
        """The options of who judges; None where nobody does."""
        if self.judge is None:
            return None
        return ParaphraseOptions.model_validate(_merged(self.model_dump(), self.judge) | {"judge": None})

    @model_validator(mode="after")
    def _judge_options(self) -> ParaphraseOptions:
        try:
            self.as_judge()
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"judge.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return self

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        return json_fields(options)


def _merged(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The options with these changes, below each group, too."""
    merged = options | changes
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(options.get(name), dict):
            merged[name] = _merged(options[name], value)
    return merged


class DriftOptions(Options):
    """How far captions may be from those of the model in use; beyond the limit a run fails before it pays."""

    channel: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Channel whose model's captions are compared with. Empty: the one that `regenerate` moves; other runs compare
    nothing."""
    limit: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Share of those captions that changed or vanished, and share of the words that they never had, at most."""


class RunOptions(Options):
    """How a run is carried out; nothing here changes a result, but for rounding where it is said."""

    root: str = Field(default="runs", json_schema_extra=OPERATIONAL)
    """Folder or URL (`s3://bucket/folder`) of artifacts, unfinished work and caches (environment: PARACLIP_ROOT)."""
    placement: Literal["inline", "deployments"] = Field(default="inline", json_schema_extra=OPERATIONAL)
    """`inline` runs the stages in this process, `deployments` each as its own deployment."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="auto", json_schema_extra=OPERATIONAL
    )
    """`auto`, `cpu`, `cuda` or `cuda:N`; `mps` and `xpu` are taken as well, untested. Each rounds in its own way."""
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """CPU threads, and processes that judge answers; 0: all cores. Another number may round image features and trained
    weights differently in their last bits; one and two train the same bytes where a step has more than 2,048 tokens."""
    drift: DriftOptions = Field(default=DriftOptions(), json_schema_extra=OPERATIONAL)
    """When new captions hold a run."""
    promote: Literal["auto", "ask"] = Field(default="auto", json_schema_extra=OPERATIONAL)
    """Who moves the channel of `regenerate`: the gate (`auto`), or, where the gate would, a person (`ask`)."""
    trackers: tuple[TrackerName, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Where training curves are shown besides the training log: `tensorboard`, `trackio`, `wandb` (each a package to
    install)."""
    stages: tuple[str, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Stages of your own, as `package.module:STAGE`. Each runs when its inputs are finished; one with the name of a
    built-in stage takes its place."""


class Settings(Options):
    """A whole run of paraclip."""

    name: str = Field(default="paraclip", json_schema_extra=OPERATIONAL)
    """Name of the run, shown in the report and used for the channel that points at its model."""
    data: DataOptions = DataOptions()
    """Captions and images."""
    paraphrase: ParaphraseOptions = ParaphraseOptions()
    """Paraphrase generation."""
    model: ModelOptions = ModelOptions()
    """The CLIP model to repair."""
    features: FeatureOptions = FeatureOptions()
    """Image features."""
    bootstrap: BootstrapOptions = BootstrapOptions()
    """Training of the embedded base model; unused with any other base."""
    finetune: FinetuneOptions = FinetuneOptions()
    """Fine-tuning."""
    evaluate: EvaluateOptions = EvaluateOptions()
    """Evaluation."""
    run: RunOptions = Field(default=RunOptions(), json_schema_extra=OPERATIONAL)
    """Where and how to run."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # Results and a channel are kept under the name, and a run should not find out at its end that they cannot be.
        if not name.strip() or name.startswith(".") or any(c in "/\\" or ord(c) < 32 for c in name):
            raise ValueError(f"{name!r} cannot name a run; use letters, digits, blanks, - and _")
        if (size := len(name.encode("utf-8", "surrogatepass"))) > LONGEST_NAME:
            raise ValueError(f"{name[:40]!r}… has {size} bytes; at most {LONGEST_NAME} can name a run")
        return name

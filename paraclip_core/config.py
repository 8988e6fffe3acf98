"""Every option of paraclip, as one tree of pydantic models.

The same tree is read from YAML, overridden with ``--set a.b=c`` and used as the Prefect flows' parameter, so the
Prefect UI draws a typed form from it. An option changes an artifact's fingerprint unless it is marked
:data:`OPERATIONAL`. An operational option may change how fast a result is computed, but never the result, unless its
description mentions rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from paraclip_core.captions.options import DataOptions
from paraclip_core.clip.options import BUILT_IN, FeatureOptions, ModelOptions
from paraclip_core.evaluation.options import WHOLE, EvaluateOptions
from paraclip_core.options import LONGEST_NAME, OPERATIONAL, NameOrPath, Options, json_fields
from paraclip_core.options import meaning as meaning
from paraclip_core.paraphrase.engines import ENGINES, SamplingOptions
from paraclip_core.paraphrase.engines.openai import OpenAIOptions
from paraclip_core.paraphrase.engines.transformers import TransformersOptions
from paraclip_core.paraphrase.engines.vllm import VllmOptions
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.training.options import LOG_RECIPES, BuiltInBaseOptions, FinetuneOptions
from paraclip_core.training.trackers import TrackerName

MOST_PARAPHRASES = 16
"""Maximum number of paraphrases of a caption or a query."""

EngineName = Annotated[str, NameOrPath("engine", ENGINES, "a class of your own as package.module:Class")]


class FileEngineOptions(Options):
    """Paraphrases that already exist."""

    path: str = ""
    """Parquet, JSONL, CSV or TSV with the columns `caption`, `paraphrase_1` and `paraphrase_2`, or captions alone in
    any format of `data.sources` (each caption's next two siblings). Relative to `data.root`. All formats except Parquet
    may be gzipped (`.gz`)."""


class ParaphraseOptions(Options):
    """How captions are paraphrased."""

    engine: EngineName = "openvino"
    """`openvino` (embedded, on the CPU), `transformers` (a local Hugging Face model), `vllm` (a model in vLLM's own
    process), `openai` (any OpenAI-compatible server), `file` (paraphrases you already have, or captions of the same
    image), or a class of your own as `package.module:Class`."""
    model: str = ""
    """GGUF file or OpenVINO folder of the `openvino` engine (empty: SmolLM2-135M), model folder of the `transformers`
    engine, folder or hub id of the `vllm` engine, or the model's name at the server of the `openai` engine. A relative
    path starts where paraclip is called or, if nothing is there, at `data.root`."""
    options: dict[str, Any] = Field(default={})
    """Options of a custom engine, as it documents them."""
    prompts: Literal["paper", "few-shot"] = "few-shot"
    """`paper`: the two published prompts, for capable models. `few-shot`: example turns for small ones."""
    prompt_1: str = ""
    """Custom prompt for step 1 in place of the set's: one user message with `{}` where the caption goes."""
    prompt_2: str = ""
    """Custom prompt for step 2 in place of the set's: one user message with `{}` where paraphrase 1 goes."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training captions to paraphrase, chosen by hash: adding captions does not affect the others."""
    sampling: SamplingOptions = SamplingOptions()
    """How answers are sampled."""
    filters: FilterOptions = FilterOptions()
    """Which answers are kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the `openvino` engine. `fp32` gives a request the same answers whatever is computed with it, so
    a killed run ends with the same bytes; `bf16` is about 1.8 times faster and occasionally flips a close draw."""
    keep: Annotated[int, Field(ge=1, le=MOST_PARAPHRASES)] = 1
    """Maximum number of paraphrases kept per caption: accepted answers of step 1, each with one of step 2. Fine-tuning
    draws one of them for each epoch."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 1
    """How often a caption without an accepted answer is tried, including the first time."""
    seed: int = 0
    """Sampling seed."""
    chunk: Annotated[int, Field(ge=1, le=1024)] = Field(default=256, json_schema_extra=OPERATIONAL)
    """Requests that an engine is given at once, and so the most that a killed worker recomputes with a local model.
    Answers of `openai` and `vllm` are written every two seconds, whatever the chunk size. Cached answers do not depend
    on it; an engine whose draws depend on what it computes together may answer new requests differently."""
    file: FileEngineOptions = FileEngineOptions()
    """Options of the `file` engine."""
    transformers: TransformersOptions = TransformersOptions()
    """Options of the `transformers` engine."""
    openai: OpenAIOptions = OpenAIOptions()
    """Options of the `openai` engine."""
    vllm: VllmOptions = VllmOptions()
    """Options of the `vllm` engine."""

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        return json_fields(options)


def _merged(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The options with these changes, applied recursively to groups."""
    merged = options | changes
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(options.get(name), dict):
            merged[name] = _merged(options[name], value)
    return merged


def _check(place: str, options: Callable[[], object]) -> None:
    """Check options that change others; an error names the one at `place` that is wrong."""
    try:
        options()
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{place}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class RunOptions(Options):
    """How a run is executed; nothing here changes a result, except for rounding where noted."""

    root: str = Field(default="runs", json_schema_extra=OPERATIONAL)
    """Folder or URL (`s3://bucket/folder`) of artifacts, unfinished work and caches (environment: PARACLIP_ROOT)."""
    placement: Literal["inline", "deployments"] = Field(default="inline", json_schema_extra=OPERATIONAL)
    """`inline` runs the stages in this process, `deployments` runs each as its own deployment."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="auto", json_schema_extra=OPERATIONAL
    )
    """`auto`, `cpu`, `cuda` or `cuda:N`; `mps` and `xpu` are accepted but untested. Each device rounds differently."""
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """CPU threads, and processes that filter answers; 0: all cores. Another number may round image features and trained
    weights differently in their last bits; one and two train the same bytes if a step has more than 2,048 tokens."""
    promote: Literal["auto", "ask"] = Field(default="auto", json_schema_extra=OPERATIONAL)
    """Who moves the channel of `regenerate`: the promotion gate (`auto`), or a person once the gate passes (`ask`)."""
    trackers: tuple[TrackerName, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Where training curves are shown in addition to the training log: `tensorboard`, `trackio`, `wandb` (each needs
    its package)."""


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
    built_in_base: BuiltInBaseOptions = BuiltInBaseOptions()
    """Training of the built-in base; unused with any other base."""
    finetune: FinetuneOptions = FinetuneOptions()
    """Fine-tuning."""
    evaluate: EvaluateOptions = EvaluateOptions()
    """Evaluation."""
    run: RunOptions = Field(default=RunOptions(), json_schema_extra=OPERATIONAL)
    """Where and how to run."""

    def for_queries(self) -> ParaphraseOptions | None:
        """The options by which held-out queries are paraphrased; None if they are not."""
        if self.evaluate.queries is None:
            return None
        return ParaphraseOptions.model_validate(_merged(self.paraphrase.model_dump(), self.evaluate.queries) | WHOLE)

    @property
    def independent_clicks(self) -> bool:
        """Whether a log's clicks were made on another system's results."""
        return self.data.index is not None and self.data.index.clicks == "independent"

    @property
    def same_writer(self) -> bool:
        """Whether the model that paraphrases for training also writes the held-out queries."""
        queries, training = self.for_queries(), self.paraphrase
        return queries is not None and (queries.engine, queries.model) == (training.engine, training.model)

    @model_validator(mode="after")
    def _queries(self) -> Settings:
        _check("evaluate.queries", self.for_queries)
        return self

    @model_validator(mode="after")
    def _suits_index(self) -> Settings:
        """Check that a run from an index does not need images of its texts."""
        if self.data.index is None:
            return self
        if self.model.base == BUILT_IN:
            raise ValueError(
                "model.base: data.index is an index of a model that exists, so name that model; the built-in base "
                "would be trained here"
            )
        for recipe, losses in self.finetune.recipes(LOG_RECIPES).items():
            if not losses.suits_log:
                reason = "losses against images, and a query of a log belongs to none"
                if not losses.weights.against_images:
                    reason = "no ranking distillation, which alone keeps what an index finds"
                raise ValueError(f"finetune.recipe: {recipe} has {reason}; take contrast or ranking")
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # Results and a channel are kept under the name, so an unusable name must fail early, not at the end of a run.
        if not name.strip() or name.startswith(".") or any(c in "/\\" or ord(c) < 32 for c in name):
            raise ValueError(f"{name!r} cannot name a run; use letters, digits, spaces, - and _")
        if (size := len(name.encode("utf-8", "surrogatepass"))) > LONGEST_NAME:
            raise ValueError(f"{name[:40]!r}… has {size} bytes; at most {LONGEST_NAME} can name a run")
        return name

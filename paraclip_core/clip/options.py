"""The options of a CLIP model (`model`) and of its image features (`features`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from paraclip_core.clip.reference import canonical
from paraclip_core.options import OPERATIONAL, Options

BUILT_IN = "built-in"


class ModelOptions(Options):
    """The CLIP model to repair."""

    base: str = BUILT_IN
    """`built-in` (EfficientNet-Lite0 and a new text encoder, trained by the stage `built_in_base`), `local-dir:PATH`,
    `hf-hub:ORG/NAME` or `hf://ORG/NAME`, `ARCHITECTURE:TAG` of open_clip, for example
    `ViT-B-32-quickgelu:laion400m_e32`, or `ARCHITECTURE:FILE` with weights (OpenAI's and LaCLIP's:
    `ViT-L-14-quickgelu:FILE`). A path is relative to the working directory."""
    text_width: Annotated[int, Field(ge=64, le=2048, multiple_of=64)] = 256
    """Width of the built-in base's text encoder; every 64 units form an attention head."""
    text_layers: Annotated[int, Field(ge=1, le=48)] = 4
    """Layers of the built-in base's text encoder."""
    embed_dim: Annotated[int, Field(ge=16, le=4096)] = 256
    """Dimension of the built-in base's shared space."""

    @field_validator("base")
    @classmethod
    def _hub_address(cls, value: str) -> str:
        return canonical(value)


class FeatureOptions(Options):
    """How image features are computed."""

    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=OPERATIONAL)
    """Images per batch of the image encoder. Another size may round the last bit of a few features differently."""

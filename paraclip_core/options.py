"""What all option groups share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

__all__ = ["LATER", "OPERATIONAL", "Options"]

OPERATIONAL: dict[str, JsonValue] = {"operational": True}
"""``json_schema_extra`` of options that do not change the meaning of an output (devices, batch sizes, workers)."""

LATER: dict[str, JsonValue] = {"later": True}
"""``json_schema_extra`` of options that came later: at their default, an output means what it did before."""


def _title(name: str, _: object) -> str:
    """What a form calls an option; without it a group goes by its class, or by nothing."""
    return name.replace("_", " ").title()


class Options(BaseModel):
    """Base of all option groups: unknown names are errors, values are not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, field_title_generator=_title)

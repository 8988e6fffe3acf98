"""What all option groups share, and which of them count for an output."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, field_validator

OPERATIONAL: dict[str, JsonValue] = {"operational": True}
"""``json_schema_extra`` of options that do not change the meaning of an output (devices, batch sizes, workers)."""

LARGEST = 2**63


def json_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, if JSON can hold them; YAML knows dates, sets and bytes as well."""
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected what JSON can hold: {error}; put a date between quotes") from error
    return fields


def _title(name: str, _: object) -> str:
    """What a form calls an option; without it a group goes by its class, or by nothing."""
    return name.replace("_", " ").title()


class Options(BaseModel):
    """Base of all option groups: unknown names are errors, values are not changed after reading.

    Numbers are finite and whole ones fit into 64 bits, for manifests, tables and libraries hold no others.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        field_title_generator=_title,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        if isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ValueError(f"{value} does not fit into 64 bits; choose a smaller number")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("it has a NUL character, which no path or name can have; leave it out")
        return value


def meaning(options: BaseModel) -> dict[str, Any]:
    """The options that may change an output, as JSON-ready values: those that are not :data:`OPERATIONAL`."""
    fields = type(options).model_fields.items()
    return {name: _plain(getattr(options, name)) for name, field in fields if field.json_schema_extra != OPERATIONAL}


def unusual(options: BaseModel) -> dict[str, Any]:
    """The options that decide an output and are not at their default, as a YAML file would have them."""
    values: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if field.json_schema_extra != OPERATIONAL and value != field.default:
            values[name] = _unusual(value)
    return values


def _unusual(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return unusual(value)
    return [_unusual(item) for item in value] if isinstance(value, tuple | list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return meaning(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value

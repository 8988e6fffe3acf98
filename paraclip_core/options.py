"""The base of all option groups, which options affect an output, and options that name a custom component.

A custom engine or filter is named by its dotted path, `package.module:name`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import getsourcefile, signature
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from paraclip_core.errors import ConfigError
from paraclip_core.text_safety import one_line

OPERATIONAL: dict[str, JsonValue] = {"operational": True}
"""``json_schema_extra`` of options that do not change the meaning of an output (devices, batch sizes, workers)."""

LARGEST = 2**63
LONGEST_NAME = 200
"""Maximum bytes of a name used in file names: file systems allow 255, suffixes and draft markers included."""


def json_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, if JSON can represent them; YAML also has dates, sets and bytes."""
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a value that JSON can represent: {error}; put a date in quotes") from error
    return fields


class Options(BaseModel):
    """Base of all option groups: unknown names are errors, and instances are immutable.

    Numbers are finite and integers fit into 64 bits, as manifests, tables and libraries require.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        # Without a title a form labels a group with its class name, or not at all.
        field_title_generator=lambda name, _: name.replace("_", " ").title(),
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        if isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ValueError(f"{value} does not fit into 64 bits; choose a smaller number")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("it contains a NUL character, which no path or name can have; remove it")
        return value


def meaning(options: BaseModel) -> dict[str, Any]:
    """The options that may change an output, as JSON-ready values: those that are not :data:`OPERATIONAL`."""
    return _values(options, lambda field, value: True)


def unusual(options: BaseModel) -> dict[str, Any]:
    """The options that affect an output and differ from their defaults, as in a YAML file."""
    return _values(options, lambda field, value: value != field.default)


def _values(options: BaseModel, wanted: Callable[[FieldInfo, Any], bool]) -> dict[str, Any]:
    fields = ((name, field, getattr(options, name)) for name, field in type(options).model_fields.items())
    return {
        name: _plain(value, wanted)
        for name, field, value in fields
        if field.json_schema_extra != OPERATIONAL and wanted(field, value)
    }


def _plain(value: Any, wanted: Callable[[FieldInfo, Any], bool]) -> Any:
    if isinstance(value, BaseModel):
        return _values(value, wanted)
    if isinstance(value, tuple | list):
        return [_plain(item, wanted) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, wanted) for key, item in value.items()}
    return value


class NameOrPath:
    """Marks an option (``Annotated[str, NameOrPath(…)]``) as a built-in name or the dotted path of a custom object."""

    def __init__(self, what: str, names: Iterable[str], own: str) -> None:
        """`what` is the kind of thing, `names` are the built-in ones, and `own` describes a custom one."""
        self.what, self.names, self.own = what, tuple(names), own

    def __str__(self) -> str:
        return f"{', '.join(self.names)}, or {self.own}"

    def check(self, name: str) -> str:
        module, _, attribute = name.partition(":")
        if name in self.names or all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            return name
        raise ValueError(f"{name!r} is not a known {self.what}; expected {self}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # A form labels each alternative with its title, or with its type if it has none.
        named = {"title": "built in", "enum": list(self.names), "type": "string"}
        return {"anyOf": [named, {"title": "your own", "pattern": ":", "type": "string"}]}


def import_path(path: str, where: str, expected: str, *arguments: Any) -> Any:
    """Import the object at ``package.module:name`` and, if `arguments` are given, check that it accepts them.

    Error messages say `where` it is named, by option and value, and what is `expected`.
    """
    module, _, name = path.partition(":")
    try:
        part = attrgetter(name)(import_module(module))
        if arguments:
            signature(part).bind(*arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} cannot be used: {one_line(error)}; expected {expected}, in a package that is installed "
            "alongside paraclip or a module whose folder is on PYTHONPATH"
        ) from error
    return part


def module_source(part: Any) -> bytes:
    """Source of the module in which a class or function is defined; empty if it has none."""
    file = getsourcefile(part)
    return Path(file).read_bytes() if file else b""

"""Parts of a user's own, named in the configuration by a dotted path: readers, engines, gates and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from inspect import getsourcefile, signature
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from paraclip_core.errors import ConfigError, one_line


class NameOrPath:
    """Mark of an option (``Annotated[str, NameOrPath(…)]``) that names one of ours or the dotted path of a user's."""

    def __init__(self, what: str, names: Iterable[str], own: str) -> None:
        """`what` is named, by one of `names` or as `own` says."""
        self.what, self.names, self.own = what, tuple(names), own

    def __str__(self) -> str:
        """For a list of options."""
        return f"{', '.join(self.names)}, or {self.own}"

    def check(self, name: str) -> str:
        """The name itself."""
        module, _, attribute = name.partition(":")
        if name in self.names or all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            return name
        raise ValueError(f"{name!r} is no {self.what}; expected {self}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text that passes :meth:`check`."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A form offers the names, and takes a path."""
        return {"anyOf": [{"enum": list(self.names), "type": "string"}, {"pattern": ":", "type": "string"}]}


def import_path(path: str, where: str, expected: str, *arguments: Any) -> Any:
    """What ``package.module:name`` names.

    Args:
        path: the dotted path.
        where: option and value that name it, for messages.
        expected: what it should name, for messages.
        arguments: what it must be callable with; none: it need not be callable.
    """
    module, _, name = path.partition(":")
    try:
        part = attrgetter(name)(import_module(module))
        if arguments:
            signature(part).bind(*arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} cannot be used: {one_line(error)}; expected {expected}, in a package that is installed "
            "beside paraclip or a module whose folder is on PYTHONPATH"
        ) from error
    return part


def module_source(part: Any) -> bytes:
    """Source of the module that defines a class or function, or of a module by its name; empty where it has none."""
    file = getsourcefile(import_module(part) if isinstance(part, str) else part)
    return Path(file).read_bytes() if file else b""

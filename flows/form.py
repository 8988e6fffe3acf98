"""The parameters of the flows, and the form in which the Prefect UI shows them.

The form shows the options that people set; `overrides` takes all others. It cannot collapse a group and draws
everything under `properties`, so the others are under `patternProperties`: the server still checks them, and values
that a deployment gives them stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from paraclip_core.config import Settings
from paraclip_core.settings import SETTINGS, parse_settings

FORM = (
    "name",
    "data.root",
    *(f"data.sources.0.{name}" for name in ("path", "images", "license")),
    "paraphrase.engine",
    "run.promote",
)
"""Dotted paths of the options in the form: those that decide data, cost and production. ``0`` is a list's item."""


def form_schema() -> dict[str, Any]:
    """The JSON schema of :class:`Settings`, references resolved; it accepts all options and shows :data:`FORM`."""
    schema = Settings.model_json_schema()
    return _reduced(_resolved(schema, schema["$defs"]), "")


def _resolved(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolved(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].rpartition("/")[2]]
        # Keys next to a reference describe this use of it. A group's default is that of its options.
        node = {**named, **{name: value for name, value in node.items() if name not in ("$ref", "default")}}
    return {name: _resolved(value, definitions) for name, value in node.items() if name != "$defs"}


def _reduced(schema: dict[str, Any], prefix: str) -> dict[str, Any]:
    if isinstance(schema.get("items"), dict):
        return {**schema, "items": _reduced(schema["items"], f"{prefix}0.")}
    below = (path.removeprefix(prefix) for path in FORM if path.startswith(prefix))
    shown = list(dict.fromkeys(path.partition(".")[0] for path in below))
    if not shown or "properties" not in schema:
        return _without_details(schema)
    options = schema["properties"]
    properties = {
        name: {**_reduced(options[name], f"{prefix}{name}."), "position": place} for place, name in enumerate(shown)
    }
    others = {f"^{re.escape(name)}$": option for name, option in options.items() if name not in properties}
    # A group's name says enough, and the form should fit on two screens.
    about = {"description": ""} if prefix else {}
    return {**schema, **about, "properties": properties, "patternProperties": others}


def _without_details(option: dict[str, Any]) -> dict[str, Any]:
    """An option as the form shows it: the first sentence of its description, and its alternatives without details."""
    arms = option.get("anyOf", ())
    hidden = [
        {**arm, "properties": {}, "patternProperties": {f"^{name}$": each for name, each in arm["properties"].items()}}
        if "properties" in arm
        else arm
        for arm in arms
    ]
    about = {"description": re.split(r"(?<=[.;:])\s", option.get("description", ""))[0].rstrip(";:")}
    return {**option, **about, **({"anyOf": hidden} if arms else {})}


Override = Annotated[str, Field(pattern=r"^\s*\w+(\.\w+)*\s*=", title="option=value")]
Overrides = tuple[Override, ...]


def _read_settings(given: Any) -> Any:
    """A flow's parameter as settings; errors say more than pydantic's own, such as the nearest option."""
    return parse_settings(given, SETTINGS) if isinstance(given, Mapping) else given


FormSettings = Annotated[Settings, BeforeValidator(_read_settings), WithJsonSchema(form_schema())]
DEFAULTS = Settings()
"""Settings of a flow that is given none."""

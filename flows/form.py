"""The form of the Prefect UI: the options that people set, in an order of use; all others go by `overrides`.

The form cannot fold a group away. It draws what stands under `properties`, so the other options stand under
`patternProperties`: the server checks them all the same, and values that a deployment gives them stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from paraclip_core.config import Settings

FORM = (
    "name",
    *(f"data.{name}" for name in ("root", "min_words", "max_words")),
    *(f"data.sources.0.{name}" for name in ("path", "images", "split")),
    *(f"paraphrase.{name}" for name in ("engine", "model", "prompts", "fraction", "attempts", "keep", "gates.preset")),
    *(f"paraphrase.openai.{name}" for name in ("base_url", "api_key_env", "max_spend")),
    *(f"paraphrase.openai.price_per_million_{kind}_tokens" for kind in ("prompt", "completion")),
    "model.base",
    *(f"finetune.{name}" for name in ("epochs", "batch_size", "learning_rate", "weights.image_caption", "distil")),
    "evaluate.split",
    *(f"evaluate.benchmarks.0.{name}" for name in ("name", "kind", "path")),
    *(f"run.{name}" for name in ("placement", "device", "shards", "processes")),
)
"""Dotted paths of the options that the form shows; an item of a list is written ``0``."""
DROPPED = ("$defs", "operational")
"""Of a schema, what means nothing to a form."""


def form_schema() -> dict[str, Any]:
    """The JSON schema of :class:`Settings` with every reference resolved, reduced to :data:`FORM` for the eye alone."""
    schema = Settings.model_json_schema()
    return _reduced(_resolved(schema, schema["$defs"]), "")


def _resolved(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolved(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].rpartition("/")[2]]
        # What stands beside a reference is about this use of it. A group's default is that of its options.
        node = {**named, **{name: value for name, value in node.items() if name not in ("$ref", "default")}}
    return {
        # Below `properties` a name is an option's, whatever it is.
        name: {key: _resolved(item, definitions) for key, item in value.items()}
        if name == "properties"
        else _resolved(value, definitions)
        for name, value in node.items()
        if name not in DROPPED
    }


def _reduced(schema: dict[str, Any], prefix: str) -> dict[str, Any]:
    if isinstance(schema.get("items"), dict):
        return {**schema, "items": _reduced(schema["items"], f"{prefix}0.")}
    shown = list(dict.fromkeys(_names(prefix)))
    if not shown:
        return schema
    options = schema["properties"]
    properties = {
        name: {**_reduced(options[name], f"{prefix}{name}."), "position": place} for place, name in enumerate(shown)
    }
    others = {f"^{re.escape(name)}$": option for name, option in options.items() if name not in properties}
    return {**schema, "properties": properties, "patternProperties": others}


def _names(prefix: str) -> Iterator[str]:
    return (path.removeprefix(prefix).partition(".")[0] for path in FORM if path.startswith(prefix))


Override = Annotated[str, Field(pattern=r"^\s*\w+(\.\w+)*\s*=", title="option=value")]
Overrides = tuple[Override, ...]
FormSettings = Annotated[Settings, WithJsonSchema(form_schema())]

"""Settings from a YAML file, the environment and ``--set``; errors name the field and the nearest option.

A configuration that comes with the package is named without a path: ``demo``.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from copy import deepcopy
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from paraclip_core.config import RunOptions, Settings
from paraclip_core.errors import ConfigError
from paraclip_core.text_safety import one_line

ROOT_VARIABLE = "PARACLIP_ROOT"
SHIPPED = Path(__file__).with_name("configs")
QUOTED = re.compile(r"'[^']{4,}'")
"""Parts of a document that PyYAML's errors quote; shorter ones are YAML's own tokens."""
UNNAMED = "the settings"
"""Origin of options that come from no file."""
SETTINGS = "the parameter settings"
"""Origin of options passed to a flow."""
ARGUMENT, PARAMETER = "--set ", "overrides: "
"""Prefixes in errors for an override from the command line, and for one from a flow's or Python's parameter."""


def load_settings(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    given_by: str = ARGUMENT,
) -> Settings:
    """Settings of a run: defaults, then the YAML file, then PARACLIP_ROOT in `environ`, then the overrides.

    `path` is a file, an fsspec URL, or the name of one of :func:`shipped_configs`; a file of that name takes
    precedence. Each override is ``a.b=value``, the value in YAML; a list's item is named by its index, ``a.0.b=value``.
    Errors prefix overrides with `given_by`.
    """
    tree = {} if path is None else _read_file(str(path))
    root = (environ or {}).get(ROOT_VARIABLE)
    changes = [_Change(f"{ROOT_VARIABLE}={root}", ("run", "root"), root)] if root else []
    changes += [_read_override(override, given_by) for override in overrides]
    return _changed_settings(tree, changes, str(path) if path else UNNAMED)


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def parse_settings(tree: Mapping[str, Any], where: str = UNNAMED) -> Settings:
    """Check a tree of plain values; a ConfigError names its origin `where` and every wrong option at once."""
    return _changed_settings(tree, (), where)


def at_environment_root(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The settings with PARACLIP_ROOT as their root, unless they name another one.

    A form of the Prefect UI sends defaults too, so the default root counts as not named.
    """
    root = environ.get(ROOT_VARIABLE)
    if not root or settings.run.root != RunOptions().root:
        return settings
    return settings.model_copy(update={"run": settings.run.model_copy(update={"root": root})})


def deployed_settings(
    settings: Settings, config: str, overrides: Sequence[str], environ: Mapping[str, str]
) -> Settings:
    """The settings given by a deployment's parameters: `config` names a file in place of `settings`."""
    if config:
        return load_settings(config, overrides, environ, PARAMETER)
    if overrides:
        changes = [_read_override(override, PARAMETER) for override in overrides]
        settings = _changed_settings(settings.model_dump(mode="json"), changes, SETTINGS)
    return at_environment_root(settings, environ)


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The dotted path of every option, groups included; items of a list are written ``0``."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path, info
        if (inner := _model_in(info.annotation)) is not None:
            yield from fields(inner, f"{path}.0." if _is_list(info.annotation) else f"{path}.")


def describe_options() -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and description of every option that is not a group."""
    for path, info in fields():
        if _model_in(info.annotation) is not None:
            continue
        default = "needed" if info.is_required() else f"default {info.default!r}"
        bounds = ", ".join(str(bound) for bound in info.metadata)
        kind = info.annotation.__name__ if isinstance(info.annotation, type) else str(info.annotation)
        kind = kind.replace("typing.", "").replace("NoneType", "None")
        yield path, f"{kind}, {bounds}" if bounds else kind, default, " ".join((info.description or "").split())


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, except that a duplicate option is an error instead of the last one silently winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in names:
                    raise yaml.MarkedYAMLError(problem=f'"{key.value}" is given twice', problem_mark=key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    """The value of a YAML document; errors give the position but no content, since it may be any file of the worker."""
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "a value is not of the expected kind"
        raise ValueError(f"{QUOTED.sub('…', problem)}{place}") from None


def _read_file(path: str) -> dict[str, Any]:
    try:
        file = Path(path) if Path(path).exists() else shipped_configs().get(path, Path(path))
        tree = _load_yaml(_fetch(path) if "://" in path else file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(shipped_configs())
        raise ConfigError(f"cannot read {path}: {error.strerror}; the shipped configurations are {names}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if isinstance(tree, dict | None):
        return tree or {}
    kind = "a list" if isinstance(tree, list) else "a single value"
    raise ConfigError(f"{path} must hold options (name: value), found {kind}")


def _fetch(url: str) -> str:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return file.read().decode()  # pyright: ignore[reportAttributeAccessIssue]
    except UnicodeDecodeError:
        raise
    except Exception as error:  # each protocol has its own errors
        raise ConfigError(f"cannot read {url}: {one_line(error)}") from error


class _Change(NamedTuple):
    """A value that overrides a file's."""

    origin: str
    """Where it was given, for errors; never contains a text that may be a secret."""
    keys: tuple[str, ...]
    value: Any


def _read_override(override: str, given_by: str) -> _Change:
    name, separator, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not separator or not all(keys):
        raise ConfigError(f"{given_by}{override!r} must look like group.option=value")
    try:
        value = _load_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{given_by}{name}=… is not a YAML value: {error}") from error
    # Keys and passwords are texts, so errors never repeat a text.
    origin = f"{given_by}{name}={text if isinstance(value, int | float | None) else '…'}"
    # A file called 2024 is a name, not a number.
    annotation = _annotation_at(keys)
    arms = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if str in arms and not isinstance(value, str | None) and not (isinstance(value, list) and any(map(_is_list, arms))):
        value = text
    return _Change(origin, keys, value)


def _changed_settings(tree: Mapping[str, Any], changes: Sequence[_Change], where: str) -> Settings:
    """The settings of a tree from `where` with these changes; an error names the origin of each wrong value."""
    changed = deepcopy(dict(tree)) if changes else tree
    for change in changes:
        _put(changed, change.keys, change.value, change.origin)
    try:
        return Settings.model_validate(changed)
    except ValidationError as error:
        wrong_before = set(_places(tree)) if changes else set()
        explained: dict[str, list[str]] = {}
        for detail in error.errors(include_url=False):
            origin = _blamed(_place(detail), changes, wrong_before) or where
            explained.setdefault(origin, []).append(_explain(detail))
        raise ConfigError("; ".join(f"{name}: {'; '.join(texts)}" for name, texts in explained.items())) from error


def _places(tree: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Locations of the errors in a tree."""
    try:
        Settings.model_validate(tree)
    except ValidationError as error:
        yield from map(_place, error.errors(include_url=False))


def _place(detail: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, detail["loc"]))


def _blamed(place: tuple[str, ...], changes: Sequence[_Change], wrong_before: Set[tuple[str, ...]]) -> str | None:
    """The origin of the change that caused the error at a location; None if the original tree did."""

    def shared(change: _Change) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(change.keys, place, strict=False)))

    # The last change overrides those before it.
    nearest = max(reversed(changes), key=shared, default=None)
    if nearest is None or not shared(nearest):
        return None
    # A group that is invalid as a whole is reported above the option.
    return nearest.origin if shared(nearest) == len(nearest.keys) or place not in wrong_before else None


def _put(tree: Any, keys: Sequence[str], value: Any, origin: str) -> None:
    node = tree
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(node, list):
            at: Any = int(key) if key.isdecimal() else -1
            if not 0 <= at <= len(node):
                parent = ".".join(keys[:position])
                raise ConfigError(f"{origin}: {parent} has {len(node)} items, so there is no {key!r} (0 is the first)")
            if at == len(node):
                node.append({})
        else:
            at = key
        if last:
            node[at] = value
            return
        below = node[at] if isinstance(node, list) else node.get(at)
        if not isinstance(below, dict | list):
            below = [] if keys[position + 1].isdecimal() else {}
            node[at] = below
        node = below


def _explain(detail: Mapping[str, Any]) -> str:
    location: tuple[str | int, ...] = detail["loc"]
    path = ".".join(str(part) for part in location) or "settings"
    kind, got = detail["type"], repr(detail["input"])
    if kind == "extra_forbidden":
        return f"{path} is not an option; {_nearest(location)}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}"
    if kind == "missing":
        return f"{path} is required"
    return f"{path}: {message[:1].lower()}{message[1:]}, got {got if len(got) <= 80 else f'{got[:77]}...'}"


def _nearest(location: Sequence[str | int]) -> str:
    paths = [path for path, _ in fields()]
    parent, _, name = ".".join("0" if isinstance(part, int) else str(part) for part in location).rpartition(".")
    siblings = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == parent}
    # A typo, or the right name in the wrong place.
    for names in (siblings, {path.rpartition(".")[2]: path for path in reversed(paths)}):
        if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
            return f"did you mean {names[close[0]]}?"
    return f"{parent or UNNAMED} has {', '.join(siblings) or 'no options'}"


def _annotation_at(keys: Sequence[str]) -> Any:
    model: type[BaseModel] | None = Settings
    for position, key in enumerate(keys):
        if key.isdecimal():
            continue
        if model is None or key not in model.model_fields:
            return None
        annotation = model.model_fields[key].annotation
        if position == len(keys) - 1:
            return annotation
        model = _model_in(annotation)
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arm in get_args(annotation) if (model := _model_in(arm)) is not None), None)


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_list(get_args(annotation)[0])
    return get_origin(annotation) in (tuple, list)

"""A command line as a table of names: a command's module is imported when that command is called."""

from __future__ import annotations

import ast
import functools
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.main


class LazyCommand(typer.core.TyperCommand):
    """A command that stands for `module:function`, and imports it when more is wanted than its name and its help.

    So a list of commands or the completion of a name imports none of them, and a module may import all that its
    commands need.
    """

    def __init__(self, name: str, target: str) -> None:
        # What the base class would set comes from the command itself.
        self.name = name
        self.target = target
        self.hidden = self.deprecated = False
        self.short_help = self.rich_help_panel = None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.loaded, attribute)

    @functools.cached_property
    def loaded(self) -> Any:
        """The command itself."""
        module, _, function = self.target.partition(":")
        single = typer.Typer(add_completion=False)
        single.command(self.name)(getattr(importlib.import_module(module), function))
        return typer.main.get_command(single)

    @functools.cached_property
    def help(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The docstring, read from the source."""
        module, _, function = self.target.partition(":")
        return _docstrings(module).get(function)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the arguments, and from there on the command itself goes on."""
        return self.loaded.make_context(*args, **extra)


def command_group(commands: dict[str, str], groups: dict[str, str]) -> type[typer.core.TyperGroup]:
    """The class of a group, for `typer.Typer(cls=...)`: `[group ]name` → `module:function`, and a group's help."""

    class CommandGroup(typer.core.TyperGroup):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for path, target in commands.items():
                group, _, name = path.rpartition(" ")
                if group and group not in self.commands:
                    self.commands[group] = typer.core.TyperGroup(
                        name=group,
                        help=groups[group],
                        no_args_is_help=True,
                        rich_markup_mode=self.rich_markup_mode,
                    )
                below: Any = self.commands[group] if group else self
                below.commands[name] = LazyCommand(name, target)

    return CommandGroup


@functools.cache
def _docstrings(module: str) -> dict[str, str | None]:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_bytes())
    return {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)}

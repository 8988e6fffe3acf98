"""Options and output that commands share."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.roots import check_root, open_store
from paraclip_core.config import RunOptions, Settings
from paraclip_core.settings import load_settings
from paraclip_core.text_safety import json_escaped, printable

TERMINATED = 143

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with the settings, or the name of a shipped one: demo, flickr8k, …"),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one option, e.g. finetune.epochs=3; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
RootOption = Annotated[
    str, typer.Option("--root", envvar="PARACLIP_ROOT", help="Folder or URL of artifacts, unfinished work and caches.")
]
RunRootOption = Annotated[
    str | None, typer.Option("--root", help="run.root; default: PARACLIP_ROOT, or what the configuration says.")
]
RunDeviceOption = Annotated[str | None, typer.Option("--device", help="run.device: auto, cpu, cuda or cuda:N.")]

MODEL = (
    "A channel, the start of a fingerprint or STAGE/START, a model folder, an open_clip name such as "
    "ViT-B-32:laion2b_s34b_b79k, or ViT-B-32:FILE with weights."
)

ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]

DEFAULT_ROOT = RunOptions().root
"""Root of a command that is given none."""


def settings_from(
    config: Path | None, overrides: Sequence[str] | None, root: str | None = None, device: str | None = None
) -> Settings:
    """Settings from the file, the environment, the overrides and the dedicated options."""
    named = {"run.root": root, "run.device": device}
    # As JSON, which is YAML too, so that a root like 'a: b' stays text.
    last = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in named.items() if value is not None]
    return load_settings(config, [*(overrides or ()), *last], os.environ)


def opened_root(root: str) -> ArtifactStore:
    """Open the store for a command that only reads it."""
    store = open_store(root)
    check_root(store)
    return store


def leave_in_order() -> None:
    """Make SIGTERM a normal exit, so that what this process has started ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))


def print_json(value: Any) -> None:
    """Print one JSON document to standard output, with what a terminal would obey escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    typer.echo(json_escaped(text))


def print_facts(value: Any, as_json: bool) -> None:
    """Print one document to standard output: JSON for machines, YAML for people."""
    if as_json:
        print_json(value)
        return
    import yaml

    typer.echo(printable(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)), nl=False)


def quoted(value: Any) -> str:
    """A value of a YAML file, as JSON, which YAML reads."""
    return json.dumps(value, ensure_ascii=False)


def say(text: str) -> None:
    """Print a line to standard output; it may quote untrusted text."""
    typer.echo(printable(text))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table to standard output; text is shown as it is, markup included."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        numeric = bool(rows) and all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # A Text is never parsed for markup, and captions may hold anything.
        table.add_row(*(Text(_shown(row.get(column))) for column in columns))
    console = Console(highlight=False)
    # Piped output keeps whole lines: a program that reads it must not find words cut by a width of 80.
    (console if console.is_terminal else Console(highlight=False, width=200)).print(table)


def human_bytes(count: float | None) -> str:
    """A human-readable size."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_seconds(seconds: float | None) -> str:
    """A human-readable duration."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))

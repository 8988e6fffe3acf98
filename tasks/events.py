"""A stage's events as JSON lines, for machines that watch runs: one file beside each stage's text log.

A line has `time` (UTC), `event` (`started`, `progress`, `finished`, `failed`), `stage`, `fingerprint` and `part`
(`stage`, or `shards`); a progress has `done`, `total` and its facts, an end `seconds` and its counts or its error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paraclip_core.errors import with_notes
from storage.artifacts import ArtifactStore

__all__ = ["EventLog", "events_path"]

PROGRESS_SECONDS = 5.0
MOST_BYTES = 4 << 20
"""Size from which the log is moved aside; the one that was moved aside before is deleted."""
LONGEST = 2000
"""Characters of an error's text that are written."""


def events_path(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    """The event log of a stage."""
    return store.root / "logs" / f"{stage}-{fingerprint}.events.jsonl"


class EventLog:
    """Writes what happens to a stage for as long as its context lasts; :meth:`progress` is a `Progress`.

    A log that cannot be written is no reason to stop: what cannot be written is left out.
    """

    def __init__(self, path: Path, stage: str, fingerprint: str, part: str = "stage") -> None:
        """`path` is appended to; its folder is made."""
        self.path = path
        self._about = {"stage": stage, "fingerprint": fingerprint, "part": part}
        self._counts: Mapping[str, Any] = {}
        self._began = self._last = time.monotonic()

    def __enter__(self) -> EventLog:
        """Say that it started."""
        self._write("started")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Say how it ended."""
        seconds = round(time.monotonic() - self._began, 3)
        if error is None:
            self._write("finished", seconds=seconds, counts=self._counts)
        else:
            self._write("failed", seconds=seconds, error=type(error).__name__, text=with_notes(error)[:LONGEST])

    def progress(self, done: int, total: int | None, **facts: float | int | str) -> None:
        """Write how far it is, every few seconds."""
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        self._write("progress", done=int(done), total=total, facts=facts)

    def counted(self, counts: Mapping[str, Any]) -> None:
        """What the line `finished` will tell; texts and figures of it, and figures by name."""
        self._counts = {
            name: value for name, value in counts.items() if isinstance(value, int | float | str) or name == "rejected"
        }

    def _write(self, event: str, **more: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **self._about, **more}
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
                self.path.replace(self.path.with_name(f"{self.path.stem}.old.jsonl"))
            with self.path.open("a", encoding="ascii") as file:
                # In ASCII, so that no control or direction character reaches a terminal.
                file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")

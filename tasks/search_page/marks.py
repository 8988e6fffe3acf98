"""Marks that users give: kept as they come, and as caption rows that a run can train on."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from paraclip.storage.files import parse_json, write_atomic

LOG, CAPTIONS = "marks.jsonl", "captions.jsonl"


class Marks:
    """A log of marks in one folder, and a JSONL of captions made from it.

    ``captions.jsonl`` has a row for each image that a query was right for: the query as its caption. It is a source for
    ``data.sources`` like any other, so `regenerate` paraphrases and trains what was marked since.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def mark(self, query: str, image_id: str, value: int) -> None:
        """Keep a mark: 1 right, -1 wrong, 0 taken back. The last one of a query and an image counts."""
        row = {"query": query, "image_id": image_id, "mark": value, "at": round(time.time(), 3)}
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(row, ensure_ascii=True) + "\n")
                log.flush()
                os.fsync(log.fileno())
            self._write_captions()

    def all(self) -> dict[tuple[str, str], int]:
        """The last mark of each query and image; a line that a full disk cut short is left out."""
        path = self._folder / LOG
        marks: dict[tuple[str, str], int] = {}
        if not path.exists():
            return marks
        for line in path.read_bytes().splitlines():
            try:
                row = parse_json(line)
                marks[row["query"], row["image_id"]] = int(row["mark"])
            except (ValueError, KeyError, TypeError):
                continue
        return marks

    def _write_captions(self) -> None:
        rows = [
            {"image_id": image_id, "image": image_id, "caption": query, "source": "feedback"}
            for (query, image_id), value in self.all().items()
            if value > 0 and query
        ]
        text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        write_atomic(self._folder / CAPTIONS, lambda file: file.write(text.encode()))

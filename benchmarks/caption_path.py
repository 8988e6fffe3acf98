"""The files that a caption crosses, from a source file to the rows that training reads.

    python benchmarks/caption_path.py [--images 48]

Some of the demo's scenes go through `ingest`, `paraphrase_1` and `paraphrase_2` with the demo's settings, and into
training rows. A file counts where one of its functions holds a caption's data while it runs: its text, a paraphrase, a
rejected answer, a word, a key or tokens, as a local value, or in a list, a table or an object's fields that one holds.
With `--called` every file counts of which a function is called. Needs the embedded language model.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
from instant import HERE
from record import arguments
from value_path import in_product

from paraclip.flows.commands.common import settings_from
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip.tasks.training.data import Images, paraphrase_rows
from paraclip_core.paraphrase.parse import words
from paraclip_core.training.data import spool_rows

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
KINDS = ("caption", "paraphrase_1", "paraphrase_2")
DEPTH = 3
"""Objects within objects that are looked into."""
LOOKED_AT = 64
"""Items of a collection that are looked at."""
DATA = (pa.types.is_string, pa.types.is_list, pa.types.is_fixed_size_binary)
"""Texts, tokens and keys in Arrow."""


class Trace:
    """Collects the files whose functions hold a caption's data."""

    def __init__(self, data: frozenset[str | bytes] | None) -> None:
        """Look for these texts, words and keys; None: for nothing, each call counts."""
        self.data = data
        self.files: dict[str, str] = {}
        """File → the first function that held one."""

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Called by the interpreter at each call and return."""
        name = in_product(frame)
        if name is None or event not in ("call", "return") or name in self.files:
            return
        if self.data is None or any(self._holds(value, DEPTH) for value in (*frame.f_locals.values(), argument)):
            self.files[name] = frame.f_code.co_qualname

    def _holds(self, value: Any, depth: int) -> bool:
        if isinstance(value, str | bytes):
            return self.data is not None and value in self.data
        if isinstance(value, pa.RecordBatch | pa.Table):
            return any(self._holds(column, depth) for column in value.columns)
        if isinstance(value, pa.Array | pa.ChunkedArray):
            return len(value) > 0 and any(is_data(value.type) for is_data in DATA)
        if not depth:
            return False
        if isinstance(value, Mapping):
            some = [part for pair in list(value.items())[:LOOKED_AT] for part in pair]
        elif isinstance(value, list | tuple | set):
            some = list(value)[:LOOKED_AT]
        else:
            some = _fields(value)
        return any(self._holds(one, depth - 1) for one in some)


def _fields(value: Any) -> list[Any]:
    if not type(value).__module__.startswith("paraclip"):
        return []
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) if name != "__weakref__"]
    return [*slots, *getattr(value, "__dict__", {}).values()]


def main() -> None:
    """Trace and print."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--called", action="store_true", help="count every call")
    chosen = parser.parse_args()
    images = chosen.images
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        untraced = _run(folder / "untraced", images)
        for name in ("scenes", "ingest", "paraphrase_1", "paraphrase_2", "features"):
            run_stage(name, untraced)
        trace = Trace(None if chosen.called else _data(untraced))
        traced = _run(folder / "traced", images)
        run_stage("scenes", traced)
        sys.setprofile(trace)
        try:
            _follow(traced, Images(untraced.artifacts()["features"].path), folder / "rows")
        finally:
            sys.setprofile(None)
    print(f"{len(trace.files)} files")
    for name, function in sorted(trace.files.items()):
        print(f"{name:55} {function}")


def _run(root: Path, images: int) -> Run:
    return Run(settings_from(DEMO, [f"data.scenes.images={images}", f"run.root={root}"]), stages=HERE)


def _follow(run: Run, images: Images, rows: Path) -> None:
    for name in ("ingest", "paraphrase_1"):
        run_stage(name, run)
    paraphrases = run_stage("paraphrase_2", run).path / "paraphrases"
    spool_rows(rows, KINDS, paraphrase_rows(paraphrases, images), dict, np.uint16)


def _data(run: Run) -> frozenset[str | bytes]:
    """Texts, their words, and keys."""
    artifacts = run.artifacts()
    tables = [read_table(artifacts["ingest"].path / "captions", ["caption", "caption_id"])]
    for step in (1, 2):
        folder = artifacts[f"paraphrase_{step}"].path
        tables.append(read_table(folder / "paraphrases", [f"paraphrase_{step}", f"generation_{step}"]))
        tables.append(read_table(folder / "rejects", ["answer", "generation"]))
    values = {value for table in tables for column in table.columns for value in column.to_pylist() if value}
    return frozenset(values | {word for value in values if isinstance(value, str) for word in words(value)})


if __name__ == "__main__":
    main()

"""Samples on their way from a stage's process to who looks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES
from storage.parquet import PartWriter
from tasks.samples import final_samples, keeping_samples, latest_samples

ROWS = [{"input": "a dog", "answer": "one dog", "outcome": "kept"}]


def test_they_are_kept_now_and_then_and_a_progress_goes_on(tmp_path: Path) -> None:
    path, told = tmp_path / "cache" / "samples.json", []
    rows: list[dict[str, str]] = []
    progress = keeping_samples(lambda done, total, **facts: told.append((done, total, facts)), lambda: rows, path)
    progress(1, 3)
    assert latest_samples(path) == []
    rows.extend(ROWS)
    progress(2, 3, generated=7)
    assert latest_samples(path) == ROWS
    rows.clear()
    rows.append({"input": "a cat", "answer": "", "outcome": "empty"})
    # Not again within a few seconds.
    progress(3, 3)
    assert latest_samples(path) == ROWS
    assert told == [(1, 3, {}), (2, 3, {"generated": 7}), (3, 3, {})]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[int] = []
    keeping_samples(lambda done, total, **facts: told.append(done), lambda: ROWS, tmp_path / "file" / "x.json")(1, 2)
    assert told == [1]


def test_a_finished_stage_has_some_of_its_rows_and_rejects(tmp_path: Path) -> None:
    artifact: Any = SimpleNamespace(path=tmp_path)
    assert final_samples(artifact, 1) == []
    rows = [
        {"caption": f"a dog {n}", "paraphrase_1": f"one dog {n}", "paraphrase_2": f"a hound {n}"} for n in range(50)
    ]
    rejects = [{"input": "one cat", "answer": None, "reason": "empty"}]
    for name, schema, content in (("paraphrases", PARAPHRASES, rows), ("rejects", PARAPHRASE_REJECTS, rejects)):
        writer = PartWriter(tmp_path / name, pa.schema([field.with_nullable(True) for field in schema]))
        filled = [dict.fromkeys(schema.names) | row for row in content]
        writer.write(pa.RecordBatch.from_pylist(filled, pa.schema([field.with_nullable(True) for field in schema])))
        writer.close()
    first, second = final_samples(artifact, 1), final_samples(artifact, 2)
    assert len(first) == len(second) == 21
    assert first[0] == {"input": "a dog 0", "answer": "one dog 0", "outcome": "kept"}
    assert second[0] == {"input": "one dog 0", "answer": "a hound 0", "outcome": "kept"}
    assert first[-1] == {"input": "one cat", "answer": "", "outcome": "empty"}

"""JSON records: an object a line, or an array of objects."""

from __future__ import annotations

from pathlib import Path

from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.json import read_jsonl
from tests.kit.reading import OPTIONS, first, rejects, write


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        '{"image_id": "a", "image": "images/a.png", "caption": "a dog", "split": "val", "license": "CC0"}',
        "",
        '{"image": "b.jpg", "captions": ["a cat", "one cat", 5]}',
        '{"image": 7, "text": "a fox"}',
        '{"image": "c.jpg"}',
        '{"image": [], "text": "a cow"}',
        '["no", "object"]',
        "{broken",
        '{"caption": null}',
    ]
    batch = first(read_jsonl(write(tmp_path, "\n".join(lines)), OPTIONS))
    assert batch.captions == ["a dog", "a cat", "one cat", "a fox"]
    assert batch.image_ids == ["a", "b.jpg", "b.jpg", "7"]
    assert batch.image_paths == ["images/a.png", "b.jpg", "b.jpg", "7"]
    assert batch.rows == [1, 3, 3, 4]
    assert (batch.splits[0], batch.licenses[0]) == ("val", "CC0")
    assert rejects(batch) == [
        (3, "wrong_type"), (5, "missing_field"), (6, "wrong_type"), (7, "wrong_type"), (8, "bad_json"),
        (9, "missing_field"),
    ]  # fmt: skip


def test_jsonl_with_captions_in_several_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path, '{"a": "a dog", "b": ["one dog"]}\n{"b": "a cat"}\n{"c": "a fox"}\n{"a": "a cow", "b": null}'
    )
    batch = first(read_jsonl(path, SourceOptions(path="x", columns=ColumnNames(caption=("a", "b")))))
    assert batch.captions == ["a dog", "one dog", "a cat", "a cow"]
    assert (batch.rows, rejects(batch)) == ([1, 1, 2, 4], [(3, "missing_field"), (4, "missing_field")])


def test_jsonl_with_other_fields_and_an_array_of_objects(tmp_path: Path) -> None:
    path = write(tmp_path, '{"alt": "a dog", "src": "1"}\n')
    for columns in (ColumnNames(), ColumnNames(caption="txt")):
        batch = first(read_jsonl(path, SourceOptions(path="x", columns=columns)))
        assert rejects(batch) == [(1, "missing_field")] and batch.rejects[0].detail.endswith("alt, src")
    batch = first(read_jsonl(write(tmp_path, ' [{"image": "1", "caption": "a dog"},\n {"caption": "x"}]'), OPTIONS))
    assert (batch.captions, batch.rows) == (["a dog", "x"], [0, 1])

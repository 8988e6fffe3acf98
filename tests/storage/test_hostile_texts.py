"""Hostile texts in the generation cache are data: none becomes SQL, a path or another row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from generation_rows import key, rebuild

from paraclip.storage.answers import AnswerStore
from paraclip_core.tables import GENERATIONS

DATA = Path(__file__).parents[1] / "data" / "attacks.jsonl"
ATTACKS = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]


def hostile_rows() -> pa.Table:
    """A generation for each attack, which stands wherever a row has a text."""
    rows = []
    for number, attack in enumerate(ATTACKS):
        text = attack["text"]
        rows.append(
            {"key": key(number), "step": 1, "attempt": 0, "input": text, "engine": text, "model": text, "prompt": text}
            | {"prompt_hash": bytes(16), "sampling": text, "seed": 0, "completions": [text, *attack["obeyed"]]}
            | {"prompt_tokens": 1, "completion_tokens": 1}
        )
    return pa.Table.from_pylist(rows, schema=GENERATIONS)


def test_hostile_texts_come_back_as_they_went_in(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    store = AnswerStore(outside / "cache")
    rows = hostile_rows()
    store.append(rows)
    store.close()
    before = {path.relative_to(outside).parts[0] for path in outside.rglob("*")}
    for _ in range(2):
        found = store.lookup(rows.column("key").combine_chunks())
        texts = {row["key"]: row["completions"] for row in found.to_pylist()}
        assert texts == {row["key"]: row["completions"] for row in rows.to_pylist()}
        stats = store.stats()
        assert (stats.rows, stats.keys, stats.damaged) == (len(ATTACKS), len(ATTACKS), 0)
        assert {group["model"] for group in stats.groups} == {attack["text"] for attack in ATTACKS}
        rebuild(store)
    assert {path.relative_to(outside).parts[0] for path in outside.rglob("*")} == before == {"cache"}
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]

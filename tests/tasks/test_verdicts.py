"""Verdicts of an earlier pass, which a plan takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip_core.paraphrase.choose import Verdict
from paraclip_core.settings import load_settings
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES
from storage.artifacts import ArtifactStore, Draft
from storage.parquet import write_table
from tasks.stage import software_versions
from tasks.stages.paraphrase import PARAPHRASE_1
from tasks.verdicts import earlier_verdicts

COMMON = ("data.sources.0.path=a.txt", "paraphrase.engine=openai", "paraphrase.model=m")


def rows(schema: pa.Schema, **values: Any) -> pa.Table:
    """One row with these values, and something in what else must not be null."""
    empty = {"string": "", "binary": b"", "list": []}
    kinds = {f.name: "list" if pa.types.is_list(f.type) else str(f.type).partition("[")[0] for f in schema}
    blank = {f.name: None if f.nullable else empty.get(kinds[f.name], 0) for f in schema}
    blank |= {f.name: bytes(16) for f in schema if str(f.type).startswith("fixed_size_binary") and not f.nullable}
    return pa.Table.from_pylist([{**blank, **values}], schema=schema)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """With a step 1 that kept one caption and refused another."""
    made, options = ArtifactStore(tmp_path), dict(PARAPHRASE_1.options(load_settings(None, COMMON)))
    with made.writing("paraphrase_1", "p" * 32) as work:
        for folder in ("paraphrases", "rejects"):
            (work.out / folder).mkdir()
        kept = rows(PARAPHRASES, caption="a dog", paraphrase_1="one dog", similarity_1=0.5)
        write_table(work.out / "paraphrases" / "part-000000-00000.parquet", kept)
        refused = rows(PARAPHRASE_REJECTS, input="a cat", reason="echo", detail="the same", answer="a cat")
        write_table(work.out / "rejects" / "part-000000-00000.parquet", refused)
        draft = Draft("paraphrase_1", "p" * 32, PARAPHRASE_1.version, {}, options, software_versions())
        made.commit(draft, {"captions": 2, "accepted": 1}, 0)
    return made


def test_every_caption_has_its_verdict(store: ArtifactStore) -> None:
    assert earlier_verdicts(load_settings(None, COMMON), store) == {
        "a dog": Verdict("one dog", similarity=0.5),
        "a cat": Verdict("a cat", "echo", "the same"),
    }


@pytest.mark.parametrize(
    "change",
    ["seed=1", "gates.min_similarity=0.7", "model=other", "prompt_1=Say {}", "attempts=2", "regenerate.0.reason=echo"],
)
def test_another_meaning_has_none(store: ArtifactStore, change: str) -> None:
    assert earlier_verdicts(load_settings(None, [*COMMON, f"paraphrase.{change}"]), store) == {}


def test_other_software_has_none(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.verdicts.software_versions", lambda: {"torch": "0"})
    assert earlier_verdicts(load_settings(None, COMMON), store) == {}

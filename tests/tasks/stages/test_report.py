"""What the report takes from manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.artifacts import Artifact, Manifest
from paraclip.storage.parquet import write_table
from paraclip.tasks.stages.report import _funnel, _licenses, _rejects, _stage
from paraclip_core import tables
from paraclip_core.report.counts import row_totals


def artifact(metrics: dict[str, Any]) -> Artifact:
    manifest = Manifest("paraphrase_1", "f" * 32, 1, {}, {}, files={}, metrics=metrics, wall_seconds=0, created="")
    return Artifact(Path("nowhere"), manifest)


def step(cached: int, generated: int, **more: float) -> Artifact:
    counts = {"captions": 10, "requested": cached + generated, "accepted": 7, "kept": 9, "rejected": {"echo": 3}}
    return artifact({**counts, "cached": cached, "generated": generated, **more})


def test_a_step_that_was_killed_half_way_reads_as_one_that_was_not() -> None:
    whole = step(0, 8, prompt_tokens=800, completion_tokens=90, engine_seconds=9.5, judged=8, judge_seconds=0.5)
    resumed = step(6, 2, prompt_tokens=200, completion_tokens=20, engine_seconds=2.5, judged=3, judge_seconds=0.2)
    assert _stage(whole) == _stage(resumed)
    assert _stage(whole).metrics == {"captions": 10, "accepted": 7, "kept": 9, "rejected": {"echo": 3}}


def test_what_a_step_cost_is_not_shown_because_prices_change_no_fingerprint() -> None:
    assert _stage(step(0, 8)) == _stage(step(0, 8, spend=0.5)) == _stage(step(0, 8, spend=0.1))


@pytest.mark.parametrize("several", [False, True])
def test_a_caption_counts_once_on_its_way_into_training(tmp_path: Path, several: bool) -> None:
    """However many paraphrases it has."""
    splits = pa.table({"split": ["train"] * 8 + ["val"]})
    write_table(tmp_path / "ingest" / "captions" / "part-00000.parquet", splits)
    write_table(tmp_path / "ingest" / "rejects" / "part-00000.parquet", pa.table({"reason": ["empty"]}))
    metrics: dict[str, dict[str, Any]] = {
        "ingest": {},
        "paraphrase_1": {"captions": 7, "accepted": 6},
        "paraphrase_2": {"captions": 6, "accepted": 5},
        "finetune": {"rows": 4},
    }
    if several:
        metrics["paraphrase_2"]["kept"] = 12
    inputs = {name: Artifact(tmp_path / name, artifact(counts).manifest) for name, counts in metrics.items()}
    assert _funnel(inputs, row_totals(metrics)) == [
        ("rows read", 10),
        ("captions", 9),
        ("for training", 8),
        ("asked", 7),
        ("with paraphrase 1", 6),
        ("kept, in 12 paraphrases" if several else "kept", 5),
        ("trained on", 4),
    ]


def test_images_that_cannot_be_read_are_shown(tmp_path: Path) -> None:
    """They have neither a row nor a caption, and are known by what is said about them."""
    detail = "image 'nope.png': no readable image 'nope.png' in pics"
    row = {"source": "pics", "source_row": None, "reason": "missing_image", "detail": detail, "caption_raw": None}
    write_table(tmp_path / "rejects" / "part-00000.parquet", pa.Table.from_pylist([row], schema=tables.REJECTS))
    (group,) = _rejects("features", Artifact(tmp_path, artifact({}).manifest))
    assert (group.stage, group.reason, group.count) == ("features", "missing_image", 1)
    assert (group.samples[0].text, group.samples[0].detail) == ("pics", f"pics: {detail}")


def test_many_licenses_are_counted_in_both_tables(tmp_path: Path) -> None:
    names = [f"license {number:02d}" for number in range(40)]
    tables_of = {
        # The last ones are the rarest captions, and of those with paraphrases the most frequent.
        ("ingest", "captions"): [name for number, name in enumerate(names) for _ in range(50 - number)],
        ("paraphrase_2", "paraphrases"): [name for number, name in enumerate(names) for _ in range(1 + number // 20)],
    }
    for (stage, folder), values in tables_of.items():
        write_table(tmp_path / stage / folder / "part-00000.parquet", pa.table({"license": values}))
    inputs = {stage: Artifact(tmp_path / stage, artifact({}).manifest) for stage, _ in tables_of}
    counts = [(license.name, license.captions, license.paraphrased) for license in _licenses(inputs)]
    assert counts == [(name, 50 - number, 1 + number // 20) for number, name in enumerate(names)]

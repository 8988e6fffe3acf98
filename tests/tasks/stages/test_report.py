"""What the report takes from artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.artifacts import Artifact, Manifest
from paraclip.storage.parquet import write_table
from paraclip.tasks.stages.report import gather
from paraclip_core import tables
from paraclip_core.config import Settings
from paraclip_core.evaluation.churn import ChangedQuery, Churn
from paraclip_core.evaluation.thresholds import Spread
from paraclip_core.paraphrase.sending import Counts
from paraclip_core.report.churn import images_of
from paraclip_core.report.data import ReportData

SCHEMAS = {
    "ingest/captions": tables.CAPTIONS,
    "ingest/rejects": tables.REJECTS,
    "paraphrase_1/rejects": tables.PARAPHRASE_REJECTS,
    "paraphrase_2/rejects": tables.PARAPHRASE_REJECTS,
    "paraphrase_2/paraphrases": tables.PARAPHRASES,
    "features/rejects": tables.REJECTS,
}
STAGES = ("ingest", "paraphrase_1", "paraphrase_2", "features", "finetune", "evaluate")


def gathered(
    root: Path, metrics: Mapping[str, dict[str, Any]], rows: Mapping[str, list[dict[str, Any]]] | None = None
) -> ReportData:
    """What is shown of a run whose stages measured this and wrote these rows; columns that are left out are null."""
    for name, schema in SCHEMAS.items():
        schema = pa.schema([field.with_nullable(True) for field in schema])
        write_table(root / name / "0.parquet", pa.Table.from_pylist((rows or {}).get(name, []), schema))
    write_table(root / "features/index.parquet", tables.FEATURE_INDEX.empty_table())
    comparison = {"verdict": "hold", "rows": [], "confidence": 0.95, "findings": [], "untrained": False}
    for name, content in {
        "evaluate/comparison.json": json.dumps(comparison),
        "finetune/candidates.json": "{}",
        "finetune/training_log.jsonl": "",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    inputs = {}
    for name in STAGES:
        facts: dict[str, Any] = {"files": {}, "metrics": metrics.get(name, {}), "wall_seconds": 0, "created": ""}
        inputs[name] = Artifact(root / name, Manifest(name, "f" * 32, 1, {}, {}, **facts))
    return gather(Settings(), inputs)


def test_a_run_that_was_killed_half_way_reads_as_one_that_was_not(tmp_path: Path) -> None:
    """Nor is shown what a step cost, because prices change no fingerprint."""
    counts = {"captions": 10, "accepted": 7, "kept": 9, "rejected": {"echo": 3}}
    whole = Counts(**counts, requested=8, generated=8, filtered=8, prompt_tokens=800, completion_tokens=90)
    resumed = Counts(**counts, requested=8, cached=6, generated=2, filtered=3, prompt_tokens=200, completion_tokens=20)
    whole.engine_seconds, whole.filter_seconds, resumed.filter_seconds = 9.5, 0.5, 0.2
    for one, spend in ((whole, 0.5), (resumed, 0.1)):
        step = gathered(tmp_path, {"paraphrase_1": one.metrics() | {"spend": spend}}).stages[1]
        assert (step.name, step.metrics) == ("paraphrase_1", counts)


@pytest.mark.parametrize(("kept", "shown"), [({}, "kept"), ({"kept": 12}, "kept, in 12 paraphrases")])
def test_a_caption_counts_once_on_its_way_into_training(tmp_path: Path, kept: dict[str, int], shown: str) -> None:
    """However many paraphrases it has."""
    metrics = {
        "paraphrase_1": {"captions": 7, "accepted": 6},
        "paraphrase_2": {"captions": 6, "accepted": 5, **kept},
        "finetune": {"rows": 4},
    }
    rejected = {"source": "a.txt", "reason": "empty"}
    captions = [{"caption": f"caption {n}", "split": "val" if n == 8 else "train"} for n in range(9)]
    data = gathered(tmp_path, metrics, {"ingest/captions": captions, "ingest/rejects": [rejected]})
    counts = [10, 9, 8, 7, 6, 5, 4]
    names = ["rows read", "captions", "for training", "asked", "with paraphrase 1", shown, "trained on"]
    assert data.funnel == list(zip(names, counts, strict=True))


def test_changes_for_the_same_queries_are_shown_if_they_were_measured(tmp_path: Path) -> None:
    assert gathered(tmp_path, {}).churn is None
    cosines = Spread([0.3] * 5, [0.1] * 5)
    query = ChangedQuery("a dog", 1, ["a", "b"], ["b", "c"], ["c"])
    shares = [0.0, 100.0, 0.0]
    churn = Churn(1, 9, 2, 50.0, shares, 100.0, None, [query], {"base": cosines, "tuned": cosines}, [])
    (tmp_path / "evaluate/churn.json").write_text(json.dumps(churn.as_json()))
    assert gathered(tmp_path, {}).churn == churn
    assert images_of(churn) == ["a", "b", "b", "c"]


UNREADABLE = "image 'nope.png': no readable image 'nope.png' in pics"
PERSONAL = {"source": "log.csv", "source_row": 3, "reason": "personal", "caption_raw": "mail jo.doe@example.org"}


@pytest.mark.parametrize(
    ("stage", "row", "sample"),
    [
        # An image has neither a row nor a caption, and is known by what is said about it.
        (
            "features",
            {"source": "pics", "reason": "missing_image", "detail": UNREADABLE},
            ("pics", f"pics: {UNREADABLE}"),
        ),
        # A personal query is not shown.
        (
            "ingest",
            PERSONAL | {"detail": "it holds an e-mail address"},
            ("(not shown)", "log.csv, row 3: it holds an e-mail address"),
        ),
    ],
)
def test_what_is_shown_of_rejects(tmp_path: Path, stage: str, row: dict[str, Any], sample: tuple[str, str]) -> None:
    (group,) = gathered(tmp_path, {}, {f"{stage}/rejects": [row]}).rejects
    assert (group.stage, group.reason, group.count) == (stage, row["reason"], 1)
    assert [(one.text, one.detail) for one in group.samples] == [sample]


def test_many_licenses_are_counted_in_both_tables(tmp_path: Path) -> None:
    # The last ones are the rarest captions, and of those with paraphrases the most frequent.
    expected = [(f"license {number:02d}", 50 - number, 1 + number // 20) for number in range(40)]
    rows = {
        "ingest/captions": [
            {"caption": "a", "split": "train", "license": name} for name, count, _ in expected for _ in range(count)
        ],
        "paraphrase_2/paraphrases": [{"license": name} for name, _, count in expected for _ in range(count)],
    }
    licenses = gathered(tmp_path, {}, rows).licenses
    assert [(license.name, license.captions, license.paraphrased) for license in licenses] == expected

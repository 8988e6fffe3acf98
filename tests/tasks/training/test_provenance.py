"""What the card tells of the rows that were trained on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.run import Stage
from paraclip.tasks.stages.training import BOOTSTRAP, FINETUNE
from paraclip.tasks.training.bodies import BASE_HELD_OUT, paraphraser_of, provenance
from paraclip.tasks.training.data import Images, hold_out
from paraclip_core.training.data import TrainingRows

RunStage = Callable[..., Artifact]


def table_of(card: str, head: str) -> dict[str, int]:
    """The rows of a card's table by their first column."""
    lines = card.partition(f"| {head} | rows |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    return {name: int(rows) for name, rows in (re.fullmatch(r"\| (.*) \| (\d+) \|", x).groups() for x in lines)}  # type: ignore[union-attr]


def restate(path: Path, column: str, values: Callable[[list[dict[str, Any]]], list[str]]) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column), [values(table.to_pylist())]), path)


@pytest.mark.parametrize("stage", [BOOTSTRAP, FINETUNE])
def test_the_card_counts_the_rows_that_were_trained_on(
    stage: Stage, run_stage: RunStage, sources: dict[str, Artifact], settings: Any
) -> None:
    captions = sources["ingest"].path / "captions/part-00000.parquet"
    # Every third caption has another licence; those that are not trained on have one of their own.
    images = Images(sources["features"].path)
    share = BASE_HELD_OUT if stage is BOOTSTRAP else settings.finetune.validation
    held_out = hold_out(captions.parent, images, share)

    def trained(row: dict[str, Any]) -> bool:
        place = int(images.find([row["image_id"]])[0])
        return row["split"] == "train" and place >= 0 and not held_out.all[place]

    def licences(rows: list[dict[str, Any]]) -> list[str]:
        return [("CC0-1.0", "CC0-1.0", "MIT")[n % 3] if trained(row) else "secret" for n, row in enumerate(rows)]

    def files(rows: list[dict[str, Any]]) -> list[str]:
        return [f"{'b' if n > 40 else 'a'}.parquet" if trained(row) else "unused" for n, row in enumerate(rows)]

    restate(captions, "licence", licences)
    restate(captions, "source", files)
    inputs = sources if stage is BOOTSTRAP else {**sources, "bootstrap": run_stage(BOOTSTRAP, sources)}
    made = run_stage(stage, inputs)
    card = (made.path / "release/README.md").read_text()
    rows = made.manifest.metrics["rows"]
    found = {head: table_of(card, head) for head in ("licence as stated", "source")}
    assert set(found["licence as stated"]) == {"CC0-1.0", "MIT"} and set(found["source"]) == {"a.parquet", "b.parquet"}
    assert (
        sum(found["licence as stated"].values()) == sum(found["source"].values()) == rows < len(pq.read_table(captions))
    )
    assert "secret" not in card and "license_name: CC0-1.0, MIT\n" in card


def test_who_paraphrased(sources: dict[str, Artifact]) -> None:
    made = sources["paraphrase_2"]
    assert paraphraser_of(made) is None
    told = replace(made.manifest, metrics={"engine": "openvino", "model": "x.gguf@fp32"})
    assert paraphraser_of(replace(made, manifest=told)) == "engine `openvino`, model `x.gguf@fp32`"


def test_leftovers_of_an_earlier_try_are_not_counted(sources: dict[str, Artifact], tmp_path: Path) -> None:
    captions = sources["ingest"].path / "captions"
    ids = pq.read_table(captions, columns=["caption_id"])["caption_id"].combine_chunks()
    assert isinstance(ids, pa.FixedSizeBinaryArray)
    whole = np.frombuffer(ids.buffers()[1], np.uint8).reshape(-1, 16)
    for count in (50, 7):
        rows = TrainingRows({}, np.arange(count), ids=whole[5 : 5 + count])
        licences, files = provenance(rows, captions, tmp_path / "s")
        assert sum(licences.values()) == sum(files.values()) == count

"""The ingest stage: artifact, metrics, resuming after a kill, fingerprints, memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import INGEST, need_rows, scan_outcomes
from paraclip_core import tables
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, InputError

TEXT = "a dog cat on the beach with red ball man woman rides bike near old house in snow under blue sky"
WORDS = TEXT.split()


def accepted_by(run: Run) -> Iterator[pa.RecordBatch]:
    return (outcome.accepted for outcome in scan_outcomes(run) if outcome.accepted.num_rows)


def settings_of(root: Path, *paths: str, **options: Any) -> Settings:
    sources = tuple(SourceOptions(path=path, images="images.tar") for path in paths)
    return Settings(data=DataOptions(root=str(root), sources=sources, **options))


def ingest(settings: Settings, store: ArtifactStore, **inputs: Artifact) -> Artifact:
    draft = Draft("ingest", "f" * 32, INGEST.version, {}, dict(INGEST.options(Run(settings))))
    return execute(INGEST, draft, Run(settings, store), inputs)


def web_rows(count: int, start: int = 0) -> Iterator[dict[str, str]]:
    """Rows like LAION's: one in ten has an accent, one in twenty is too long, one in fifty comes twice."""
    for n in range(start, start + count):
        words = [WORDS[(n * 7 + k * (n % 11 + 1)) % len(WORDS)] for k in range(20 if n % 20 == 3 else 4 + n % 9)]
        tail = f"é{n}" if n % 10 == 1 else f"n{n - n % 50}" if n % 50 == 1 else f"n{n}"
        yield {"URL": f"http://example.org/{n}.jpg", "TEXT": " ".join([*words, tail])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four source files of different formats with 3,000 rows each."""
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(list(web_rows(3000))), data / "a.parquet")
    with (data / "b.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in web_rows(3000, 2900))
    (data / "c.tsv").write_text("".join(f"{row['TEXT']}\t{row['URL']}\n" for row in web_rows(3000, 6000)))
    (data / "d.txt").write_text("\n".join(row["TEXT"] for row in web_rows(3000, 9000)) + "\n\xad")
    return data


def test_the_artifact_has_what_a_scan_sees(folder: Path, tmp_path: Path) -> None:
    settings, store = settings_of(folder.parent, "data", "data/d.txt"), ArtifactStore(tmp_path / "runs")
    scanned = pa.Table.from_batches(accepted_by(Run(settings, store)), tables.CAPTIONS)
    assert not store.root.exists()
    artifact = ingest(settings, store)
    captions, rejects = read_table(artifact.path / "captions"), read_table(artifact.path / "rejects")
    metrics = artifact.manifest.metrics
    assert captions.schema.equals(tables.CAPTIONS) and captions.equals(scanned)
    assert rejects.schema.equals(tables.REJECTS)
    assert (metrics["accepted"], metrics["files"]) == (captions.num_rows, 4)
    assert metrics["read"] == captions.num_rows + rejects.num_rows == 12_001
    assert sum(metrics["rejected"].values()) == rejects.num_rows
    assert metrics["rejected"]["duplicate"] >= 90
    assert metrics["splits"] == {"train": captions.num_rows}
    assert metrics["images"] == len(set(captions["image_id"].to_pylist()) - {None})
    assert len(set(captions["caption_id"].to_pylist())) == captions.num_rows
    assert sorted(artifact.manifest.files)[:2] == [
        "captions/part-000000-00000.parquet",
        "captions/part-000001-00000.parquet",
    ]


def test_finished_files_are_not_read_again_and_the_bytes_are_the_same(folder: Path, tmp_path: Path) -> None:
    settings, store = settings_of(folder.parent, "data", "data/d.txt"), ArtifactStore(tmp_path / "runs")
    whole = ingest(settings, ArtifactStore(tmp_path / "whole"))
    raw = (folder / "d.txt").read_bytes()
    (folder / "d.txt").write_bytes("a dog".encode("utf-16"))
    with pytest.raises(InputError, match=r"d\.txt is UTF-16"):
        ingest(settings, store)
    (folder / "d.txt").write_bytes(raw)
    for name in ("a.parquet", "b.jsonl", "c.tsv"):
        (folder / name).write_text("would be an error if it were read")
    resumed = ingest(settings, store)
    assert resumed.manifest.files == whole.manifest.files and resumed.manifest.metrics == whole.manifest.metrics


def test_nothing_read_or_accepted_stops_before_anything_is_paid_for(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "runs")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"^a\.txt: no rows.*data\.sources"):
        ingest(settings_of(tmp_path, "a.txt"), store)
    (tmp_path / "b.txt").write_text("dog\n\n")
    with pytest.raises(InputError, match=r"^a\.txt, b\.txt: none of the 2 rows .*data\.min_words") as error:
        ingest(settings_of(tmp_path, "a.txt", "b.txt"), store)
    (rejects,) = store.root.glob("work/ingest/*/out/rejects")
    assert str(rejects) in str(error.value)
    assert sorted(read_table(rejects).column("reason").to_pylist()) == ["empty", "too_few_words"]


def test_a_run_of_no_rows_is_told_from_one_of_any_row(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "runs")
    (tmp_path / "a.csv").write_text("image,caption\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "one.csv").write_text("image,caption\n1.png,\n")
    wrong = settings_of(tmp_path, "a.csv", "bad.parquet", "absent", on_error="skip")
    with pytest.raises(
        ConfigError, match=r"no source has a row: a\.csv has none; .*bad\.parquet .*absent does not exist"
    ):
        need_rows(Run(wrong, store))
    # A row that is left out is a row: ingest says why, as it does of a bad file that stops it.
    need_rows(Run(settings_of(tmp_path, "a.csv", "one.csv"), store))
    need_rows(Run(settings_of(tmp_path, "a.csv", "bad.parquet"), store))
    # What is ingested already is not looked at again.
    run = Run(wrong, store)
    with store.writing("ingest", run.node("ingest").fingerprint):
        store.commit(run.node("ingest").draft, {}, 0.0)
    need_rows(run)


def test_sources_follow_contents_not_places(folder: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "hashes")
    before = INGEST.sources(Run(settings_of(folder.parent, "data", "data/d.txt"), store))
    assert list(before) == ["data/a.parquet", "data/b.jsonl", "data/c.tsv", "data/d.txt"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    folder.rename(moved / "data")
    assert INGEST.sources(Run(settings_of(moved, "data", "data/d.txt"), store)) == before
    (moved / "data" / "d.txt").write_text("a dog\n")
    after = INGEST.sources(Run(settings_of(moved, "data", "data/d.txt"), store))
    assert [name for name in before if before[name] != after[name]] == ["data/d.txt"]


def test_a_missing_source(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    wrong = ("nope.csv", "does not exist"), ("empty", "is not a file"), ("pipe.csv", "is not a file")
    for path, message in wrong:
        with pytest.raises(InputError, match=f"{path} {message}"):
            INGEST.sources(Run(settings_of(tmp_path, path), store))
        assert INGEST.sources(Run(settings_of(tmp_path, path, on_error="skip"), store)) == {path: "unreadable"}
    (tmp_path / "good.csv").write_text("image,caption\n1.jpg,a dog\n")
    rejects = read_table(ingest(settings_of(tmp_path, "nope.csv", "good.csv", on_error="skip"), store).path / "rejects")
    assert rejects.select(["source", "source_row", "reason"]).to_pylist() == [
        {"source": "nope.csv", "source_row": None, "reason": "unreadable"}
    ]
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        INGEST.sources(Run(Settings(), store))


def peak_megabytes(settings: Settings, root: Path, pipe: Any) -> None:
    """Ingest and report by how much the memory peak grew."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    artifact = ingest(settings, ArtifactStore(root))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    pipe.send((grown, artifact.manifest.metrics["read"], artifact.manifest.metrics["accepted"]))


@pytest.mark.nightly
def test_a_million_rows_take_little_memory(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "web.parquet", pa.schema([("URL", pa.string()), ("TEXT", pa.string())])) as writer:
        rows = pa.Table.from_pylist(list(web_rows(100_000)), writer.schema)
        for number in range(10):
            texts = pc.call_function(
                "binary_join_element_wise", [rows["TEXT"], pa.scalar(f"m{number}"), pa.scalar(" ")]
            )
            writer.write_table(rows.set_column(1, "TEXT", texts))
    settings = Settings(data=DataOptions(root=str(tmp_path), sources=(SourceOptions(path="web.parquet"),)))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=peak_megabytes, args=(settings, tmp_path / "runs", theirs))
    child.start()
    theirs.close()
    grown, rows, accepted = ours.recv()
    child.join()
    assert (rows, accepted > 900_000) == (1_000_000, True)
    assert grown < 600, f"ingest of a million rows took {grown:.0f} MB"

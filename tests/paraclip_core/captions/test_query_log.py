"""Query logs: what becomes one row, what is left out, and that a file's order decides nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraclip_core import tables
from paraclip_core.captions.options import DataOptions, IndexOptions, SourceOptions
from paraclip_core.captions.query_log import QueryLog, not_a_query
from paraclip_core.captions.sources import list_files
from paraclip_core.errors import ConfigError, InputError

WORDS = st.sampled_from(["dog", "Dog", "red car", "Red  car", "beach at night", "two cats"])
ROWS = st.lists(st.tuples(WORDS, st.sampled_from(["", "a", "b"]), st.integers(1, 5)), min_size=1, max_size=20)


def read(folder: Path, files: dict[str, str], split: str | None = None, **data: float) -> tuple[pa.Table, pa.Table]:
    """The queries and rejects of a log in these files."""
    for name, text in files.items():
        (folder / name).write_text(text)
    options = DataOptions.model_validate({
        "root": str(folder), "index": IndexOptions(features="i.npy"), "min_words": 1,
        "sources": [SourceOptions(path=name, split=split) for name in files], **data,
    })  # fmt: skip
    sources = list_files(folder, options.sources)
    log = QueryLog(options, sources)
    outcomes = [outcome for file in sources for outcome in log.run(file)]
    accepted = pa.Table.from_batches([outcome.accepted for outcome in outcomes], tables.QUERY_LOG)
    return accepted, pa.Table.from_batches([outcome.rejects for outcome in outcomes], tables.REJECTS)


def table(rows: list[tuple[str, str, int]]) -> str:
    return "query,image,count\n" + "".join(f"{query},{image},{count}\n" for query, image, count in rows)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, ROWS)
def test_equal_queries_are_one_row_with_their_sum(
    tmp_path: Path, first: list[tuple[str, str, int]], second: list[tuple[str, str, int]]
) -> None:
    accepted, rejects = read(tmp_path, {"a.csv": table(first), "b.csv": table(second)})
    counts, clicks = Counter[str](), Counter[tuple[str, str]]()
    for query, image, count in first + second:
        counts[" ".join(query.lower().split())] += count
        clicks[" ".join(query.lower().split()), image] += count
    rows = accepted.to_pylist()
    assert not len(rejects)
    assert {row["caption"].lower(): row["count"] for row in rows} == dict(counts) and len(rows) == len(counts)
    for row in rows:
        known = {
            image: clicks[row["caption"].lower(), image] for image in "ab" if clicks[row["caption"].lower(), image]
        }
        assert (row["image_id"] is None) == (not known)
        assert row["image_id"] is None or known[row["image_id"]] == max(known.values())


def test_held_out_queries_stay_when_the_log_grows(tmp_path: Path) -> None:
    rows = [
        (f"a {colour} {thing}", "", 1) for colour in ("red", "old", "blue") for thing in ("car", "dog", "tree", "bus")
    ]
    splits = [
        {row["caption"]: row["split"] for row in read(tmp_path, {"a.csv": table(log)}, held_out=0.4)[0].to_pylist()}
        for log in (rows[:8], rows)
    ]
    assert splits[0].items() <= splits[1].items() and {"train", "val"} <= set(splits[1].values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("photos of jo.doe@mail.example.org", "personal"),
        ("call (0170) 123 45 67", "personal"),
        ("call (01632) 960 123", "personal"),
        ("0341 - 12 34 56", "personal"),
        ("089–12345–67", "personal"),
        ("4111 1111 1111 1111", "personal"),
        ("www.shop.example/dress", "identifier"),
        ("holiday.jpg", "identifier"),
        ("a8f3c9d2e1", "identifier"),
        ("100 red balloons", None),
        ("1920s car", None),
        ("4x4", None),
        ("boeing 747", None),
        ("top 10 beaches 2024", None),
    ],
)
def test_what_identifies_somebody_or_something_is_no_query(text: str, reason: str | None) -> None:
    assert (not_a_query(text) or (None,))[0] == reason


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "title,query,image\nMidi Dress,red dress,1.jpg\n"),
        ("log.csv", "caption,Query\na woman in a dress,red dress\n"),
        ("log.jsonl", '{"text": "Midi Dress", "query": "red dress"}\n'),
        ("log.txt", "query\tcount\nred dress\t7\n"),
    ],
)
def test_the_query_is_what_was_typed(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path, {name: text})[0]["caption"].to_pylist() == ["red dress"]


def test_a_header_in_another_language_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no header that names a caption .*'Suchbegriff', 'Anzahl'"):
        read(tmp_path, {"log.csv": "Suchbegriff;Anzahl\nhund am strand;12\nrotes kleid;7\n"})


def test_a_bad_count_or_split_is_rejected_with_its_row(tmp_path: Path) -> None:
    text = "query,count,split\nred car,x,\nold dog,0,\nblue tree,2,weird\nbus,3,val\n"
    accepted, rejects = read(tmp_path, {"log.csv": text})
    assert rejects["source_row"].to_pylist() == [2, 3, 4]
    assert rejects["reason"].to_pylist() == ["bad_count", "bad_count", "unknown_split"]
    assert accepted["caption"].to_pylist() == ["bus"]


def test_the_split_of_a_whole_log_is_named_as_a_rows_is(tmp_path: Path) -> None:
    assert read(tmp_path, {"log.txt": "red car\n"}, "validation")[0]["split"].to_pylist() == ["val"]
    with pytest.raises(ConfigError, match="'vall', expected train, val or test"):
        read(tmp_path, {"log.txt": "red car\n"}, "vall")

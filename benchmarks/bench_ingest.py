"""Speed of ingest against the obvious way of doing the same.

    python benchmarks/bench_ingest.py [--rows 100000] [--rounds 3]

The rows are generated like LAION's: words of a long-tailed vocabulary, some with accents, entities, mojibake or too
many words, some repeated. Both sides run in turn in one process; times are CPU seconds, so that a busy machine does not
bias them.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from open_clip.tokenizer import basic_clean, whitespace_clean
from record import arguments, in_turns, record

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import INGEST
from paraclip_core import tables
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.config import Settings

VOCABULARY = 200_000
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo ya zu sh th ing er al on"
ODD = (" é", " &amp; co", " caf\u00c3\u00a9", " \u2013 sale", " it\u2019s", " \u0434\u043e\u043c", " \u2122", " \u56fe")
TAILS = (*[""] * 90, *[" - 20"] * 15, *["!"] * 15, *ODD)
"""Ends of captions: 6 % hold other than ASCII and 1 % an entity, as in LAION's alt texts."""
CHUNK = 100_000


def captions(rows: int) -> Iterator[list[str]]:
    """Generated captions in chunks; one in twenty repeats an earlier one of its chunk."""
    rng, syllables = np.random.default_rng(0), SYLLABLES.split()
    words = ["".join(rng.choice(syllables, count)) for count in rng.integers(1, 5, VOCABULARY)]
    vocabulary = np.array(words, dtype=object)
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        lengths = rng.integers(3, 18, count)
        ranks = np.minimum(rng.zipf(1.3, int(lengths.sum())) - 1, VOCABULARY - 1)
        drawn, ends = vocabulary[ranks].tolist(), np.cumsum(lengths).tolist()
        tails = rng.integers(0, len(TAILS), count).tolist()
        begins = [0, *ends[:-1]]
        chunk = [" ".join(drawn[a:b]) + TAILS[t] for a, b, t in zip(begins, ends, tails, strict=True)]
        for place in range(19, count, 20):
            chunk[place] = chunk[place - 7]
        yield chunk


def write_source(path: Path, rows: int) -> None:
    """The generated captions as a Parquet file with LAION's columns."""
    schema = pa.schema([("URL", pa.string()), ("TEXT", pa.string())])
    done = 0
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in captions(rows):
            # Repeated captions keep their URL, so that they are duplicates.
            numbers = [n - 7 if n % 20 == 19 else n for n in range(len(chunk))]
            urls = [f"https://example.org/{done + n}.jpg" for n in numbers]
            writer.write_table(pa.table([urls, chunk], schema=schema))
            done += len(chunk)


def ours(source: Path, folder: Path) -> int:
    """Ingest with the stage; returns the accepted rows."""
    settings = Settings(data=DataOptions(root=str(source.parent), sources=(SourceOptions(path=source.name),)))
    run = Run(settings, ArtifactStore(folder))
    draft = Draft("ingest", "b" * 32, INGEST.version, {}, dict(INGEST.options(run)))
    return execute(INGEST, draft, run, {}).manifest.metrics["accepted"]


def obvious(source: Path, folder: Path) -> int:
    """The obvious implementation: open_clip's functions row by row, a set, lists, one table."""
    seen, rows = set(), []
    for number, row in enumerate(pq.read_table(source).to_pylist()):
        text = whitespace_clean(basic_clean(row["TEXT"]))
        key = tables.text_hash(row["URL"], text)
        if not 2 <= len(text.split()) <= 15 or key in seen:
            continue
        seen.add(key)
        rows.append(
            {
                "caption_id": key, "image_id": row["URL"], "image_path": None, "images": None, "caption": text,
                "caption_raw": row["TEXT"], "split": "train", "license": "unknown",
                "source": source.name, "source_row": number,
            }
        )  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, tables.CAPTIONS), folder / "captions.parquet", compression="zstd")
    return len(rows)


def bench_ingest(rows: int, rounds: int, folder: Path) -> None:
    """Measure ``ingest_rows``."""
    source = folder / "web.parquet"
    write_source(source, rows)
    accepted: dict[str, int] = {}
    sides = {side.__name__: side for side in (ours, obvious)}

    def once(name: str, number: int) -> None:
        accepted[name] = sides[name](source, folder / f"{name}-{number}")

    seconds = in_turns({name: partial(once, name) for name in sides}, rounds, time.process_time)
    assert accepted["ours"] == accepted["obvious"], accepted
    ratio = seconds["obvious"] / seconds["ours"]
    record("ingest_rows", rows / seconds["ours"], "rows/CPU s", "open_clip clean row by row", ratio)


def main() -> None:
    """Run the benchmarks."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    gc.freeze()  # open_clip imports torch, whose objects the collector would look through; ingest imports none
    with tempfile.TemporaryDirectory() as folder:
        bench_ingest(chosen.rows, chosen.rounds, Path(folder))


if __name__ == "__main__":
    main()

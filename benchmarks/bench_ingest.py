"""Speed of ingest and of the tokeniser against the obvious way of doing the same.

    python benchmarks/bench_ingest.py [--rows 100000] [--rounds 3] [--only-ours]

The rows are generated like LAION's: words of a long-tailed vocabulary, some with accents, entities, mojibake or too
many words, some repeated. Both sides run in turn in one process; times are CPU seconds, so that a busy machine does not
tip the scale. ``--only-ours`` measures ingest alone, with its memory, where the other side would take hours.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from record import record

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.stage import carry_out
from paraclip.tasks.stages.ingest import INGEST
from paraclip_core import tables
from paraclip_core.captions.clean import clean
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import DataOptions, Settings, SourceOptions

VOCABULARY = 200_000
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo ya zu sh th ing er al on"
ODD = (" é", " &amp; co", " caf\u00c3\u00a9", " \u2013 sale", " it\u2019s", " \u0434\u043e\u043c", " \u2122", " \u56fe")
TAILS = (*[""] * 90, *[" - 20"] * 15, *["!"] * 15, *ODD)
"""Ends of captions: 6 % hold other than ASCII and 1 % an entity, as in LAION's alt texts."""
CHUNK = 100_000
BATCHES = (4096, 8192, 20_000)
"""Texts that are tokenised at once: by paraphrasing, by ingest, and more than either has."""


def words(rng: np.random.Generator) -> list[str]:
    """A vocabulary of pronounceable words."""
    counts, syllables = rng.integers(1, 5, VOCABULARY), SYLLABLES.split()
    return ["".join(rng.choice(syllables, count)) for count in counts]


def captions(rows: int, seed: int = 0) -> Iterator[list[str]]:
    """Generated captions in chunks; one in twenty repeats an earlier one of its chunk."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array(words(rng), dtype=object)
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
    artifact = carry_out(INGEST, draft, run, {})
    return artifact.manifest.metrics["accepted"]


def obvious(source: Path, folder: Path) -> int:
    """What one would write first: open_clip's functions row by row, a set, lists, one table."""
    from open_clip.tokenizer import SimpleTokenizer, basic_clean, whitespace_clean

    tokenizer, seen, rows = SimpleTokenizer(), set(), []
    for number, row in enumerate(pq.read_table(source).to_pylist()):
        text = whitespace_clean(basic_clean(row["TEXT"]))
        key = tables.text_hash(row["URL"], text)
        if not 2 <= len(text.split()) <= 15 or key in seen:
            continue
        seen.add(key)
        ids = [49406, *tokenizer.encode(row["TEXT"]), 49407]
        if len(ids) > 77:
            ids = [*ids[:76], 49407]
        rows.append(
            {
                "caption_id": key, "image_id": row["URL"], "image_path": None, "images": None, "caption": text,
                "caption_raw": row["TEXT"], "caption_tokens": ids, "split": "train", "licence": "unknown",
                "source": source.name, "source_row": number,
            }
        )  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, tables.CAPTIONS), folder / "captions.parquet", compression="zstd")
    return len(rows)


def cpu_seconds(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds that `work` takes, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def bench_ingest(rows: int, rounds: int, folder: Path) -> None:
    """Measure ``ingest_rows``."""
    source = folder / "web.parquet"
    write_source(source, rows)
    times: dict[str, list[float]] = {"ours": [], "obvious": []}
    for number in range(rounds):
        seconds, accepted = cpu_seconds(lambda n=number: ours(source, folder / f"ours-{n}"))
        times["ours"].append(seconds)
        seconds, expected = cpu_seconds(lambda n=number: obvious(source, folder / f"obvious-{n}"))
        times["obvious"].append(seconds)
        assert accepted == expected, (accepted, expected)
    mine, other = statistics.median(times["ours"]), statistics.median(times["obvious"])
    record("ingest_rows", rows / mine, "rows/CPU s", "open_clip clean + SimpleTokenizer row by row", other / mine)


def bench_tokeniser(rows: int, rounds: int) -> None:
    """Measure ``tokenise_vs_simple`` on cleaned captions, both memos cold at first and both cleaning once."""
    from open_clip.tokenizer import SimpleTokenizer

    texts = [text for chunk in captions(rows) for text in chunk]
    times: dict[str, list[float]] = {"ours": [], "simple": []}
    for _ in range(rounds):
        tokeniser, simple = Tokenizer(), SimpleTokenizer()
        times["ours"].append(cpu_seconds(lambda t=tokeniser: t.encode_batch([clean(text) for text in texts]))[0])
        times["simple"].append(cpu_seconds(lambda t=simple: [t.encode(text) for text in texts])[0])
    mine, other = statistics.median(times["ours"]), statistics.median(times["simple"])
    record("tokenise_vs_simple", rows / mine, "captions/CPU s", "open_clip SimpleTokenizer.encode", other / mine)


def bench_cleaned(rows: int, rounds: int) -> None:
    """Measure ``tokenise_cleaned_<batch>``: captions cleaned beforehand, in the stages' batches and larger.

    Each round starts with nothing remembered on either side, and open_clip's tokenizer is spared its own cleaning.
    """
    from open_clip.tokenizer import SimpleTokenizer

    texts = [clean(text) for chunk in captions(rows) for text in chunk]
    batches = {size: [texts[start : start + size] for start in range(0, rows, size)] for size in BATCHES}
    times: dict[str, list[float]] = {str(size): [] for size in BATCHES} | {"simple": []}
    for _ in range(rounds):
        for size in BATCHES:
            tokeniser = Tokenizer()
            work = partial(lambda t, parts: [t.encode_batch(part) for part in parts], tokeniser, batches[size])
            times[str(size)].append(cpu_seconds(work)[0])
        simple = SimpleTokenizer()
        simple.clean_fn = lambda x: x.lower()
        times["simple"].append(cpu_seconds(partial(lambda t: [t.encode(text) for text in texts], simple))[0])
    other = statistics.median(times["simple"])
    for size in BATCHES:
        mine = statistics.median(times[str(size)])
        against = "open_clip SimpleTokenizer.encode without its cleaning"
        record(f"tokenise_cleaned_{size}", rows / mine, "captions/CPU s", against, other / mine)


def measure_alone(rows: int, folder: Path) -> None:
    """Print ingest's speed and memory peak for many rows."""
    source = folder / "web.parquet"
    write_source(source, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    seconds, accepted = cpu_seconds(lambda: ours(source, folder / "ours"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{rows} rows ({accepted} accepted): {seconds:.1f} CPU s, {time.monotonic() - started:.1f} s, "
        f"{rows / seconds:.0f} rows/CPU s, peak RSS {peak / 1024:.0f} MiB (before: {before / 1024:.0f} MiB)"
    )


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only_ours:
            measure_alone(arguments.rows, Path(folder))
            return
        bench_tokeniser(arguments.rows, arguments.rounds)
        bench_cleaned(arguments.rows, arguments.rounds)
        bench_ingest(arguments.rows, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()

"""What `paraclip init` writes for an image index and a log of queries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraclip.flows.commands.common import quoted
from paraclip_core.captions.options import USUAL_WORDS
from paraclip_core.errors import ConfigError

if TYPE_CHECKING:
    from paraclip_core.captions.columns import ColumnNames
    from paraclip_core.captions.counts import Counts
    from paraclip_core.config import Settings

FEW, MANY = 0.2, 0.1
"""Share of the queries that are held out, and that choose among candidates, of a small and of a large log."""
MANY_QUERIES = 10_000
"""Queries of which a tenth is as many as an evaluation paraphrases."""
SHORT = 6
"""Words of an average query up to which prompts with examples change the meaning less often; see dev/log."""
SMALL_BATCH = 8
"""The smallest batch size that is written."""


def small_batch(rows: int) -> int:
    """A batch size for few rows, of which an epoch would otherwise be a handful of steps."""
    return max(SMALL_BATCH, 1 << max(rows // 4, 1).bit_length() - 1)


def check_arguments(features: Path | None, ids: Path | None, queries: Path | None, base: str, captions: bool) -> None:
    """Check that the options for an index are complete and go together."""
    if features is None or queries is None:
        raise ConfigError("--features, the index, and --queries, a log of queries, belong together; give both")
    if captions:
        raise ConfigError(
            "with --features and --queries there are no captions and images to look for; leave out --captions and "
            "--images"
        )
    for option, place in (("--features", features), ("--ids", ids), ("--queries", queries)):
        if place is not None and not place.exists():
            raise ConfigError(f"{option}: {place} does not exist")
    if base == "built-in":
        raise ConfigError("give --base the model that the index was made with, e.g. ViT-B-32:laion2b_s34b_b79k")


@dataclass(frozen=True)
class LogSurvey:
    """What was seen in a log."""

    counts: Counts
    notices: list[str]
    longest: int
    """Words of the longest query."""
    words_per_query: float


def survey_log(settings: Settings) -> LogSurvey:
    """Read the log and the ids of the index."""
    from paraclip.storage.parquet import PartWriter
    from paraclip.tasks.log_checks import log_notices
    from paraclip.tasks.stages.index import open_index
    from paraclip_core import tables
    from paraclip_core.captions.counts import Counts
    from paraclip_core.captions.filters import count_words
    from paraclip_core.captions.query_log import QueryLog
    from paraclip_core.captions.sources import list_files
    from paraclip_core.lifetime import TempDir
    from paraclip_core.paths import expand

    files, counts = list_files(expand(settings.data.root), settings.data.sources), Counts()
    log, lengths = QueryLog(settings.data, files), Counter[int]()
    with TempDir("init-") as folder:
        writer = PartWriter(folder / "captions", tables.QUERY_LOG)
        for file in files:
            for outcome in log.run(file):
                counts.note(outcome)
                lengths.update(map(count_words, outcome.accepted["caption"].to_pylist()))
                writer.write(outcome.accepted)
        writer.close()
        if not counts.accepted:
            raise ConfigError(f"{settings.data.sources[0].path} has no query that can be used: {dict(counts.rejected)}")
        words = sum(length * number for length, number in lengths.items())
        notices = log_notices(settings, folder, open_index(settings)[1])
        return LogSurvey(counts, notices, max(lengths), words / lengths.total())


def data_options(features: Path, ids: Path | None, queries: Path, share: float, columns: ColumnNames) -> dict[str, Any]:
    """The options below `data`, for queries of any length."""
    from paraclip_core.captions.survey import MOST_WORDS

    index = {"features": str(features), **({} if ids is None else {"ids": str(ids)})}
    named = columns.model_dump(mode="json", exclude_none=True)
    source = {"path": str(queries), **({"columns": named} if named else {})}
    counted = {"held_out": share, "min_words": 1, "max_words": MOST_WORDS}
    return {"root": ".", "index": index, "sources": [source], **counted}


def configuration(data: dict[str, Any], name: str, base: str, engine: str, rows: int) -> str:
    """The configuration as YAML, without its head; `engine` has the lines below `paraphrase`."""
    index, source = data["index"], data["sources"][0]
    ids = f"    ids: {quoted(index['ids'])}  # one for each row, in the same order\n" if "ids" in index else ""
    batch = small_batch(rows)
    columns = f"      columns: {quoted(source['columns'])}\n" if "columns" in source else ""
    longest, usual = data["max_words"], USUAL_WORDS
    long = f"  max_words: {longest}  # longer queries are left out; usually {usual}\n" if longest > usual else ""
    small = f"  batch_size: {batch}  # of {rows:,} queries; usually 256\n" if batch < 256 else ""
    return (
        f"name: {quoted(name)}  # of the run; search, export and promote go by it\n"
        f"data:\n  root: {quoted(data['root'])}  # from where paraclip is called; the paths below start there\n"
        f"  index:\n    features: {quoted(index['features'])}\n{ids}"
        f"    # images: photos  # folder or tar whose file names are the ids: a sample is compared with the index\n"
        f"  sources:\n    - path: {quoted(source['path'])}  # text, or a table: query, image, count, split\n{columns}"
        f"  held_out: {data['held_out']}  # share of the queries to evaluate, of those whose row states no split\n"
        f"  min_words: 1  # a query may be a single word\n{long}"
        f"paraphrase:\n{engine}"
        f"model:\n  base: {quoted(base)}  # the model that the index was made with\n"
        f"finetune:\n{small}"
        f"  validation: {data['held_out']}  # share of the other queries, which choose learning rate and α\n"
        f"evaluate:\n"
        f"  # Held-out queries, 1,000 at most, are paraphrased, too: the benchmark held_out_queries. Another model\n"
        f"  # than that of the training queries makes it stricter: {{model: NAME}}\n"
        f"  queries: {{}}\n"
        f"  control: true  # the same fine-tuning on queries alone, to tell a repair from more training\n"
    )

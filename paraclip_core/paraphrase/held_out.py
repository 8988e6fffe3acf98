"""Held-out captions to paraphrase as queries: one for each of at most a thousand images, or as many queries of a log.

They are chosen by hash, from a place that moves with the number of training captions. So nights with new captions are
judged by other queries, of which as many are new, and nights without any by the same."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from paraclip_core.paraphrase.step_tables import CONFIG, INPUT_COLUMNS
from paraclip_core.tables import CAPTIONS, LOG_QUERIES

MOST_IMAGES = 1000
"""Maximum number of images, each of which costs two requests."""
STEP_1 = pa.schema([CAPTIONS.field(name) for name in INPUT_COLUMNS[1]])
"""The rows that step 1 reads."""
OF_LOG = pa.schema([*STEP_1, LOG_QUERIES.field("count"), LOG_QUERIES.field("frequency")])
"""The same of a log."""
# md5 is the same in every version of DuckDB, which its own hash is not.
CHOSEN = """
    WITH trained AS (SELECT caption FROM parts WHERE split = 'train' AND $split <> 'train'),
    images AS (
        SELECT * FROM parts ANTI JOIN trained USING (caption)
        WHERE split = $split AND image_id IS NOT NULL AND image_path IS NOT NULL AND images IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY caption_id) = 1
    ),
    placed AS (
        SELECT *, row_number() OVER (ORDER BY md5(image_id), image_id) AS place, count(*) OVER () AS n FROM images
    )
    SELECT caption_id, image_id, caption, license FROM placed
    WHERE (place + n - (SELECT count(*) FROM trained) % n) % n < $most
    ORDER BY place
"""

# Drawn in proportion to their counts (Efraimidis & Spirakis, 2006): the smallest -ln(u) / count first. `before` is the
# share of all searches that are for more frequent queries.
CHOSEN_OF_LOG = """
    WITH trained AS (SELECT DISTINCT lower(caption) AS caption FROM parts WHERE split = 'train' AND $split <> 'train'),
    counted AS (
        SELECT *, sum(count) OVER (ORDER BY count DESC, caption ROWS UNBOUNDED PRECEDING) - count AS before,
               sum(count) OVER () AS total
        FROM parts
    )
    SELECT caption_id, image_id, caption, license, count,
           CASE WHEN 3 * before < total THEN 'head' WHEN 3 * before < 2 * total THEN 'body' ELSE 'tail' END AS frequency
    FROM counted WHERE split = $split AND lower(caption) NOT IN (SELECT caption FROM trained)
    ORDER BY -ln(1 - (CAST('0x' || substr(md5(caption), 1, 12) AS BIGINT) / 281474976710656.0
                      + (SELECT count(*) FROM trained) / 10000.0) % 1) / count, caption
    LIMIT $most
"""


def choose_queries(parts: Sequence[str], split: str, most: int = MOST_IMAGES) -> pa.RecordBatch:
    """Choose at most `most` queries of a log of a split, the likelier the more often they were asked.

    `parts` are Parquet files (schema `tables.QUERY_LOG`). Returns the columns that step 1 reads, with ``count`` and
    ``frequency``: the most frequent queries of a third of all searches are the ``head``, those of the next third the
    ``body``, the others the ``tail``.
    """
    return _chosen(CHOSEN_OF_LOG, parts, split, most, OF_LOG)


def choose_captions(parts: Sequence[str], split: str, most: int = MOST_IMAGES) -> pa.RecordBatch:
    """Choose one caption for each of at most `most` images of a split; no rows if the split has none with an image.

    `parts` are Parquet files (schema `tables.CAPTIONS`). Images are chosen by the hash of their id; for each new
    training caption one image takes the place of another. Captions that are trained on, too, are left out. Returns the
    columns that step 1 reads.
    """
    if not parts:
        return pa.RecordBatch.from_pylist([], schema=STEP_1)
    return _chosen(CHOSEN, parts, split, most, STEP_1)


def _chosen(query: str, parts: Sequence[str], split: str, most: int, schema: pa.Schema) -> pa.RecordBatch:
    with duckdb.connect(":memory:", config=CONFIG) as con:
        con.read_parquet(list(parts), hive_partitioning=False).create_view("parts")
        table = con.sql(query, params={"split": split, "most": most}).to_arrow_table()
    (batch,) = table.cast(schema).combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=schema)]
    return batch

"""Checks of a query log against its index, before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from paraclip.storage.features import FeatureStore, IdIndex
from paraclip.storage.parquet import CONFIG, parquet_files
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.index import index_of, open_index
from paraclip.tasks.stages.queries import QUERIES, chosen_captions
from paraclip_core.captions.pieces import pieces_of
from paraclip_core.errors import InputError
from paraclip_core.evaluation.options import HELD_OUT
from paraclip_core.evaluation.power import expected_half

if TYPE_CHECKING:
    from paraclip_core.config import Settings

FACTS = """
    SELECT count(*), count(*) FILTER (WHERE split = 'train'), count(*) FILTER (WHERE split = $split),
           CAST(sum(count) AS BIGINT), count(image_id), avg(len(string_split(caption, ' ')))
    FROM parts
"""
CLICKED = "SELECT DISTINCT image_id FROM parts WHERE image_id IS NOT NULL ORDER BY md5(image_id) LIMIT 10000"
LOOKED_AT = "SELECT caption FROM parts ORDER BY md5(caption) LIMIT 5000"
PIECES = 2.5
"""Tokens of a query for each of its words from which the tokenizer does not know them."""
NOTICED_SHARE = 0.1
"""Share of queries in words that the tokenizer does not know from which it is reported; see the lab book."""
SHOWN = 3


def query_notices(run: Run, folder: Path, counts: Any, planned: bool) -> list[str]:
    """Check the ingested queries of a run and its index; returns notices for the user."""
    linked = run.sound("features")
    ids = open_index(run.settings)[1] if linked is None else FeatureStore(run.store.download(linked).path).ids
    notices = log_notices(run.settings, folder, ids)
    if planned and QUERIES.name in run.stages:
        queries = chosen_captions(folder, run.settings).num_rows
        half = expected_half(queries, queries)
        notices.append(f"validation: {HELD_OUT} has at most {queries:,} queries; expect AO@10 ± {half:.1f} points")
    return notices


def log_notices(settings: Settings, folder: Path, ids: IdIndex) -> list[str]:
    """Check the queries below a folder (schema `tables.QUERY_LOG`) and their clicks; returns notices for the user.

    `ids` are those of the index.
    """
    with duckdb.connect(":memory:", config=CONFIG) as con:
        parts = [str(path) for path in parquet_files(folder / "captions")]
        con.read_parquet(parts, hive_partitioning=False).create_view("parts")
        facts = con.execute(FACTS, {"split": settings.evaluate.split}).fetchall()[0]
        clicked = [image for (image,) in con.execute(CLICKED).fetchall()]
        sample = [query for (query,) in con.execute(LOOKED_AT).fetchall()]
    cut = [query for query in sample if pieces_of(query) >= PIECES * len(query.split(" "))]
    share = len(cut) / max(1, len(sample))
    queries, train, held_out, searches, with_click, words = facts
    if not train:
        raise InputError(
            f"none of the {queries:,} queries is of split train, so nothing can be paraphrased or trained on; leave "
            "the split out of the log, or lower data.held_out"
        )
    if settings.evaluate.queries is not None and held_out < 2:
        mend = (
            "set data.held_out, for example to 0.1, or give some rows this split"
            if not settings.data.held_out
            else "data.held_out chooses only among rows that state no split: leave the column `split` out of the log, "
            "or give some rows this split"
        )
        raise InputError(
            f"{held_out} queries are of split {settings.evaluate.split} (evaluate.split), and a verdict needs held-out "
            f"queries; {mend}"
        )
    clicks = (
        f"{with_click:,} of them led to a click" if with_click else "no row says what was clicked: recall is unknown"
    )
    log = f"the log has {queries:,} different queries of {searches:,} searches, {words:.1f} words on average"
    notices = [f"{log}; {clicks}"]
    if index_of(settings).images is None:
        notices.append("the index is taken on trust: name its images in data.index.images to compare a sample")
    if clicked:
        rows = ids.find(pa.array(clicked, pa.string()))
        if not (rows >= 0).any():
            raise InputError(
                f"none of {len(clicked):,} clicked images is in the index: the log names "
                f"{clicked[0][:80]!r}, the index {ids.ids[0].as_py()[:80]!r}; expected the same ids in "
                "both (data.index.ids, column image of the log)"
            )
        if missing := int((rows < 0).sum()):
            notices.append(f"{missing:,} of {len(clicked):,} clicked images are not in the index and count as unknown")
    if share and share >= NOTICED_SHARE:
        examples = ", ".join(repr(text[:60]) for text in cut[:SHOWN])
        notices.append(
            f"{100 * share:.0f} % of the queries have words that CLIP's tokenizer cuts into pieces, as it does with "
            f"other languages and codes ({examples}): the base can hardly know them; leave them out of the log, or "
            "use a multilingual base"
        )
    return notices

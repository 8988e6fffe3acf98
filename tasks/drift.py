"""Caption drift: how far a run's captions are from those of the model that a channel serves."""

from __future__ import annotations

from typing import Any

import duckdb

from paraclip.storage.artifacts import Artifact
from paraclip.storage.files import write_json
from paraclip.storage.parquet import CONFIG, parquet_files
from paraclip.tasks.run.run import Run
from paraclip_core.errors import InputError
from paraclip_core.lifetime import TempDir

FREQUENT = 20
BOUND = ("share changed or vanished", "share of words never seen before")
"""The figures that `run.drift.limit` bounds."""
# A removed and an added caption of an image are one change; captions without an image are only added or removed.
ROWS = """
    WITH old AS (SELECT caption_id, image_id FROM read_parquet($before, hive_partitioning = false)),
         today AS (SELECT caption_id, image_id FROM read_parquet($now, hive_partitioning = false)),
         came AS (SELECT image_id, count(*) AS n FROM today ANTI JOIN old USING (caption_id) GROUP BY image_id),
         went AS (SELECT image_id, count(*) AS n FROM old ANTI JOIN today USING (caption_id) GROUP BY image_id)
    SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM today),
           coalesce(sum(came.n), 0)::BIGINT, coalesce(sum(went.n), 0)::BIGINT,
           coalesce(sum(least(came.n, went.n)) FILTER (WHERE came.n IS NOT NULL AND went.n IS NOT NULL), 0)::BIGINT
    FROM came FULL JOIN went ON came.image_id = went.image_id
"""
WORDS = """
    WITH old AS (
             SELECT unnest(regexp_extract_all(lower(caption), '[\\pL\\pN]+')) AS word
             FROM read_parquet($before, hive_partitioning = false)
         ),
         today AS (
             SELECT unnest(regexp_extract_all(lower(caption), '[\\pL\\pN]+')) AS word
             FROM read_parquet($now, hive_partitioning = false)
         ),
         counted AS (SELECT word, count(*) AS n FROM today GROUP BY word),
         new AS (SELECT * FROM counted ANTI JOIN (SELECT DISTINCT word FROM old) USING (word))
    SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM today), (SELECT coalesce(sum(n), 0)::BIGINT FROM new),
           (SELECT list(word ORDER BY n DESC, word) FROM (FROM new ORDER BY n DESC, word LIMIT $frequent))
"""


def check_drift(run: Run) -> list[str]:
    """Compare the ingested captions with those of the model of `run.drift.channel`; stop the run above the limit.

    The figures are published and stored as `results/<run>/drift.json`. Returns notices for the user.
    """
    options, store, name = run.settings.run.drift, run.store, run.settings.name
    served = (store.channel(options.channel) if options.channel else None) or {}
    before, now = served.get("stages", {}).get("ingest"), run.artifact("ingest")
    if before is None or now is None or before == now.fingerprint:
        return []
    champion = store.peek("ingest", before)
    if champion is None:
        return [f"the captions of {options.channel}'s model, ingest/{before}, are gone: drift is not measured"]
    figures = measure_drift(_parts(run, champion), _parts(run, now))
    limit = options.limit
    held = [] if limit is None else [f"{bound} {figures[bound]:.3g}" for bound in BOUND if figures[bound] > limit]
    write_json(store.root / "results" / name / "drift.json", {"figures": figures, "held": held})
    rows = [{"figure": figure, "value": value} for figure, value in figures.items()]
    text = f"Captions against those of {options.channel}'s model"
    run.ui.table("drift", rows, text)
    if held:
        what = f"the captions drifted from those of {options.channel}'s model: {'; '.join(held)}"
        run.ui.event("drift", what, channel=options.channel, **{bound: figures[bound] for bound in BOUND})
        raise InputError(
            f"{what}; run.drift.limit allows {limit:g}. No request was sent to a language model. See "
            f"results/{name}/drift.json; if the captions are as intended, raise the limit or set it to null for one run"
        )
    return []


def measure_drift(before: list[str], now: list[str]) -> dict[str, Any]:
    """Drift figures of two sets of captions (Parquet files of schema `tables.CAPTIONS`), by name."""
    with TempDir("drift-") as folder:
        config = CONFIG | {"threads": 2, "temp_directory": str(folder / "spill")}
        with duckdb.connect(":memory:", config=config) as con:
            parts: dict[str, Any] = {"before": before, "now": now}
            ((then, today, came, went, changed),) = con.execute(ROWS, parts).fetchall()
            ((old_words, words, new_words, frequent),) = con.execute(WORDS, parts | {"frequent": FREQUENT}).fetchall()
    return {
        "captions before": then,
        "captions now": today,
        "new": came - changed,
        "changed": changed,
        "vanished": went - changed,
        "words a caption before": round(old_words / max(then, 1), 2),
        "words a caption now": round(words / max(today, 1), 2),
        BOUND[0]: round(went / max(then, 1), 4),
        BOUND[1]: round(new_words / max(words, 1), 4),
        "most frequent new words": ", ".join(frequent or ()),
    }


def _parts(run: Run, ingest: Artifact) -> list[str]:
    return [str(path) for path in parquet_files(run.store.download(ingest).path / "captions")]

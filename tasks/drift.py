"""How far a run's captions are from those that a channel's model was made of: shown, and held before they are paid for.

Both sets lie in Parquet and are compared by DuckDB, which spills to disk, so memory does not grow with the captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from paraclip.storage.artifacts import Artifact
from paraclip.storage.duckdb_file import CONFIG
from paraclip.storage.files import write_json
from paraclip.storage.parquet import parquet_files
from paraclip.tasks.publish import artifact_key, as_text, emit, publish_table
from paraclip.tasks.run.run import Run
from paraclip_core.config import DriftOptions
from paraclip_core.errors import EngineError, InputError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.meaning import Encoder, SentenceEncoder

SAMPLE = 256
"""Captions of each set whose meanings are compared."""
FREQUENT = 20

# An image's caption that went and another that came are one change; captions without an image only come and go.
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
# Ids are hashes, so the first ones are a sample, and the same one whenever it is drawn.
SAMPLED = "SELECT caption FROM read_parquet($parts, hive_partitioning = false) ORDER BY caption_id LIMIT $rows"


@dataclass(frozen=True)
class Drift:
    """Captions before and now, compared."""

    captions_before: int
    captions_now: int
    new: int
    changed: int
    """Captions of images that had other captions."""
    vanished: int
    words_before: float
    """Mean words of a caption."""
    words_now: float
    new_words: float
    """Share of the words now that no caption had before."""
    frequent_new_words: tuple[str, ...]
    shift: float | None
    """Cosine distance between the mean embeddings of samples; None where no sentence encoder is at hand."""

    @property
    def figures(self) -> dict[str, float | None]:
        """What the limits of :class:`DriftOptions` bound, by their names."""
        before, now = self.words_before, self.words_now
        return {
            "max_changed": (self.changed + self.vanished) / max(self.captions_before, 1),
            "max_new_words": self.new_words,
            "max_length_change": abs(now - before) / before if before else 0.0,
            "max_shift": self.shift,
        }

    def exceeded(self, options: DriftOptions) -> list[str]:
        """What is beyond its limit, in words."""
        limits = {name: getattr(options, name) for name in self.figures}
        return [
            f"{LABELS[name]}: {value:.3g}, run.drift.{name} allows {limits[name]:g}"
            for name, value in self.figures.items()
            if value is not None and limits[name] is not None and value > limits[name]
        ]

    def rows(self, options: DriftOptions) -> list[dict[str, Any]]:
        """A row for each figure, with its limit."""
        counts = {"captions before": self.captions_before, "captions now": self.captions_now}
        counts |= {"new": self.new, "changed": self.changed, "vanished": self.vanished}
        counts |= {
            "words a caption before": round(self.words_before, 2),
            "words a caption now": round(self.words_now, 2),
        }
        rows: list[dict[str, Any]] = [{"figure": name, "value": value, "limit": None} for name, value in counts.items()]
        for name, value in self.figures.items():
            shown = None if value is None else round(value, 4)
            rows.append({"figure": LABELS[name], "value": shown, "limit": getattr(options, name)})
        words = ", ".join(self.frequent_new_words)
        return [*rows, {"figure": "most frequent new words", "value": words, "limit": None}]


LABELS = {
    "max_changed": "share changed or vanished",
    "max_new_words": "share of words never seen before",
    "max_length_change": "relative change of the mean length",
    "max_shift": "shift of meaning (cosine distance)",
}


def check_drift(run: Run) -> list[str]:
    """Compare the ingested captions with those of the model that `run.drift.channel` serves, and hold the run if asked.

    The figures are published, and kept as `results/<run>/drift.json`.

    Returns:
        What the user should hear.
    """
    options, store, name = run.settings.run.drift, run.store, run.settings.name
    served = (store.channel(options.channel) if options.channel else None) or {}
    before, now = served.get("stages", {}).get("ingest"), run.artifact("ingest")
    if before is None or now is None or before == now.fingerprint:
        return []
    champion = store.peek("ingest", before)
    if champion is None:
        return [f"the captions of {options.channel}'s model, ingest/{before}, are gone: drift is not measured"]
    drift = measure_drift(_parts(run, champion), _parts(run, now), _encoder(run), options.max_shift is not None)
    rows, problems = drift.rows(options), drift.exceeded(options)
    write_json(
        store.root / "results" / name / "drift.json", {**asdict(drift), "figures": drift.figures, "held": problems}
    )
    text = f"Captions against those of {options.channel}'s model"
    publish_table(artifact_key(name, "drift"), [as_text(row) for row in rows], text)
    if problems:
        what = f"the captions drifted from those of {options.channel}'s model: {'; '.join(problems)}"
        emit("drift", name, what, channel=options.channel, **drift.figures)
        raise InputError(
            f"{what}. Nothing was asked of a language model. See results/{name}/drift.json; if the captions are meant, "
            f"raise the limit or set it to null for one run"
        )
    return []


def measure_drift(before: list[str], now: list[str], encoder: Encoder, must_encode: bool = True) -> Drift:
    """Compare two sets of captions (schema `tables.CAPTIONS`).

    Args:
        before: Parquet files.
        now: Parquet files.
        encoder: gives sentence embeddings.
        must_encode: whether an encoder that cannot be loaded is an error.
    """
    with TempDir("drift-") as folder, duckdb.connect(":memory:", config=_config(folder)) as con:
        parts = {"before": before, "now": now}
        then, today, came, went, changed = _one(con, ROWS, parts)
        words_then, words_today, new_words, frequent = _one(con, WORDS, parts | {"frequent": FREQUENT})
        samples = [con.execute(SAMPLED, {"parts": files, "rows": SAMPLE}).fetchall() for files in parts.values()]
    try:
        shift = _shift(encoder, *([text for (text,) in sample] for sample in samples))
    except EngineError:
        if must_encode:
            raise
        shift = None
    return Drift(
        then,
        today,
        came - changed,
        changed,
        went - changed,
        words_then / max(then, 1),
        words_today / max(today, 1),
        new_words / max(words_today, 1),
        tuple(frequent or ()),
        shift,
    )


def _shift(encoder: Encoder, before: list[str], now: list[str]) -> float | None:
    if not before or not now:
        return None
    means = [encoder.encode(texts).mean(0, dtype=np.float64) for texts in (before, now)]
    lengths = [float(np.linalg.norm(mean)) for mean in means]
    return max(0.0, 1 - float(means[0] @ means[1]) / (lengths[0] * lengths[1])) if all(lengths) else None


def _encoder(run: Run) -> Encoder:
    return SentenceEncoder(run.paraphraser.gates.encoder, run.paraphraser.gates.device)


def _parts(run: Run, ingest: Artifact) -> list[str]:
    return [str(path) for path in parquet_files(run.store.download(ingest).path / "captions")]


def _config(folder: Path) -> dict[str, Any]:
    return CONFIG | {"threads": 2, "temp_directory": str(folder / "spill")}


def _one(con: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    row = con.execute(query, parameters).fetchone()
    assert row is not None
    return row

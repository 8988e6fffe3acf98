"""Export of paraphrases as a data set: Parquet shards and a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder, write_atomic
from paraclip.storage.parquet import CONFIG, PartWriter, frequent_values, parquet_files
from paraclip.tasks.run.run import Run
from paraclip_core.captions.clean import clean
from paraclip_core.captions.counts import MANY_LICENSES
from paraclip_core.config import Settings
from paraclip_core.dataset_card import SPLIT, DatasetFacts, StepFacts, dataset_card, hub_licenses
from paraclip_core.errors import ArtifactError, ConfigError, InputError, UnknownNameError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.paraphraser import relevant_options
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, PromptTemplate, prompt_for

CARD = "README.md"
STEP_1, STEP_2, CAPTIONS = "paraphrase_1", "paraphrase_2", "ingest"
SHARD_ROWS = 200_000
"""Rows per shard, and in memory."""
SAMPLES = 3
BATCH_ROWS = 65_536
FORMS = pa.schema([("entry", pa.string()), ("form", pa.string())])
SIMILARITIES = ("similarity_1", "similarity_2")
# Paraphrases of a caption are adjacent, in the order of ingest.
ROWS = """
    CREATE TABLE dataset AS
    SELECT lower(hex(p.caption_id)) AS caption_id, p.caption, p.paraphrase_1, p.paraphrase_2, p.image_id, c.source,
           p.license AS license, p.similarity_1, p.similarity_2
    FROM read_parquet($paraphrases, hive_partitioning = false, filename = true, file_row_number = true) p
    LEFT JOIN read_parquet($captions, hive_partitioning = false) c ON c.caption_id = p.caption_id AND c.split = $split
    ORDER BY p.filename, p.file_row_number
"""
LEAVE_OUT = """
    DELETE FROM dataset WHERE caption_id IN (SELECT form FROM forms) OR image_id IN (SELECT form FROM forms)
    OR caption IN (SELECT form FROM forms)
"""
MATCHED = """
    SELECT DISTINCT entry FROM forms SEMI JOIN (
        SELECT unnest([caption_id, image_id, caption]) AS form FROM dataset
    ) USING (form)
"""


@dataclass(frozen=True)
class ExportedDataset:
    """The exported data set."""

    files: list[str]
    rows: dict[str, int]
    """Rows by split."""
    license: tuple[str, ...]
    """The license as the hub names it: each, `other` or `unknown`."""
    left_out: int
    """Rows removed by opt-outs."""
    unmatched: list[str]
    """Opt-outs that matched no row."""


def find_paraphrases(store: ArtifactStore, name: str | None = None, settings: Settings | None = None) -> Artifact:
    """The finished paraphrases of a name (start of a fingerprint, ``STAGE/START``, a run's channel) or of settings."""
    if name is not None:
        artifact = store.named(name, (STEP_2,))
        if artifact.stage == STEP_2:
            return store.download(artifact)
        if STEP_2 not in artifact.manifest.inputs:
            raise UnknownNameError(
                f"{name!r} is a {artifact.stage} artifact; expected {STEP_2}, or what was made from it"
            )
        return _input(store, artifact, STEP_2)
    if settings is None:
        raise ConfigError("specify the paraphrases: a configuration (-c), or --artifact with a fingerprint or channel")
    artifact = store.find(STEP_2, Run(settings, store).node(STEP_2).fingerprint)
    if artifact is None:
        raise ConfigError(
            f"the paraphrases of {settings.name!r} are not finished under {store.location}; "
            "call `paraclip run` with the same settings first"
        )
    return artifact


def export_dataset(
    artifact: Artifact,
    folder: Path,
    store: ArtifactStore,
    *,
    name: str | None = None,
    settings: Settings | None = None,
    opt_outs: Sequence[str] | None = None,
    languages: Sequence[str] = ("en",),
    contact: str = "",
    models: Sequence[str] = (),
    shard_rows: int = SHARD_ROWS,
) -> ExportedDataset:
    """Write finished paraphrases as a data set; the folder is written atomically.

    The same artifact (of `paraphrase_2`) and arguments give the same bytes, and memory use does not grow with the rows.
    `settings` have the texts of custom prompts, of which the artifact holds only the hashes. `opt_outs` are caption
    ids, image ids and captions whose rows are left out, cleaned or not; None without a list. The rest is for the card.
    """
    first = _input(store, artifact, STEP_1)
    captions = _input(store, first, CAPTIONS)
    steps = _step(first, 1, settings), _step(artifact, 2, settings)
    with atomic_folder(folder) as draft, TempDir("dataset-") as scratch:
        with duckdb.connect(str(scratch / "rows.duckdb"), config=CONFIG) as con:
            places = {"paraphrases": artifact.path / "paraphrases", "captions": captions.path / "captions"}
            parts = {name: list(map(str, parquet_files(place))) for name, place in places.items()}
            con.execute(ROWS, {**parts, "split": SPLIT})
            left_out, unmatched = _leave_out(con, opt_outs or ())
            schema = _schema(con)
            rows = con.table("dataset").select(*schema.names)
            samples = rows.limit(SAMPLES).to_arrow_table().to_pylist()
            if not samples:
                raise ConfigError(f"no row is left to publish: the opt-outs name every row of {artifact.stage}")
            if rows.filter("source IS NULL").limit(1).fetchall():
                raise ArtifactError(
                    f"captions of {artifact.path} are not in {captions.path}; see `paraclip artifacts verify`, and "
                    "run the same settings again"
                )
            count = _write_shards(rows, schema, draft / "data", shard_rows)
        licenses = frequent_values(draft / "data", "license", MANY_LICENSES)
        facts = DatasetFacts(
            name=name or f"paraclip-{artifact.fingerprint[:8]}",
            rows=count,
            columns=schema.names,
            ingest_options=captions.manifest.options,
            ingest_metrics=captions.manifest.metrics,
            steps=steps,
            samples=samples,
            licenses=licenses,
            opt_outs=None if opt_outs is None else (len(opt_outs), left_out),
            fingerprints={stage.stage: stage.fingerprint for stage in (captions, first, artifact)},
            versions=artifact.manifest.versions,
            languages=languages,
            contact=contact,
            models=models,
        )
        card = dataset_card(facts).encode()
        write_atomic(draft / CARD, lambda file: file.write(card))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportedDataset(files, {SPLIT: count}, hub_licenses(licenses), left_out, unmatched)


def _write_shards(rows: duckdb.DuckDBPyRelation, schema: pa.Schema, folder: Path, shard_rows: int) -> int:
    """Write the rows as Parquet files, named as the hub names its shards; returns their number."""
    shards = PartWriter(folder, schema, SPLIT, shard_rows)
    for batch in rows.to_arrow_reader(BATCH_ROWS):
        shards.write(batch.cast(schema))
    shards.close()
    written = sorted(folder.iterdir())
    for shard in written:
        shard.rename(shard.with_name(f"{shard.stem}-of-{len(written):05d}.parquet"))
    return shards.rows_written


def _leave_out(con: duckdb.DuckDBPyConnection, entries: Sequence[str]) -> tuple[int, list[str]]:
    """Delete the rows that an opt-out list names; returns their number and the entries that matched none."""
    forms = [(entry, form) for entry in entries for form in (entry, entry.lower(), clean(entry))]
    listed = [{"entry": entry, "form": form} for entry, form in forms]
    con.register("listed", pa.Table.from_pylist(listed, FORMS))
    con.execute("CREATE TABLE forms AS FROM listed")
    matched = {entry for (entry,) in con.execute(MATCHED).fetchall()}
    ((count,),) = con.execute(LEAVE_OUT).fetchall()
    return count, [entry for entry in entries if entry not in matched]


def _schema(con: duckdb.DuckDBPyConnection) -> pa.Schema:
    """Columns of the data set; a similarity that is null in all rows is left out."""
    (counts,) = con.execute("SELECT count(similarity_1), count(similarity_2) FROM dataset").fetchall()
    present = [name for name, count in zip(SIMILARITIES, counts, strict=True) if count]
    texts = ("caption_id", "caption", "paraphrase_1", "paraphrase_2", "image_id", "source", "license")
    fields = [pa.field(name, pa.string(), nullable=name == "image_id") for name in texts]
    return pa.schema([*fields, *(pa.field(name, pa.float32()) for name in present)])


def _input(store: ArtifactStore, artifact: Artifact, stage: str) -> Artifact:
    why = f"{artifact.stage}/{artifact.fingerprint} was made from it"
    return store.expect(stage, artifact.manifest.inputs.get(stage, "?"), why)


def _step(artifact: Artifact, step: int, settings: Settings | None) -> StepFacts:
    options = artifact.manifest.options
    return StepFacts(options, artifact.manifest.metrics, _prompt(artifact, step, settings))


def _prompt(artifact: Artifact, step: int, settings: Settings | None) -> PromptTemplate | None:
    """The template whose hash is in the manifest; None if paraphrases came from a file."""
    asked = artifact.manifest.options.get("prompt")
    if asked is None:
        return None
    own = [] if settings is None else [prompt_for(relevant_options(settings.paraphrase), step)]
    for prompt in (*own, PAPER[step], FEW_SHOT[step]):
        if prompt.hash.hex() == asked.get("hash"):
            return prompt
    raise ConfigError(
        f"the text of step {step}'s prompt {asked.get('id')!r} is not in the artifact, only its hash, and a data card "
        f"must show it; give the configuration that has it as paraphrase.prompt_{step} (-c FILE with --artifact)"
    )


def read_opt_outs(path: Path) -> list[str]:
    """The entries of an opt-out list, each once: one caption id, image id or caption per line."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the opt-out list {path} cannot be read as UTF-8 text: {error}") from error
    return list(dict.fromkeys(filter(None, (line.strip() for line in lines))))

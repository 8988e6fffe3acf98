"""Finished paraphrases as a folder that may be published: Parquet shards by split and a data card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paraclip_core.captions.rows import MANY_LICENCES
from paraclip_core.config import Settings
from paraclip_core.dataset_card import DatasetFacts, OptOutFacts, StepFacts, dataset_card
from paraclip_core.errors import ArtifactError, ConfigError, UnknownNameError
from paraclip_core.licenses import RolledUp, roll_up
from paraclip_core.paraphrase.engines import relevant_options
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, PromptTemplate, prompt_for
from storage.artifacts import Artifact, ArtifactStore
from storage.duckdb_file import frequent_values
from storage.files import atomic_folder, write_atomic
from tasks.dataset_rows import SHARD_ROWS, OptOuts, ShardWriter, Tally, joined, output_schema

__all__ = ["ExportedDataset", "export_dataset", "find_paraphrases"]

STEP_1, STEP_2, CAPTIONS = "paraphrase_1", "paraphrase_2", "ingest"


@dataclass(frozen=True)
class ExportedDataset:
    """What was written."""

    files: list[str]
    rows: dict[str, int]
    """Rows by split."""
    license: RolledUp
    left_out: int
    """Rows that the opt-outs named."""
    unmatched: list[str]
    """Opt-outs that named no row."""


def find_paraphrases(store: ArtifactStore, name: str | None = None, settings: Settings | None = None) -> Artifact:
    """The finished paraphrases of a name (fingerprint's start, ``STAGE/START``, a run's channel) or of settings.

    Raises:
        UnknownNameError: nothing has that name, or it is something that holds no paraphrases.
        ConfigError: neither is given, or the settings' paraphrases are not finished.
        ArtifactError: they were deleted or are damaged.
    """
    if name is not None:
        found = store.named(name, (STEP_2,))
        if found.stage == STEP_2:
            return store.download(found)
        if STEP_2 not in found.manifest.inputs:
            raise UnknownNameError(f"{name!r} is a {found.stage} artifact; expected {STEP_2}, or what was made from it")
        return _input(store, found, STEP_2)
    if settings is None:
        raise ConfigError("say which paraphrases: a configuration (-c), or --artifact with a fingerprint or channel")
    # Here, because the stages take a second to import.
    from tasks.dag import STAGES, resolve

    wanted = {stage: STAGES[stage] for stage in ("scenes", CAPTIONS, STEP_1, STEP_2)}
    artifact = store.find(STEP_2, resolve(settings, store, wanted)[STEP_2].fingerprint)
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
    shard_rows: int = SHARD_ROWS,
) -> ExportedDataset:
    """Write finished paraphrases as a data set; the folder appears whole or not at all.

    The same artifact and arguments give the same bytes, and memory does not grow with the rows.

    Args:
        artifact: of the stage `paraphrase_2`.
        folder: new folder, for `datasets.load_dataset` and any reader of Parquet.
        store: where the artifacts lie that it was made from.
        name: title of the card.
        settings: where the texts of own prompts are found; the artifact holds their hashes only.
        opt_outs: caption ids, image ids and captions whose rows are left out; None where there is no list.
        languages: codes of the captions' languages, for the card.
        contact: where the card says to ask for removal.
        shard_rows: rows of a shard.

    Raises:
        ConfigError: the target holds something already, a prompt's text is not known, or no row would be left.
        ArtifactError: an artifact it was made from is gone or damaged, or the target cannot be written.
    """
    first = _input(store, artifact, STEP_1)
    captions = _input(store, first, CAPTIONS)
    steps = _step(first, 1, settings), _step(artifact, 2, settings)
    schema = output_schema(artifact.path / "paraphrases")
    outs, tally = OptOuts(opt_outs or ()), Tally()
    with atomic_folder(folder) as draft:
        shards = ShardWriter(draft / "data", schema, shard_rows)
        for batch in joined(artifact.path / "paraphrases", captions.path / "captions"):
            kept = _with_hex_ids(outs.without(batch))
            if kept.num_rows:
                tally.note(kept, schema.names)
                shards.write(kept)
        rows = shards.close()
        if not rows:
            raise ConfigError(f"no row is left to publish: {artifact.stage} has none that the opt-outs do not name")
        licenses = frequent_values(draft / "data", "license", MANY_LICENCES)
        facts = DatasetFacts(
            name=name or f"paraclip-{artifact.fingerprint[:8]}",
            rows=rows,
            columns=schema.names,
            ingest_options=captions.manifest.options,
            ingest_metrics=captions.manifest.metrics,
            steps=steps,
            words=tally.words(),
            samples=tally.samples,
            licenses=licenses,
            opt_outs=None if opt_outs is None else OptOutFacts(len(outs.entries), outs.rows),
            fingerprints={made.stage: made.fingerprint for made in (captions, first, artifact)},
            versions=artifact.manifest.versions,
            languages=languages,
            contact=contact,
        )
        card = dataset_card(facts).encode()
        write_atomic(draft / "README.md", lambda file: file.write(card))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportedDataset(files, rows, roll_up(licenses), outs.rows, outs.unmatched)


def _input(store: ArtifactStore, artifact: Artifact, stage: str) -> Artifact:
    fingerprint = artifact.manifest.inputs.get(stage, "")
    found = store.find(stage, fingerprint) if fingerprint else None
    if found is None:
        raise ArtifactError(
            f"the artifact {stage}/{fingerprint} that {artifact.stage}/{artifact.fingerprint} was made from is not "
            f"under {store.location}; run the same settings again"
        )
    return found


def _with_hex_ids(batch: pa.RecordBatch) -> pa.RecordBatch:
    ids = pa.array([value.hex() for value in batch.column("caption_id").to_pylist()], pa.string())
    return batch.set_column(batch.schema.get_field_index("caption_id"), "caption_id", ids)


def _step(artifact: Artifact, step: int, settings: Settings | None) -> StepFacts:
    options = artifact.manifest.options
    return StepFacts(options, artifact.manifest.metrics, _prompt(artifact, step, settings))


def _prompt(artifact: Artifact, step: int, settings: Settings | None) -> PromptTemplate | None:
    """The template whose hash the manifest has; None where paraphrases came from a file."""
    asked = artifact.manifest.options.get("prompt")
    if asked is None:
        return None
    own = [] if settings is None else [prompt_for(relevant_options(settings.paraphrase), step)]
    for prompt in (*own, PAPER[step], FEW_SHOT[step]):
        if prompt.hash.hex() == asked.get("hash"):
            return prompt
    raise ConfigError(
        f"the text of step {step}'s prompt {asked.get('id')!r} is not in the artifact, only its hash, and a data card "
        f"must show it; give the configuration that has it as paraphrase.prompt_{step} (-c FILE beside --artifact)"
    )

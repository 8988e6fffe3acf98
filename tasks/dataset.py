"""Finished paraphrases as a folder that may be published: Parquet shards by split and a data card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder, write_atomic
from paraclip.storage.parquet import PartWriter, frequent_values, iter_batches
from paraclip_core.captions.clean import clean
from paraclip_core.captions.rows import MANY_LICENCES
from paraclip_core.config import Settings
from paraclip_core.dataset_card import DatasetFacts, StepFacts, dataset_card
from paraclip_core.errors import ArtifactError, ConfigError, InputError, UnknownNameError
from paraclip_core.licenses import RolledUp, roll_up
from paraclip_core.paraphrase.engines import relevant_options
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, PromptTemplate, prompt_for

STEP_1, STEP_2, CAPTIONS = "paraphrase_1", "paraphrase_2", "ingest"
SHARD_ROWS = 200_000
"""Rows of a shard, and of memory."""
SAMPLES = 3
TEXTS = ("caption", "paraphrase_1", "paraphrase_2")
SIMILARITIES = ("similarity_1", "similarity_2")
SPLITS = {"val": "validation"}
"""Names that other libraries expect, where they differ from ours."""


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
    """The finished paraphrases of a name (fingerprint's start, ``STAGE/START``, a run's channel) or of settings."""
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
        raise ConfigError("say which paraphrases: a configuration (-c), or --artifact with a fingerprint or channel")
    # Here, because the stages take a second to import.
    from paraclip.tasks.run.run import Run

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
        models: models on the hub that were tuned on it, for the card.
        shard_rows: rows of a shard.
    """
    first = _input(store, artifact, STEP_1)
    captions = _input(store, first, CAPTIONS)
    steps = _step(first, 1, settings), _step(artifact, 2, settings)
    schema, outs = output_schema(artifact.path / "paraphrases"), OptOuts(opt_outs or ())
    samples: list[dict[str, Any]] = []
    with atomic_folder(folder) as draft:
        shards = ShardWriter(draft / "data", schema, shard_rows)
        for batch in joined(artifact.path / "paraphrases", captions.path / "captions"):
            published = outs.without(_with_hex_ids(batch))
            samples += published.slice(0, SAMPLES - len(samples)).select(schema.names).to_pylist()
            shards.write(published)
        if not (rows := shards.close()):
            raise ConfigError(f"no row is left to publish: {artifact.stage} has none that the opt-outs do not name")
        licenses = frequent_values(draft / "data", "license", MANY_LICENCES)
        facts = DatasetFacts(
            name=name or f"paraclip-{artifact.fingerprint[:8]}",
            rows=rows,
            columns=schema.names,
            ingest_options=captions.manifest.options,
            ingest_metrics=captions.manifest.metrics,
            steps=steps,
            samples=samples,
            licenses=licenses,
            opt_outs=None if opt_outs is None else (len(outs.entries), outs.rows),
            fingerprints={made.stage: made.fingerprint for made in (captions, first, artifact)},
            versions=artifact.manifest.versions,
            languages=languages,
            contact=contact,
            models=models,
        )
        card = dataset_card(facts).encode()
        write_atomic(draft / "README.md", lambda file: file.write(card))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportedDataset(files, rows, roll_up(licenses), outs.rows, outs.unmatched)


def _input(store: ArtifactStore, artifact: Artifact, stage: str) -> Artifact:
    fingerprint = artifact.manifest.inputs.get(stage, "")
    input_artifact = store.find(stage, fingerprint) if fingerprint else None
    if input_artifact is None:
        raise ArtifactError(
            f"the artifact {stage}/{fingerprint} that {artifact.stage}/{artifact.fingerprint} was made from is not "
            f"under {store.location}; run the same settings again"
        )
    return input_artifact


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


def output_schema(paraphrases: Path) -> pa.Schema:
    """Columns of the data set; a similarity that no row of the artifact has is left out."""
    present = [name for name in SIMILARITIES if _has_values(paraphrases, name)]
    texts = [pa.field(name, pa.string(), nullable=False) for name in ("caption_id", *TEXTS)]
    about = [
        pa.field("image_id", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
    ]
    return pa.schema([*texts, *about, *(pa.field(name, pa.float32()) for name in present)])


def _has_values(folder: Path, column: str) -> bool:
    return any(batch.column(0).null_count < batch.num_rows for batch in iter_batches(folder, [column]))


def joined(paraphrases: Path, captions: Path) -> Iterator[pa.RecordBatch]:
    """Paraphrased rows with the `split` and `source` of their captions, batch by batch in the captions' order.

    Both tables are in the order of ingest, rewrites of a caption follow each other, and every paraphrased row has its
    caption, so one pass over each is enough.
    """
    columns = ("caption_id", *TEXTS, "image_id", "licence", *SIMILARITIES)
    names = ["license" if name == "licence" else name for name in columns] + ["split", "source"]
    caption_batches = iter_batches(captions, ("caption_id", "split", "source"))
    here = next(caption_batches, None)
    for batch in iter_batches(paraphrases, columns):
        while batch.num_rows:
            if here is None:
                raise ArtifactError(
                    f"{paraphrases}: the caption {batch.column('caption_id')[0].as_py().hex()} is not in {captions} in "
                    "its place; see `paraclip artifacts verify`, and run the same settings again"
                )
            places = _compute("index_in", batch.column("caption_id"), value_set=here.column("caption_id"))
            missing = _compute("index", places.is_null(), True).as_py()
            count = batch.num_rows if missing < 0 else missing
            about = here.select(["split", "source"]).take(places.slice(0, count))
            if count:
                arrays = [*batch.slice(0, count).columns, *about.columns]
                yield pa.RecordBatch.from_arrays(arrays, names=names)
            batch = batch.slice(count)
            if batch.num_rows:
                here = next(caption_batches, None)


def read_opt_outs(path: Path) -> list[str]:
    """The entries of an opt-out list, each once: a caption id, an image id or a caption a line."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the opt-out list {path} cannot be read as UTF-8 text: {error}") from error
    return list(dict.fromkeys(filter(None, (line.strip() for line in lines))))


class OptOuts:
    """Finds the rows that an opt-out list names, and remembers which entries named one."""

    def __init__(self, entries: Sequence[str]) -> None:
        """A caption counts as it is in the data set, or as it was before it was cleaned."""
        self.entries = tuple(entries)
        self.rows = 0
        self._named: dict[str, set[str]] = {}
        for entry in entries:
            for form in (entry, entry.lower(), clean(entry)):
                self._named.setdefault(form, set()).add(entry)
        self._forms = pa.array(list(self._named), pa.string())
        self._matched: set[str] = set()

    def without(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows whose caption id (in hexadecimal digits), image id and caption nothing names."""
        named = pa.repeat(pa.scalar(False), batch.num_rows)
        for name in ("caption_id", "image_id", "caption"):
            places = _compute("index_in", batch.column(name).cast(pa.string()), value_set=self._forms)
            for place in places.drop_null().unique().to_pylist():
                self._matched |= self._named[self._forms[place].as_py()]
            named = _compute("or_", named, places.is_valid())
        others = batch.filter(_compute("invert", named))
        self.rows += batch.num_rows - others.num_rows
        return others

    @property
    def unmatched(self) -> list[str]:
        """Entries that named no row, in the list's order."""
        return [entry for entry in self.entries if entry not in self._matched]


class ShardWriter:
    """Writes ``<split>-00000-of-00002.parquet`` …, each split's rows in order; memory holds one shard a split."""

    def __init__(self, folder: Path, schema: pa.Schema, rows: int = SHARD_ROWS) -> None:
        """Write into `folder` shards of `rows` rows."""
        self._folder, self.schema, self._rows = folder, schema, rows
        self._writers: dict[str, PartWriter] = {}

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows with a column `split`."""
        for split in map(str, _compute("unique", batch.column("split")).to_pylist()):
            rows = batch.filter(_compute("equal", batch.column("split"), split))
            if split not in self._writers:
                self._writers[split] = PartWriter(self._folder, self.schema, SPLITS.get(split, split), self._rows)
            self._writers[split].write(rows.select(self.schema.names).cast(self.schema))

    def close(self) -> dict[str, int]:
        """Write what is left and name the shards; returns the rows of each split, training first."""
        for writer in self._writers.values():
            writer.close()
        counts = {}
        for split in sorted(self._writers, key=lambda name: (name != "train", name != "val", name)):
            name = SPLITS.get(split, split)
            counts[name] = self._writers[split].rows_written
            shards = sorted(self._folder.glob(f"{name}-*.parquet"))
            for shard in shards:
                shard.rename(shard.with_name(f"{shard.stem}-of-{len(shards):05d}.parquet"))
        return counts


def _compute(function: str, *values: Any, **options: Any) -> Any:
    """A function of `pyarrow.compute`, whose stubs name few of them."""
    return getattr(pc, function)(*values, **options)

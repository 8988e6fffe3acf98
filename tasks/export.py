"""Folders for others, and their way to the Hugging Face hub: a model for another library, paraphrases as a data set.

The hub's token is that of huggingface_hub's own login (`hf auth login`, or HF_TOKEN) and the place is its HF_ENDPOINT.
Both stay with that library: nothing here reads, writes or says the token.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder, read_json, write_atomic
from paraclip.storage.parquet import PartWriter, frequent_values, iter_batches
from paraclip_core.captions.rows import MANY_LICENCES, clean
from paraclip_core.cards import DatasetFacts, RolledUp, StepFacts, dataset_card, roll_up
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError, InputError, ParaclipError, UnknownNameError, one_line
from paraclip_core.paraphrase.engines import relevant_options
from paraclip_core.paraphrase.requests import FEW_SHOT, PAPER, PromptTemplate, prompt_for

Layout = Literal["open_clip", "hf", "onnx"]
CARD = "README.md"
PLAIN_CARD = "---\nlibrary_name: open_clip\ntags:\n- clip\n- open_clip\n---\n\n# CLIP\n\nConverted from `{}`.\n"


HERE = "PATH_OF_THIS_FOLDER"
"""What an exported card says in place of where it lies."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
STEP_1, STEP_2, CAPTIONS = "paraphrase_1", "paraphrase_2", "ingest"
SHARD_ROWS = 200_000
"""Rows of a shard, and of memory."""
SAMPLES = 3
TEXTS = ("caption", "paraphrase_1", "paraphrase_2")
SIMILARITIES = ("similarity_1", "similarity_2")
SPLITS = {"val": "validation"}
"""Names that other libraries expect, where they differ from ours."""


def export_model(
    release: Path | str,
    folder: Path,
    layout: Layout = "open_clip",
    store: ArtifactStore | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a model in a layout and give the names of its files; the target appears whole or not at all.

    `release` is a release folder, or what else :func:`paraclip_core.clip.load.load_clip` takes. The evaluation of a
    run's model is looked for in `store`; `about` has fields of the card's front matter: `language`, `datasets`,
    `license`.
    """
    with atomic_folder(folder) as draft:
        path = Path(release) / CARD
        card = path.read_text("utf-8") if isinstance(release, Path) and path.is_file() else None
        if layout == "open_clip" and isinstance(release, Path) and (release / "open_clip_config.json").is_file():
            _copy(release, draft)
        else:
            _convert(release, draft, layout, card or PLAIN_CARD.format(release))
        if card is not None or about:
            written = card or (draft / CARD).read_text("utf-8")
            (draft / CARD).write_text(_completed(written, release, layout, store, about), "utf-8")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without its modes: an artifact may be read-only, and the copy is the user's own."""
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)


def _convert(release: Path | str, draft: Path, layout: Layout, card: str) -> None:
    # Here, because torch takes seconds to import and copying a folder does not need it.
    from paraclip_core.clip.export import save_hf, save_onnx, save_release
    from paraclip_core.clip.load import load_clip
    from paraclip_core.tensor_file import set_default_mode

    clip = load_clip(str(release))
    if layout == "open_clip":
        save_release(clip, draft, card)
        return
    {"hf": save_hf, "onnx": save_onnx}[layout](clip, draft)
    for weights in draft.rglob("*.safetensors"):
        set_default_mode(weights)
    (draft / CARD).write_text(card, "utf-8")


def _completed(
    card: str, release: Path | str, layout: Layout, store: ArtifactStore | None, about: Mapping[str, Any] | None
) -> str:
    from paraclip_core.training.card import completed_card

    if store is not None and isinstance(release, Path):
        folder = release.resolve().parent
        artifact = store.peek(folder.parent.name, folder.name)
        if artifact is not None and artifact.path.resolve() == folder:
            name = f"paraclip-{artifact.fingerprint[:8]}"
            return completed_card(card, layout=layout, name=name, comparison=_comparison(artifact, store), about=about)
    return completed_card(card, layout=layout, about=about)


def _comparison(model: Artifact, store: ArtifactStore) -> dict[str, Any] | None:
    """The newest evaluation of a tuned model, None where there is none."""
    evaluations = [
        each for each in store.list("evaluate") if each.manifest.inputs.get(model.stage) == model.fingerprint
    ]
    if model.stage != "finetune" or not evaluations:
        return None
    newest = store.download(max(evaluations, key=lambda each: (each.manifest.created, each.fingerprint)))
    comparison = read_json(newest.path / "comparison.json")
    return comparison if {"rows", "verdict", "reason", "confidence"} <= set(comparison) else None


def _check(repo: str) -> None:
    """See that `repo` can be a name and that there is a login."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name on the hub: {one_line(error)}; expected ORG/NAME") from error
    if "/" not in repo:
        raise ConfigError(f"{repo!r} names no organization or user; expected ORG/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if get_token() is None:
        raise ConfigError(f"nothing can be pushed to {repo} without a login; {LOGIN}")


def push_folder(folder: Path, repo: str, private: bool = False) -> str:
    """Push what `export` or `export-dataset` wrote (Parquet in `data` makes it a data set); gives the address.

    The repository is made if need be, as a `private` one if so asked.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not (folder / CARD).is_file():
        raise ConfigError(
            f"{folder} holds no {CARD}; expected a folder that `paraclip export` or `paraclip export-dataset` wrote"
        )
    kind = "dataset" if any(folder.glob("data/*.parquet")) else "model"
    _check(repo)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    card = published_card((folder / CARD).read_text("utf-8"), repo)
    operations = [CommitOperationAdd(CARD, card.encode())]
    operations += [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    api = HfApi(library_name="paraclip")
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        api.create_commit(repo, operations, repo_type=kind, commit_message=f"{kind.capitalize()} exported by paraclip")
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(f"the hub refuses to write to {repo}: {one_line(error)}; {LOGIN}") from error
        raise ParaclipError(f"the hub did not take {folder} as {repo}: {one_line(error)}") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # It wraps what goes wrong in an upload in several ways.
        raise ParaclipError(f"{folder} could not be pushed to {repo}: {one_line(error)}; try again") from error
    return str(url)


def published_card(card: str, repo: str) -> str:
    """A card whose examples load from the hub instead of from a folder."""
    card = card.replace(f"local-dir:{HERE}", f"hf-hub:{repo}")
    card = re.sub(rf"'{HERE}/(data/[^']*)'", rf"'hf://datasets/{repo}/\1'", card)
    card = re.sub(rf'InferenceSession\("{HERE}/([^"]*)"\)', rf'InferenceSession(hf_hub_download("{repo}", "\1"))', card)
    if "hf_hub_download(" in card:
        card = card.replace("import onnxruntime\n", "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n")
    return card.replace(HERE, repo)


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
            ids = pa.array([value.hex() for value in batch.column("caption_id").to_pylist()], pa.string())
            place = batch.schema.get_field_index("caption_id")
            published = outs.without(batch.set_column(place, "caption_id", ids))
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
    present = [
        name
        for name in SIMILARITIES
        if any(batch.column(0).null_count < batch.num_rows for batch in iter_batches(paraphrases, [name]))
    ]
    texts = [pa.field(name, pa.string(), nullable=False) for name in ("caption_id", *TEXTS)]
    about = [
        pa.field("image_id", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
    ]
    return pa.schema([*texts, *about, *(pa.field(name, pa.float32()) for name in present)])


def joined(paraphrases: Path, captions: Path) -> Iterator[pa.RecordBatch]:
    """Paraphrased rows with the `split` and `source` of their captions, batch by batch in the captions' order.

    Both tables are in the order of ingest, rewrites of a caption follow each other, and every paraphrased row has its
    caption, so one pass over each is enough.
    """
    columns = ("caption_id", *TEXTS, "image_id", "licence", *SIMILARITIES)
    names = ["license" if name == "licence" else name for name in columns] + ["split", "source"]
    caption_batches = iter_batches(captions, ("caption_id", "split", "source"))
    captions_batch = next(caption_batches, None)
    for batch in iter_batches(paraphrases, columns):
        while batch.num_rows:
            if captions_batch is None:
                raise ArtifactError(
                    f"{paraphrases}: the caption {batch.column('caption_id')[0].as_py().hex()} is not in {captions} in "
                    "its place; see `paraclip artifacts verify`, and run the same settings again"
                )
            places = _compute("index_in", batch.column("caption_id"), value_set=captions_batch.column("caption_id"))
            missing = _compute("index", places.is_null(), True).as_py()
            count = batch.num_rows if missing < 0 else missing
            about = captions_batch.select(["split", "source"]).take(places.slice(0, count))
            if count:
                arrays = [*batch.slice(0, count).columns, *about.columns]
                yield pa.RecordBatch.from_arrays(arrays, names=names)
            batch = batch.slice(count)
            if batch.num_rows:
                captions_batch = next(caption_batches, None)


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

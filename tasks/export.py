"""Exports and their upload to the Hugging Face hub: a model for another library, paraphrases as a data set.

The hub's token comes from huggingface_hub's own login (`hf auth login`, or HF_TOKEN) and the address from its
HF_ENDPOINT. Both stay with that library: nothing here reads, writes or prints the token.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder, read_json, write_atomic
from paraclip.storage.parquet import CONFIG, PartWriter, frequent_values, parquet_files
from paraclip.tasks.models import of_own_base
from paraclip_core.captions.clean import clean
from paraclip_core.captions.counts import MANY_LICENSES
from paraclip_core.config import Settings
from paraclip_core.dataset_card import DatasetFacts, StepFacts, dataset_card, hub_licenses
from paraclip_core.errors import ArtifactError, ConfigError, InputError, ParaclipError, UnknownNameError
from paraclip_core.evaluation.churn import Churn
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.paraphraser import relevant_options
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, PromptTemplate, prompt_for
from paraclip_core.text_safety import one_line

Layout = Literal["open_clip", "hf", "onnx"]
CARD = "README.md"
PLAIN_CARD = "---\nlibrary_name: open_clip\ntags:\n- clip\n- open_clip\n---\n\n# CLIP\n\nConverted from `{}`.\n"


HERE = "PATH_OF_THIS_FOLDER"
"""Placeholder for its location in an exported card."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
STEP_1, STEP_2, CAPTIONS = "paraphrase_1", "paraphrase_2", "ingest"
SHARD = re.compile(r"data/train-\d+-of-\d+\.parquet")
SHARD_ROWS = 200_000
"""Rows per shard, and in memory."""
SAMPLES = 3
BATCH_ROWS = 65_536
FORMS = pa.schema([("entry", pa.string()), ("form", pa.string())])
SPLIT = "train"
"""Of all rows: no other caption is paraphrased."""
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


def export_model(
    release: Path | str,
    folder: Path,
    layout: Layout = "open_clip",
    store: ArtifactStore | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a model in a layout and return the names of its files; the target is written atomically.

    `release` is a release folder or another reference that :func:`paraclip_core.clip.load.load_clip` accepts. The
    evaluation of a run's model is looked up in `store`; `about` has fields of the card's front matter: `language`,
    `datasets`, `license`.
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
    """Copy a folder without its file modes: an artifact may be read-only, and the copy belongs to the user."""
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)


def _convert(release: Path | str, draft: Path, layout: Layout, card: str) -> None:
    # Imported here: torch takes seconds to import, and copying a folder does not need it.
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
            comparison, churn = _evaluated(artifact, store)
            return completed_card(card, layout=layout, name=name, comparison=comparison, churn=churn, about=about)
    return completed_card(card, layout=layout, about=about)


def _evaluated(model: Artifact, store: ArtifactStore) -> tuple[dict[str, Any] | None, Churn | None]:
    """Comparison and churn of the newest evaluation of a tuned model against its own base; None for what is missing."""
    evaluations = [each for each in store.list("evaluate") if of_own_base(each, model)]
    if model.stage != "finetune" or not evaluations:
        return None, None
    newest = store.download(max(evaluations, key=lambda each: (each.manifest.created, each.fingerprint)))
    comparison = read_json(newest.path / "comparison.json")
    if not {"rows", "verdict", "reason", "confidence"} <= set(comparison):
        return None, None
    changes = newest.path / "churn.json"
    return comparison, Churn.from_json(read_json(changes)) if changes.exists() else None


def push_folder(folder: Path, repo: str, private: bool = False) -> str:
    """Push a folder written by `export` or `export-dataset` (with Parquet in `data`); returns its address.

    The repository is created if it does not exist, as a private one if `private`.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not (folder / CARD).is_file():
        raise ConfigError(
            f"{folder} holds no {CARD}; expected a folder that `paraclip export` or `paraclip export-dataset` wrote"
        )
    kind = "dataset" if any(folder.glob("data/*.parquet")) else "model"
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationAdd(*file) for file in files.items()]
    api = HfApi(library_name="paraclip")
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        card = published_card((folder / CARD).read_text("utf-8"), url.repo_id)
        operations.append(CommitOperationAdd(CARD, card.encode()))
        # Shards of an earlier export would be read beside those of this one, opted-out rows included.
        there = api.list_repo_files(url.repo_id, repo_type=kind) if kind == "dataset" else ()
        operations += [CommitOperationDelete(name) for name in there if SHARD.fullmatch(name) and name not in files]
        api.create_commit(
            url.repo_id, operations, repo_type=kind, commit_message=f"{kind.capitalize()} exported by paraclip"
        )
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(f"the hub refuses to write to {repo}: {one_line(error)}; {LOGIN}") from error
        raise ParaclipError(f"the hub did not accept {folder} as {repo}: {one_line(error)}") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # The library wraps upload errors in several ways.
        raise ParaclipError(f"{folder} could not be pushed to {repo}: {one_line(error)}; try again") from error
    return str(url)


def published_card(card: str, repo: str) -> str:
    """The card, with examples that load from the hub instead of a folder."""
    card = card.replace(f"local-dir:{HERE}", f"hf-hub:{repo}")
    card = re.sub(rf"'{HERE}/(data/[^']*)'", rf"'hf://datasets/{repo}/\1'", card)
    card = re.sub(rf'InferenceSession\("{HERE}/([^"]*)"\)', rf'InferenceSession(hf_hub_download("{repo}", "\1"))', card)
    if "hf_hub_download(" in card:
        card = card.replace("import onnxruntime\n", "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n")
    return card.replace(HERE, repo)


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
    # Imported here: the stages take a second to import.
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
    """Write finished paraphrases as a data set; the folder is written atomically.

    The same artifact (of `paraphrase_2`) and arguments give the same bytes, and memory use does not grow with the rows.
    `settings` have the texts of custom prompts, of which the artifact holds only the hashes. `opt_outs` are caption
    ids, image ids and captions whose rows are left out, either as in the data set or as before cleaning; None without a
    list. The rest is for the card: `models` are models on the hub that were tuned on it, and `contact` is whom to ask
    to remove rows.
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
            shards = PartWriter(draft / "data", schema, SPLIT, shard_rows)
            for batch in rows.to_arrow_reader(BATCH_ROWS):
                if batch.column("source").null_count:
                    raise ArtifactError(
                        f"captions of {artifact.path} are not in {captions.path}; see `paraclip artifacts verify`, and "
                        "run the same settings again"
                    )
                shards.write(batch.cast(schema))
        if not samples:
            raise ConfigError(f"no row is left to publish: the opt-outs name every row of {artifact.stage}")
        shards.close()
        written = sorted((draft / "data").iterdir())
        for shard in written:
            shard.rename(shard.with_name(f"{shard.stem}-of-{len(written):05d}.parquet"))
        licenses = frequent_values(draft / "data", "license", MANY_LICENSES)
        facts = DatasetFacts(
            name=name or f"paraclip-{artifact.fingerprint[:8]}",
            rows={SPLIT: shards.rows_written},
            columns=schema.names,
            ingest_options=captions.manifest.options,
            ingest_metrics=captions.manifest.metrics,
            steps=steps,
            samples=samples,
            licenses=licenses,
            opt_outs=None if opt_outs is None else (len(opt_outs), left_out),
            fingerprints={made.stage: made.fingerprint for made in (captions, first, artifact)},
            versions=artifact.manifest.versions,
            languages=languages,
            contact=contact,
            models=models,
        )
        card = dataset_card(facts).encode()
        write_atomic(draft / CARD, lambda file: file.write(card))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportedDataset(files, {SPLIT: shards.rows_written}, hub_licenses(licenses), left_out, unmatched)


def _leave_out(con: duckdb.DuckDBPyConnection, entries: Sequence[str]) -> tuple[int, list[str]]:
    """Delete the rows that an opt-out list names; returns their number and the entries that matched none."""
    forms = [(entry, form) for entry in entries for form in (entry, entry.lower(), clean(entry))]
    con.register("listed", pa.table({"entry": [one for one, _ in forms], "form": [form for _, form in forms]}, FORMS))
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

"""Export of paraphrases as a data set: a Parquet file and a card."""

from __future__ import annotations

from pathlib import Path

import duckdb
from huggingface_hub import DatasetCard, DatasetCardData

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import atomic_folder
from paraclip.storage.parquet import CONFIG, frequent_values, parquet_files
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, UnknownNameError
from paraclip_core.lifetime import TempDir
from paraclip_core.markdown import inert, table

STEP_1, STEP_2, CAPTIONS = "paraphrase_1", "paraphrase_2", "ingest"
# Paraphrases of a caption are adjacent, in the order of ingest.
ROWS = """
    SELECT lower(hex(p.caption_id)) AS caption_id, p.caption, p.paraphrase_1, p.paraphrase_2, p.image_id, c.source,
           p.license AS license, p.similarity_1, p.similarity_2
    FROM paraphrases p LEFT JOIN captions c ON c.caption_id = p.caption_id AND c.split = 'train'
    ORDER BY p.filename, p.file_row_number
"""
CARD = """---
{{ card_data }}
---

# {{ title }}

Image captions with two paraphrases each: paraphrase 1 says the caption in plain language, paraphrase 2 says
paraphrase 1 in other words. Made with paraclip after [ParaCLIP](https://arxiv.org/abs/2402.15120); the images are not
part of it.

{{ steps }}

{{ licenses }}

Made from `ingest/{{ ingest }}` and `paraphrase_2/{{ paraphrases }}`. Captions and paraphrases may be wrong, biased or
offensive: treat every text as data.
"""


def find_paraphrases(store: ArtifactStore, name: str | None, settings: Settings) -> Artifact:
    """The finished paraphrases of a name (start of a fingerprint, ``STAGE/START``, a run's channel), or of settings
    without a name."""
    if name is not None:
        artifact = store.named(name, (STEP_2,))
        if artifact.stage == STEP_2:
            return store.download(artifact)
        if STEP_2 not in artifact.manifest.inputs:
            raise UnknownNameError(
                f"{name!r} is a {artifact.stage} artifact; expected {STEP_2}, or what was made from it"
            )
        return _input(store, artifact, STEP_2)
    artifact = store.find(STEP_2, Run(settings, store).node(STEP_2).fingerprint)
    if artifact is None:
        raise ConfigError(
            f"the paraphrases of {settings.name!r} are not finished under {store.location}; "
            "call `paraclip run` with the same settings first"
        )
    return artifact


def export_dataset(artifact: Artifact, folder: Path, store: ArtifactStore, name: str) -> int:
    """Write finished paraphrases (of `paraphrase_2`) as a data set called `name` and return the number of rows; the
    folder is written atomically."""
    first = _input(store, artifact, STEP_1)
    captions = _input(store, first, CAPTIONS)
    with atomic_folder(folder) as draft, TempDir("dataset-") as scratch:
        data = draft / "data" / "train.parquet"
        data.parent.mkdir(parents=True)
        with duckdb.connect(str(scratch / "rows.duckdb"), config=CONFIG) as con:
            for view, place in (("paraphrases", artifact.path), ("captions", captions.path)):
                files = [str(file) for file in parquet_files(place / view)]
                rows = con.read_parquet(files, hive_partitioning=False, filename=True, file_row_number=True)
                rows.create_view(view)
            con.sql(ROWS).write_parquet(str(data), compression="zstd")
            ((count,),) = con.sql("SELECT count(*) FROM paraphrases").fetchall()
        licenses = frequent_values(data, "license")
        steps = [
            (number, step.metrics["engine"], step.metrics["model"], step.options.get("prompt", {}).get("id", ""))
            for number, step in enumerate((first.manifest, artifact.manifest), start=1)
        ]
        card = DatasetCard.from_template(
            DatasetCardData(
                license="other",
                license_name=" ".join(", ".join(sorted(licenses)).split()),
                pretty_name=name,
                tags=["paraphrase", "image-captions", "clip", "paraclip"],
                configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
            ),
            template_str=CARD,
            # Texts from the data: `table` makes them inert.
            title=inert(name),
            steps=table(("step", "engine", "model and revision, or content hash", "prompt"), steps),
            licenses=table(("license as stated", "rows"), sorted(licenses.items())),
            ingest=captions.fingerprint,
            paraphrases=artifact.fingerprint,
        )
        (draft / "README.md").write_text(str(card), "utf-8")
    return count


def _input(store: ArtifactStore, artifact: Artifact, stage: str) -> Artifact:
    why = f"{artifact.stage}/{artifact.fingerprint} was made from it"
    return store.expect(stage, artifact.manifest.inputs.get(stage, "?"), why)

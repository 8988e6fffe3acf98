"""Finished artifacts as the training stages find them, of images that are vectors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.parquet import write_table
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.training import BUILT_IN_BASE, FINETUNE
from paraclip_core import tables
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.model import image_encoder_hash
from paraclip_core.config import Settings
from tests.tasks.builders import committed, write_captions, write_features

COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
THINGS = ("dog", "cat", "car", "boat", "tree", "house", "horse", "bird", "child", "ball")
OTHER = {"dog": "hound", "cat": "kitten", "car": "vehicle", "boat": "ship", "child": "kid", "house": "home"}
TRAINING: dict[str, Any] = {"epochs": 4.0, "batch_size": 32, "learning_rate": 3e-3}


@pytest.fixture(scope="session")
def settings() -> Settings:
    """A small built-in base, trained in a few seconds on one thread."""
    return Settings.model_validate(
        {
            "model": {"text_width": 64, "text_layers": 1, "embed_dim": 32},
            "run": {"threads": 1, "device": "cpu"},
            "built_in_base": TRAINING,
            "finetune": {
                **TRAINING,
                "recipe": "published",
                "epochs": 3.0,
                "learning_rate": 1e-3,
                "precision": "fp32",
                "validation": 0.3,
            },
        }
    )


@pytest.fixture(scope="session")
def encoder(settings: Settings) -> str:
    """Hash of the image encoder that the features claim to come from."""
    return image_encoder_hash(built_in_clip(settings.model))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """The store of all that is trained here."""
    return ArtifactStore(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def sources(store: ArtifactStore, encoder: str) -> dict[str, Artifact]:
    """The artifacts ingest, paraphrase_2 and features of 80 training images and some held-out ones."""

    def paraphrases(out: Path) -> None:
        write_table(out / "paraphrases/part-00000.parquet", _paraphrases())

    def commit(stage: str, write: Callable[[Path], object], **metrics: str) -> Artifact:
        return committed(store, stage, hashlib.md5(stage.encode()).hexdigest(), write=write, metrics=metrics)

    return {
        "ingest": commit("ingest", lambda out: write_captions(out, _captions())),
        "paraphrase_2": commit("paraphrase_2", paraphrases),
        "features": commit("features", _write_features, image_encoder_hash=encoder),
    }


@pytest.fixture(scope="session")
def run_stage(store: ArtifactStore, settings: Settings) -> Callable[..., Artifact]:
    """Carry out a stage on given artifacts, by default with changed options under a new name."""
    numbers = count()

    def run(stage: Stage, inputs: dict[str, Artifact], name: str | None = None, **changed: Any) -> Artifact:
        options = {
            group: getattr(settings, group).model_copy(update=values) if isinstance(values, dict) else values
            for group, values in changed.items()
        }
        draft = Draft(stage.name, name or f"{next(numbers):032}", stage.version, {}, {})
        return execute(stage, draft, Run(settings.model_copy(update=options), store), inputs)

    return run


@pytest.fixture(scope="session")
def inputs(run_stage: Callable[..., Artifact], sources: dict[str, Artifact]) -> dict[str, Artifact]:
    """All that fine-tuning reads."""
    return {**sources, "built_in_base": run_stage(BUILT_IN_BASE, sources)}


@pytest.fixture(scope="session")
def tuned(run_stage: Callable[..., Artifact], inputs: dict[str, Artifact]) -> Artifact:
    """The plain fine-tuning."""
    return run_stage(FINETUNE, inputs)


@pytest.fixture
def edited(inputs: dict[str, Artifact], tmp_path: Path) -> Callable[..., dict[str, Artifact]]:
    """The inputs, one of them with another table in the place of its own."""

    def edit(name: str, change: Callable[[pa.Table], pa.Table]) -> dict[str, Artifact]:
        artifact = replace(inputs[name], path=Path(shutil.copytree(inputs[name].path, tmp_path / name)))
        (path,) = artifact.path.glob("*/part-00000.parquet")
        pq.write_table(change(pq.read_table(path)), path)
        other = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        return {**inputs, name: replace(artifact, manifest=replace(artifact.manifest, fingerprint=other))}

    return edit


def _names() -> list[tuple[str, str, str]]:
    return [(f"image-{c}-{t}", c, t) for c in COLOURS for t in THINGS]


def _split(number: int) -> str:
    return "val" if number % 10 == 9 else "train"


def _captions() -> list[dict[str, Any]]:
    rows = []
    for number, (image, colour, thing) in enumerate(_names()):
        rows += [(image, text, _split(number)) for text in (f"a {colour} {thing}", f"the {thing} is {colour}")]
    rows.append((None, "a caption without an image", "train"))
    rows.append(("not-there", "an image without features", "train"))
    return [{"image_id": image, "caption": text, "split": split, "license": "CC0-1.0"} for image, text, split in rows]


def _paraphrases() -> pa.Table:
    rows = []
    for number, (image, colour, thing) in enumerate(_names()):
        if _split(number) == "train":
            other = OTHER.get(thing, thing)
            rows.append((image, f"a {colour} {thing}", f"{thing}, {colour}", f"{colour} {other} in a picture"))
            rows.append((image, f"the {thing} is {colour}", f"{colour} {thing}", f"one {other}, all {colour}"))
    rows.append((None, "a caption without an image", "no image", "nothing to see"))
    texts = {"caption": 1, "paraphrase_1": 2, "paraphrase_2": 3}
    columns: dict[str, Any] = {
        "caption_id": [tables.text_hash(row[0], row[1]) for row in rows],
        "image_id": [row[0] for row in rows],
        "license": ["CC0-1.0"] * len(rows),
        "generation_1": [bytes(16)] * len(rows),
        "generation_2": [bytes(16)] * len(rows),
    }
    for name, place in texts.items():
        columns[name] = [row[place] for row in rows]
    unmeasured = dict.fromkeys(("similarity_1", "similarity_2"), [0.9] * len(rows))
    return pa.table({**columns, **unmeasured}).select(tables.PARAPHRASES.names).cast(tables.PARAPHRASES)


def _write_features(out: Path) -> None:
    random_state = np.random.RandomState(0)
    meaning = {word: random_state.randn(32) for word in (*COLOURS, *THINGS)}
    vectors = np.stack([meaning[colour] + meaning[thing] for _, colour, thing in _names()])
    write_features(out, [image for image, _, _ in _names()], vectors)

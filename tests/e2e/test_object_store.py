"""A root on a real S3 server over HTTP: stages in child processes, two machines, one that is lost half-way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.roots import LOCAL_VARIABLE, open_answers, open_store
from paraclip.tasks.run.execute import execute, run_stage
from paraclip.tasks.run.run import Run, Stage, StageContext
from paraclip_core.config import Settings
from paraclip_core.settings import load_settings
from tests.kit.s3_server import bucket
from tests.kit.small_runs import made
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STAGES = ("ingest", "paraphrase_1", "paraphrase_2")
CAPTIONS = [f"a {animal} on the {place}" for animal in ("dog", "cat") for place in ("beach", "roof", "lawn")]
NEW = "a tall tree in a field"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A root of its own, seen from the machine `one`."""
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "one"))
    with bucket(monkeypatch) as name:
        yield f"{name}/teams/ours"


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ArtifactStore]:
    """Goes on as the machine of this name."""

    def opened(name: str) -> ArtifactStore:
        monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / name))
        return open_store(url)

    return opened


def write_captions(folder: Path, captions: Sequence[str]) -> None:
    (folder / "captions.jsonl").write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions))


@pytest.fixture
def options(url: str, tmp_path: Path) -> list[str]:
    """A run over a few captions, whose paraphrases are in a file."""
    write_captions(tmp_path, CAPTIONS)
    answers = [
        {"caption": caption, "paraphrase_1": f"there is {caption}", "paraphrase_2": f"one can see {caption}"}
        for caption in (*CAPTIONS, NEW)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return [
        f"run.root={url}",
        f"data.root={tmp_path}",
        "data.sources.0.path=captions.jsonl",
        "paraphrase.engine=file",
        "paraphrase.file.path=answers.jsonl",
        "paraphrase.filters.preset=off",
        "paraphrase.chunk=4",
    ]


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {str(p.relative_to(artifact.path)): p.read_bytes() for p in artifact.path.rglob("*") if p.is_file()}


def test_a_second_machine_reuses_everything(
    options: list[str], url: str, machine: Callable[[str], ArtifactStore], tmp_path: Path
) -> None:
    settings = load_settings(None, options)
    one = machine("one")
    artifacts = {name: run_stage(name, Run(settings)) for name in STAGES}
    assert artifacts["paraphrase_2"].manifest.metrics["accepted"] == len(CAPTIONS)
    asked = open_answers(one).stats()

    two = machine("two")
    for name in STAGES:
        assert run_stage(name, Run(settings)).manifest == artifacts[name].manifest
    assert not (two.root / "artifacts").exists(), "a finished stage is found, not downloaded"
    assert {name: contents(two.download(artifact)) for name, artifact in artifacts.items()} == {
        name: contents(artifact) for name, artifact in artifacts.items()
    }

    # A new caption is all that has to be asked for, and its answer comes back to the first machine.
    write_captions(tmp_path, [*CAPTIONS, NEW])
    made("ingest", settings)
    assert made("paraphrase_1", settings).manifest.metrics["generated"] == 1
    machine("one")
    again = open_answers(one).stats()
    assert (again.keys, again.rows) == (asked.keys + 1, asked.rows + 1)
    check_secrets(url, one, two)


def check_secrets(url: str, *stores: ArtifactStore) -> None:
    """Credentials are in no object and no file, logs included."""
    remote = fsspec.filesystem("s3")
    contents = {path: remote.cat_file(path) for path in remote.find(url.removeprefix("s3://"))}
    contents |= {str(path): path.read_bytes() for store in stores for path in store.root.rglob("*") if path.is_file()}
    assert any(path.endswith(".log") for path in contents) and any(path.endswith("manifest.json") for path in contents)
    for path, data in contents.items():
        assert b"nobody-may-see" not in data and b"AKIAPARACLIP" not in data, path


def test_a_lost_machine_is_followed_from_the_last_checkpoint_that_it_pushed(
    url: str, machine: Callable[[str], ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paraclip.storage.remote_store.PUSH_SECONDS", 0.0)
    steps: list[list[str]] = []

    def body(context: StageContext) -> dict[str, Any]:
        folder, log = context.work.scratch / "checkpoints", context.work.out / "training_log.jsonl"
        folder.mkdir(exist_ok=True)
        steps.append(sorted(path.stem for path in folder.iterdir()))
        if len(steps) > 1:
            return {"logged": len(log.read_text().splitlines())}
        log.write_text("1\n")
        (folder / "step-00000001.safetensors").write_text("1")
        pushed = f"work/long/{'0' * 32}/scratch/checkpoints"
        eventually(lambda: context.progress(1, 2) or (one.remote and one.remote.sizes(pushed)), "nothing is pushed", 60)
        raise KeyboardInterrupt

    def carried(store: ArtifactStore) -> Artifact:
        stage = Stage("long", 1, lambda _: (), lambda _: {}, body)
        return execute(stage, Draft("long", "0" * 32, 1, {}, {}), Run(Settings(), store), {})

    one = machine("one")
    with pytest.raises(KeyboardInterrupt):
        carried(one)
    shutil.rmtree(one.root)
    assert carried(machine("two")).manifest.metrics == {"logged": 1}
    assert steps == [[], ["step-00000001"]]

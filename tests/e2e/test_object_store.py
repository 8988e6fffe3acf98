"""A root on a real S3 server over HTTP: stages in child processes, two machines, a machine that is lost half-way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import fsspec
import pytest
from s3_server import bucket  # pyright: ignore[reportMissingImports]

from paraclip.flows.cli import run_cli
from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.roots import LOCAL_VARIABLE, open_answers, open_store
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.settings import load_settings

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
        "paraphrase.gates.preset=off",
        "paraphrase.chunk=4",
    ]


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {str(p.relative_to(artifact.path)): p.read_bytes() for p in artifact.path.rglob("*") if p.is_file()}


def test_a_second_machine_reuses_everything(
    options: list[str],
    url: str,
    machine: Callable[[str], ArtifactStore],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load_settings(None, options)
    one = machine("one")
    made = {name: run_stage(name, Run(settings)) for name in STAGES}
    assert made["paraphrase_2"].manifest.metrics["accepted"] == len(CAPTIONS)
    asked = open_answers(one).stats()

    two = machine("two")
    for name in STAGES:
        assert run_stage(name, Run(settings)).manifest == made[name].manifest
    assert not (two.root / "artifacts").exists(), "a finished stage is found, not downloaded"
    assert {name: contents(two.download(artifact)) for name, artifact in made.items()} == {
        name: contents(artifact) for name, artifact in made.items()
    }
    check_commands(options, url, capsys)

    # A new caption is all that has to be asked for, and its answer comes back to the first machine.
    write_captions(tmp_path, [*CAPTIONS, NEW])
    run_stage("ingest", Run(settings))
    assert run_stage("paraphrase_1", Run(settings)).manifest.metrics["generated"] == 1
    machine("one")
    again = open_answers(one).stats()
    assert (again.keys, again.rows) == (asked.keys + 1, asked.rows + 1)
    check_secrets(url, one, two)


def check_commands(options: list[str], url: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = [part for option in options for part in ("--set", option)]
    assert run_cli(["plan", *arguments, "--json"]) == 0
    plan = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert [plan[name]["state"] for name in STAGES] == ["cached"] * 3
    assert run_cli(["artifacts", "verify", "--root", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checked": 3, "damaged": []}
    assert run_cli(["cache", "stats", "--root", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"] == 2 * len(CAPTIONS)


def check_secrets(url: str, *stores: ArtifactStore) -> None:
    """Credentials are in no object and no file, logs included."""
    remote = fsspec.filesystem("s3")
    told = {path: remote.cat_file(path) for path in remote.find(url.removeprefix("s3://"))}
    told |= {str(path): path.read_bytes() for store in stores for path in store.root.rglob("*") if path.is_file()}
    assert any(path.endswith(".log") for path in told) and any(path.endswith("manifest.json") for path in told)
    for path, data in told.items():
        assert b"nobody-may-see" not in data and b"AKIAPARACLIP" not in data, path


LOST = """
import sys, time
from paraclip.storage import roots
from paraclip.storage.roots import open_store
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.run.dag import carry_out
from paraclip.storage.artifacts import Draft
from paraclip_core.config import Settings

def body(context):
    folder = context.work.scratch / "checkpoints"
    folder.mkdir()
    for step in range(10_000):
        with (context.work.out / "training_log.jsonl").open("a") as log:
            log.write(f"{step}\\n")
        (folder / f"step-{step:08d}.safetensors").write_text(str(step))
        (folder / f"step-{step - 2:08d}.safetensors").unlink(missing_ok=True)
        context.progress(step, 10_000)
        print(step, flush=True)
        time.sleep(0.05)

roots.PUSH_SECONDS = 0.5
stage = Stage("long", 1, lambda s: (), lambda s: {}, body)
carry_out(stage, Draft("long", "0" * 32, 1, {}, {}), Run(Settings(), open_store(sys.argv[1])), {})
"""


def steps_of(names: Iterable[str]) -> list[int]:
    return sorted(int(Path(name).stem.removeprefix("step-")) for name in names)


def test_a_lost_machine_is_succeeded_from_the_last_checkpoint_that_it_pushed(
    url: str, machine: Callable[[str], ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine vanishes with its disk: no process of it may say goodbye, and its lock is never given back."""
    monkeypatch.setattr("paraclip.storage.locks.DEAD_SECONDS", 2.0)
    one = machine("one")
    repository = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", LOST, url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": repository},
    ) as lost:
        assert lost.stdout is not None and one.remote is not None
        pushed = [0]
        while not pushed or pushed[-1] < 30:
            reached = int(lost.stdout.readline())
            if reached % 10 == 0:
                pushed = steps_of(one.remote.sizes(f"work/long/{'0' * 32}/scratch/checkpoints"))
        lost.send_signal(signal.SIGKILL)
    shutil.rmtree(one.root)
    two = machine("two")
    started = time.monotonic()
    with two.writing("long", "0" * 32) as work:
        log = (work.out / "training_log.jsonl").read_text().split()
        steps = steps_of(path.name for path in (work.scratch / "checkpoints").iterdir())
    assert time.monotonic() - started > 2, "a living machine would have been waited for"
    assert steps[-1] >= pushed[-1] and log[: steps[-1] + 1] == [str(step) for step in range(steps[-1] + 1)]

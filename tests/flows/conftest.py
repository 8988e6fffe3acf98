"""A run whose every stage is finished, made without any of the work, and a Prefect server."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from paraclip.flows.cli import run_cli
from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.parquet import write_table
from paraclip.storage.roots import open_store
from paraclip.tasks.run.run import Run
from paraclip_core import tables
from paraclip_core.config import Settings
from paraclip_core.evaluation.verdict.finding import Finding, Verdict, for_programs
from paraclip_core.settings import load_settings

MEASURED = {
    "paraphrase_1": {"captions": 4512, "accepted": 300},
    "paraphrase_2": {"captions": 300, "accepted": 150, "kept": 320},
    "finetune": {"rows": 137},
}
"""What some stages' manifests say."""


def summary(verdict: Verdict = "hold") -> dict[str, object]:
    """A `summary.json` as evaluate writes it."""
    return {
        "models": {"base": {"paraphrased_queries": {"ao@10": 40.0}}, "tuned": {"paraphrased_queries": {"ao@10": 42.5}}},
        "deltas": {"paraphrased_queries": {"ao@10": 2.5}},
        "intervals": {"paraphrased_queries": {"ao@10": [1.0, 4.0]}},
        **for_programs(verdict, [Finding("gain", "promotes", "because this test says so")]),
        "fingerprints": {},
    }


@pytest.fixture(scope="module")
def prefect() -> Iterator[str]:
    """A Prefect server, emptied for the module; the address of its API."""
    from tests.kit.prefect_server import prefect_server

    with prefect_server() as url:
        yield url


class Said(NamedTuple):
    """What a command wrote."""

    out: str
    err: str


class Cli:
    """The command line in this process; a command must end with a code, and without a traceback."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, arguments: Sequence[str], code: int = 0) -> Said:
        self._capsys.readouterr()
        ended = run_cli(list(arguments))
        out, err = self._capsys.readouterr()
        output = Said(out, err)
        assert ended == code and "Traceback" not in output.err, f"{arguments} ended with {ended}: {output.err}"
        return output

    def json(self, arguments: Sequence[str], code: int = 0) -> Any:
        """The one document of a command with --json."""
        return json.loads(self([*arguments, "--json"], code).out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@dataclass(frozen=True)
class FinishedRun:
    """A configuration file and the store in which all its stages are finished."""

    config: Path
    settings: Settings
    store: ArtifactStore
    artifacts: dict[str, Artifact]


@pytest.fixture
def finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FinishedRun]:
    """Makes a finished run below `tmp_path`; overrides as the command line takes them."""
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)

    def make(*overrides: str, verdict: Verdict = "hold") -> FinishedRun:
        config = tmp_path / "run.yaml"
        config.write_text(
            "name: made\n"
            f"run: {{root: {tmp_path / 'root'}}}\n"
            f"data: {{root: {tmp_path}, sources: [{{path: captions.jsonl, images: images.tar}}]}}\n"
        )
        (tmp_path / "captions.jsonl").write_text('{"caption": "a dog on a beach", "image": "a.png"}\n')
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
        settings = load_settings(config, overrides)
        store = open_store(settings.run.root)
        artifacts = {}
        for name, node in Run(settings, store).nodes.items():
            artifacts[name] = store.find(name, node.fingerprint)
            if artifacts[name] is not None:
                continue
            with store.writing(name, node.fingerprint) as work:
                (work.out / "made.txt").write_text(name)
                if name == "ingest":
                    write_table(work.out / "captions" / "part-000000-00000.parquet", tables.CAPTIONS.empty_table())
                if name == "evaluate":
                    (work.out / "summary.json").write_text(json.dumps(summary(verdict)))
                if name == "report":
                    (work.out / "report.html").write_text("<title>made</title>")
                if name in ("built_in_base", "finetune"):
                    (work.out / "release").mkdir(exist_ok=True)
                    (work.out / "release" / "open_clip_config.json").write_text("{}")
                metrics = {"rows": 1, "verdict": verdict, "alpha": 0.0, "steps": 2, **MEASURED.get(name, {})}
                artifacts[name] = store.commit(node.draft, metrics, 1.5)
        return FinishedRun(config, settings, store, artifacts)

    return make

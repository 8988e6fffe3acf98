"""Paraphrase stages in shards: the same bytes, nothing asked twice, nothing lost. e2e/test_referee.py has Ray."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from openai_server import OpenAIServer, reply, status, words_of  # pyright: ignore[reportMissingImports]

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_store
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import StageError
from paraclip_core.settings import parse_settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect")]

CAPTIONS = 300
ANSWERS = 150
"""Step 1 gives two captions the same paraphrase, so step 2 has half as many requests."""
BAD = "a red dog with number 77 on a beach"


def settings_of(folder: Path, url: str, root: str, **run: Any) -> Settings:
    lines = [f"a red dog with number {n} on a beach\n" for n in range(CAPTIONS)]
    (folder / "captions.txt").write_text("".join(lines))
    paraphrase = {
        "engine": "openai",
        "model": "smol",
        "prompts": "paper",
        "gates": {"preset": "off"},
        "sampling": {"n": 1, "max_tokens": 5},
        "chunk": 16,
        "openai": {"base_url": url, "api_key_env": "NO_KEY", "retries": 0, "concurrency": 2},
    }
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": {"root": str(folder / root), **run}})


def carry(settings: Settings, *names: str) -> list[Artifact]:
    from paraclip.flows.stages import carry_stage

    for name in names:
        carry_stage(name, Run(settings))
    return [found(settings, name) for name in names]


def found(settings: Settings, name: str) -> Artifact:
    store = open_store(settings.run.root)
    artifact = store.find(name, Run(settings, store).nodes[name].fingerprint)
    assert artifact is not None
    return artifact


def contents(artifacts: list[Artifact]) -> list[dict[str, str]]:
    return [{name: entry.sha256 for name, entry in artifact.manifest.files.items()} for artifact in artifacts]


def same_for_two(asked: dict[str, Any]) -> dict[str, Any]:
    number = int(re.findall(r"number (\d+)", words_of(asked))[-1])
    return reply(f"one dog, number {number % ANSWERS}")


@pytest.fixture
def model(openai_server: OpenAIServer) -> OpenAIServer:
    openai_server.answer = same_for_two
    return openai_server


@dataclass(frozen=True)
class Whole:
    """What one process makes, and a root in which nothing is finished but `ingest`."""

    folder: Path
    expected: list[dict[str, str]]

    def settings(self, url: str, root: str, **run: Any) -> Settings:
        shutil.copytree(self.folder / "ingested", self.folder / root)
        return settings_of(self.folder, url, root, **run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    with OpenAIServer() as server:
        server.answer = same_for_two
        run_stage("ingest", Run(settings_of(folder, server.url, "ingested")))
        shutil.copytree(folder / "ingested", folder / "root")
        settings = settings_of(folder, server.url, "root")
        artifacts = [run_stage(name, Run(settings)) for name in ("paraphrase_1", "paraphrase_2")]
        assert set(server.answered.values()) == {1}
    return Whole(folder, contents(artifacts))


def shown(key: str) -> Any:
    """The newest table of this key in the UI."""
    from prefect.artifacts import Artifact as Shown

    artifact: Any = Shown.get(key)
    return json.loads(artifact.data)


def test_threads_ask_once_for_each_text_and_end_with_the_same_bytes(
    model: OpenAIServer, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paraclip.flows.stages import STAGE_FLOWS

    # Prefect sets the root's handlers anew, pytest's with them; and whatever ran before has set levels.
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    log = logging.Logger("of this test")
    log.addHandler(QueueHandler(records))
    monkeypatch.setattr("paraclip.flows.stages.log", log)
    settings = whole.settings(model.url, "shards", shards=2)
    STAGE_FLOWS["paraphrase_1"](settings=settings)
    artifacts = [found(settings, "paraphrase_1"), *carry(settings, "paraphrase_2")]
    assert contents(artifacts) == whole.expected
    assert set(model.answered.values()) == {1} and len(model.answered) == CAPTIONS + ANSWERS
    lines = [records.get().getMessage() for _ in range(records.qsize())]
    assert sum("paraphrase.gates.preset=off keeps whatever openai answers" in line for line in lines) == 1
    # The stages themselves asked and judged nothing.
    metrics = [artifact.manifest.metrics for artifact in artifacts]
    assert [(each["generated"], each["judged"]) for each in metrics] == [(0, 0), (0, 0)]
    logs = sorted(path.name for path in (whole.folder / "shards" / "logs").glob("paraphrase_1-*-shard-*.log"))
    assert [name[-len("0-of-2.log") :] for name in logs] == ["0-of-2.log", "1-of-2.log"]
    samples = shown("paraclip-paraphrase-1-samples")
    assert len(samples) == 20 and samples[0]["outcome"] == "kept"
    assert samples[0]["input"] == "a red dog with number 0 on a beach" and "number 0" in samples[0]["answer"]


def test_a_failing_shard_stops_no_other_and_only_its_rest_is_asked_again(model: OpenAIServer, whole: Whole) -> None:
    settings = whole.settings(model.url, "broken", shards=2)
    model.answer = lambda asked: status(401, "not this one") if BAD in words_of(asked) else same_for_two(asked)
    with pytest.raises(StageError, match=r"^1 of 2 shards of paraphrase_1 failed; [^-]*\n- shard [01]: .*not this one"):
        carry(settings, "paraphrase_1")
    before = len(model.answered)
    assert CAPTIONS // 2 < before < CAPTIONS
    model.answer = same_for_two
    artifacts = carry(settings, "paraphrase_1", "paraphrase_2")
    assert contents(artifacts) == whole.expected
    assert set(model.answered.values()) == {1} and len(model.answered) == CAPTIONS + ANSWERS


def test_facts_of_shards_add_up() -> None:
    from paraclip.flows.shards import Board
    from paraclip.tasks.run.run import Stop

    seen: list[tuple[int, int | None, dict[str, Any]]] = []
    board = Board(2, lambda done, total, **facts: seen.append((done, total, facts)), Stop())
    board.progress_of(0)(300, 500, generated=300, eta_seconds=7, spend=1.5)
    board.progress_of(1)(100, 400, generated=150, eta_seconds=9, spend=0.5, warning="few are accepted")
    facts = {"shards": 2, "generated": 450, "eta_seconds": 9, "spend": 2.0, "warning": "few are accepted"}
    assert seen[-1] == (400, 900, facts)

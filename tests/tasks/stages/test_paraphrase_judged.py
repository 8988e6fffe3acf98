"""The paraphrase stages over answers that were judged before: the same bytes, and nothing stale."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from uneven_writer import AllNear, Writer  # pyright: ignore[reportMissingImports]

from paraclip_core.config import (
    DataOptions,
    GateOptions,
    ParaphraseOptions,
    RegenerateOptions,
    SamplingOptions,
    Settings,
    SourceOptions,
)
from paraclip_core.paraphrase import generate
from paraclip_core.paraphrase.choose import Chooser
from storage import judged
from storage.artifacts import Artifact, ArtifactStore, Draft
from storage.fingerprint import FileHashes, fingerprint
from tasks import requests
from tasks.requests import count_requests
from tasks.stage import Stage, carry_out
from tasks.stages import paraphrase
from tasks.stages.ingest import INGEST
from tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2

BLOCK = 16
PLACES = ("beach", "street", "field")
CAPTIONS = [f"the car {n} near a {PLACES[n % 3]} is {'slow' if n % 8 in (0, 4, 7) else 'fast'}" for n in range(72)]
GATES = GateOptions(max_repeats=5, max_overlap=0.95, max_lost_words=9, max_new_content_words=9)
Contents = dict[str, str]


def smaller(setattr_: Callable[[Any, str, Any], None]) -> None:
    """Small blocks and packs, and neither a language model nor a sentence encoder."""
    cut = generate.blocks
    setattr_(generate, "blocks", lambda batches: cut(batches, BLOCK))
    setattr_(generate, "AHEAD_BLOCKS", 3)
    setattr_(judged, "PACK_BLOCKS", 2)
    setattr_(judged, "KEEP_SECONDS", 1e9)
    for module in (paraphrase, requests):
        setattr_(module, "make_engine", lambda options, *_, **__: Writer("transformers", options.model))
        setattr_(module, "SentenceEncoder", AllNear)


@pytest.fixture(autouse=True)
def judging(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each call judged."""
    smaller(monkeypatch.setattr)
    counts: list[int] = []
    choose = Chooser.choose

    def counted(self: Chooser, requests: Sequence[Any]) -> list[Any]:
        counts.append(len(requests))
        return choose(self, requests)

    monkeypatch.setattr(Chooser, "choose", counted)
    return counts


def settings_of(folder: Path, captions: Sequence[str] = CAPTIONS, **changed: Any) -> Settings:
    folder.mkdir(exist_ok=True)
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    again = (RegenerateOptions(reason="repeated_flood"), RegenerateOptions(where="answer like '% 4%'"))
    chosen = {"engine": "transformers", "model": "writer", "attempts": 2, "regenerate": again, "gates": GATES}
    return Settings(
        data=DataOptions(root=str(folder), sources=(SourceOptions(path="captions.txt", format="text"),)),
        paraphrase=ParaphraseOptions(**(chosen | changed)),
    )


def run_stage(stage: Stage, settings: Settings, store: ArtifactStore, **inputs: Artifact) -> Artifact:
    options = dict(stage.options(settings))
    names = {name: artifact.fingerprint for name, artifact in inputs.items()}
    names |= stage.sources(settings, FileHashes(store.cache / "source_hashes.json"))
    draft = Draft(stage.name, fingerprint(stage.name, stage.version, options, names), stage.version, names, options)
    return carry_out(stage, draft, settings, store, inputs)


def run_first(settings: Settings, root: Path) -> Artifact:
    store = ArtifactStore(root)
    return run_stage(PARAPHRASE_1, settings, store, ingest=run_stage(INGEST, settings, store))


def run_all(settings: Settings, root: Path) -> tuple[Artifact, Artifact]:
    first = run_first(settings, root)
    return first, run_stage(PARAPHRASE_2, settings, ArtifactStore(root), paraphrase_1=first)


def contents(artifacts: Sequence[Artifact]) -> list[Contents]:
    return [{name: entry.sha256 for name, entry in a.manifest.files.items()} for a in artifacts]


def recalled(artifacts: Sequence[Artifact]) -> list[int]:
    return [artifact.manifest.metrics["judged_before"] for artifact in artifacts]


def lose_artifacts(root: Path) -> None:
    store = ArtifactStore(root)
    for artifact in [*store.list("paraphrase_2"), *store.list("paraphrase_1")]:
        store.remove(artifact)


def test_the_same_bytes_and_nothing_judged(tmp_path: Path, judging: list[int]) -> None:
    root, settings = tmp_path / "root", settings_of(tmp_path / "data")
    asked = run_all(settings, root)
    assert {"repeated_flood", "empty"} <= asked[0].manifest.metrics["rejected"].keys()
    lose_artifacts(root)
    judging.clear()
    again = run_all(settings, root)
    assert judging == []
    assert recalled(again) == [artifact.manifest.metrics["captions"] for artifact in again]
    lose_artifacts(root)
    for path in (root / "cache" / "judged").iterdir():
        path.unlink()
    judged_again = run_all(settings, root)
    assert recalled(judged_again) == [0, 0]
    assert sum(judging) > len(CAPTIONS)
    assert contents(asked) == contents(again) == contents(judged_again)
    for name in ("captions", "requested", "accepted", "rejected", "cached"):
        assert [a.manifest.metrics[name] for a in again] == [a.manifest.metrics[name] for a in judged_again]


def test_appended_captions_cost_the_last_block_and_theirs(tmp_path: Path) -> None:
    expected = run_all(settings_of(tmp_path / "data"), tmp_path / "other")
    run_all(settings_of(tmp_path / "data", CAPTIONS[:56]), tmp_path / "root")
    found = run_all(settings_of(tmp_path / "data"), tmp_path / "root")
    assert contents(found) == contents(expected)
    assert recalled(found)[0] == 56 // BLOCK * BLOCK
    accepted = [artifact.manifest.metrics["accepted"] for artifact in found]
    # Step 1 may accept captions between, and from there on step 2's blocks are others.
    assert 0 < recalled(found)[1] <= accepted[0]


def test_another_meaning_is_judged(tmp_path: Path) -> None:
    few = CAPTIONS[:40]
    run_first(settings_of(tmp_path / "data", few), tmp_path / "root")
    for changed in (
        {"gates": GATES.model_copy(update={"max_length_ratio": 1.5})},
        {"model": "reader"},
        {"prompt_1": "Say {} otherwise."},
        {"sampling": SamplingOptions(n=3)},
        {"attempts": 1},
        {"seed": 3},
        {"synonyms": False},
        {"regenerate": ()},
    ):
        settings = settings_of(tmp_path / "data", few, **changed)
        assert recalled([run_first(settings, tmp_path / "root")]) == [0], changed
    # What step 1 does not look at, and what changes no result.
    lose_artifacts(tmp_path / "root")
    for changed in ({"prompt_2": "Say {} otherwise."}, {"chunk": 3}):
        assert recalled([run_first(settings_of(tmp_path / "data", few, **changed), tmp_path / "root")]) == [40]
        lose_artifacts(tmp_path / "root")


def test_other_code_judges_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path / "data", CAPTIONS[:40])
    run_first(settings, tmp_path / "root")
    for name, other in (
        ("code_digest", lambda: "other"), ("software_versions", lambda: {"torch": "9"}), ("VERSION", 99)
    ):  # fmt: skip
        lose_artifacts(tmp_path / "root")
        monkeypatch.setattr(paraphrase, name, other)
        assert recalled([run_first(settings, tmp_path / "root")]) == [0]


def test_a_damaged_block_is_judged_again(tmp_path: Path) -> None:
    root, settings = tmp_path / "root", settings_of(tmp_path / "data")
    expected = run_all(settings, root)
    lose_artifacts(root)
    packs = sorted((root / "cache" / "judged").glob("*.blocks"))
    for path in packs[::2]:
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    found = run_all(settings, root)
    assert contents(found) == contents(expected)
    assert 0 < sum(recalled(found)) < sum(artifact.manifest.metrics["captions"] for artifact in found)
    lose_artifacts(root)
    healed = run_all(settings, root)
    assert recalled(healed) == [artifact.manifest.metrics["captions"] for artifact in healed]


def test_the_plan_judges_nothing_again(tmp_path: Path, judging: list[int]) -> None:
    root, settings = tmp_path / "root", settings_of(tmp_path / "data")
    run_all(settings, root)
    lose_artifacts(root)
    store = ArtifactStore(root)
    (ingested,) = store.list("ingest")
    judging.clear()
    planned = count_requests(settings, store, {"ingest": ingested})
    assert (planned.total, planned.captions) == (0, len(CAPTIONS))
    assert count_requests(settings, store, {}).total == 0
    assert judging == []


def run_and_die(folder: Path, root: Path, blocks: int) -> None:
    """Run both steps in a process that is killed while the `blocks`-th block is kept."""
    smaller(setattr)
    keep, left = judged.JudgedStore.keep, [blocks]

    def dying(self: judged.JudgedStore, *block: Any) -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        keep(self, *block)

    judged.JudgedStore.keep = dying  # type: ignore[method-assign]
    run_all(settings_of(folder), root)


def test_a_kill_between_does_no_harm(tmp_path: Path) -> None:
    root, settings = tmp_path / "root", settings_of(tmp_path / "data")
    child = multiprocessing.get_context("spawn").Process(target=run_and_die, args=(tmp_path / "data", root, 3))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    found = run_all(settings, root)
    assert recalled(found)[0] == 2 * BLOCK
    assert contents(found) == contents(run_all(settings, tmp_path / "other"))

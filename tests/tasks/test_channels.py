"""Whether a challenger takes over a channel, and who may move which."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks import channels
from paraclip.tasks.channels import (
    BY_PROMOTION,
    BY_ROLLBACK,
    BY_RUN,
    check_channel,
    check_run_name,
    decide,
    history,
    moved,
    rollback,
)
from paraclip.tasks.results import Result
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.evaluate import EVALUATE, write_evaluation
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import Outcome, compare
from paraclip_core.evaluation.metrics import Sample
from paraclip_core.evaluation.run import Evaluation

QUERIES = np.random.default_rng(0).random((2, 200))
TOWER = "0" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"run": {"root": str(tmp_path)}})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def model(store: ArtifactStore, name: str, tower: str = TOWER) -> Artifact:
    draft = Draft("finetune", name, 1, {}, {})
    artifact = store.find("finetune", name)
    if artifact is not None:
        return artifact
    with store.writing("finetune", name):
        return store.commit(draft, {"image_tower_hash_after": tower}, 0.0)


def evaluated(store: ArtifactStore, settings: Settings, name: str, gain: float, recall: float = 0.0) -> Artifact:
    """The evaluation of a model whose AO@10 is `gain` above its base's in the mean, and its recall `recall`."""
    model(store, name)
    inputs = {"ingest": "same", "finetune": name}
    draft = Draft("evaluate", fingerprint("evaluate", EVALUATE.version, {}, inputs), EVALUATE.version, inputs, {})
    clusters, noise = np.repeat(np.arange(100), 2), 0.2 * (QUERIES[1] - 0.5)

    def outcome(kind: str, metric: str, shift: float) -> Outcome:
        base, tuned = (Measured({metric: Sample(v, clusters)}, {}) for v in (QUERIES[0], QUERIES[0] + shift + noise))
        return Outcome(kind, kind, base, tuned)

    outcomes = (
        outcome("paraphrased_retrieval", "ao@10", gain),
        outcome("retrieval", "text_to_image_recall@10", recall),
    )
    evaluation = Evaluation(outcomes, {}, compare(outcomes, settings.evaluate))
    with store.writing("evaluate", draft.fingerprint) as work:
        write_evaluation(work.out, evaluation, {"base": "base", "tuned": name}, {})
        return store.commit(draft, {}, 0.0)


def result(name: str, verdict: str = "promote", evaluation: Artifact | None = None) -> Result:
    stages: list[dict[str, Any]] = [{"stage": "finetune", "fingerprint": name, "state": "made"}]
    if evaluation is not None:
        stages.append({"stage": "evaluate", "fingerprint": evaluation.fingerprint, "state": "made"})
    return Result("run", stages, {"verdict": verdict, "reason": "ao@10 +1.0 [0.5, 1.5]"})


def served(store: ArtifactStore, channel: str = "production") -> Any:
    return (store.channel(channel) or {}).get("fingerprint")


def test_a_first_model_moves_the_channel_and_one_held_against_its_base_does_not(
    settings: Settings, store: ArtifactStore
) -> None:
    decision = decide(Run(settings, store), "production", result("aaa"))
    assert decision["moved"] and decision["before"] is None and "ao@10" in decision["reason"]
    channel = store.channel("production")
    assert channel is not None and channel["fingerprint"] == "aaa" and channel["stages"] == {"finetune": "aaa"}
    assert channel["moved_by"] == BY_PROMOTION and channel["reason"] == decision["reason"]
    assert json.loads((store.root / "results" / "run" / "promotion.json").read_text()) == decision
    decision = decide(Run(settings, store), "production", result("bbb", "hold"))
    assert not decision["moved"] and (decision["before"], decision["after"]) == ("aaa", "bbb")
    assert "ao@10 +1.0" in decision["reason"] and served(store) == "aaa"


@pytest.mark.parametrize(
    ("gain", "recall", "moved", "reason"),
    [
        (0.10, 0.0, True, "ao@10 +0.00 [+0.00, +0.00] does not lie below zero"),
        (0.05, 0.0, False, "ao@10 -5.00 [-5.00, -5.00] lies below zero"),
        (0.30, -0.02, False, "against its own base: retrieval text_to_image_recall@10 fell by"),
    ],
)
def test_better_than_the_base_is_not_enough(
    settings: Settings, store: ArtifactStore, gain: float, recall: float, moved: bool, reason: str
) -> None:
    evaluated(store, settings, "aaa", 0.1)
    decide(Run(settings, store), "production", result("aaa"))
    # The champion's evaluation is at hand, so nothing is measured.
    challengers = evaluated(store, settings, "bbb", gain, recall)
    decision = decide(Run(settings, store), "production", result("bbb", evaluation=challengers))
    assert decision["moved"] is moved and reason in decision["reason"]
    assert served(store) == ("bbb" if moved else "aaa")
    assert [row["metric"] for row in decision["against_champion"]] == ["ao@10", "text_to_image_recall@10"]
    assert decision["against_champion"][0]["delta"] == pytest.approx(100 * (gain - 0.1))
    if moved:
        assert (store.channel("production") or {})["before"] == "aaa"


def test_what_was_rolled_back_from_takes_over_by_hand_alone(settings: Settings, store: ArtifactStore) -> None:
    for name, gain in (("aaa", 0.1), ("bbb", 0.3)):
        outcome = result(name, evaluation=evaluated(store, settings, name, gain))
        assert decide(Run(settings, store), "production", outcome)["moved"]
    rollback(store, "production")
    decision = decide(Run(settings, store), "production", outcome)
    assert not decision["moved"] and served(store) == "aaa"
    assert "rolled the channel back from it at 20" in decision["reason"] and "promote --force" in decision["reason"]
    better = result("ccc", evaluation=evaluated(store, settings, "ccc", 0.3))
    assert decide(Run(settings, store), "production", better)["moved"]
    assert decide(Run(settings, store), "production", outcome, force=True)["moved"] and served(store) == "bbb"
    assert [move.by for move in history(store.channel("production") or {})].count(BY_ROLLBACK) == 1


def test_a_champion_of_other_benchmarks_is_measured_again(
    settings: Settings, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(store, "aaa")
    decide(Run(settings, store), "production", result("aaa"))
    challengers = evaluated(store, settings, "bbb", 0.3)

    def measure(node: Any, *arguments: Any) -> Artifact:
        artifact = evaluated(store, settings, node.draft.inputs["finetune"], 0.1)
        assert node.fingerprint == artifact.fingerprint and node.draft.inputs["ingest"] == "same"
        return run_stage(node, *arguments)

    monkeypatch.setattr(channels, "run_stage", measure)
    assert decide(Run(settings, store), "production", result("bbb", evaluation=challengers))["moved"]


@pytest.mark.parametrize("place", ["folder", "object store"])
def test_of_two_promotions_at_once_one_moves_the_channel(
    settings: Settings, store: ArtifactStore, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "object store":
        monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path))
        store = open_store(f"memory://{tmp_path.name}-promotion/root")
    decisions: list[dict[str, Any]] = []

    def promote(name: str) -> None:
        decisions.append(decide(Run(settings, store), "production", result(name), force=True))

    def set_channel(*given: Any) -> None:
        monkeypatch.setattr(kind, "set_channel", really_set)
        other.start()
        other.join(0.5)
        really_set(*given)

    kind = type(store)
    really_set, other = kind.set_channel, threading.Thread(target=promote, args=("bbb",))
    monkeypatch.setattr(kind, "set_channel", set_channel)
    promote("aaa")
    other.join()
    # Whichever notes its decision first.
    by_name = {decision["after"]: decision for decision in decisions}
    assert {name: decision["moved"] for name, decision in by_name.items()} == {"aaa": True, "bbb": False}
    assert by_name["bbb"]["reason"].startswith("kept at aaa, another promotion") and served(store) == "aaa"


def test_what_cannot_be_compared_is_held_and_can_be_moved_by_hand(settings: Settings, store: ArtifactStore) -> None:
    decide(Run(settings, store), "production", result("aaa"))
    challengers = evaluated(store, settings, "bbb", 0.3)
    outcome = result("bbb", evaluation=challengers)
    decision = decide(Run(settings, store), "production", outcome)
    assert not decision["moved"] and "the champion aaa is gone" in decision["reason"]
    model(store, "aaa", "1" * 32)
    decision = decide(Run(settings, store), "production", outcome)
    assert not decision["moved"] and "has image tower 1111" in decision["reason"]
    assert "paraclip promote --force" in decision["reason"] and served(store) == "aaa"
    decision = decide(Run(settings, store), "production", outcome, force=True)
    assert decision["moved"] and "by hand" in decision["reason"] and served(store) == "bbb"


def test_a_channel_that_runs_move_cannot_be_the_promoted_one(store: ArtifactStore) -> None:
    check_channel("nightly", "production", store)
    with pytest.raises(ConfigError, match="both named 'production'"):
        check_channel("production", "production", store)
    with pytest.raises(ArtifactError, match="cannot be a channel's name"):
        check_channel("nightly", "../production", store)
    store.set_channel("production", moved(None, {"finetune": "aaa"}, "hold", BY_RUN))
    with pytest.raises(ConfigError, match=r"delete production\.json"):
        check_channel("nightly", "production", store)
    store.set_channel("production", moved(None, {"finetune": "aaa"}, "promote", BY_PROMOTION))
    with pytest.raises(ConfigError, match=r"give the run another name, or name another channel$"):
        check_channel("production", "production", store)
    # Nor can a run take the name of a promoted one.
    with pytest.raises(ConfigError, match="only a promotion moves"):
        check_run_name("production", store)
    store.set_channel("demo", moved(None, {"finetune": "aaa"}, "hold", BY_RUN))
    for name in ("demo", "new"):
        check_run_name(name, store)

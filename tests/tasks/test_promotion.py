"""Whether a challenger takes over a channel."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from paraclip.storage.artifacts import SOURCE, Artifact, ArtifactStore, Draft
from paraclip.storage.fingerprint import FileHashes, fingerprint
from paraclip.storage.parquet import write_table
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks import promotion
from paraclip.tasks.channels import BY_PROMOTION, BY_ROLLBACK, check_channel, history, moved, rollback
from paraclip.tasks.models import reference_sources
from paraclip.tasks.promotion import decide
from paraclip.tasks.results import Result
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Node, Run
from paraclip.tasks.stages.evaluate import EVALUATE, FIRST_IMAGES, write_evaluation
from paraclip_core import tables
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.export import save_release
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.rows import Outcome
from paraclip_core.evaluation.run import Evaluation
from paraclip_core.evaluation.verdict.finding import Finding, Verdict, for_programs
from tests.kit.verdicts import judged
from tests.tasks.builders import committed, write_captions, write_features

QUERIES = np.random.default_rng(0).random((2, 200))
ENCODER = "0" * 32
ZEROSHOT, RETRIEVAL = ("zeroshot_classification", "top1_accuracy"), ("retrieval", "text_to_image_recall@10")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"run": {"root": str(tmp_path)}})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def model(store: ArtifactStore, name: str, encoder: str = ENCODER) -> Artifact:
    return store.find("finetune", name) or committed(
        store, "finetune", name, metrics={"image_encoder_hash_after": encoder}
    )


def evaluated(
    store: ArtifactStore,
    settings: Settings,
    name: str,
    gain: float,
    recall: float = 0.0,
    more: tuple[str, str] | None = None,
    **inputs: str,
) -> Artifact:
    """The evaluation of a model whose agreement is `gain` above its base's in the mean, and its recall `recall`.

    `more` is kind and metric of a further benchmark, of birds, on which it is its base's equal in the mean.
    """
    model(store, name)
    inputs = {"ingest": "same", "finetune": name, **inputs}
    draft = Draft("evaluate", fingerprint("evaluate", EVALUATE.version, {}, inputs), EVALUATE.version, inputs, {})
    clusters, noise = np.repeat(np.arange(100), 2), 0.2 * (QUERIES[1] - 0.5)

    def outcome(kind: str, metric: str, shift: float) -> Outcome:
        base, tuned = (Measured({metric: Sample(v, clusters)}, {}) for v in (QUERIES[0], QUERIES[0] + shift + noise))
        return Outcome(kind, kind, base, tuned)

    outcomes = (
        outcome("paraphrased_retrieval", "corrected_ao@10", gain),
        outcome("retrieval", "text_to_image_recall@10", recall),
        *(replace(outcome(*more, 0.0), benchmark="birds") for more in (more,) if more),
    )
    evaluation = Evaluation(outcomes, {}, judged(*outcomes, gate=settings.evaluate.gate))
    with store.writing("evaluate", draft.fingerprint) as work:
        write_evaluation(work.out, evaluation, {})
        return store.commit(draft, {}, 0.0)


def result(name: str, verdict: Verdict = "promote", evaluation: Artifact | None = None, run: str = "run") -> Result:
    stages: list[dict[str, Any]] = [{"stage": "finetune", "fingerprint": name, "state": "made"}]
    if evaluation is not None:
        stages.append({"stage": "evaluate", "fingerprint": evaluation.fingerprint, "state": "made"})
    effect = "promotes" if verdict == "promote" else "blocks"
    return Result(run, stages, for_programs(verdict, [Finding("gain", effect, "ao@10 +1.0 [0.5, 1.5]")]))


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


def test_a_retry_reports_the_move_of_its_first_attempt(
    settings: Settings, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies after the move has not yet reported it."""
    monkeypatch.setattr("paraclip.tasks.channels._flow_run", lambda: "first night")
    first = decide(Run(settings, store), "production", result("aaa"))
    stored = store.root / "results" / "run" / "promotion.json"
    stored.unlink()
    again = decide(Run(settings, store), "production", result("aaa"))
    assert again == json.loads(stored.read_text())
    assert [finding["code"] for finding in again["findings"]] == ["moved_before_retry"]
    assert {**again, "findings": first["findings"]} == first
    monkeypatch.setattr("paraclip.tasks.channels._flow_run", lambda: "second night")
    decision = decide(Run(settings, store), "production", result("aaa"))
    assert not decision["moved"] and "serves already" in decision["reason"]


@pytest.mark.parametrize(
    ("gain", "recall", "moved", "reason"),
    [
        (0.15, 0.0, True, "paraphrased_retrieval +5.00 [+5.00, +5.00] is a gain of 1 point and 3 standard errors"),
        (0.105, 0.0, False, "+0.50 [+0.50, +0.50] is no gain of 1 point and 3 standard errors"),
        (0.05, 0.0, False, "paraphrased_retrieval -5.00 [-5.00, -5.00] lies below zero"),
        (0.30, -0.02, False, "against its own base: text → image recall@10 of retrieval fell by"),
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
    assert [row["metric"] for row in decision["against_champion"]] == ["corrected_ao@10", "text_to_image_recall@10"]
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

    monkeypatch.setattr(promotion, "run_stage", measure)
    assert decide(Run(settings, store), "production", result("bbb", evaluation=challengers))["moved"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_champion_that_collapsed_against_its_own_base_holds_nobody(
    settings: Settings, store: ArtifactStore, gone: bool
) -> None:
    # Whoever promoted it did so by hand, by yesterday's evaluation.
    promoted = evaluated(store, settings, "aaa", 0.3, recall=-0.3, ingest="yesterday")
    assert decide(Run(settings, store), "production", result("aaa", evaluation=promoted), force=True)["moved"]
    if gone:
        store.remove(promoted)
    evaluated(store, settings, "aaa", 0.3)
    decision = decide(
        Run(settings, store), "production", result("bbb", evaluation=evaluated(store, settings, "bbb", 0.1))
    )
    assert decision["moved"] is not gone
    lost = "the champion fails the gate against its own base (text → image recall@10 of retrieval fell by"
    assert ("paraphrased_retrieval -20.00 [-20.00, -20.00] lies below zero" if gone else lost) in decision["reason"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_champion_is_measured_beside_its_own_control(settings: Settings, store: ArtifactStore, gone: bool) -> None:
    model(store, "aaa")
    stages = {"finetune": "aaa", "control": "control of aaa"}
    store.set_channel("production", moved(None, stages, "promote", BY_PROMOTION))
    # The one evaluation of the champion that is at hand; nothing can be measured.
    if gone:
        evaluated(store, settings, "aaa", 0.1)
    else:
        committed(store, "control", stages["control"])
        evaluated(store, settings, "aaa", 0.1, control=stages["control"])
    challengers = evaluated(store, settings, "bbb", 0.3, control="control of bbb")
    assert decide(Run(settings, store), "production", result("bbb", evaluation=challengers))["moved"]


def test_a_channel_is_of_the_run_whose_model_it_serves(settings: Settings, store: ArtifactStore) -> None:
    cats, dogs = (
        result(name, evaluation=evaluated(store, settings, name, 0.1), run=f"{name}s") for name in ("cat", "dog")
    )
    run = Run(settings, store)
    assert decide(run, "production", cats)["moved"]
    check_channel("cats", "production", store)
    since = history(store.channel("production") or {})[-1].at
    with pytest.raises(
        ConfigError, match=r"'dogs'.*; name another channel, or, .*`paraclip promote --force`"
    ) as refused:
        check_channel("dogs", "production", store)
    assert f"'production' serves a model of the run 'cats' since {since}, " in str(refused.value)
    # Nor does the model take over where both were on their way at once.
    decision = decide(run, "production", dogs)
    assert not decision["moved"] and "the run 'cats' since" in decision["reason"] and served(store) == "cat"
    check_channel("dogs", "production", store, force=True)
    assert decide(run, "production", dogs, force=True)["moved"] and served(store) == "dog"
    check_channel("dogs", "production", store)
    # The channel goes back with its model.
    rollback(store, "production")
    check_channel("cats", "production", store)
    with pytest.raises(ConfigError, match="the run 'cats'"):
        check_channel("dogs", "production", store)
    assert [move.run for move in history(store.channel("production") or {})] == ["cats", "dogs", "cats"]


def test_a_run_with_another_name_is_given_the_model_that_is_served(settings: Settings, store: ArtifactStore) -> None:
    run, before = Run(settings, store), evaluated(store, settings, "cat", 0.1, more=ZEROSHOT)
    decide(run, "production", result("cat", evaluation=before, run="cats"))
    renamed = result("cat", evaluation=evaluated(store, settings, "cat", 0.1, ingest="other"), run="kittens")
    assert not decide(run, "production", renamed)["moved"]
    decision = decide(run, "production", renamed, force=True)
    assert decision["moved"] and decision["reason"] == "given to the run 'kittens' by hand; it serves cat already"
    check_channel("kittens", "production", store)
    (move,) = history(store.channel("production") or {})
    assert (move.run, move.stages) == ("kittens", {row["stage"]: row["fingerprint"] for row in renamed.stages})
    assert not decide(run, "production", renamed, force=True)["moved"], "it has it"


def test_any_run_may_follow_a_model_that_was_set_by_hand(settings: Settings, store: ArtifactStore) -> None:
    store.set_channel("production", {"stage": "finetune", "fingerprint": model(store, "cat").fingerprint})
    check_channel("dogs", "production", store)
    evaluated(store, settings, "cat", 0.1)
    dogs = result("dog", evaluation=evaluated(store, settings, "dog", 0.3), run="dogs")
    assert decide(Run(settings, store), "production", dogs)["moved"]
    assert [move.run for move in history(store.channel("production") or {})] == [None, "dogs"]


@pytest.mark.parametrize(("before", "now"), [(ZEROSHOT, None), (ZEROSHOT, RETRIEVAL), (None, ZEROSHOT)])
def test_a_challenger_is_measured_on_all_that_promoted_the_champion(
    settings: Settings, store: ArtifactStore, before: tuple[str, str] | None, now: tuple[str, str] | None
) -> None:
    run, promoted = Run(settings, store), evaluated(store, settings, "aaa", 0.1, more=before, ingest="yesterday")
    assert decide(run, "production", result("aaa", evaluation=promoted))["moved"]
    evaluated(store, settings, "aaa", 0.1, more=now)
    challengers = result("bbb", evaluation=evaluated(store, settings, "bbb", 0.3, more=now))
    decision = decide(run, "production", challengers)
    assert decision["moved"] is (before is None)
    if before:
        assert (
            "the champion aaa was promoted by birds (zeroshot_classification), which the challenger was not"
            in decision["reason"]
        )
        assert decide(run, "production", challengers, force=True)["moved"]


def test_what_a_challenger_changes_and_what_is_new_to_the_champion(store: ArtifactStore) -> None:
    def images(name: str, firsts: list[str]) -> Artifact:
        table = pa.table([["a", "b", "c", "d"], firsts], schema=tables.FIRST_IMAGES)
        return committed(store, "evaluate", name, write=lambda out: write_table(out / FIRST_IMAGES, table))

    def captions(name: str, texts: list[str]) -> None:
        split = {"held out": "val"}
        rows = [{"image_id": text, "caption": text, "split": split.get(text, "train")} for text in texts]
        committed(store, "ingest", name, write=lambda out: write_captions(out, rows))

    before, after = images("champion", ["1", "2", "3", "4"]), images("challenger", ["1", "2", "9", "4"])
    assert promotion._first_image_changes(before, after) == 25
    assert promotion._first_image_changes(before, model(store, "without")) is None
    captions("old", ["a dog", "held out"])
    captions("new", ["a dog", "a cat", "a bird", "a horse", "held out"])
    assert promotion._new_captions(store, "old", "new") == 75
    assert promotion._new_captions(store, "gone", "new") is promotion._new_captions(store, None, "new") is None


def test_a_first_model_may_not_change_more_than_is_allowed(settings: Settings, store: ArtifactStore) -> None:
    gate = settings.evaluate.gate.model_copy(update={"max_first_image_changes": 30.0})
    run = Run(settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"gate": gate})}), store)
    for changes, moves in ((44.0, False), (20.0, True)):
        outcome = result("aaa")
        outcome.summary["churn"] = {"first_image_changes": changes}
        assert decide(run, "production", outcome)["moved"] is moves


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
    assert not decision["moved"] and "has image encoder 1111" in decision["reason"]
    assert "paraclip promote --force" in decision["reason"] and served(store) == "aaa"
    decision = decide(Run(settings, store), "production", outcome, force=True)
    assert decision["moved"] and "by hand" in decision["reason"] and served(store) == "bbb"


TEXTS = [
    f"a {colour} {thing}"
    for colour, thing in product(
        ("red", "blue", "green", "black", "white"), ("dog", "cat", "car", "boat", "tree", "house", "horse", "bird")
    )
]
HERE = replace(EVALUATE, isolated=False)
"""The stage in this process, which saves starting one for each evaluation."""


def clip_of(seed: int) -> ClipModel:
    """A small model; all have one image encoder, and each seed has a text encoder of its own."""
    options = Settings.model_validate({"model": {"text_width": 64, "text_layers": 1, "embed_dim": 32}}).model
    clip = built_in_clip(options)
    weight = clip.model.get_parameter("token_embedding.weight")
    with torch.no_grad():
        weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return clip


class Nights:
    """Two nights with a base each, of which each night's model is a copy.

    Images are what the first base says of their captions, so it finds them all.
    """

    def __init__(self, folder: Path, built_in: bool) -> None:
        self.folder, self.built_in, self.store = folder, built_in, ArtifactStore(folder / "root")
        self.clips = [clip_of(1), clip_of(2)]
        self.encoder = image_encoder_hash(self.clips[0])
        features = encode_texts(self.clips[0], TEXTS)
        committed(self.store, "features", "features", write=lambda out: write_features(out, TEXTS, features))

    def base(self, night: int) -> tuple[str, dict[str, str]]:
        """What `model.base` is that night, and what a model is made from."""
        if self.built_in:
            committed(self.store, "built_in_base", f"base-{night}", write=self._release(night))
            return "built-in", {"built_in_base": f"base-{night}"}
        self._release(night)(self.folder / f"base-{night}")
        place = f"local-dir:{self.folder / f'base-{night}/release'}"
        sources = reference_sources(place, FileHashes(self.folder / "hashes.json"))
        return place, {f"{SOURCE}{name}": value for name, value in sources.items()}

    def _release(self, night: int) -> Callable[[Path], object]:
        return lambda out: save_release(self.clips[night], out / "release", "card")

    def run(self, night: int) -> tuple[Run, Result]:
        """A night's base, model and evaluation; the verdict against its own base is to promote."""
        base, inputs = self.base(night)
        facts = {"image_encoder_hash_after": self.encoder, "base": base}
        captions = [{"image_id": text, "caption": text, "split": "val"} for text in TEXTS]
        committed(self.store, "ingest", f"ingest-{night}", write=lambda out: write_captions(out, captions))
        committed(self.store, "finetune", f"tuned-{night}", inputs, self._release(night), facts)
        run = Run(Settings.model_validate(self.settings(base)), self.store)
        stages = {name: value for name, value in inputs.items() if name == "built_in_base"}
        stages |= {"ingest": f"ingest-{night}", "features": "features", "finetune": f"tuned-{night}"}
        name = fingerprint("evaluate", HERE.version, {}, stages)
        evaluation = run_stage(Node(HERE, Draft("evaluate", name, HERE.version, stages, {})), run)
        return run, result(f"tuned-{night}", evaluation=evaluation)

    def settings(self, base: str) -> dict[str, Any]:
        gate = {"metric": "retrieval/text_to_image_recall@10", "max_drop": {}}
        return {
            "model": {"base": base},
            "data": {"root": str(self.folder)},
            "evaluate": {"benchmarks": [{"name": "photos", "kind": "retrieval"}], "split": "val", "gate": gate},
            "run": {"root": str(self.store.root), "device": "cpu", "threads": 1},
        }


@pytest.mark.parametrize("built_in", [True, False], ids=["built-in bases", "bases in folders"])
def test_each_model_is_held_against_its_own_base(
    tmp_path: Path, built_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "EVALUATE", HERE)
    nights = Nights(tmp_path, built_in)
    run, outcome = nights.run(0)
    assert decide(run, "production", outcome)["moved"]
    run, outcome = nights.run(1)
    base = nights.store.path("built_in_base", "base-0") if built_in else tmp_path / "base-0"
    away = base.rename(tmp_path / "away")
    reason = decide(run, "production", outcome)["reason"]
    assert "the base that the champion tuned-0 was tuned from is gone" in reason and "promote --force" in reason
    away.rename(base)
    decision = decide(run, "production", outcome)
    assert not decision["moved"] and served(nights.store) == "tuned-0"
    assert "against the champion, text → image recall@10 of photos -" in decision["reason"]
    assert "lies below zero" in decision["reason"] and "own base" not in decision["reason"]
    # The champion was measured on tonight's captions, beside its own base, which it is a copy of.
    inputs = {"ingest": "ingest-1", "finetune": "tuned-0"} | ({"built_in_base": "base-0"} if built_in else {})
    (evaluation,) = [one for one in nights.store.list("evaluate") if inputs.items() <= one.manifest.inputs.items()]
    rows = json.loads((evaluation.path / "comparison.json").read_text())["rows"]
    assert rows and all(row["base"] == row["tuned"] for row in rows)

"""How much work a run has before anything of it is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.amounts import ASSUMED, Amount, amounts
from paraclip.tasks.requests import StepLeft
from paraclip.tasks.run.run import Run
from paraclip_core.demo.scenes import SEED, captions, plan
from paraclip_core.settings import load_settings

SCENES = ("data.sources.0.path=captions.jsonl", "data.sources.0.images=images.tar")
STEPS = ("paraphrase_1", "paraphrase_2")
SMALL = ASSUMED["small-model"]


def artifact(**metrics: Any) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(metrics=metrics))


INGEST = artifact(read=9, accepted=8, splits={"train": 6}, images=4)


@pytest.fixture(autouse=True)
def no_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifacts here are metrics alone, so no image of theirs can be looked up."""
    monkeypatch.setattr(ArtifactStore, "download", lambda *_: SimpleNamespace(path=tmp_path))
    monkeypatch.setattr("paraclip.tasks.amounts.new_images", lambda *_: None)


def rows_of(found: dict[str, Amount], names: Sequence[str] = ("ingest", *STEPS, "finetune", "evaluate")) -> list[Any]:
    return [found[name].rows for name in names]


def test_texts_of_scenes_that_are_not_rendered_are_counted(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.scenes.images=80", *SCENES])
    scenes = settings.data.scenes
    assert scenes is not None
    texts = {text.strip() for image in plan(scenes) if image.split == "train" for text in captions(image, SEED)}
    found = amounts(Run(settings, ArtifactStore(tmp_path)), {})
    assert rows_of(found, ("scenes", "ingest", "features", "evaluate")) == [80, 160, 80, 40]
    first, second = found["paraphrase_1"], found["paraphrase_2"]
    assert first.rows == found["bootstrap"].rows == 120
    # Every different caption once, and words for their content words.
    assert first.requests is not None and len(texts) < first.requests < 10 * len(texts)
    assert "requests for single words" in first.note
    assert second.rows == round(SMALL[1] * 120) and "assumed" in second.note
    assert found["finetune"].rows == round(SMALL[2] * (second.rows or 0))
    plain = load_settings(None, ["data.scenes.images=80", *SCENES, "paraphrase.prompts=paper"])
    found = amounts(Run(plain, ArtifactStore(tmp_path)), {})
    assert found["paraphrase_1"].requests == found["paraphrase_1"].units == len(texts)
    assert found["paraphrase_2"].requests == round(SMALL[1] * len(texts))
    assert not any(tmp_path.iterdir()), "nothing is rendered, and nothing kept"


def test_what_no_gate_stops_is_all(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.scenes.images=80", *SCENES, "paraphrase.gates.preset=off"])
    found = amounts(Run(settings, ArtifactStore(tmp_path)), {})
    assert found["paraphrase_2"].rows == found["finetune"].rows == 120


def test_each_stage_reads_what_the_one_before_hands_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, store = load_settings(None, ["data.sources.0.path=a.txt"]), ArtifactStore(tmp_path)
    first, second = artifact(captions=6, accepted=5, kept=5), artifact(captions=5, accepted=3, kept=3)

    def rows(left: dict[int, StepLeft] | None = None, **found: Any) -> list[Any]:
        monkeypatch.setattr("paraclip.tasks.amounts.steps_left", lambda *_: left)
        return rows_of(amounts(Run(settings, store), {"ingest": INGEST, **found}))

    assert rows(paraphrase_1=first, paraphrase_2=second) == [9, 6, 5, 3, 2]
    # Another prompt for step 2, which knows one of its answers.
    known = {2: StepLeft(rows=5, missing=4, accepted=1)}
    assert rows(known, paraphrase_1=first) == [9, 6, 5, 1 + round(SMALL[2] * 4), 2]
    # Another prompt for step 1: nothing is known.
    new = {1: StepLeft(rows=6, missing=6, new_inputs=6), 2: StepLeft(rows=0)}
    assert rows(new) == [9, 6, round(SMALL[1] * 6), round(SMALL[2] * round(SMALL[1] * 6)), 2]


def test_a_finished_run_of_the_same_engine_and_gates_says_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = load_settings(None, ["data.sources.0.path=a.txt"]), ArtifactStore(tmp_path)
    earlier = {"captions": 100, "accepted": 30, "kept": 60, "generated": 200, "prompt_tokens": 9000}
    earlier |= {"completion_tokens": 400}

    def finished(stage: str, engine: str = "openvino", preset: str = "small-model", **metrics: Any) -> Any:
        options = {"engine": engine, "gates": {"preset": preset}}
        manifest = SimpleNamespace(stage=stage, fingerprint="f" * 32, options=options, metrics=earlier | metrics)
        return SimpleNamespace(manifest=manifest)

    monkeypatch.setattr(
        ArtifactStore,
        "list",
        lambda self, stage: [
            finished(stage, accepted=1),
            finished(stage),
            finished(stage, engine="vllm", accepted=2, kept=2),
            finished(stage, preset="capable", accepted=3, kept=3),
        ],
    )
    monkeypatch.setattr(
        "paraclip.tasks.amounts.steps_left", lambda *_: {1: StepLeft(10, 10, new_inputs=10), 2: StepLeft(0)}
    )
    found = amounts(Run(settings, store), {"ingest": INGEST})
    # Three of ten captions pass step 1, and six of ten rows step 2.
    assert rows_of(found, (*STEPS, "finetune")) == [10, 3, round(0.6 * 3)]
    assert found["paraphrase_1"].tokens == 10 * (45 + 2)
    assert "30% accepted as in paraphrase_1/ffffffffffff" in found["paraphrase_2"].note


def test_rewrites_are_asked_about_one_by_one_and_trained_on_as_one_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(keep: int, n: int = 4) -> dict[str, Amount]:
        options = [f"paraphrase.keep={keep}", f"paraphrase.sampling.n={n}", "paraphrase.gates.preset=off"]
        settings = load_settings(None, ["data.sources.0.path=a.txt", *options])
        monkeypatch.setattr(
            "paraclip.tasks.amounts.steps_left", lambda *_: {1: StepLeft(10, 10, new_inputs=10), 2: StepLeft(0)}
        )
        return amounts(Run(settings, ArtifactStore(tmp_path)), {"ingest": INGEST})

    for keep, n, rewrites in ((1, 4, 1), (3, 4, 3), (9, 4, 4)):
        counted = found(keep, n)
        assert rows_of(counted, (*STEPS, "finetune")) == [10, 10 * rewrites, 10]
        assert [counted[name].requests for name in STEPS] == [10, 10 * rewrites]


def test_the_spending_cap_is_told_before_it_stops_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {1: StepLeft(rows=6, missing=6, prompt_tokens=10_000, new_inputs=6), 2: StepLeft(rows=0)}
    monkeypatch.setattr("paraclip.tasks.amounts.steps_left", lambda *_: left)
    monkeypatch.setattr("paraclip.storage.answers.AnswerStore.paid_tokens", lambda *_: (1_000_000, 0))
    ingest = artifact(read=9, splits={"train": 6})

    def notes(cap: float) -> list[bool]:
        options = ["paraphrase.engine=openai", "paraphrase.model=m", f"paraphrase.openai.max_spend={cap}"]
        settings = load_settings(None, [*options, "paraphrase.openai.price_per_million_prompt_tokens=1"])
        found = amounts(Run(settings, ArtifactStore(tmp_path)), {"ingest": ingest})
        return [f"max_spend={cap:g} stops it" in found[name].note for name in STEPS]

    # Each step is to cost 0.06, after the 1 that was spent before.
    assert notes(2) == [False, False]
    assert notes(1.07) == [False, True]
    assert notes(1) == [True, True]


def test_requests_that_a_rejected_answer_leads_to_are_said_to_be_left_out(tmp_path: Path) -> None:
    def notes(*options: str) -> list[bool]:
        settings = load_settings(None, ["data.scenes.images=80", *SCENES, *options])
        found = amounts(Run(settings, ArtifactStore(tmp_path)), {})
        return ["come on top" in found[name].note for name in STEPS]

    assert notes("paraphrase.attempts=3") == [True, True]
    assert notes() == [False, False]
    assert notes("paraphrase.attempts=3", "paraphrase.gates.preset=off") == [False, False]

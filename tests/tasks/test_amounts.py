"""How much work a run has before anything of it is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paraclip_core.paraphrase.estimate import Asked, Judged, MissingRequests, word_requests
from paraclip_core.scenes.captions import captions
from paraclip_core.scenes.plan import plan
from paraclip_core.settings import load_settings
from storage.artifacts import ArtifactStore
from tasks import amounts as module
from tasks.acceptance import ASSUMED
from tasks.amounts import amounts

SCENES = ("data.sources.0.path=captions.jsonl", "data.sources.0.images=images.tar")


def test_texts_of_scenes_that_are_not_rendered_are_counted(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.scenes.images=80", *SCENES])
    scenes = settings.data.scenes
    assert scenes is not None
    texts = {text.strip() for image in plan(scenes) if image.split == "train" for text in captions(image, scenes.seed)}
    found = amounts(settings, ArtifactStore(tmp_path), {})
    assert [found[name].rows for name in ("scenes", "ingest", "features", "evaluate")] == [80, 160, 80, 40]
    first, second = found["paraphrase_1"], found["paraphrase_2"]
    assert first.rows == found["bootstrap"].rows == 120
    # Every different caption once, and words for each of their content words.
    assert first.requests is not None and second.requests is not None
    assert len(texts) < first.requests < 10 * len(texts)
    assert second.rows == round(ASSUMED[1] * 120) and "assumed" in second.note
    assert found["finetune"].rows == round(ASSUMED[2] * (second.rows or 0))
    plain = load_settings(None, ["data.scenes.images=80", *SCENES, "paraphrase.synonyms=false"])
    found = amounts(plain, ArtifactStore(tmp_path), {})
    assert found["paraphrase_1"].requests == len(texts)
    assert found["paraphrase_2"].requests == round(ASSUMED[1] * len(texts))
    assert not any(tmp_path.iterdir()), "nothing is rendered, and nothing kept"


def test_what_the_paper_keeps_is_all(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.scenes.images=80", *SCENES, "paraphrase.gates.preset=paper"])
    found = amounts(settings, ArtifactStore(tmp_path), {})
    assert found["paraphrase_2"].rows == found["finetune"].rows == 120


def test_very_many_scenes_are_estimated_near_what_counting_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(None, ["data.scenes.images=2000", *SCENES])
    counted = amounts(settings, ArtifactStore(tmp_path), {})
    monkeypatch.setattr(module, "MOST_SCENES", 10)
    monkeypatch.setattr("tasks.requests.scan", lambda *_: pytest.fail("the texts were made"))
    estimated = amounts(settings, ArtifactStore(tmp_path), {})
    assert estimated.keys() == counted.keys()
    for name, amount in counted.items():
        assert estimated[name].rows == amount.rows
        assert (estimated[name].requests or 0) == pytest.approx(amount.requests or 0, rel=0.1)
        assert (estimated[name].tokens or 0) == pytest.approx(amount.tokens or 0, rel=0.1)


def test_each_stage_reads_what_the_one_before_hands_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def artifact(**metrics: Any) -> Any:
        return SimpleNamespace(manifest=SimpleNamespace(metrics=metrics))

    settings, store = load_settings(None, ["data.sources.0.path=a.txt"]), ArtifactStore(tmp_path)
    ingest = artifact(read=9, accepted=8, splits={"train": 6}, images=4)
    first, second = artifact(captions=6, accepted=5), artifact(captions=5, accepted=3)
    nothing = Asked()

    def rows(missing: MissingRequests | None = None, **found: Any) -> list[int | None]:
        monkeypatch.setattr("tasks.requests.count_requests", lambda *_: missing)
        counted = amounts(settings, store, {"ingest": ingest, **found})
        return [counted[name].rows for name in ("ingest", "paraphrase_1", "paraphrase_2", "finetune", "evaluate")]

    assert rows(paraphrase_1=first, paraphrase_2=second) == [9, 6, 5, 3, 2]
    # Another prompt for step 2, which knows one of its answers.
    step_2 = MissingRequests(5, nothing, Asked(4, 40, 4), nothing, nothing, Judged(5), Judged(1, 4))
    assert rows(step_2, paraphrase_1=first) == [9, 6, 5, 1 + round(ASSUMED[2] * 4), 2]
    # Another prompt for step 1: nothing is known.
    new = MissingRequests(6, Asked(6, 60, 6), nothing, Asked(6, 60, 6), nothing, Judged(0, 6), Judged())
    assert rows(new) == [9, 6, round(ASSUMED[1] * 6), round(ASSUMED[2] * round(ASSUMED[1] * 6)), 2]


def test_photographs_are_estimated_near_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """62 captions of Flickr8k: the embedded model got 363 first requests at step 1 and 65 at step 2."""
    texts = Asked(61, 14_000, 1_300)
    missing = MissingRequests(62, texts, Asked(), texts, word_requests(188), Judged(0, 62), Judged())
    monkeypatch.setattr("tasks.requests.count_requests", lambda *_: missing)
    settings, store = load_settings(None, ["data.sources.0.path=a.txt"]), ArtifactStore(tmp_path)
    ingest: Any = SimpleNamespace(manifest=SimpleNamespace(metrics={"read": 62, "splits": {"train": 62}}))

    def found() -> list[Any]:
        counted = amounts(settings, store, {"ingest": ingest})
        return [counted[name] for name in ("paraphrase_1", "paraphrase_2")]

    first, second = found()
    assert first.requests == pytest.approx(363, rel=0.05) and "requests for single words" in first.note
    assert 65 < second.requests < 100 and "assumed, as of rendered scenes" in second.note
    # Once many have answers, these say how many pass.
    known = replace(missing, rows_1=Judged(45, 62, 55))
    monkeypatch.setattr("tasks.requests.count_requests", lambda *_: known)
    _, second = found()
    assert second.rows == 45 + round(0.45 * 62)
    assert "45% of paraphrase_1 accepted as of the 100 rows with answers" in second.note


def test_the_spending_cap_is_told_before_it_stops_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = MissingRequests(6, Asked(6, 60_000, 6), Asked(), Asked(6, 60_000, 6), Asked(), Judged(0, 6), Judged())
    monkeypatch.setattr("tasks.requests.count_requests", lambda *_: asked)
    monkeypatch.setattr("tasks.cap.paid_tokens", lambda *_: (1_000_000, 0))
    ingest: Any = SimpleNamespace(manifest=SimpleNamespace(metrics={"read": 9, "splits": {"train": 6}}))

    def notes(cap: float) -> list[bool]:
        options = ["paraphrase.engine=openai", "paraphrase.model=m", f"paraphrase.openai.max_spend={cap}"]
        settings = load_settings(None, [*options, "paraphrase.openai.price_per_million_prompt_tokens=1"])
        found = amounts(settings, ArtifactStore(tmp_path), {"ingest": ingest})
        return [f"max_spend={cap:g} stops it" in found[name].note for name in ("paraphrase_1", "paraphrase_2")]

    # Step 1 is to cost 0.06, step 2 a little less, after the 1 that was spent before.
    assert notes(2) == [False, False]
    assert notes(1.07) == [False, True]
    assert notes(1) == [True, True]


def test_requests_that_a_rejected_answer_leads_to_are_said_to_be_left_out(tmp_path: Path) -> None:
    def notes(*options: str) -> list[bool]:
        settings = load_settings(None, ["data.scenes.images=80", *SCENES, *options])
        found = amounts(settings, ArtifactStore(tmp_path), {})
        return ["come on top" in found[name].note for name in ("paraphrase_1", "paraphrase_2")]

    assert notes("paraphrase.attempts=3") == [True, True]
    assert notes() == [False, False]
    assert notes("paraphrase.attempts=3", "paraphrase.gates.preset=paper") == [False, False]

"""The plan: states, reasons and estimates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.amounts import Amount, amounts
from paraclip.tasks.context import Run, run_stage
from paraclip.tasks.plan import StagePlan, estimate, plan_run
from paraclip.tasks.registry import STAGES
from paraclip_core.settings import load_settings


def fakes() -> Any:
    from fake_stages import STAGES  # pyright: ignore[reportMissingImports]

    return STAGES


def plan(root: Path, **changes: Any) -> dict[str, StagePlan]:
    from fake_stages import settings_at  # pyright: ignore[reportMissingImports]

    run = Run(settings_at(root, **changes), stages=fakes())
    planned = plan_run(run, lambda *_: {"first": Amount(rows=3, units=3)})
    return {stage.stage: stage for stage in planned.stages}


def run(name: str, root: Path, **changes: Any) -> None:
    from fake_stages import settings_at  # pyright: ignore[reportMissingImports]

    run_stage(name, Run(settings_at(root, **changes), stages=fakes()))


def test_nothing_ever_ran(tmp_path: Path) -> None:
    stages = plan(tmp_path)
    assert {stage.state for stage in stages.values()} == {"to run"}
    assert stages["first"].why == ("never ran under this root",)
    assert not (tmp_path / "artifacts").exists() and not (tmp_path / "work").exists()


def test_cached_and_resumable(tmp_path: Path) -> None:
    run("first", tmp_path)
    first, second = plan(tmp_path)["first"], plan(tmp_path)["second"]
    assert (first.state, first.why, first.seconds, first.rows) == ("cached", (), 0.0, 3)
    assert first.bytes == 1
    with ArtifactStore(tmp_path).writing("second", second.fingerprint):
        pass
    assert plan(tmp_path)["second"].state == "resumable"


def test_a_paraphrase_stage_writes_as_its_rows_and_lasts_as_its_requests(tmp_path: Path) -> None:
    manifest = SimpleNamespace(
        stage="paraphrase_1",
        fingerprint="f" * 32,
        metrics={"generated": 1000, "captions": 4000},
        wall_seconds=110.0,
        size=lambda: 400_000,
    )
    earlier: Any = SimpleNamespace(manifest=manifest)
    seconds, size, _ = estimate(STAGES["paraphrase_1"], Amount(rows=4400, units=100), [earlier])
    assert (seconds, size) == (20.0, 440_000)


def test_an_option_that_changed_is_named_old_and_new(tmp_path: Path) -> None:
    run("first", tmp_path)
    run("second", tmp_path)
    run("second", tmp_path, finetune={"epochs": 7, "batch_size": 64})
    stage = plan(tmp_path, finetune={"epochs": 7, "batch_size": 32, "weights": {"image_caption": 0.5}})["second"]
    assert stage.state == "to run"
    assert stage.why == (
        "option finetune.batch_size: 64 → 32",
        "option finetune.weights.image_caption: 0.0 → 0.5",
    ), "compared with the nearest artifact, not with the oldest"


def test_an_input_that_changed_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    from dataclasses import replace

    import fake_stages  # pyright: ignore[reportMissingImports]

    run("first", tmp_path)
    run("second", tmp_path)
    newer = replace(fake_stages.STAGES["first"], version=2)
    monkeypatch.setitem(fake_stages.STAGES, "first", newer)
    stages = plan(tmp_path)
    assert stages["first"].why == ("stage version 1 → 2",)
    assert len(stages["second"].why) == 1 and stages["second"].why[0].startswith("input first: ")


def test_a_damaged_artifact_is_planned_not_fatal(tmp_path: Path) -> None:
    run("first", tmp_path)
    made = ArtifactStore(tmp_path).list("first")[0]
    (made.path / "made.txt").write_text("edited")
    stage = plan(tmp_path)["first"]
    assert stage.state == "damaged" and "made.txt" in stage.why[0]


def test_estimates_grow_from_an_earlier_run(tmp_path: Path) -> None:
    run("first", tmp_path)
    earlier = ArtifactStore(tmp_path).list("first")
    same, double = (estimate(fakes()["first"], Amount(units=units), earlier) for units in (3, 6))
    assert same[2] == f"first/{earlier[0].fingerprint[:12]}"
    assert same[0] is not None and double[0] is not None and double[1] == 2 * (same[1] or 0)
    assert estimate(STAGES["features"], Amount(units=1000), [])[2].startswith("defaults")
    assert estimate(STAGES["features"], Amount(), [])[0] is None


def test_captions_are_counted_before_ingest_has_run(tmp_path: Path) -> None:
    lines = "".join(f"a picture of number {number}\n" for number in range(20)) + "x\n"
    (tmp_path / "a.txt").write_text(lines)
    settings = load_settings(
        None, [f"data.root={tmp_path}", "data.sources.0.path=a.txt", f"run.root={tmp_path}/root", "finetune.epochs=3"]
    )
    found = amounts(Run(settings, ArtifactStore(tmp_path / "root")), {})
    assert found["ingest"].rows == 21 and found["paraphrase_1"].rows == 20
    assert found["evaluate"].rows == 0


def test_scenes_are_estimated_before_they_are_rendered(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.scenes.images=100", "data.sources.0.path=captions.jsonl"])
    found = amounts(Run(settings, ArtifactStore(tmp_path)), {})
    assert (found["scenes"].rows, found["ingest"].rows, found["paraphrase_1"].rows) == (100, 200, 150)


def test_answers_that_cost_money_are_priced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"a picture of number {number}\n" for number in range(20)))
    chosen = ["paraphrase.engine=openai", "paraphrase.model=m", "paraphrase.synonyms=false"]
    common = [f"data.root={tmp_path}", "data.sources.0.path=a.txt", *chosen]
    free = amounts(Run(load_settings(None, common), ArtifactStore(tmp_path / "root")), {})
    assert free["paraphrase_1"].spend is None
    prices = [f"paraphrase.openai.price_per_million_{kind}_tokens=1000000" for kind in ("prompt", "completion")]
    found = amounts(Run(load_settings(None, [*common, *prices]), ArtifactStore(tmp_path / "root")), {})
    step = found["paraphrase_1"]
    assert step.requests == 20 and step.tokens
    # At one a token the cost is the tokens.
    assert step.spend is not None and abs(step.spend - step.tokens) <= 1
    scenes = load_settings(None, [*common, *prices, "data.scenes.images=100", "data.sources.0.path=captions.jsonl"])
    assert amounts(Run(scenes, ArtifactStore(tmp_path / "other")), {})["paraphrase_2"].spend


def test_paraphrases_from_a_file_are_counted_without_looking_any_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [f"a picture of number {number}" for number in range(20)]
    (tmp_path / "a.txt").write_text("".join(f"{caption}\n" for caption in captions))
    (tmp_path / "p.csv").write_text("caption,paraphrase_1,paraphrase_2\na picture of number 1,one,first\n")
    given = [
        f"data.root={tmp_path}",
        "data.sources.0.path=a.txt",
        f"run.root={tmp_path}/root",
        "paraphrase.fraction=0.5",
    ]
    settings = load_settings(None, [*given, "paraphrase.engine=file", "paraphrase.file.path=p.csv"])
    monkeypatch.setattr("paraclip.tasks.amounts.steps_left", lambda *_: pytest.fail("answers were looked up"))
    found = amounts(Run(settings, ArtifactStore(tmp_path / "root")), {})
    assert [(found[f"paraphrase_{step}"].rows, found[f"paraphrase_{step}"].requests) for step in (1, 2)] == [
        (10, 0)
    ] * 2

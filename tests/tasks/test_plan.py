"""The plan: states, reasons and estimates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.tasks.plan import Amount, StagePlan, amounts, estimate, plan_run
from paraclip.tasks.run.dag import STAGES, run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.errors import ArtifactError
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


@pytest.mark.parametrize("where", ["file/root", "file"])
def test_a_root_that_cannot_be_made_is_said(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=f"cannot write .*{where}.*Not a directory"):
        plan(tmp_path / where)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_root_in_proc_is_refused_although_permissions_would_allow_it() -> None:
    with pytest.raises(ArtifactError, match="/proc/nope"):
        plan(Path("/proc/nope"))


def test_a_root_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    assert plan(tmp_path / "a" / "b")["first"].state == "to run"
    assert not list((tmp_path).rglob("artifacts")) and not list(tmp_path.glob(".paraclip-*"))


def test_a_paraphrase_stage_writes_as_its_rows_and_lasts_as_its_requests(tmp_path: Path) -> None:
    manifest = SimpleNamespace(
        stage="paraphrase_1",
        fingerprint="f" * 32,
        metrics={"generated": 1000, "captions": 4000},
        wall_seconds=110.0,
        size=lambda: 400_000,
    )
    earlier: Any = SimpleNamespace(manifest=manifest)
    cost = estimate(STAGES["paraphrase_1"], Amount(rows=4400, units=100), [earlier])
    assert (cost.seconds, cost.bytes) == (20.0, 440_000)


def test_an_option_that_changed_is_named_old_and_new(tmp_path: Path) -> None:
    run("first", tmp_path)
    run("second", tmp_path)
    run("second", tmp_path, finetune={"epochs": 7, "batch_size": 64})
    stage = plan(tmp_path, finetune={"epochs": 7, "batch_size": 32, "weights": {"image_caption": 0.5}})["second"]
    assert stage.state == "to run"
    assert stage.why[0].startswith("no run of this name is finished; an unfinished run of 2")
    assert stage.why[1:] == (
        "option finetune.batch_size: 64 → 32",
        "option finetune.weights.image_caption: 0.0 → 0.5",
    ), "compared with the nearest artifact, not with the oldest"


def test_a_stage_is_compared_with_the_last_run_of_the_same_name(tmp_path: Path) -> None:
    run("first", tmp_path)
    for name, batch_size in (("demo", 64), ("other", 32)):
        run("second", tmp_path, finetune={"batch_size": batch_size})
        made = ArtifactStore(tmp_path).list("second")[-1].fingerprint
        draft = Draft("report", name.ljust(32, "0"), 1, {"second": made}, {"name": name})
        with ArtifactStore(tmp_path).writing("report", draft.fingerprint):
            ArtifactStore(tmp_path).commit(draft, {}, 0.0)
    changes: dict[str, Any] = {"finetune": {"batch_size": 33}}
    assert plan(tmp_path, name="demo", **changes)["second"].why == ("option finetune.batch_size: 64 → 33",)
    assert plan(tmp_path, name="other", **changes)["second"].why == ("option finetune.batch_size: 32 → 33",)
    header, *reasons = plan(tmp_path, name="new", **changes)["second"].why
    assert "a run of another name, 'other', of 2" in header and reasons == ["option finetune.batch_size: 32 → 33"]


def test_an_input_that_changed_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    from dataclasses import replace

    import fake_stages  # pyright: ignore[reportMissingImports]

    run("first", tmp_path)
    run("second", tmp_path)
    newer = replace(fake_stages.STAGES["first"], version=2)
    monkeypatch.setitem(fake_stages.STAGES, "first", newer)
    stages = plan(tmp_path)
    assert stages["first"].why[1:] == ("stage version 1 → 2",)
    assert len(stages["second"].why) == 2 and stages["second"].why[1].startswith("input first: ")


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
    assert same.basis == f"first/{earlier[0].fingerprint[:12]}"
    assert same.seconds is not None and double.seconds is not None and double.bytes == 2 * (same.bytes or 0)
    assert estimate(STAGES["features"], Amount(units=1000), []).basis.startswith("defaults")
    assert estimate(STAGES["features"], Amount(), []).seconds is None


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
    chosen = ["paraphrase.engine=openai", "paraphrase.model=m"]
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
    monkeypatch.setattr("paraclip.tasks.plan.steps_left", lambda *_: pytest.fail("answers were looked up"))
    found = amounts(Run(settings, ArtifactStore(tmp_path / "root")), {})
    assert [(found[f"paraphrase_{step}"].rows, found[f"paraphrase_{step}"].requests) for step in (1, 2)] == [
        (10, 0)
    ] * 2

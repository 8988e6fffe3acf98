"""The plan: states, reasons and estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.tasks.plan import ASSUMED, Amount, StagePlan, amounts, differences, estimate, plan_run
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.ingest import ingested_captions
from paraclip.tasks.stages.paraphrase import step_options
from paraclip.tasks.steps_left import StepLeft
from paraclip_core.demo.scenes import SEED, captions
from paraclip_core.demo.scenes import plan as scene_plan
from paraclip_core.errors import InputError
from paraclip_core.lifetime import TempDir
from paraclip_core.settings import load_settings, parse_settings
from tests.kit import fake_stages


def fakes() -> dict[str, Stage]:
    """The fake stages, in this process."""
    return {name: replace(stage, isolated=False) for name, stage in fake_stages.STAGES.items()}


def plan(root: Path, **changes: Any) -> dict[str, StagePlan]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paraclip.tasks.plan.ingested_captions", lambda *_: SimpleNamespace(rejected={}))
        patch.setattr("paraclip.tasks.plan.amounts", lambda *_: {"first": Amount(rows=3, units=3)})
        planned = plan_run(Run(fake_stages.settings_at(root, **changes), stages=fakes()))
    return {stage.stage: stage for stage in planned.stages}


def run(name: str, root: Path, **changes: Any) -> None:
    run_stage(name, Run(fake_stages.settings_at(root, **changes), stages=fakes()))


def amounts_of(run: Run, artifacts: Any) -> dict[str, Amount]:
    with TempDir() as scratch:
        return amounts(run, artifacts, ingested_captions(run, artifacts, scratch))


def test_a_plan_of_rows_that_are_all_left_out_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n1.png,dog\n2.png,\n")
    sources = [f"data.root={tmp_path}", "data.sources=[{path: a.csv}]", f"run.root={tmp_path / 'runs'}"]
    reasons = r"none of the 2 rows would be accepted \(too_few_words 1 \(data\.min_words\), empty 1\)"
    with pytest.raises(InputError, match=reasons):
        plan_run(Run(load_settings(None, sources)))


def test_to_run_cached_and_resumable(tmp_path: Path) -> None:
    stages = plan(tmp_path)
    assert {stage.state for stage in stages.values()} == {"to run"}
    assert stages["first"].why == ("never ran under this root",)
    assert not any(tmp_path.iterdir())
    run("first", tmp_path)
    first, second = plan(tmp_path)["first"], plan(tmp_path)["second"]
    assert (first.state, first.why, first.seconds, first.rows) == ("cached", (), 0.0, 3)
    with ArtifactStore(tmp_path).writing("second", second.fingerprint):
        pass
    assert plan(tmp_path)["second"].state == "resumable"


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
        fingerprint = ArtifactStore(tmp_path).list("second")[-1].fingerprint
        draft = Draft("report", name.ljust(32, "0"), 1, {"second": fingerprint}, {"name": name})
        with ArtifactStore(tmp_path).writing("report", draft.fingerprint):
            ArtifactStore(tmp_path).commit(draft, {}, 0.0)
    changes: dict[str, Any] = {"finetune": {"batch_size": 33}}
    assert plan(tmp_path, name="demo", **changes)["second"].why == ("option finetune.batch_size: 64 → 33",)
    assert plan(tmp_path, name="other", **changes)["second"].why == ("option finetune.batch_size: 32 → 33",)
    header, *reasons = plan(tmp_path, name="new", **changes)["second"].why
    assert "a run of another name, 'other', of 2" in header and reasons == ["option finetune.batch_size: 32 → 33"]


def test_an_input_that_changed_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    run("first", tmp_path)
    run("second", tmp_path)
    newer = replace(fake_stages.STAGES["first"], version=2)
    monkeypatch.setitem(fake_stages.STAGES, "first", newer)
    stages = plan(tmp_path)
    assert stages["first"].why[1:] == ("a new version of the stage",)
    assert len(stages["second"].why) == 2 and stages["second"].why[1].startswith("input first: ")


def of_release(stage_version: int = 1, **options: Any) -> Any:
    """A finished artifact whose stage had more options than today's."""
    manifest = SimpleNamespace(stage_version=stage_version, inputs={}, options={"seed": 0, "attempts": 1, **options})
    return SimpleNamespace(manifest=manifest)


def test_options_of_an_earlier_release_are_a_new_version_of_the_stage() -> None:
    node: Any = SimpleNamespace(draft=of_release().manifest)
    gone = {
        "finetune": {"negatives": {"rows": 1}, "l2_sp": 0.1},
        "filters": {"nli": "x"},
        "sources": [{"licence": "x"}],
    }
    assert differences(of_release(**gone), node) == ["a new version of the stage"]
    assert differences(of_release(**gone, attempts=3), node)[1:] == ["option attempts: 3 → 1"]
    # An engine that is asked nothing has no such options, which the code knows all the same.
    assert differences(of_release(sampling={"n": 4}), node) == ["option sampling.n: 4 → (none)"]
    assert differences(of_release(stage_version=0, sampling={"n": 4}), node) == ["a new version of the stage"]
    assert differences(of_release(keep=3), node) == ["option keep: 3 → (none)"]


def test_a_damaged_artifact_is_planned_not_fatal(tmp_path: Path) -> None:
    run("first", tmp_path)
    artifact = ArtifactStore(tmp_path).list("first")[0]
    (artifact.path / "made.txt").write_text("edited")
    stage = plan(tmp_path)["first"]
    assert stage.state == "damaged" and "made.txt" in stage.why[0]


def test_estimates_grow_from_an_earlier_run(tmp_path: Path) -> None:
    run("first", tmp_path)
    earlier = ArtifactStore(tmp_path).list("first")
    node = Run(fake_stages.settings_at(tmp_path), stages=fakes()).node("first")
    assert estimate(node, Amount(units=3), earlier)[1] == f"as first/{earlier[0].fingerprint[:12]}"
    assert estimate(node, Amount(units=1000), []) == estimate(node, Amount(), earlier) == (None, "")
    metrics = {"rows": 1000}
    manifest = SimpleNamespace(fingerprint="f" * 32, metrics=metrics, wall_seconds=110.0, options={})
    run_before: Any = SimpleNamespace(manifest=manifest)
    assert estimate(node, Amount(units=100), [run_before])[0] == 11.0
    # One that resumed, or found most of its candidates, did not take the time of all its samples.
    resumed: Any = SimpleNamespace(
        manifest=SimpleNamespace(**{**vars(manifest), "metrics": {**metrics, "samples_per_second": 5.0}})
    )
    assert estimate(node, Amount(units=100), [resumed])[0] == 20.0
    # Nearly all of a later one's time was its start.
    little: Any = SimpleNamespace(manifest=SimpleNamespace(**{**vars(manifest), "metrics": {"rows": 1}}))
    assert estimate(node, Amount(units=100), [run_before, little])[0] == 11.0
    assert estimate(node, Amount(units=0), [run_before, little])[0] == 0.0


def test_answers_that_cost_money_are_priced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"a picture of number {number}\n" for number in range(20)))
    chosen = ["paraphrase.engine=openai", "paraphrase.model=m"]
    common = [f"data.root={tmp_path}", "data.sources.0.path=a.txt", *chosen]
    free = amounts_of(Run(load_settings(None, common), ArtifactStore(tmp_path / "root")), {})
    assert free["paraphrase_1"].spend is None
    prices = [f"paraphrase.openai.price_per_million_{kind}_tokens=1000000" for kind in ("prompt", "completion")]
    amounts = amounts_of(Run(load_settings(None, [*common, *prices]), ArtifactStore(tmp_path / "root")), {})
    step = amounts["paraphrase_1"]
    assert step.requests == 20 and step.tokens
    # At one a token the cost is the tokens.
    assert step.spend is not None and abs(step.spend - step.tokens) <= 1
    scenes = load_settings(None, [*chosen, *prices, "data.scenes.images=100", "data.sources.0.path=captions.jsonl"])
    assert amounts_of(Run(scenes, ArtifactStore(tmp_path / "other")), {})["paraphrase_2"].spend


SCENES = ("data.sources.0.path=captions.jsonl", "data.sources.0.images=images.tar")
STEPS = ("paraphrase_1", "paraphrase_2")
SMALL = ASSUMED["small-model"]


def artifact(**metrics: Any) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(metrics=metrics))


INGEST = artifact(read=9, accepted=8, splits={"train": 6}, images=4)
PRICES = [f"openai.price_per_million_{kind}_tokens=1" for kind in ("prompt", "completion")]


NEW = {1: StepLeft(10, 10, new_inputs=10), 2: StepLeft(0)}
Counted = Callable[..., dict[str, Amount]]


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Amounts of a run whose steps have so much left, and whose artifacts are metrics alone."""
    monkeypatch.setattr(ArtifactStore, "download", lambda *_: SimpleNamespace(path=tmp_path))

    def count(left: dict[int, StepLeft] | None, *options: str, **artifacts: Any) -> dict[str, Amount]:
        monkeypatch.setattr("paraclip.tasks.plan.steps_left", lambda *_: left)
        chosen = [f"paraphrase.{option}" for option in options]
        settings = load_settings(None, ["data.sources.0.path=a.txt", "evaluate.queries=null", *chosen])
        return amounts_of(Run(settings, ArtifactStore(tmp_path)), {"ingest": INGEST, **artifacts})

    return count


def rows_of(amounts: dict[str, Amount], names: Sequence[str] = ("ingest", *STEPS, "finetune", "evaluate")) -> list[Any]:
    return [amounts[name].rows for name in names]


def test_texts_of_scenes_that_are_not_rendered_are_counted(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.scenes.images=80", *SCENES])
    scenes = settings.data.scenes
    assert scenes is not None
    texts = {text.strip() for image in scene_plan(scenes) if image.split == "train" for text in captions(image, SEED)}
    amounts = amounts_of(Run(settings, ArtifactStore(tmp_path)), {})
    assert rows_of(amounts, ("scenes", "ingest", "features", "evaluate")) == [80, 160, 80, 40]
    first, second = amounts["paraphrase_1"], amounts["paraphrase_2"]
    assert first.rows == amounts["built_in_base"].rows == 120
    assert first.requests == len(texts) and "requests for single words" in first.note
    assert second.rows == round(SMALL[1] * 120) and "assumed" in second.note
    assert amounts["finetune"].rows == round(SMALL[2] * (second.rows or 0))
    plain = load_settings(None, ["data.scenes.images=80", *SCENES, "paraphrase.prompts=paper"])
    amounts = amounts_of(Run(plain, ArtifactStore(tmp_path)), {})
    assert amounts["paraphrase_1"].requests == amounts["paraphrase_1"].units == len(texts)
    assert amounts["paraphrase_2"].requests == round(SMALL[1] * len(texts))
    assert not any(tmp_path.iterdir()), "nothing is rendered, and nothing kept"


def test_each_stage_reads_what_the_one_before_hands_on(counted: Counted) -> None:
    first, second = artifact(captions=6, accepted=5, kept=5), artifact(captions=5, accepted=3, kept=3)
    assert rows_of(counted(None, paraphrase_1=first, paraphrase_2=second)) == [9, 6, 5, 3, 2]
    # Another prompt for step 2, which knows one of its answers.
    steps = {2: StepLeft(rows=5, missing=4, accepted=1)}
    assert rows_of(counted(steps, paraphrase_1=first)) == [9, 6, 5, 1 + round(SMALL[2] * 4), 2]
    # Another prompt for step 1: nothing is known.
    new = {1: StepLeft(rows=6, missing=6, new_inputs=6), 2: StepLeft(rows=0)}
    assert rows_of(counted(new)) == [9, 6, round(SMALL[1] * 6), round(SMALL[2] * round(SMALL[1] * 6)), 2]


def test_a_finished_run_of_the_same_engine_and_filters_says_the_rest(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = {"captions": 100, "accepted": 30, "kept": 60, "generated": 200, "prompt_tokens": 9000}
    earlier |= {"completion_tokens": 400}

    def finished(stage: str, engine: str = "openvino", preset: str = "small-model", **metrics: Any) -> Any:
        settings = load_settings(None, ["data.sources.0.path=a.txt"])
        asked = step_options(Run(settings).paraphraser, int(stage[-1]))
        options = {**asked, "engine": engine, "filters": {"preset": preset}}
        manifest = SimpleNamespace(stage=stage, fingerprint="f" * 32, options=options, metrics=earlier | metrics)
        return SimpleNamespace(manifest=manifest)

    def listed(_: ArtifactStore, stage: str) -> list[Any]:
        if stage not in STEPS:
            return []
        others = finished(stage, engine="vllm", accepted=2, kept=2), finished(stage, preset="capable", accepted=3)
        return [finished(stage, accepted=1), finished(stage), *others]

    monkeypatch.setattr(ArtifactStore, "list", listed)
    amounts = counted(NEW)
    # Three of ten captions pass step 1, and six of ten rows step 2.
    assert rows_of(amounts, (*STEPS, "finetune")) == [10, 3, round(0.6 * 3)]
    assert amounts["paraphrase_1"].tokens == 10 * (45 + 2)
    # Of other prompts or sampling, only what passes is taken over.
    amounts = counted(NEW, "sampling.n=3")
    assert rows_of(amounts, STEPS)[1] == 3 and amounts["paraphrase_1"].tokens == 0
    assert "30% accepted as in paraphrase_1/ffffffffffff" in amounts["paraphrase_2"].note


@pytest.mark.parametrize(("keep", "n", "paraphrases"), [(1, 4, 1), (3, 4, 3), (9, 4, 4)])
def test_rewrites_are_asked_about_one_by_one_and_trained_on_as_one_caption(
    keep: int, n: int, paraphrases: int, counted: Counted
) -> None:
    amounts = counted(NEW, f"keep={keep}", f"sampling.n={n}", "filters.preset=off")
    assert rows_of(amounts, (*STEPS, "finetune")) == [10, 10 * paraphrases, 10]
    assert [amounts[name].requests for name in STEPS] == [10, 10 * paraphrases]


@pytest.mark.parametrize(("cap", "stopped"), [(2, [False, False]), (1.07, [False, True]), (1, [True, True])])
def test_the_spending_cap_is_reported_before_it_stops_a_step(
    cap: float, stopped: list[bool], counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is to cost 0.06, after the 1 that was spent before."""
    # Of step 2 only the prompt is known, so step 1's figures stand for it.
    first = StepLeft(rows=6, missing=6, prompt_tokens=10_000, completion_tokens=10, new_inputs=6)
    left = {1: first, 2: StepLeft(rows=0, prompt_tokens=30)}
    monkeypatch.setattr("paraclip.storage.answers.AnswerStore.paid_tokens", lambda *_: (1_000_000, 0))
    amounts = counted(left, "engine=openai", "model=m", f"openai.max_spend={cap}", *PRICES[:1])
    assert [f"paraphrase.openai.max_spend={cap:g} stops it" in amounts[name].note for name in STEPS] == stopped


ONE_A_TOKEN = {f"price_per_million_{kind}_tokens": 1_000_000 for kind in ("prompt", "completion")}
OWN_CAP, JUDGE_CAP, QUERIES_CAP = (
    f"{group}.openai.max_spend" for group in ("paraphrase", "paraphrase.judge", "evaluate.queries")
)
Asked = Callable[..., list[Amount]]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Amounts of both steps and of held-out queries, by the engine's options, its judge and the queries' changes."""
    rows = [f"{n}.png,a picture of number {n},{'train' if n < 20 else 'val'}" for n in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["image,caption,split", *rows]))
    (tmp_path / "pictures").mkdir()
    for n in range(30):
        (tmp_path / "pictures" / f"{n}.png").touch()

    def count(openai: Any, judge: Any = None, queries: Any = None) -> list[Amount]:
        data = {"root": str(tmp_path), "sources": [{"path": "a.csv", "images": "pictures"}]}
        paraphrase = {"engine": "openai", "model": "m", "filters": {"preset": "off"}, "openai": openai, "judge": judge}
        settings = {"data": data, "paraphrase": paraphrase, "evaluate": {"queries": queries or {}}}
        amounts = amounts_of(Run(parse_settings(settings), ArtifactStore(tmp_path / "root")), {})
        return [amounts[name] for name in (*STEPS, "queries")]

    return count


def priced(max_spend: float = 0) -> dict[str, float]:
    return ONE_A_TOKEN | {"max_spend": max_spend}


def judge_of(model: str, max_spend: float = 0) -> dict[str, Any]:
    return {"model": model, "openai": priced(max_spend)}


def bills_of(amounts: Sequence[Amount]) -> list[float]:
    return [amount.spend or 0 for amount in amounts]


def stops_of(amounts: Sequence[Amount]) -> list[list[str]]:
    """The options whose caps stop each stage."""
    notes = [[part for part in amount.note.split("; ") if " stops it, " in part] for amount in amounts]
    return [[part.partition("=")[0] for part in parts] for parts in notes]


def test_a_judge_of_another_model_spends_under_its_own_cap(asked: Asked) -> None:
    own, questions = bills_of(asked(priced())), bills_of(asked({}, judge_of("big")))
    assert min(own) > 1 and min(questions) > 1
    enough = asked(priced(sum(own) + 1), judge_of("big", sum(questions) + 1))
    assert stops_of(enough) == [[], [], []]
    assert bills_of(enough) == pytest.approx([sum(bills) for bills in zip(own, questions, strict=True)])
    assert stops_of(asked({}, judge_of("big", questions[0] - 1))) == [[JUDGE_CAP]] * 3
    assert stops_of(asked({}, judge_of("big", sum(questions) - 1))) == [[], [], [JUDGE_CAP]]
    assert stops_of(asked(priced(own[0] - 1), judge_of("big", sum(questions) + 1))) == [[OWN_CAP]] * 3
    both = asked(priced(own[0] + 1), judge_of("big", questions[0] + 7))
    assert stops_of(both) == [[], *[[OWN_CAP, JUDGE_CAP]] * 2]
    assert f"; {JUDGE_CAP}={questions[0] + 7:g} stops it, 7 is left to spend; " in both[1].note


def test_a_judge_of_the_same_model_counts_what_was_paid_before_a_step(asked: Asked) -> None:
    own, questions = bills_of(asked(priced())), bills_of(asked({}, judge_of("big")))
    first = own[0] + questions[0]
    # One engine, whose cap counts answers and questions.
    assert stops_of(asked(priced(first - 1), {})) == [[OWN_CAP]] * 3
    assert stops_of(asked(priced(first + 1), {})) == [[], [OWN_CAP], [OWN_CAP]]
    # A cap of its own makes it another engine, which knows what others paid for the model before a step, not during it.
    assert stops_of(asked({}, judge_of("m", questions[0] + 1))) == [[], [JUDGE_CAP], [JUDGE_CAP]]
    assert stops_of(asked(priced(), judge_of("m", first + questions[1] + 1))) == [[], [], [JUDGE_CAP]]


def test_held_out_queries_are_stopped_by_the_cap_of_their_engine(asked: Asked) -> None:
    own = bills_of(asked(priced()))
    assert stops_of(asked(priced(sum(own) - 1))) == [[], [], [OWN_CAP]]
    enough, too_little = ({"openai": priced(sum(own) + more)} for more in (1, -1))
    assert stops_of(asked(priced(sum(own) - 1), queries=enough)) == [[], [], []]
    assert stops_of(asked(priced(), queries=too_little)) == [[], [], [QUERIES_CAP]]
    assert stops_of(asked(priced(), queries={"model": "other", **too_little})) == [[], [], []]


def test_requests_that_a_rejected_answer_leads_to_are_said_to_be_left_out(tmp_path: Path) -> None:
    for options, noted in ((("attempts=3",), True), ((), False), (("attempts=3", "filters.preset=off"), False)):
        chosen = [f"paraphrase.{option}" for option in options]
        settings = load_settings(None, ["data.scenes.images=80", *SCENES, *chosen])
        amounts = amounts_of(Run(settings, ArtifactStore(tmp_path)), {})
        assert ["come on top" in amounts[name].note for name in STEPS] == [noted] * 2


def test_rows_of_a_file_of_paraphrases_are_counted_in_the_file(tmp_path: Path) -> None:
    captions = [f"a picture of number {number}" for number in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(captions))
    rows = [f"{text},number {text},a figure {number}" for number, text in enumerate(captions[:4])]
    rows += [f"{captions[0]},another wording,", f"{captions[4]},without a second,"]
    (tmp_path / "given.csv").write_text("\n".join(["caption,paraphrase_1,paraphrase_2", *rows]))
    options = ["data.sources.0.path=a.txt", "paraphrase.engine=file", "paraphrase.file.path=given.csv"]
    for keep, paraphrases in ((1, 5), (2, 6)):
        settings = load_settings(None, [f"data.root={tmp_path}", *options, f"paraphrase.keep={keep}"])
        run = Run(settings, ArtifactStore(tmp_path / "root"))
        assert rows_of(amounts_of(run, {}), (*STEPS, "finetune")) == [20, paraphrases, 4]
    made = {name: run_stage(name, run) for name in ("ingest", "paraphrase_1")}
    assert rows_of(amounts_of(run, made), (*STEPS, "finetune")) == [20, 6, 4]
    made["paraphrase_2"] = run_stage("paraphrase_2", run)
    assert rows_of(amounts_of(run, made), (*STEPS, "finetune")) == [20, 6, 4], "as it came"

"""The plan: settings, and what is cached, to states, reasons, amounts and costs. Nothing is asked, filtered or kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.tasks.plan import RunPlan, StagePlan, differences, estimate, plan_run
from paraclip.tasks.run.run import Run, stages_of
from paraclip.tasks.steps_left import Amount
from paraclip_core.config import Settings
from paraclip_core.errors import EngineError, InputError
from paraclip_core.settings import load_settings, parse_settings
from tests.kit.openai_server import OpenAIServer, status
from tests.kit.small_runs import HERE, made

TRAIN, HELD_OUT = 20, 5
ASKING = ("paraphrase_1", "paraphrase_2", "queries")
OFF: dict[str, Any] = {"preset": "off"}
SHORT = OFF | {"extra": ["tests.kit.scripted_filters:short"]}
NOWHERE: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_KEY", "retries": 0}
ONE_A_TOKEN = NOWHERE | {f"price_per_million_{kind}_tokens": 1_000_000 for kind in ("prompt", "completion")}


def settings_of(
    folder: Path, engine: str = "Well", train: int = TRAIN, queries: Any = None, name: str = "demo", **paraphrase: Any
) -> Settings:
    """One caption an image, of which the last are held out; without a filter unless told otherwise."""
    images = folder / "pictures"
    images.mkdir(exist_ok=True)
    lines = ["image,caption,split"]
    for n in range(train + HELD_OUT):
        (images / f"{n}.png").touch()
        lines.append(f"{n}.png,the car {n} near a beach is fast,{'train' if n < train else 'val'}")
    (folder / "captions.csv").write_text("\n".join(lines))
    engine = f"tests.kit.scripted_engine:{engine}" if engine[0].isupper() else engine
    data = {"root": str(folder), "sources": [{"path": "captions.csv", "images": "pictures"}]}
    asked = {"engine": engine, "model": "m", "filters": OFF, **paraphrase}
    run = {"root": str(folder / "root"), "threads": 1}
    settings = {"name": name, "data": data, "paraphrase": asked, "run": run, "evaluate": {"queries": queries}}
    return parse_settings(settings)


def plan_of(settings: Settings) -> tuple[RunPlan, dict[str, StagePlan]]:
    planned = plan_run(Run(settings, stages=_stages(settings)))
    return planned, {stage.stage: stage for stage in planned.stages}


def _stages(settings: Settings) -> Mapping[str, Any]:
    return {name: HERE[name] for name in stages_of(settings)}


def finish(settings: Settings, *names: str) -> None:
    for name in names or ("ingest", "paraphrase_1", "paraphrase_2"):
        made(name, settings)


def kept(root: Path) -> list[Path]:
    """Files below a root but for locks and the cache's index."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(path for path in files if "cache" not in path.parts or "segments" in path.parts)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that asked for everything once."""
    folder = tmp_path_factory.mktemp("first")
    finish(settings_of(folder))
    return folder


ALL = (20, 20, 20)
PROMPT_1, PROMPT_2 = {"prompt_1": "Say {}!"}, {"prompt_2": "Say {}!"}


@pytest.mark.parametrize(
    ("again", "changes", "rows", "requests", "carried_out"),
    [
        # Whether a run came before, and what is other now; rows of both steps and of fine-tuning, requests of both
        # steps, and whether the run is carried out to see that it asks for just those.
        (False, {}, ALL, (20, 20), True),
        (False, {"keep": 3, "sampling": {"n": 4}}, (20, 60, 20), (20, 60), False),
        (False, {"keep": 9, "sampling": {"n": 4}}, (20, 80, 20), (20, 80), False),
        (False, {"filters": {"preset": "capable"}}, (20, 19, 18), (20, 19), False),
        (False, {"engine": "Refusing"}, ALL, (20, 20), False),
        (True, {}, ALL, (0, 0), False),
        (True, {"train": 23}, (23, 23, 23), (3, 3), True),
        (True, {"train": 12}, (12, 12, 12), (0, 0), True),
        (True, PROMPT_2, ALL, (0, 20), True),
        (True, PROMPT_1 | PROMPT_2, ALL, (20, 20), True),
        (True, {"sampling": {"temperature": 0.5}}, ALL, (20, 20), False),
        # Ways of asking, and what is of account after a rejected answer alone.
        (True, {"chunk": 3, "attempts": 3}, ALL, (0, 0), True),
        # Answers without a filter result lead to requests as far as they are new to step 2.
        (True, {"filters": SHORT}, ALL, (0, 0), False),
        (True, {"filters": SHORT, "train": 23}, (23, 23, 23), (3, 3), True),
        (True, {"filters": SHORT} | PROMPT_2, ALL, (0, 20), False),
    ],
)
def test_what_is_not_cached_is_what_a_run_asks(
    tmp_path: Path,
    first_run: Path,
    again: bool,
    changes: dict[str, Any],
    rows: tuple[int, ...],
    requests: tuple[int, ...],
    carried_out: bool,
) -> None:
    if again:
        shutil.copytree(first_run, tmp_path, dirs_exist_ok=True)
    settings = settings_of(tmp_path, **changes)
    before = kept(tmp_path / "root")
    _, stages = plan_of(settings)
    assert kept(tmp_path / "root") == before, "a plan keeps nothing"
    assert tuple(stages[name].rows for name in (*ASKING[:2], "finetune")) == rows
    assert tuple(stages[name].requests for name in ASKING[:2]) == requests
    if carried_out:
        assert asked(settings, stages) == requests
        assert [plan_of(settings)[1][name].state for name in ASKING[:2]] == ["cached"] * 2


def asked(settings: Settings, planned: Mapping[str, StagePlan]) -> tuple[int, ...]:
    """What a run that was planned asks for in both steps."""
    artifacts = [made(name, settings) for name in ("ingest", *ASKING[:2])][1:]
    return tuple(
        0 if planned[name].state == "cached" else artifact.manifest.metrics["generated"]
        for name, artifact in zip(ASKING[:2], artifacts, strict=True)
    )


def test_filters_ask_for_what_passes_now_and_with_attempts_for_what_they_reject(tmp_path: Path) -> None:
    # Of the writer's answers 10 are good, of which 5 are one text; 3 are copies, and 7 are empty.
    loose: dict[str, Any] = {}
    strict: dict[str, Any] = {"filters": OFF | {"extra": ["tests.kit.scripted_filters:copy"]}}
    for changes, planned_requests, requests in (
        (strict, (20, None), (20, 6)),
        # The plan, which judges nothing, knows that three answers are new to step 2; half of all passed so far.
        (loose, (0, 2), (0, 3)),
        (strict, (0, 0), (0, 0)),
        # Captions whose answers were rejected are asked about again.
        ({**strict, "attempts": 2}, (10, None), (10, None)),
    ):
        settings = settings_of(tmp_path, "Writer", **changes)
        _, stages = plan_of(settings)
        seen = asked(settings, stages)
        for name, planned, expected, count in zip(ASKING, planned_requests, requests, seen, strict=False):
            assert planned in (None, stages[name].requests) and expected in (None, count), (changes, name)


def test_what_a_failure_left_undone(openai_server: OpenAIServer, tmp_path: Path) -> None:
    server = {"base_url": openai_server.url, "api_key_env": "NO_KEY", "concurrency": 1}
    settings = settings_of(tmp_path, "openai", model="smol", openai=server)
    well = openai_server.answer
    openai_server.answer = lambda body: well(body) if len(openai_server.asked) <= 3 else status(403)
    with pytest.raises(EngineError, match="refuses"):
        finish(settings)
    openai_server.answer = well
    _, stages = plan_of(settings)
    planned = stages["paraphrase_1"]
    assert (planned.state, planned.requests) == ("resumable", TRAIN - 3)
    assert asked(settings, stages) == (TRAIN - 3, TRAIN)


def test_a_finished_step_that_asked_in_the_same_way_says_the_rest(tmp_path: Path) -> None:
    finish(settings_of(tmp_path, "Writer"))
    metrics = made("paraphrase_1", settings_of(tmp_path, "Writer")).manifest.metrics
    share = metrics["accepted"] / metrics["captions"]
    _, stages = plan_of(settings_of(tmp_path, "Writer", train=1000))
    assert 0.3 < share < 0.7 and f"{share:.0%} accepted as in paraphrase_1/" in stages["paraphrase_2"].note
    assert stages["paraphrase_2"].rows == metrics["kept"] + round(980 * share)
    # The scripted engine counts ten tokens of a prompt, and five of an answer.
    assert stages["paraphrase_1"].tokens == 15 * (stages["paraphrase_1"].requests or 0)
    _, stages = plan_of(settings_of(tmp_path, "Writer", train=1000, sampling={"n": 3}))
    assert "100% of paraphrase_1 accepted (assumed)" in stages["paraphrase_2"].note


LEFT = "{cap}.openai.max_spend={of:g}: {left:g} is left to spend"
STOPPED = "warning: the run would stop at its first request: "


@pytest.mark.parametrize(
    ("openai", "more", "priced", "caps"),
    [
        (NOWHERE, {}, (), []),
        (ONE_A_TOKEN, {}, ASKING, []),
        (ONE_A_TOKEN | {"max_spend": 9}, {}, ASKING, ["paraphrase"]),
        (
            ONE_A_TOKEN,
            {"queries": {"model": "other", "openai": {"max_spend": 9}}},
            ASKING,
            ["evaluate.queries"],
        ),
    ],
)
def test_requests_are_priced_and_a_cap_says_what_is_left(
    tmp_path: Path, openai: dict[str, Any], more: dict[str, Any], priced: tuple[str, ...], caps: list[str]
) -> None:
    settings = settings_of(tmp_path, "openai", openai=openai, **{"queries": {}, **more})
    planned, stages = plan_of(settings)
    assert {name for name, stage in stages.items() if stage.spend is not None} == set(priced)
    assert [stages[name].requests for name in ASKING] == [TRAIN, TRAIN, 2 * HELD_OUT]
    for name in priced:
        # At one a token the cost is the tokens.
        assert stages[name].spend == pytest.approx(stages[name].tokens, abs=1)
    notes = [note for note in planned.notes if "left to spend" in note]
    assert notes == [LEFT.format(cap=cap, of=9, left=9) for cap in caps]
    assert any(note.startswith(STOPPED) for note in planned.notes), "nobody listens there"


def test_tokens_grow_with_draws(tmp_path: Path) -> None:
    def cost(kind: str, sampling: dict[str, Any], openai: dict[str, Any] | None = None) -> float:
        price = {f"price_per_million_{kind}_tokens": 1_000_000}
        options = {"openai": NOWHERE | price | (openai or {}), "sampling": sampling, "prompts": "paper"}
        return plan_of(settings_of(tmp_path, "openai", **options))[1]["paraphrase_1"].spend or 0

    prompt, completion = cost("prompt", {"n": 1}), cost("completion", {"n": 1})
    # Seven words are about eight tokens, and the instruction with them some thirty.
    assert 12 < prompt / TRAIN < 60 and 7 < completion / TRAIN < 12
    one_by_one = {"extra_body": {"n": None}}
    for changed, prompts, answers in (
        ({"sampling": {"n": 4}}, 1, 4),
        ({"sampling": {"n": 4}, "openai": one_by_one}, 4, 4),
        ({"sampling": {"n": 4, "temperature": 0}, "openai": one_by_one}, 1, 1),
    ):
        assert cost("prompt", **changed) == pytest.approx(prompts * prompt)
        assert cost("completion", **changed) == pytest.approx(answers * completion)


@pytest.mark.parametrize(
    ("changed", "noted"),
    [({"attempts": 3, "filters": {"preset": "capable"}}, True), ({"attempts": 3}, False), ({}, False)],
)
def test_requests_after_a_rejected_answer_are_said_to_be_left_out(
    tmp_path: Path, changed: dict[str, Any], noted: bool
) -> None:
    _, stages = plan_of(settings_of(tmp_path, **changed))
    assert ["come on top" in stages[name].note for name in ASKING[:2]] == [noted] * 2


def test_a_file_of_paraphrases_is_asked_nothing(tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("caption,paraphrase_1,paraphrase_2\nthe car 1 near a beach is fast,a,b\n")
    _, stages = plan_of(settings_of(tmp_path, "file", file={"path": "given.csv"}, queries={}))
    assert [(stages[name].rows, stages[name].requests) for name in ASKING] == [(20, 0), (20, 0), (5, 0)]


def test_a_plan_of_rows_that_are_all_left_out_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n1.png,dog\n2.png,\n")
    sources = [f"data.root={tmp_path}", "data.sources=[{path: a.csv}]", f"run.root={tmp_path / 'runs'}"]
    reasons = r"none of the 2 rows would be accepted \(too_few_words 1 \(data\.min_words\), empty 1\)"
    with pytest.raises(InputError, match=reasons):
        plan_run(Run(load_settings(None, sources)))


def reasons_of(settings: Settings, stage: str = "paraphrase_2") -> tuple[str, ...]:
    return plan_of(settings)[1][stage].why


def test_states_and_reasons(tmp_path: Path) -> None:
    settings, store = settings_of(tmp_path), ArtifactStore(tmp_path / "root")
    _, stages = plan_of(settings)
    assert {(stage.state, stage.why) for stage in stages.values()} == {("to run", ("never ran under this root",))}
    finish(settings)
    _, stages = plan_of(settings)
    assert [(stages[name].state, stages[name].why, stages[name].seconds) for name in ASKING[:2]] == [
        ("cached", (), 0)
    ] * 2
    with store.writing("features", stages["features"].fingerprint):
        pass
    assert plan_of(settings)[1]["features"].state == "resumable"
    finish(settings_of(tmp_path, prompt_2="Say {}!", seed=1))
    header, *reasons = reasons_of(settings_of(tmp_path, prompt_2="Say {}!", seed=2))
    assert header.startswith("no run of this name is finished; an unfinished run of 2")
    assert reasons[0] == "option seed: 1 → 2" and len(reasons) == 2, "of the nearest artifact, not of the oldest"
    assert reasons[1].startswith("input paraphrase_1: ")
    # Reports say which artifacts are of which name.
    for name, seed in (("demo", 0), ("other", 1)):
        chosen = settings_of(tmp_path, seed=seed, prompt_2="Say {}!" if seed else "", name=name)
        inputs = {"paraphrase_1": Run(chosen).node("paraphrase_1").fingerprint}
        draft = Draft("report", name.ljust(32, "0"), 1, inputs, {"name": name})
        with store.writing("report", draft.fingerprint):
            store.commit(draft, {}, 0.0)
    assert reasons_of(settings_of(tmp_path, seed=2), "paraphrase_1") == ("option seed: 0 → 2",)
    assert reasons_of(settings_of(tmp_path, seed=2, name="other"), "paraphrase_1") == ("option seed: 1 → 2",)
    header, *_ = reasons_of(settings_of(tmp_path, seed=2, name="new"), "paraphrase_1")
    assert "a run of another name, 'other', of 2" in header
    part = next((store.list("ingest")[0].path / "captions").iterdir())
    part.write_bytes(b"edited")
    stage = plan_of(settings)[1]["ingest"]
    assert stage.state == "damaged" and part.name in stage.why[0]


def artifact(stage_version: int = 1, wall_seconds: float = 110.0, metrics: Any = None, **options: Any) -> Any:
    manifest = SimpleNamespace(
        stage_version=stage_version, inputs={}, options={"seed": 0, **options}, metrics=metrics or {},
        wall_seconds=wall_seconds, fingerprint="f" * 32,
    )  # fmt: skip
    return SimpleNamespace(manifest=manifest)


@pytest.mark.parametrize(
    ("before", "reasons"),
    [
        (artifact(keep=3), ["option keep: 3 → (none)"]),
        (artifact(sampling={"n": 4}), ["option sampling.n: 4 → (none)"]),
        (artifact(0, sampling={"n": 4}), ["a new version of the stage"]),
        (artifact(0), ["a new version of the stage"]),
    ],
)
def test_differences(before: Any, reasons: list[str]) -> None:
    node: Any = SimpleNamespace(draft=artifact().manifest)
    assert differences(before, node) == reasons


THOUSAND, ONE = artifact(metrics={"rows": 1000}), artifact(metrics={"rows": 1})


@pytest.mark.parametrize(
    ("units", "earlier", "seconds"),
    [
        (100, [], None),
        (None, [THOUSAND], None),
        (100, [THOUSAND], 11.0),
        (0, [THOUSAND, ONE], 0.0),
        # Nearly all of the later one's time was its start.
        (100, [THOUSAND, ONE], 11.0),
        # One that resumed did not take the time of all its samples.
        (100, [artifact(metrics={"rows": 1000, "samples_per_second": 5.0})], 20.0),
        # Another engine has another speed.
        (100, [artifact(metrics={"rows": 1000}, engine="other")], None),
    ],
)
def test_seconds(units: float | None, earlier: list[Any], seconds: float | None) -> None:
    node: Any = SimpleNamespace(name="first", stage=SimpleNamespace(units=("rows",)), draft=artifact().manifest)
    expected = (seconds, "" if seconds is None else "as first/ffffffffffff")
    assert estimate(node, Amount(units=units), earlier) == expected

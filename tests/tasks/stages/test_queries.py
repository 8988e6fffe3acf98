"""Held-out captions in other words: what is asked, what it costs, and what is left after a death."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.storage.parquet import read_table
from paraclip.tasks.batch_files import export_requests, import_answers
from paraclip.tasks.plan import plan_run
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.config import Settings
from paraclip_core.errors import AwayError, ConfigError
from paraclip_core.settings import parse_settings
from paraclip_core.tables import PARAPHRASE_REJECTS, QUERIES
from tests.kit.openai_server import OpenAIServer, reset
from tests.kit.small_runs import HERE, contents, made
from tests.kit.tiny_run import served, tiny_run, written

IMAGES, HELD_OUT = 30, 12
SCRIPTED = {"engine": "tests.kit.scripted_engine:Well", "model": "m", "filters": {"preset": "off"}}
BOTH = ("paraphrase_1", "paraphrase_2", "queries")


def settings_of(folder: Path, paraphrase: dict[str, Any], queries: Any = None, root: str = "root") -> Settings:
    """One caption an image; the last images are held out."""
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = [
            (f"{n}.png", f"the car {n} near a beach is fast", "train" if n < IMAGES - HELD_OUT else "val")
            for n in range(IMAGES)
        ]
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    (folder / "pics").mkdir(exist_ok=True)
    for name, _, _ in rows:
        (folder / "pics" / name).write_bytes(b"")
    data = {"root": str(folder), "sources": [{"path": "captions.csv", "images": "pics"}]}
    run = {"root": str(folder / root), "threads": 1}
    evaluate = {} if queries is None else {"evaluate": {"queries": queries}}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": run, **evaluate})


def queries_of(settings: Settings) -> Artifact:
    made("ingest", settings)
    return made("queries", settings)


def server(url: str, **openai: Any) -> dict[str, Any]:
    prices = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    options = {"base_url": url, "api_key_env": "NO_KEY", "concurrency": 2, "retries": 1}
    paraphrase = {"engine": "openai", "model": "smol", "prompts": "paper", "filters": {"preset": "off"}, "chunk": 4}
    return paraphrase | {"sampling": {"n": 1, "max_tokens": 5}, "openai": options | prices | openai}


def test_every_held_out_image_gets_one_query(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, SCRIPTED | {"fraction": 0.1, "keep": 3})
    artifact = queries_of(settings)
    rows = read_table(artifact.path / "queries.parquet")
    assert rows.schema == QUERIES and rows.num_rows == HELD_OUT
    for row in rows.to_pylist():
        assert row["caption"] == f"the car {row['image_id'].removesuffix('.png')} near a beach is fast"
        assert (row["paraphrase_1"], row["paraphrased_query"]) == (
            f"well {row['caption']}",
            f"well well {row['caption']}",
        )
    metrics = artifact.manifest.metrics
    assert [metrics[name] for name in ("captions", "accepted", "generated", "prompt_tokens")] == [12, 12, 24, 240]
    samples = HERE["queries"].samples(artifact)
    assert samples[0]["outcome"] == "kept" and samples[0]["answer"].startswith("well well ")


def test_rejects_are_kept_and_none_accepted_is_no_error(tmp_path: Path) -> None:
    artifact = queries_of(settings_of(tmp_path, SCRIPTED | {"engine": "tests.kit.scripted_engine:Writer"}))
    rejects, metrics = read_table(artifact.path / "rejects"), artifact.manifest.metrics
    assert rejects.schema == PARAPHRASE_REJECTS and set(rejects["step"].to_pylist()) >= {1}
    assert 0 < metrics["accepted"] < HELD_OUT and sum(metrics["rejected"].values()) == rejects.num_rows
    nothing = SCRIPTED | {"filters": {"preset": "off", "extra": ["tests.kit.scripted_filters:never"]}}
    empty = queries_of(settings_of(tmp_path, nothing))
    assert read_table(empty.path / "queries.parquet").num_rows == empty.manifest.metrics["accepted"] == 0
    assert read_table(empty.path / "queries.parquet").schema == QUERIES


def test_a_split_without_images_asks_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, SCRIPTED | {"engine": "tests.kit.scripted_engine:Refusing"})
    settings = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"split": "test"})})
    assert queries_of(settings).manifest.metrics == {"captions": 0, "accepted": 0, "kept": 0}


def test_a_death_costs_nothing_twice_and_the_cap_counts_all(openai_server: OpenAIServer, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, server(openai_server.url))
    made("ingest", settings)
    well = openai_server.answer
    openai_server.answer = lambda asked: well(asked) if _answered(openai_server) < 17 else reset
    with pytest.raises(AwayError):
        made("queries", settings)
    openai_server.answer = well
    before = _answered(openai_server)
    assert 17 <= before < 20, "step 2 had begun"
    artifact = made("queries", settings)
    assert _answered(openai_server) == 2 * HELD_OUT and set(openai_server.answered.values()) == {1}
    assert artifact.manifest.metrics["spend"] == pytest.approx(2 * artifact.manifest.metrics["generated"])
    # Training captions are others, and a new root has the same bytes.
    for name in BOTH[:2]:
        made(name, settings)
    assert _answered(openai_server) == 2 * IMAGES
    calm = queries_of(settings_of(tmp_path, server(openai_server.url), root="calm"))
    assert contents(calm) == contents(artifact)


def _answered(server: OpenAIServer) -> int:
    return sum(server.answered.values())


def test_plan_and_batch_files_count_its_requests(openai_server: OpenAIServer, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, server(openai_server.url, max_spend=70))
    made("ingest", settings)
    plan = plan_run(Run(settings))
    planned = {stage.stage: stage for stage in plan.stages}
    training, queries = planned["paraphrase_1"], planned["queries"]
    assert (training.requests, queries.rows, queries.requests) == (IMAGES - HELD_OUT, HELD_OUT, 2 * HELD_OUT)
    assert training.spend and queries.spend == pytest.approx(training.spend * 24 / 18, rel=0.2)
    assert "paraphrase.openai.max_spend=70: 70 is left to spend" in plan.notes
    exported = export_requests(Run(settings), tmp_path / "ask.jsonl")
    assert exported.requests == exported.unanswered_1 == IMAGES
    for name in BOTH:
        made(name, settings_of(tmp_path, server(openai_server.url)))
    planned = {stage.stage: stage for stage in plan_run(Run(settings)).stages}
    assert (planned["queries"].state, planned["queries"].requests) == ("cached", 0)
    assert export_requests(Run(settings), tmp_path / "ask.jsonl").requests == 0
    other = settings_of(tmp_path, server(openai_server.url), {"model": "other"})
    planned = {stage.stage: stage for stage in plan_run(Run(other)).stages}
    assert planned["queries"].requests == 2 * HELD_OUT and planned["paraphrase_1"].state == "cached"
    assert export_requests(Run(other), tmp_path / "ask.jsonl").requests == 0, "a batch file is of one model"


def test_a_batch_file_asks_nothing_twice(tmp_path: Path) -> None:
    """A training caption's paraphrase 1 and a held-out one's may be equal, and a vendor refuses an id that repeats."""
    settings = settings_of(tmp_path, server("http://127.0.0.1:9/v1"))
    ask, back = tmp_path / "ask.jsonl", tmp_path / "back.jsonl"
    export_requests(Run(settings), ask)
    body = {"choices": [{"index": 0, "message": {"content": "a quick car"}}]}
    answers = [
        {"custom_id": json.loads(line)["custom_id"], "response": {"status_code": 200, "body": body}}
        for line in ask.read_text().splitlines()
    ]
    back.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert import_answers(Run(settings), [back]).new == IMAGES
    assert export_requests(Run(settings), ask).requests == len(ask.read_text().splitlines()) == 1


def test_another_engine_for_the_evaluation_is_a_stage_of_its_own(tmp_path: Path) -> None:
    def nodes(queries: Any, **paraphrase: Any) -> dict[str, str]:
        run = Run(settings_of(tmp_path, SCRIPTED | paraphrase, queries), stages=HERE)
        return {name: run.node(name).fingerprint for name in BOTH}

    same, other = nodes({}), nodes({"model": "other", "sampling": {"n": 3}})
    assert {name for name in same if same[name] != other[name]} == {"queries"}
    # What does not apply to it changes it as little.
    shared = nodes({}, fraction=0.5, keep=2)
    assert shared["queries"] == same["queries"] and shared["paraphrase_1"] != same["paraphrase_1"]
    assert nodes({}, prompt_2="Say {} otherwise.")["queries"] != same["queries"]
    artifact = queries_of(settings_of(tmp_path, SCRIPTED, {"model": "other"}))
    assert artifact.manifest.metrics["model"] == "well other"
    off = Run(parse_settings({"evaluate": {"queries": None}}))
    assert "queries" not in off.stages and "queries" not in off.stages["evaluate"].inputs(off.settings)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"queries": {"keep": 2}}, r"keep does not apply: each of the chosen captions is paraphrased once"),
        ({"queries": {"sampling": {"n": 0}}}, r"evaluate\.queries\.sampling\.n"),
        ({"queries": {"modl": "x"}}, r"evaluate\.queries\.modl"),
        (
            {"benchmarks": [{"name": "held_out_queries", "kind": "retrieval"}]},
            "'held_out_queries' is the name of a benchmark that evaluate.queries adds; give yours another one",
        ),
    ],
)
def test_wrong_options_are_refused_by_name(evaluate: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings({"evaluate": evaluate})
    if "benchmarks" in evaluate:
        parse_settings({"evaluate": evaluate | {"queries": None}})


@pytest.mark.slow
def test_a_run_without_pairs_of_its_own_has_a_verdict_on_held_out_queries(
    openai_server: OpenAIServer, tmp_path: Path
) -> None:
    tree = tiny_run(tmp_path, served(openai_server.url))
    tree["evaluate"] = {"benchmarks": [{"name": "retrieval", "kind": "retrieval"}]}
    for stage in ("built_in_base", "finetune"):
        tree[stage]["epochs"] = 1
    openai_server.answer = written
    settings = parse_settings(tree)
    run = Run(settings, stages={name: HERE[name] for name in stages_of(settings)})
    artifacts = {name: run_stage(name, run) for name in run.stages}
    queries = artifacts["queries"].manifest.metrics["accepted"]
    assert 10 < queries <= 30 and set(openai_server.answered.values()) == {1}
    comparison = json.loads((artifacts["evaluate"].path / "comparison.json").read_text())
    assert comparison["protocols"]["held_out_queries"]["pairs"] == queries
    assert {row["benchmark"] for row in comparison["rows"]} == {"held_out_queries", "held_out_by_rule", "retrieval"}
    assert "was not measured" not in comparison["reason"]
    page = (artifacts["report"].path / "report.html").read_text("utf-8")
    assert f"openai smol ({queries} queries)" in page and "held_out_queries" in page

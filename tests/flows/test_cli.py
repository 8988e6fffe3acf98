"""The command line: exit codes, messages and what machines read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import jsonschema
import pytest
import yaml

from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip_core.config import Settings

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = [
    "ingest", "paraphrase_1", "paraphrase_2", "queries", "features", "built_in_base", "finetune", "evaluate",
    "report",
]  # fmt: skip


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "--nonsense"], ["artifacts", "show"], ["search", "a dog"]])
def test_wrong_usage_ends_with_2(arguments: list[str], cli: Any) -> None:
    cli(arguments, code=2)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_run_of_nothing_is_wrong_usage(command: str, tmp_path: Path, cli: Any) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n")
    data = json.dumps({"root": str(tmp_path), "on_error": "skip", "sources": [{"path": "a.csv"}]})
    error = cli([command, "--set", f"data={data}", "--root", str(tmp_path / "root")], code=2).err
    assert error.startswith("error: there is nothing to run on, for no source has a row: a.csv has none")
    assert not (tmp_path / "root" / "work").exists() and not (tmp_path / "root" / "prefect").exists()


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("config", ["flickr8k", "flickr8k-paraphrases"])
@pytest.mark.parametrize("root", ["empty", "absent"])
def test_a_wrong_folder_of_data_is_wrong_usage(
    command: str, config: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    chosen = ["-c", config, "--set", f"data.root={tmp_path / root}", "--root", str(tmp_path / "root")]
    error = cli([command, *chosen], code=2).err
    assert error.startswith("error: this run needs files and folders that are not there:\n")
    assert f"  {tmp_path / root}/" in error and "[data.sources[0].path" in error
    assert ("which is not a folder" in error) == (root == "absent")
    assert not (tmp_path / "root" / "work").exists() and not (tmp_path / "root" / "prefect").exists()


def test_a_finished_run_says_so_stage_by_stage(finished_run: Callable[..., Any], cli: Any) -> None:
    run = finished_run()
    shown = cli(["run", "-c", str(run.config)]).out
    assert "Nothing to do" in shown and all(stage in shown for stage in STAGES)
    assert "+2.50" in shown and "[+1.00, +4.00]" in shown
    assert "verdict: hold (because this test says so; trained on 137 of 4,512 captions)" in shown
    folder = run.store.root / "results" / "made"
    assert f"report: {folder / 'report.html'}" in shown and f"summary: {folder / 'summary.json'}" in shown
    assert (folder / "report.html").read_text() == "<title>made</title>"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"] == "hold"
    assert f"note: {summary['notes'][-1]}" in shown and "tuned is the base itself" in summary["notes"][-1]
    cells = ["4,512", "150 (3.3 %), 320 paraphrases", "137 (3.0 %)"]
    assert all(word in shown for word in ("asked", "kept", "trained on", *cells))
    first = shown.splitlines()[0]
    assert first.startswith(
        "warning: trained on 137 of 4,512 captions, fewer than one batch (finetune.batch_size is 256)"
    )
    assert summary["rows"] == {"asked": 4512, "kept": 150, "paraphrases": 320, "trained_on": 137}
    assert f"warning: {summary['notes'][0]}" == first
    overrides = ["finetune.batch_size=137"]
    outcome = cli.json(["run", "-c", str(finished_run(*overrides).config), "--set", *overrides])
    assert outcome["warning"] is None and outcome["rows"] == outcome["summary"]["rows"] == summary["rows"]
    assert set(outcome) == {"name", "stages", "summary", "rows", "warning", "verdict", "report", "summary_path"}
    assert [row["stage"] for row in outcome["stages"]] == STAGES
    assert {row["state"] for row in outcome["stages"]} == {"cached"}
    assert outcome["summary"]["deltas"] == {"paraphrased_queries": {"ao@10": 2.5}}


def test_exit_codes_of_a_finished_run(finished_run: Callable[..., Any], cli: Any) -> None:
    config = str(finished_run().config)
    cli(["run", "-c", config, "--require-work"], code=3)
    cli(["run", "-c", config, "--gate"], code=4)
    better = str(finished_run("finetune.seed=1", verdict="promote").config)
    cli(["run", "-c", better, "--set", "finetune.seed=1", "--gate"])


def test_a_run_from_a_stage_makes_nothing_before_it(
    finished_run: Callable[..., Any], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(finished_run().config)
    started: list[Path] = []

    def start(root: Path) -> None:
        started.append(root)
        raise KeyboardInterrupt

    monkeypatch.setattr("paraclip.flows.commands.run.prepare_prefect", start)
    cli(["run", "-c", config, "--from", "finetune"])
    assert not started
    for stage in ("features", "built_in_base", "finetune"):
        cli(["run", "-c", config, "--set", "finetune.seed=5", "--from", stage], code=130)
    assert len(started) == 3
    for override, stage, missing in (
        ("finetune.seed=5", "evaluate", "finetune must be finished and is not"),
        ("paraphrase.seed=5", "finetune", "paraphrase_1, paraphrase_2, queries must be finished and are not"),
        ("finetune.seed=5", "finetunes", "no stage 'finetunes'; it has ingest, paraphrase_1"),
    ):
        assert missing in cli(["run", "-c", config, "--set", override, "--from", stage], code=2).err
    assert len(started) == 3


def test_a_finished_run_needs_neither_torch_nor_prefect(finished_run: Callable[..., Any]) -> None:
    code = (
        "import sys; from paraclip.flows.cli import run_cli; code = run_cli(sys.argv[1:]);"
        "print(sorted({'torch', 'prefect', 'transformers', 'matplotlib'} & set(sys.modules))); sys.exit(code)"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "-c", str(finished_run().config)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    # Seconds at work, which a busy machine does not stretch as it does those on the clock.
    assert os.times().children_user - before.children_user < 10


def test_a_plan_for_people_and_machines(finished_run: Callable[..., Any], cli: Any, tmp_path: Path) -> None:
    config = str(finished_run().config)
    assert "total: no time is known yet, " in cli(["plan", "-c", config, "--root", str(tmp_path / "new")]).out
    assert "total: 0.0 s, 0 requests, " in cli(["plan", "-c", config]).out
    plan = cli.json(["plan", "-c", config])
    assert [stage["state"] for stage in plan["stages"]] == ["cached"] * len(STAGES)
    assert plan["total"] == {"requests": 0, "tokens": 0, "seconds": 0, "complete": True}
    plan = cli.json(["plan", "-c", config, "--set", "finetune.epochs=9"])
    to_run = {stage["stage"]: stage for stage in plan["stages"] if stage["state"] == "to run"}
    assert list(to_run) == ["finetune", "evaluate", "report"]
    assert to_run["finetune"]["why"] == ["option finetune.epochs: 10.0 → 9.0"]
    assert set(to_run["report"]) >= {"rows", "requests", "tokens", "seconds", "note", "fingerprint"}


def test_verify_ends_with_1_where_something_differs(finished_run: Callable[..., Any], cli: Any) -> None:
    run = finished_run()
    (run.artifacts["ingest"].path / "made.txt").write_text("other")
    report = cli.json(["artifacts", "verify", "--root", str(run.store.root)], code=1)
    assert [entry["stage"] for entry in report["damaged"]] == ["ingest"]
    (run.artifacts["finetune"].path / "made.txt").write_text("edited by hand")
    assert "is damaged" in (error := cli(["run", "-c", str(run.config)], code=1).err) and "made.txt" in error


def test_promote(finished_run: Callable[..., Any], cli: Any) -> None:
    first = finished_run(verdict="promote")
    config = ["-c", str(first.config)]
    decision = cli.json(["promote", *config])
    assert decision["moved"] and decision["after"] == first.artifacts["finetune"].fingerprint
    # A night without a change.
    assert not cli.json(["promote", *config, "--gate"])["moved"]
    held = finished_run("finetune.seed=1", verdict="hold")
    other = ["promote", *config, "--set", "finetune.seed=1"]
    assert "production: kept at" in cli([*other, "--gate"], code=4).out
    theirs = [*other, "--set", "name=theirs"]
    finished_run("finetune.seed=1", "name=theirs")
    assert "'production' serves a model of the run 'made' since" in cli(theirs, code=2).err
    assert cli.json([*theirs, "--force"])["after"] == held.artifacts["finetune"].fingerprint
    assert "'theirs'" in cli(["promote", *config], code=2).err
    error = cli(["promote", *config, "--set", "finetune.seed=2", "--force"], code=2).err
    assert "is not finished (finetune, evaluate, report)" in error
    root = ["--root", str(first.store.root)]
    finished_run("finetune.seed=7")
    assert cli.json(["artifacts", "gc", *root])["items"] == []
    assert "young; see --keep-days" in cli(["artifacts", "gc", *root]).out
    first.config.unlink()
    back = cli.json(["channel", "rollback", "production", *root])
    assert back["moved"] and back["after"] == first.artifacts["finetune"].fingerprint
    moves = cli.json(["channel", "history", "production", *root])["moves"]
    assert [move["by"] for move in moves] == ["rollback", "promotion", "promotion"]
    assert [move["run"] for move in moves] == ["made", "theirs", "made"]
    assert " of the run made, moved by promotion" in cli(["artifacts", "ls", *root]).out
    shown = cli(["channel", "history", "production", *root]).out
    assert "by hand" in shown and "theirs" in shown and "promote" in shown


def test_config_show_is_a_configuration(cli: Any) -> None:
    tree = yaml.safe_load(cli(["config", "show", "--set", "finetune.epochs=3"]).out)
    assert Settings.model_validate(tree).finetune.epochs == 3
    assert cli.json(["config", "show"])["finetune"]["epochs"] == 10
    assert yaml.safe_load(cli(["config", "show", "--root", "a: [b"]).out)["run"]["root"] == "a: [b"
    assert cli.json(["config", "schema"])["properties"]["finetune"]
    assert "data.sources.0.path" in cli(["config", "schema"]).out


class EditorsLoader(yaml.SafeLoader):
    """YAML 1.2, as editors read it: `off` is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def test_an_editor_is_told_of_todays_options(cli: Any) -> None:
    text = (CONFIGS / "schema.json").read_text()
    assert text == cli(["config", "schema", "--json"]).out, "paraclip config schema --json > configs/schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(text))
    validator.check_schema(validator.schema)
    for config in CONFIGS.glob("*.yaml"):
        first, *_ = config.read_text().splitlines()
        assert first == "# yaml-language-server: $schema=schema.json", config.name
        assert list(validator.iter_errors(yaml.load(config.read_text(), EditorsLoader))) == []
    wrong = {"finetune": {"epochs": "many", "lerning_rate": 1}, "data": {"on_error": "cry"}}
    assert {error.validator for error in validator.iter_errors(wrong)} == {"type", "additionalProperties", "enum"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_one_message_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "paraclip.flows.cli", "config", "show"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


PAIR = ("-m", "base=base", "-m", "tuned=tuned")


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> Callable[..., str]:
    """Calls the command where such files lie; gives the error, for the benchmark is none that could be measured."""

    def called(*options: str, here: str = "here", benchmark: str = "1", weights: str = "1", code: int = 1) -> str:
        for model in ("base", "tuned"):
            (tmp_path / here / model).mkdir(parents=True, exist_ok=True)
            (tmp_path / here / model / "open_clip_config.json").write_text("{}")
            (tmp_path / here / model / "open_clip_model.safetensors").write_text(weights)
        (tmp_path / here / "s.tsv").write_text(benchmark)
        monkeypatch.chdir(tmp_path / here)
        return cli(["evaluate", *options, "--benchmark", "stsb=s.tsv", f"--root={tmp_path}/r"], code).err

    return called


def test_no_comparison_writes_over_the_results_of_another(tmp_path: Path, evaluate: Callable[..., str]) -> None:
    for files, folders in (
        ({}, 1),
        ({}, 1),
        ({"benchmark": "2"}, 2),
        ({"here": "there", "benchmark": "3"}, 3),
        ({"here": "there", "benchmark": "3", "weights": "2"}, 4),
    ):
        assert "benchmark 'stsb': s.tsv, line 1" in evaluate(*PAIR, **files)
        # Made before anything is measured.
        assert len([*(tmp_path / "r" / "results" / "evaluate").iterdir()]) == folders
    # The other one is the base.
    evaluate(*PAIR[2:], *PAIR[:2])
    assert len([*(tmp_path / "r" / "results" / "evaluate").iterdir()]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "a=base"], "--model: 1 given, expected at least two, the base first"),
        (["-m", "a=base", "-m", "a=tuned"], "another model is named 'a'"),
        (["-m", "../a=base", "-m", "b=tuned"], "expected NAME=MODEL, the name of letters"),
        ([*PAIR, "--images", "gone"], "--images 'gone': gone does not exist"),
        ([*PAIR, "--images", "base"], "none of stsb reads images in addition to its path"),
        ([*PAIR, "--out", "s.tsv/results"], "cannot be created (Not a directory)"),
    ],
)
def test_wrong_options_are_reported_before_anything_is_measured(
    tmp_path: Path, evaluate: Callable[..., str], options: list[str], message: str
) -> None:
    assert message in evaluate(*options, code=2)
    assert not (tmp_path / "r" / "results").exists()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A root of its own, seen from the machine `one`."""
    bucket = uuid.uuid4().hex
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "one"))
    yield f"memory://{bucket}/root"
    if fsspec.filesystem("memory").exists(f"/{bucket}"):
        fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


def here(url: str) -> set[str]:
    """The stages whose artifacts were downloaded."""
    return {path.parent.name for path in (open_store(url).root / "artifacts").glob("*/*")}


def test_a_second_machine_has_nothing_to_do(
    finished_run: Callable[..., Any], url: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(f"run.root={url}")
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "two"))
    at = ["-c", str(run.config), "--set", f"run.root={url}"]
    plan = cli.json(["plan", *at])
    assert [stage["state"] for stage in plan["stages"]] == ["cached"] * len(STAGES)
    assert here(url) == set()
    outcome = cli.json(["run", *at, "--require-work"], code=3)
    assert outcome["summary"]["deltas"] == {"paraphrased_queries": {"ao@10": 2.5}}
    assert Path(outcome["report"]).read_text() == "<title>made</title>"
    # A run that only shows its outcome needs the outcome's artifacts and no other.
    assert here(url) == {"evaluate", "report"}
    assert {row["stage"] for row in outcome["stages"] if row["path"].startswith("memory://")} == {*STAGES} - here(url)

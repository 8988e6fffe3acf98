"""A reader, an engine, a filter, a benchmark and a stage that the package does not know, named in one YAML file
alone."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.settings import load_settings
from tests.kit.tiny_run import tiny_run

MODULE = '''
"""Everything that a user would write."""
import json

import numpy as np

from paraclip_core.captions.rows import Batcher
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Task
from paraclip_core.evaluation.base import Measured, Sample
from paraclip_core.paraphrase.engines import Completion, EngineFacts
from paraclip.storage.parquet import count_rows
from paraclip.tasks.run.run import Stage


def backwards(path, options):
    """JSON lines, from the last to the first."""
    rows = Batcher()
    for number, line in sorted(enumerate(path.read_text().splitlines(), 1), reverse=True):
        row = json.loads(line)
        rows.add(number, row["caption"], row["image"], row["image"], split=row["split"])
    yield from rows.rest()


class Numbering:
    """Begins each answer with a word of its options."""

    name = "numbering"
    facts = EngineFacts(filters="off")

    def __init__(self, options, context):
        self.word = options.options.get("word", "here")
        self.model = f"numbering-{self.word}"

    def generate(self, prompts, sampling):
        texts = [f"{self.word} number {len(p.text)} {p.text.split()[-1]} {p.step}" for p in prompts]
        return [Completion((text, p.text), 3, 4) for p, text in zip(prompts, texts)]

    def close(self):
        pass


def no_red(pair, options):
    """Who made this dislikes red."""
    return "it is red" if " red " in pair.answer else None


def count(context):
    """How many paraphrases there are."""
    rows = count_rows(context.inputs["paraphrase_2"].path / "paraphrases")
    (context.work.out / "rows.txt").write_text(f"{context.settings.name} {rows}")
    return {"rows": rows}


COUNT = Stage(
    name="count",
    version=1,
    inputs=lambda settings: ("paraphrase_2",),
    options=lambda run: {"name": run.settings.name},
    body=count,
)


def load(source):
    """Which of three texts is unlike the first?"""
    rows = [line.split("|") for line in source.path.read_text().splitlines()]

    def measure(encoder):
        first, like, odd = (encoder.texts([row[column] for row in rows]) for column in range(3))
        right = (first * like).sum(1) > (first * odd).sum(1) + source.options["margin"]
        each = np.arange(len(rows))
        samples = {"odd_accuracy": Sample(right.astype(float), each), "odd_rank": Sample(2.0 - right, each)}
        return Measured(samples, {"protocol": "cosines", "rows": len(rows)})

    return Task(measure)


ODD = Benchmark(
    "Odd one out",
    (Metric("odd_accuracy", "odd one found", headline=True), Metric("odd_rank", unit="places", lower_is_better=True)),
    load,
)
'''


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML file that names all five, whose module lies in a folder of its own on the path."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    paraphrase = {
        "engine": "my_parts:Numbering",
        "options": {"word": "look"},
        "filters": {"extra": ["my_parts:no_red"]},
        "fraction": 0.6,
        "keep": 2,
    }
    tree = tiny_run(tmp_path / "root", paraphrase)
    tree["data"]["sources"][0]["format"] = "my_parts:backwards"
    tree["run"]["stages"] = ["my_parts:COUNT"]
    odd = {"name": "odd", "kind": "my_parts:ODD", "path": str(tmp_path / "odd.txt"), "options": {"margin": 0.0}}
    tree["evaluate"]["benchmarks"].append(odd)
    # Nothing is said of what the training reaches.
    for training in ("built_in_base", "finetune"):
        tree[training]["epochs"] = 1
    tree["evaluate"]["gate"] = {"max_drop": {"my_parts:ODD/odd_rank": 2}}
    (tmp_path / "odd.txt").write_text("a dog|a hound|a car\na red car|a blue car|two cats\n")
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_a_whole_run_with_parts_of_the_users_own(own_parts: Path, cli: Any) -> None:
    settings = load_settings(own_parts)
    # In this process, which saves starting one for each stage, but for the user's own.
    stages = {name: replace(stage, isolated=name == "count") for name, stage in stages_of(settings).items()}
    whole = Run(settings, stages=stages)
    artifacts = {name: run_stage(name, whole) for name in stages}
    assert list(artifacts)[-1] == "count"
    captions = read_table(artifacts["ingest"].path / "captions").to_pylist()
    rows = [row["source_row"] for row in captions]
    assert rows == sorted(rows, reverse=True) and len(rows) > 50
    second = read_table(artifacts["paraphrase_2"].path / "paraphrases").to_pylist()
    assert second and all(row["paraphrase_2"].startswith("look number ") for row in second)
    # Both answers of step 1 are kept, where the filter has nothing against them.
    captions_kept = {row["caption_id"] for row in second}
    assert len(captions_kept) < len(second) < 2 * len(captions_kept)
    assert any(" red " in row["caption"] for row in second)
    assert not [row for row in second if " red " in row["paraphrase_1"] + row["paraphrase_2"]]
    metrics = [artifacts[f"paraphrase_{step}"].manifest.metrics for step in (1, 2)]
    assert [each["model"] for each in metrics] == ["numbering-look"] * 2
    assert metrics[0]["kept"] == metrics[1]["captions"] >= metrics[1]["kept"] == len(second)
    assert metrics[1]["accepted"] == len(captions_kept)
    assert (artifacts["count"].path / "rows.txt").read_text() == f"{settings.name} {len(second)}"
    rows = json.loads((artifacts["evaluate"].path / "comparison.json").read_text())["rows"]
    figures = {row["metric"]: row["base"] for row in rows if row["benchmark"] == "odd"}
    assert figures["odd_accuracy"] in (0, 50, 100) and figures["odd_rank"] == 2 - figures["odd_accuracy"] / 100
    result = json.loads((artifacts["evaluate"].path / "results/tuned/odd.json").read_text())
    assert (result["task"], set(result["metrics"])) == ("Odd one out", {"odd_accuracy", "odd_rank"})
    page = (artifacts["report"].path / "report.html").read_text("utf-8")
    for shown in (r"odd one found .*· odd", "Odd one out", "odd rank, places.*lower is better"):
        assert re.search(shown, page), shown
    assert {stage["state"] for stage in planned(own_parts, cli).values()} == {"cached"}
    table = cli(["run", "-c", str(own_parts)]).out
    assert re.search(r"odd +(│ )?odd_accuracy", table) and re.search(r"odd +(│ )?odd_rank", table)


def planned(config: Path, cli: Any, *options: str) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in cli.json(["plan", "-c", str(config), *options])["stages"]}


def test_the_plan_knows_them_and_their_code(own_parts: Path, cli: Any) -> None:
    before = planned(own_parts, cli)
    assert before["paraphrase_1"]["requests"] >= 10 and before["paraphrase_1"]["state"] == "to run"
    # `off` needs no quotes, and another word is another model.
    text = own_parts.read_text().replace("filters:\n", "filters:\n    preset: off\n")
    assert text != own_parts.read_text()
    own_parts.write_text(text)
    assert planned(own_parts, cli)["paraphrase_1"]["fingerprint"] == before["paraphrase_1"]["fingerprint"]
    other = planned(own_parts, cli, "--set", "paraphrase.options.word=see")
    assert other["ingest"]["fingerprint"] == before["ingest"]["fingerprint"]
    assert other["paraphrase_1"]["fingerprint"] != before["paraphrase_1"]["fingerprint"]
    module = own_parts.parent / "elsewhere" / "my_parts.py"
    module.write_text(MODULE.replace('if " red "', 'if " green "'))
    changed = planned(own_parts, cli)
    assert changed["paraphrase_1"]["fingerprint"] != before["paraphrase_1"]["fingerprint"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.sources.0.format", "my_parts:forwards"),
        ("paraphrase.engine", "my_parts:Counting"),
        ("paraphrase.filters.extra", "[my_parts:no_green]"),
        ("evaluate.benchmarks.2.kind", "my_parts:EVEN"),
        ("run.stages", "[my_parts:OTHER]"),
    ],
)
def test_a_part_that_is_not_there_is_reported_before_anything_runs(
    option: str, value: str, own_parts: Path, cli: Any
) -> None:
    for command in ("plan", "run"):
        message = cli([command, "-c", str(own_parts), "--set", f"{option}={value}"], code=2).err
        assert re.sub(r"\.\d\.", "[].", option) in message and value.strip("[]") in message and "PYTHONPATH" in message
    assert not (own_parts.parent / "root" / "artifacts").exists()

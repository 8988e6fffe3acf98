"""An engine and a filter that the package does not know, named in one YAML file alone."""

from __future__ import annotations

import os
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
from paraclip_core.paraphrase.engines import Completion, EngineFacts


class Numbering:
    """Begins each answer with a word of its options."""

    name = "numbering"
    facts = EngineFacts()

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
'''


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML file that names both, whose module lies in a folder of its own on the path."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    paraphrase = {
        "engine": "my_parts:Numbering",
        "options": {"word": "look"},
        "filters": {"preset": "off", "extra": ["my_parts:no_red"]},
        "fraction": 0.6,
        "keep": 2,
    }
    tree = tiny_run(tmp_path / "root", paraphrase)
    # Nothing is said of what the training reaches.
    for training in ("built_in_base", "finetune"):
        tree[training]["epochs"] = 1
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_a_whole_run_with_parts_of_the_users_own(own_parts: Path, cli: Any) -> None:
    settings = load_settings(own_parts)
    # In this process, which saves starting one for each stage, but for one that asks.
    stages = {name: replace(stage, isolated=name == "paraphrase_2") for name, stage in stages_of(settings).items()}
    whole = Run(settings, stages=stages)
    artifacts = {name: run_stage(name, whole) for name in stages}
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
    assert {stage["state"] for stage in planned(own_parts, cli).values()} == {"cached"}


def planned(config: Path, cli: Any, *options: str) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in cli.json(["plan", "-c", str(config), *options])["stages"]}


def test_the_plan_knows_them_and_their_code(own_parts: Path, cli: Any) -> None:
    before = planned(own_parts, cli)
    assert before["paraphrase_1"]["requests"] >= 10 and before["paraphrase_1"]["state"] == "to run"
    # `off` needs no quotes, and another word is another model.
    text = own_parts.read_text().replace("preset: 'off'", "preset: off")
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
        ("paraphrase.engine", "my_parts:Counting"),
        ("paraphrase.filters.extra", "[my_parts:no_green]"),
    ],
)
def test_a_part_that_is_not_there_is_reported_before_anything_runs(
    option: str, value: str, own_parts: Path, cli: Any
) -> None:
    for command in ("plan", "run"):
        message = cli([command, "-c", str(own_parts), "--set", f"{option}={value}"], code=2).err
        assert option in message and value.strip("[]") in message and "PYTHONPATH" in message
    assert not (own_parts.parent / "root" / "artifacts").exists()

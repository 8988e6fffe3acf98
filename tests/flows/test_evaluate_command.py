"""`paraclip evaluate`: where the results go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PAIR = ("-m", "base=base", "-m", "tuned=tuned")


@pytest.fixture
def folder_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> Callable[[Path], Path]:
    """The folder of the results of an evaluation that is called in a given folder."""
    written: list[Path] = []

    def write_evaluation(folder: Path, *_: object) -> dict[str, Any]:
        written.append(folder)
        return {"verdict": "hold"}

    def evaluated(here: Path) -> Path:
        monkeypatch.chdir(here)
        options = f"-m base=base -m tuned=tuned --benchmark stsb=s.tsv --root {tmp_path}/r"
        cli.json(["evaluate", *options.split()])
        return written[-1]

    monkeypatch.setattr(
        "paraclip.tasks.comparison.compare_models", lambda *_, **__: SimpleNamespace(evaluations={"tuned": None})
    )
    monkeypatch.setattr("paraclip.tasks.comparison.write_evaluation", write_evaluation)
    return evaluated


def _write(folder: Path, benchmark: str = "1", weights: str = "1") -> Path:
    for model in ("base", "tuned"):
        (folder / model).mkdir(parents=True, exist_ok=True)
        (folder / model / "open_clip_config.json").write_text("{}")
        (folder / model / "open_clip_model.safetensors").write_text(weights)
    (folder / "s.tsv").write_text(benchmark)
    return folder


def test_no_comparison_writes_over_the_results_of_another(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    folders = [folder_of(_write(tmp_path / "here"))]
    assert folder_of(_write(tmp_path / "here")) == folders[0]
    assert folders[0].parent == tmp_path / "r" / "results" / "evaluate"
    folders.append(folder_of(_write(tmp_path / "here", benchmark="2")))
    folders.append(folder_of(_write(tmp_path / "there", benchmark="3")))
    folders.append(folder_of(_write(tmp_path / "there", benchmark="3", weights="2")))
    assert len(set(folders)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "a=base"], "--model: 1 given, expected two at least, the base first"),
        (["-m", "a=base", "-m", "a=tuned"], "another model has the name 'a'"),
        (["-m", "../a=base", "-m", "b=tuned"], "expected NAME=MODEL, the name of letters"),
        ([*PAIR, "--images", "gone"], "--images 'gone': gone does not exist"),
        ([*PAIR, "--images", "base"], "none of stsb reads images beside its path"),
        ([*PAIR, "--out", "s.tsv/results"], "cannot be made (Not a directory)"),
    ],
)
def test_wrong_options_are_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, options: list[str], message: str
) -> None:
    monkeypatch.chdir(_write(tmp_path / "here"))
    monkeypatch.setattr("paraclip.tasks.comparison.compare_models", lambda *_, **__: pytest.fail("it was measured"))
    assert message in cli(["evaluate", *options, "--benchmark", "stsb=s.tsv", f"--root={tmp_path}/r"], code=2).err

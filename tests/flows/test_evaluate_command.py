"""`paraclip evaluate`: where the results go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import run_cli


@pytest.fixture
def folder_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """The folder of the results of an evaluation that is called in a given folder."""
    written: list[Path] = []

    def write_evaluation(folder: Path, *_: object) -> dict[str, Any]:
        written.append(folder)
        return {"verdict": "hold"}

    def evaluated(here: Path) -> Path:
        monkeypatch.chdir(here)
        models = ["--base", "base", "--tuned", "tuned"]
        assert run_cli(["evaluate", *models, "--benchmark", "stsb=s.tsv", "--json", "--root", str(tmp_path / "r")]) == 0
        return written[-1]

    monkeypatch.setattr("paraclip_core.evaluation.run.evaluate_models", lambda *_, **__: None)
    monkeypatch.setattr("tasks.stages.evaluate.write_evaluation", write_evaluation)
    return evaluated


def _write(folder: Path, benchmark: str = "1", weights: str = "1") -> Path:
    for model in ("base", "tuned"):
        (folder / model).mkdir(parents=True, exist_ok=True)
        (folder / model / "open_clip_config.json").write_text("{}")
        (folder / model / "open_clip_model.safetensors").write_text(weights)
    (folder / "s.tsv").write_text(benchmark)
    return folder


def test_no_comparison_writes_over_the_results_of_another(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    found = [folder_of(_write(tmp_path / "here"))]
    assert folder_of(_write(tmp_path / "here")) == found[0]
    assert found[0].parent == tmp_path / "r" / "results" / "evaluate"
    found.append(folder_of(_write(tmp_path / "here", benchmark="2")))
    found.append(folder_of(_write(tmp_path / "there", benchmark="3")))
    found.append(folder_of(_write(tmp_path / "there", benchmark="3", weights="2")))
    assert len(set(found)) == 4


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object, **__: object) -> None:
        pytest.fail("it was measured")

    monkeypatch.setattr("paraclip_core.evaluation.run.evaluate_models", measured)
    monkeypatch.chdir(_write(tmp_path / "here"))
    (tmp_path / "file").touch()
    models = ["--base", "base", "--tuned", "tuned", "--out", str(tmp_path / "file" / "results")]
    assert run_cli(["evaluate", *models, "--benchmark", "stsb=s.tsv", "--root", str(tmp_path / "r")]) == 2
    assert "--out: " in (told := capsys.readouterr().err) and "cannot be made (Not a directory)" in told

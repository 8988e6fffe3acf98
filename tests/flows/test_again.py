"""`--regenerate` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from paraclip.flows.cli import run_cli
from paraclip.flows.commands.run import asking_again
from paraclip_core.config import ParaphraseOptions, Settings
from paraclip_core.settings import load_settings

Capture = pytest.CaptureFixture[str]


def test_options_are_entries_of_the_configuration() -> None:
    plain = load_settings(None, ["paraphrase.regenerate=[empty]"])
    assert asking_again(plain, ["echo"]).paraphrase.regenerate == ("empty", "echo")
    assert asking_again(plain, None) is plain


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--regenerate", ""], "'' is no reason for a rejection"),
        (["--regenerate", "ecko"], "'ecko' is no reason for a rejection; there are empty"),
        (["--regenerate", "echo", "--set", "paraphrase.engine=file"], "gives the same answers"),
    ],
)
def test_wrong_options_end_with_2(
    finished_run: Callable[..., Any], arguments: list[str], why: str, capsys: Capture
) -> None:
    config = str(finished_run().config)
    for command in ("run", "plan"):
        assert run_cli([command, "-c", config, *arguments]) == 2
        error = capsys.readouterr().err
        assert why in error and "Traceback" not in error


def test_the_same_entries_find_the_same_artifacts(finished_run: Callable[..., Any], capsys: Capture) -> None:
    plain = finished_run()
    asked = finished_run("paraphrase.regenerate=[echo, empty]")
    for name in ("paraphrase_1", "paraphrase_2", "finetune"):
        assert plain.artifacts[name].fingerprint != asked.artifacts[name].fingerprint
    options = ["--regenerate", "echo", "--regenerate", "empty"]
    assert run_cli(["run", "-c", str(plain.config), *options]) == 0
    shown = capsys.readouterr().out
    # Found as finished, and told how to stay with it.
    assert "Nothing to do" in shown and asked.artifacts["finetune"].fingerprint in shown
    line = next(line for line in shown.splitlines() if line.startswith("  regenerate: "))
    written = Settings(paraphrase=ParaphraseOptions.model_validate(yaml.safe_load(line)))
    assert written.paraphrase.regenerate == asked.settings.paraphrase.regenerate
    assert run_cli(["run", "-c", str(plain.config), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert plain.artifacts["finetune"].fingerprint in str(outcome["stages"])

"""`paraclip sweep` and `calibrate` as a user sees them: what was measured is printed, however the sweep ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]

from flows.cli import run_cli

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.slow


def config(folder: Path, url: str, captions: int = 100, **openai: Any) -> list[str]:
    (folder / "captions.txt").write_text("".join(f"a red dog with number {n} on a beach\n" for n in range(captions)))
    server = {"base_url": url, "api_key_env": "NO_KEY", "retries": 0, "max_failures": 1} | openai
    settings = {
        "data": {"root": str(folder), "sources": [{"path": "captions.txt"}]},
        "paraphrase": {"engine": "openai", "model": "smol", "prompts": "paper", "openai": server},
        "run": {"root": str(folder / "root")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return ["-c", str(folder / "run.yaml")]


def trying(*values: int) -> list[str]:
    return ["--try", f"paraphrase.openai.concurrency={','.join(map(str, values))}"]


def test_each_trial_is_told_as_it_ends(openai_server: OpenAIServer, tmp_path: Path, capsys: Capture) -> None:
    assert run_cli(["sweep", *config(tmp_path, openai_server.url), *trying(1, 4), "--captions", "24"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("to measure: 2 combinations, 24 captions each")
    told = [line for line in out.splitlines() if line.startswith("paraphrase.openai.concurrency=")]
    assert [line.partition(":")[0] for line in told] == [f"paraphrase.openai.concurrency={n}" for n in (1, 4)]
    assert all("requests/s" in line for line in told)
    assert "fastest: paraphrase.openai.concurrency=4" in out and "failure" not in out


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_measured_is_printed_when_a_sweep_ends_early(
    openai_server: OpenAIServer, tmp_path: Path, capsys: Capture, as_json: bool
) -> None:
    # Twenty-four requests of ten and five tokens or so each fit under the cap, twice as many do not.
    prices: dict[str, Any] = {f"price_per_million_{kind}_tokens": 1e6 for kind in ("prompt", "completion")}
    options = config(tmp_path, openai_server.url, max_spend=700, **prices)
    ended = run_cli(["sweep", *options, *trying(1, 2), "--captions", "24", *(["--json"] if as_json else [])])
    out, err = capsys.readouterr()
    assert ended == 1 and "max_spend" in err
    if as_json:
        (trial,) = json.loads(out)
        assert trial["measured"]["requests"] == 16
    else:
        assert out.count("paraphrase.openai.concurrency=1") == 2 and "concurrency=2" not in out
        assert "It ended after 1 of 2 combinations." in out and "fastest" not in out


def test_nothing_measured_is_no_success(openai_server: OpenAIServer, tmp_path: Path, capsys: Capture) -> None:
    openai_server.stop()
    options = config(tmp_path, openai_server.url)
    assert run_cli(["sweep", *options, *trying(1), "--captions", "24"]) == 1
    assert "concurrency=1: failed: " in capsys.readouterr().out
    assert run_cli(["sweep", *options, *trying(1), "--captions", "24"]) == 1
    out = capsys.readouterr().out
    assert "left out, it failed before" in out and "--again" in out and "fastest" not in out


def test_too_few_captions_are_said_before_anything_is_asked(
    openai_server: OpenAIServer, tmp_path: Path, capsys: Capture
) -> None:
    options = config(tmp_path, openai_server.url)
    assert run_cli(["sweep", *options, *trying(4, 64)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "2 combinations would take 272 captions" in err and not openai_server.asked
    # Where nothing is named, what fits is tried.
    assert run_cli(["sweep", *config(tmp_path, openai_server.url, captions=150)]) == 0
    out = capsys.readouterr().out
    assert "left out paraphrase.openai.concurrency=64" in out and "to measure: 2 combinations, 64 captions each" in out


def test_a_calibration_says_what_it_could_not_see(openai_server: OpenAIServer, tmp_path: Path, capsys: Capture) -> None:
    options = config(tmp_path, openai_server.url, concurrency=30)
    assert run_cli(["calibrate", *options, "--captions", "20"]) == 0
    assert "up to 30 requests in flight, more than the 12 measured" in capsys.readouterr().out
    assert run_cli(["calibrate", *options, "--captions", "68"]) == 0
    assert "in flight" not in capsys.readouterr().out

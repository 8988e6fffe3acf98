"""Measuring an engine's rate: the answers are kept, and the plan uses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]

from paraclip_core.config import OpenAIOptions, ParaphraseOptions, Settings
from paraclip_core.errors import BudgetError, ConfigError, InputError
from paraclip_core.settings import parse_settings
from storage.roots import open_store
from tasks.calibration import calibrate, captions_needed, round_sizes
from tasks.planning import StagePlan, plan_run
from tasks.rates import measured_rate
from tasks.run import run_stage

CAPTIONS = 60


def settings_of(
    folder: Path, url: str, model: str = "smol", run: Mapping[str, Any] | None = None, **changes: Any
) -> Settings:
    (folder / "captions.txt").write_text("".join(f"a red dog with number {n} on a beach\n" for n in range(CAPTIONS)))
    paraphrase = {
        "engine": "openai",
        "model": model,
        "prompts": "paper",
        "gates": {"preset": "paper"},
        "sampling": {"n": 1, "max_tokens": 5},
        "openai": {"base_url": url, "api_key_env": "NO_KEY", "concurrency": 4},
    } | changes
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    return parse_settings(
        {"data": data, "paraphrase": paraphrase, "run": {"root": str(folder / "root")} | dict(run or {})}
    )


def step_1(settings: Settings) -> StagePlan:
    return {stage.stage: stage for stage in plan_run(settings, open_store(settings.run.root))}["paraphrase_1"]


@pytest.mark.slow
def test_the_rate_is_measured_on_captions_whose_answers_are_kept(openai_server: OpenAIServer, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, openai_server.url)
    store = open_store(settings.run.root)
    measured = calibrate(settings, store, 48)
    assert measured.requests == 40 and measured.requests_per_second > 1
    # The server's answers have 10 and 5 tokens.
    assert measured.prompt_tokens_per_second == pytest.approx(10 * measured.requests_per_second, rel=0.01)
    assert measured.tokens_per_second == pytest.approx(5 * measured.requests_per_second, rel=0.01)
    assert (measured.prompt_tokens, measured.completion_tokens, measured.captions, measured.rounds) == (10, 5, 48, 2)
    assert measured.slowest <= measured.requests_per_second <= measured.fastest
    assert measured_rate(settings, store) == measured
    planned = step_1(settings)
    assert planned.requests == CAPTIONS - 48
    assert planned.basis.endswith("requests/s and 10 + 5 tokens each, measured by calibrate at step 1")
    assert planned.seconds == pytest.approx(measured.start_seconds + 12 / measured.requests_per_second, abs=0.1)
    # What the estimates say of a request is put right by what was measured.
    assert planned.tokens == pytest.approx(12 * 15, rel=0.02)
    other = step_1(settings_of(tmp_path, openai_server.url, "other"))
    assert other.basis.startswith("defaults") and (other.tokens or 0) > 2 * CAPTIONS * 15
    for sampling in ({"n": 8, "max_tokens": 5}, {"n": 1, "max_tokens": 50}):
        assert step_1(settings_of(tmp_path, openai_server.url, sampling=sampling)).basis.startswith("defaults")
    assert step_1(settings_of(tmp_path, openai_server.url, prompt_2="Again: {}")).basis.startswith("defaults")
    sharded = step_1(settings_of(tmp_path, openai_server.url, run={"shards": 3}))
    assert sharded.basis.endswith("with one process (run.shards: 3)") and sharded.seconds == planned.seconds
    run_stage("ingest", settings)
    run_stage("paraphrase_1", settings)
    assert len(openai_server.answered) == CAPTIONS and set(openai_server.answered.values()) == {1}
    with pytest.raises(
        InputError, match=r"^0 training captions are without an answer .* at least 16; --set paraphrase.seed"
    ):
        calibrate(settings, store, 48)


def test_a_file_has_no_rate(tmp_path: Path) -> None:
    settings = parse_settings({"paraphrase": {"engine": "file", "file": {"path": "x.csv"}}})
    with pytest.raises(ConfigError, match="has no rate"):
        calibrate(settings, open_store(tmp_path), 48)


@pytest.mark.slow
def test_spending_follows_what_was_measured(openai_server: OpenAIServer, tmp_path: Path) -> None:
    prices = {f"price_per_million_{kind}_tokens": 1e6 for kind in ("prompt", "completion")}
    server = {"base_url": openai_server.url, "api_key_env": "NO_KEY", "concurrency": 4}
    settings = settings_of(tmp_path, openai_server.url, openai=server | prices)
    before = {stage.stage: stage for stage in plan_run(settings, open_store(settings.run.root))}
    measured = calibrate(settings, open_store(settings.run.root), 16)
    planned = {stage.stage: stage for stage in plan_run(settings, open_store(settings.run.root))}
    # At one a token.
    assert planned["paraphrase_1"].spend == pytest.approx((CAPTIONS - 16) * 15, rel=0.02)
    # Step 2, whose prompt is longer, is put right in proportion.
    share = (planned["paraphrase_2"].spend or 0) / (before["paraphrase_2"].spend or 1)
    assert measured.prompt_factor < share < measured.completion_factor < 1
    capped = settings_of(tmp_path, openai_server.url, openai=server | prices | {"max_spend": 16 * 15 + 60})
    with pytest.raises(BudgetError):
        calibrate(capped, open_store(settings.run.root), 40)
    # What earlier runs paid counts.
    assert len(openai_server.answered) < 16 + 8


def test_rounds_are_whole_chunks() -> None:
    chunk = ParaphraseOptions(chunk=16)
    assert captions_needed(chunk) == 40
    assert [round_sizes(chunk, captions) for captions in (8, 16, 47, 90)] == [[8], [16], [16, 16], [32, 32, 16]]
    server = ParaphraseOptions(engine="openai", openai=OpenAIOptions(concurrency=4))
    assert captions_needed(server) == 16
    assert [round_sizes(server, captions) for captions in (8, 31, 33, 600)] == [[8], [31], [17, 16], [200] * 3]

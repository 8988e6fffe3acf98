"""The paraphrase stages with a paid server that dies half way: nothing is paid for twice, and the key stays secret."""

from __future__ import annotations

import multiprocessing
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.parquet import read_table
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import AwayError, BudgetError, EngineError
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.sending import KEEP_SECONDS
from tests.kit.openai_server import OpenAIServer, reset
from tests.kit.small_runs import made, settings_of_texts
from tests.kit.waiting import eventually

KEY = "sk-not-a-real-key-0123456789"
CAPTIONS = 150


def settings_of(folder: Path, url: str, root: str = "root", **openai: Any) -> Settings:
    server = {"base_url": url, "api_key_env": "STAGE_KEY", "concurrency": 4, "retries": 1}
    # The server's answers have 10 and 5 tokens.
    prices = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    paraphrase = {"engine": "openai", "model": "smol", "prompts": "paper", "filters": {"preset": "off"}, "chunk": 40}
    paraphrase |= {"sampling": {"n": 1, "max_tokens": 5}, "openai": server | prices | openai}
    captions = [f"a red dog with number {n} on a beach" for n in range(CAPTIONS)]
    return settings_of_texts(folder, captions, paraphrase, root)


def begun(server: OpenAIServer, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Settings:
    """A run whose captions are there, before a server without keys that takes so long for an answer."""
    monkeypatch.delenv("STAGE_KEY", raising=False)
    settings = settings_of(folder, server.url)
    made("ingest", settings)
    well = server.answer
    server.answer = lambda asked: time.sleep(seconds) or well(asked)
    return settings


def test_a_server_that_dies_costs_nothing_twice(
    openai_server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE_KEY", KEY)
    settings = settings_of(tmp_path, openai_server.url)
    made("ingest", settings)

    def answered() -> int:
        return sum(openai_server.answered.values())

    def die_after(asked: dict[str, Any]) -> Any:
        return well(asked) if answered() < 60 else reset

    well, openai_server.answer = openai_server.answer, die_after
    with pytest.raises(AwayError):
        made("paraphrase_1", settings)
    # The server is back, and the cap counts what was spent before it went: 2 an answer.
    openai_server.answer = well
    before = answered()
    assert 60 <= before < 64
    capped = settings_of(tmp_path, openai_server.url, max_spend=200)
    with pytest.raises(BudgetError, match=r"max_spend=200 is spent \(earlier runs included\)"):
        made("paraphrase_1", capped)
    assert before < answered() <= 100
    first = made("paraphrase_1", settings)
    assert answered() == CAPTIONS
    assert set(openai_server.answered.values()) == {1}
    assert first.manifest.metrics["spend"] == pytest.approx(2 * first.manifest.metrics["generated"])
    second = run_stage("paraphrase_2", Run(settings))
    assert answered() == 2 * CAPTIONS
    assert set(openai_server.answered.values()) == {1}
    rows = read_table(second.path / "paraphrases").to_pylist()
    assert len(rows) == CAPTIONS
    assert all(row["paraphrase_1"].startswith("well ") for row in rows)
    assert openai_server.keys == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files) and any(path.name == "manifest.json" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in settings.model_dump_json()


@pytest.mark.slow
def test_runs_at_once_that_ask_the_same_pay_once(
    openai_server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = begun(openai_server, tmp_path, monkeypatch, 0.05)
    other = settings.model_copy(update={"paraphrase": settings.paraphrase.model_copy(update={"attempts": 2})})
    reports: list[object] = []

    def note(done: int, total: int | None, **facts: object) -> None:
        reports.append(facts.get("waiting"))

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run_stage, "paraphrase_1", Run(each), note) for each in (settings, other)]
    first, second = (future.result() for future in both)
    assert first.fingerprint != second.fingerprint
    assert sorted(each.manifest.metrics["generated"] for each in (first, second)) == [0, CAPTIONS]
    assert len(openai_server.asked) == CAPTIONS
    assert "for another run that asks the same" in reports


@pytest.mark.slow
def test_a_kill_costs_the_answers_of_two_seconds_whatever_the_chunk(
    openai_server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well, seconds = openai_server.answer, 0.25
    settings = begun(openai_server, tmp_path, monkeypatch, seconds)
    settings = settings.model_copy(update={"paraphrase": settings.paraphrase.model_copy(update={"chunk": 1024})})
    child = multiprocessing.get_context("spawn").Process(target=made, args=("paraphrase_1", settings))
    child.start()
    eventually(lambda: len(openai_server.answered) >= 60 or not child.is_alive())
    child.kill()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    openai_server.answer = well
    finished = made("paraphrase_1", settings)
    assert len(openai_server.answered) == CAPTIONS
    twice = len(openai_server.asked) - CAPTIONS
    # What came since the last part, what waits to be taken, and what is under way.
    concurrency = settings.paraphrase.openai.concurrency
    assert 0 <= twice <= concurrency * KEEP_SECONDS / seconds + 2 * concurrency
    calm = settings_of(tmp_path, openai_server.url, root="calm")
    made("ingest", calm)
    undisturbed = made("paraphrase_1", calm)
    assert read_table(finished.path / "paraphrases").equals(read_table(undisturbed.path / "paraphrases"))


def test_answers_of_which_none_is_acceptable_stop_before_images_are_looked_at(
    openai_server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE_KEY", KEY)
    settings = settings_of(tmp_path, openai_server.url)
    choosy = settings.paraphrase.model_copy(update={"filters": FilterOptions()})
    settings = settings.model_copy(update={"paraphrase": choosy})
    made("ingest", settings)
    well = openai_server.answer

    def refuse(asked: dict[str, Any]) -> Any:
        answer = well(asked)
        answer["choices"][0]["message"]["content"] = "I'm sorry, but I cannot do that."
        return answer

    openai_server.answer = refuse
    with pytest.raises(EngineError, match=rf"none of {CAPTIONS} texts \(refusal_or_preamble") as caught:
        made("paraphrase_1", settings)
    rejects = Path(str(caught.value).partition("what it gave is in ")[2].partition(". Choose")[0])
    assert read_table(rejects).num_rows == CAPTIONS

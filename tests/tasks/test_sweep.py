"""Trying options: what is slow or fails is told, and what failed is not tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer, status  # pyright: ignore[reportMissingImports]

from paraclip_core.config import Settings, meaning
from paraclip_core.errors import BudgetError, ConfigError, InputError
from paraclip_core.settings import load_settings, parse_settings
from storage.rates import known_trials
from storage.roots import open_store
from tasks.rates import measured_rate
from tasks.sweep import DEFAULT_TRIALS, OTHER_TRIALS, Trial, combinations, prepare, sweep


def settings_of(folder: Path, url: str, **openai: Any) -> Settings:
    (folder / "captions.txt").write_text("".join(f"a red dog with number {n} on a beach\n" for n in range(100)))
    server = {"base_url": url, "api_key_env": "NO_KEY", "retries": 0, "max_failures": 1}
    paraphrase = {"engine": "openai", "model": "smol", "prompts": "paper", "openai": server | openai}
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": {"root": str(folder / "root")}})


def test_options_are_combined() -> None:
    assert combinations(["a.b=1, 2", "c=x"]) == [("a.b=1", "c=x"), ("a.b=2", "c=x")]
    for wrong in ("a.b", "=1", "a.b=", "a=,", "a=1], [2", "a={b", "a=2024-99-99"):
        with pytest.raises(ConfigError, match="nothing to try"):
            combinations([wrong])


def test_values_with_commas_in_them_stay_whole() -> None:
    option = "paraphrase.vllm.speculative_config"
    found = combinations([f'{option}=null,{{"method": "ngram", "num_speculative_tokens": 4}}'])
    values = [load_settings(None, some).paraphrase.vllm.speculative_config for some in found]
    assert values == [None, {"method": "ngram", "num_speculative_tokens": 4}]
    assert combinations(['a=[1, 2],"x, y",null']) == [("a=[1, 2]",), ("a='x, y'",), ("a=null",)]


@pytest.mark.parametrize("engine", ["smollm2", "transformers", "openai", "vllm"])
def test_default_trials_change_no_answer(engine: str) -> None:
    base = [f"paraphrase.engine={engine}", "paraphrase.model=m"]
    plain = meaning(load_settings(None, base).paraphrase)
    found = [load_settings(None, [*base, *some]) for some in combinations(DEFAULT_TRIALS.get(engine, OTHER_TRIALS))]
    assert len({settings.model_dump_json() for settings in found}) == len(found) > 1
    assert all(meaning(settings.paraphrase) == plain for settings in found)
    if engine == "vllm":
        assert {bool(settings.paraphrase.vllm.speculative_config) for settings in found} == {True, False}


def concurrencies(folder: Path, url: str, *values: int) -> dict[str, Settings]:
    return {f"concurrency={value}": settings_of(folder, url, concurrency=value) for value in values}


def measured(trials: dict[str, Settings], folder: Path, captions: int | None, **how: Any) -> list[Trial]:
    base = next(iter(trials.values()))
    store = open_store(folder / "root")
    return list(sweep(base, prepare(base, trials, store, captions, **how), store))


@pytest.mark.slow
def test_what_failed_is_not_tried_again(openai_server: OpenAIServer, tmp_path: Path) -> None:
    trials = concurrencies(tmp_path, openai_server.url, 1, 2)
    one = {"concurrency=1": trials["concurrency=1"]}
    well = openai_server.answer
    openai_server.answer = lambda asked: status(400, "no room") if openai_server.under_way < 3 else well(asked)
    failed = measured(one, tmp_path, 20)
    assert failed[0].measured is None and failed[0].tried and "no room" in failed[0].failure
    openai_server.answer = well
    before = len(openai_server.asked)
    skipped, second = measured(trials, tmp_path, 20)
    assert (skipped.tried, skipped.failure) == (False, failed[0].failure)
    assert second.measured is not None and second.measured.requests == 12
    assert len(openai_server.answered) == 20
    assert len([asked for asked in openai_server.asked[before:] if "messages" in asked]) >= 20
    again = measured(one, tmp_path, 20, again=True)
    assert again[0].measured is not None
    # A trial is not the rate of the run's own options.
    assert measured_rate(trials["concurrency=1"], open_store(tmp_path / "root")) is None


@pytest.mark.slow
def test_a_reached_cap_is_no_failure_of_the_options(openai_server: OpenAIServer, tmp_path: Path) -> None:
    prices = {"price_per_million_prompt_tokens": 1e6, "max_spend": 40}
    base = settings_of(tmp_path, openai_server.url, concurrency=2, **prices)
    with pytest.raises(BudgetError):
        measured({"concurrency=2": base}, tmp_path, 20)
    assert known_trials(tmp_path / "root" / "cache", "openai", "smol") == {}


@pytest.mark.slow
def test_a_trial_with_fewer_captions_than_the_others_is_not_measured(
    openai_server: OpenAIServer, tmp_path: Path
) -> None:
    trials = concurrencies(tmp_path, openai_server.url, 1, 2)
    base, store = trials["concurrency=1"], open_store(tmp_path / "root")
    found = sweep(base, prepare(base, trials, store, 40), store)
    first = next(found)
    assert first.measured is not None and first.measured.captions == 40
    # Somebody else answers meanwhile.
    measured(concurrencies(tmp_path, openai_server.url, 3), tmp_path, 30)
    with pytest.raises(InputError, match=r"^30 training captions are without an answer .* at least 40; "):
        next(found)


def test_each_combination_fills_the_engine_twice(tmp_path: Path) -> None:
    trials = concurrencies(tmp_path, "http://127.0.0.1:9/v1", 4, 16, 40)
    base, store = trials["concurrency=4"], open_store(tmp_path / "root")
    two = {name: trials[name] for name in ("concurrency=4", "concurrency=16")}
    three = {name: trials[name] for name in ("concurrency=4", "concurrency=16", "concurrency=40")}
    assert prepare(base, two, store, 40).captions == 40
    # A hundred captions.
    with pytest.raises(InputError, match=r"3 combinations would take 264 captions, 88 each .*=40 takes 88.* 100 train"):
        prepare(base, three, store)
    with pytest.raises(InputError, match=r"try fewer combinations, or as many with .*concurrency up to 12; "):
        prepare(base, three, store)
    with pytest.raises(ConfigError, match="--captions 64 is too few: concurrency=40 takes 88"):
        prepare(base, three, store, 64)


def test_default_trials_fit_the_captions_at_hand(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("".join(f"a red dog with number {n} on a beach\n" for n in range(300)))

    def chunks(*values: int) -> dict[str, Settings]:
        given = [f"data.root={tmp_path}", "data.sources.0.path=captions.txt", f"run.root={tmp_path}/root"]
        return {f"chunk={n}": load_settings(None, [*given, f"paraphrase.chunk={n}"]) for n in values}

    trials = chunks(16, 64, 256)
    base, store = trials["chunk=64"], open_store(tmp_path / "root")
    plan = prepare(base, trials, store, shrink=True)
    assert (list(plan.trials), plan.captions) == (["chunk=16", "chunk=64"], 136)
    assert "would take 1560 captions" in plan.notices[0] and plan.notices[0].endswith("left out chunk=256")
    # As many as fit, and of those the ones that need most.
    assert list(prepare(base, chunks(4, 8, 16, 64, 256), store, shrink=True).trials) == [
        "chunk=4",
        "chunk=8",
        "chunk=16",
    ]
    with pytest.raises(InputError, match="2 combinations would take 1040"):
        prepare(base, chunks(64, 256), store, shrink=True)


def test_values_that_cannot_show_are_named(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("".join(f"a red dog with number {n} on a beach\n" for n in range(150)))
    given = [f"data.root={tmp_path}", "data.sources.0.path=captions.txt", "paraphrase.chunk=16"]
    trials = {f"seats={n}": load_settings(None, [*given, f"paraphrase.smollm2.max_num_seqs={n}"]) for n in (32, 40)}
    plan = prepare(trials["seats=32"], trials, open_store(tmp_path / "root"))
    (notice,) = plan.notices
    assert notice.startswith("40 answers may be drawn at once, but no more than 32 are asked for")
    assert notice.endswith("--set paraphrase.chunk=20 asks for more")


def test_options_that_change_answers_are_not_for_a_sweep(tmp_path: Path) -> None:
    base = settings_of(tmp_path, "http://127.0.0.1:9/v1")
    other = base.model_copy(update={"paraphrase": base.paraphrase.model_copy(update={"seed": 1})})
    with pytest.raises(ConfigError, match="changes what is asked for"):
        prepare(base, {"paraphrase.seed=1": other}, open_store(tmp_path), 20)

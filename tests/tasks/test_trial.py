"""A trial of a few captions: what a run would choose, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.storage.parquet import read_table
from paraclip.storage.roots import LOCAL_VARIABLE, open_answers, open_store
from paraclip.tasks.run.run import Run
from paraclip.tasks.trial import Trial, try_captions
from paraclip_core.config import Settings
from paraclip_core.errors import BudgetError
from paraclip_core.paraphrase.engines import Prompt
from tests.kit.scripted_engine import Scripted, Thesaurus
from tests.kit.small_runs import both_steps, settings_of_texts

CAPTIONS = [f"a dog runs past the car with number {n}" for n in range(10)]


def settings_of(folder: Path, **paraphrase: Any) -> Settings:
    return settings_of_texts(
        folder, CAPTIONS, {"engine": "transformers", "model": "any", "prompts": "paper", **paraphrase}
    )


def answering(monkeypatch: pytest.MonkeyPatch, engine: Scripted) -> Scripted:
    """Stages and trials ask this engine."""
    monkeypatch.setattr("paraclip_core.paraphrase.paraphraser.make_engine", lambda *_, **__: engine)
    return engine


def uneven(prompt: Prompt) -> Sequence[str]:
    number = int(prompt.text.rstrip(".").split()[-1]) if prompt.text.rstrip(".")[-1].isdigit() else 0
    if number == 7 or (number > 4 and not prompt.seed):
        return ("As an AI I cannot see it.", prompt.text)
    return (
        f'1. "Near the car a dog is running, number {number}"\nwhat else?',
        "<b>no</b>",
        f"There is a running dog near car number {number}",
    )


def tried(settings: Settings, captions: Sequence[str] = CAPTIONS, keep: bool = False) -> tuple[Trial, list[str]]:
    messages: list[str] = []
    return try_captions(Run(settings, open_store(settings.run.root)), captions, keep, messages.append), messages


def rows_of(artifact: Artifact) -> list[tuple[str, str, str]]:
    columns = ("caption", "paraphrase_1", "paraphrase_2")
    return [tuple(row[name] for name in columns) for row in read_table(artifact.path / "paraphrases").to_pylist()]


def complete(trial: Trial) -> list[tuple[str, str, str]]:
    return [
        (caption.caption, paraphrase.paraphrase_1, paraphrase.paraphrase_2)
        for caption in trial.captions
        for paraphrase in caption.paraphrases
        if paraphrase.paraphrase_2
    ]


def test_what_is_chosen_is_what_a_run_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = answering(monkeypatch, Scripted(uneven))
    settings = settings_of(tmp_path, attempts=2, keep=3)
    trial, messages = tried(settings)
    assert not (tmp_path / "root").exists(), "nothing is kept"
    asked = len(engine.asked)
    assert (trial.asked, trial.cached, trial.stored) == (asked, 0, False)
    assert messages[0] == "step 1: 10 texts, with scripted"

    _, second = both_steps(settings)
    assert len(engine.asked) == 2 * asked
    assert complete(trial) == rows_of(second)
    assert len(complete(trial)) == 18
    rejected = trial.captions[7]
    tries = [(one.step, one.attempt, one.reason) for one in rejected.attempts]
    assert tries == [(1, 0, "echo"), (1, 1, "echo")] and rejected.paraphrases == []

    # Now the cache has it all, and is used.
    again, _ = tried(settings)
    assert (again.asked, again.cached, len(engine.asked)) == (0, asked, 2 * asked)
    cached = [one for caption in again.captions for one in caption.attempts]
    assert all(one.cached for one in cached)
    assert [replace(one, cached=False) for one in cached] == [
        one for caption in trial.captions for one in caption.attempts
    ]


def test_what_is_kept_on_an_object_store_is_asked_by_no_run_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = answering(monkeypatch, Scripted(uneven))
    settings = settings_of(tmp_path, filters={"preset": "off"})
    run = settings.run.model_copy(update={"root": f"memory://{tmp_path.name}-trial/root"})
    settings = settings.model_copy(update={"run": run})
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "one"))
    trial, _ = tried(settings, keep=True)
    assert trial.stored
    assert open_answers(open_store(settings.run.root)).stats().keys == trial.asked == len(engine.asked) > 0
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "two"))
    assert tried(settings)[0].asked == 0
    both_steps(settings)
    assert len(engine.asked) == trial.asked


def test_every_filter_says_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Scripted(uneven))
    trial, _ = tried(settings_of(tmp_path), CAPTIONS[:1])
    attempt = trial.captions[0].attempts[0]
    first, no, *_ = attempt.candidates
    assert attempt.answers[0].raw.startswith("1. ") and attempt.answers[0].parsed == first.answer
    assert all(list(one.results) == list(trial.filters) for one in attempt.candidates)
    failed = {reason for reason, detail in no.results.items() if detail is not None}
    assert not no.accepted and "character_set" in failed and len(failed) > 1


def test_words_are_swapped_as_a_run_swaps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = answering(monkeypatch, Thesaurus())
    settings = settings_of(tmp_path, prompts="few-shot", filters={"preset": "small-model"})
    (tmp_path / "captions.txt").write_text("a fast dog on the road\n")
    trial, _ = tried(settings, ["a fast dog on the road"])
    candidates = trial.captions[0].attempts[0].candidates
    assert [one.answer for one in candidates if one.words_swapped] == ["a quick dog on the road"]
    asked = [prompt.text for prompt in engine.asked]
    assert len(asked) == len(set((prompt.text, prompt.step) for prompt in engine.asked)), "each once"
    if rows := complete(trial):
        assert rows == rows_of(both_steps(settings)[1])


def test_captions_are_cleaned_and_those_that_ingest_leaves_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = answering(monkeypatch, Scripted(uneven))
    trial, _ = tried(
        settings_of(tmp_path, filters={"preset": "off"}), ["  a&amp;b   c d 1 ", "dog", " \t", "x" * 99_999]
    )
    assert [caption.caption for caption in trial.captions[:3]] == ["a&b c d 1", "dog", ""]
    assert [caption.left_out.partition(":")[0] for caption in trial.captions] == [
        "", "too_few_words", "empty", "too_long",
    ]  # fmt: skip
    assert trial.captions[0].paraphrases and not any(caption.attempts for caption in trial.captions[1:])
    assert engine.texts[0] == "a&b c d 1" and len(engine.asked) == 2
    assert tried(settings_of(tmp_path), [])[0].captions == []


def test_paraphrases_of_the_users_own_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("caption,paraphrase_1,paraphrase_2\na red dog,one red dog,a hound in red\n")
    settings = settings_of(tmp_path, engine="file", file={"path": "own.csv"})
    trial, _ = tried(settings, ["a red dog", "a blue cat"])
    assert complete(trial) == [("a red dog", "one red dog", "a hound in red")]
    attempt = trial.captions[1].attempts[0]
    assert attempt.reason == "no_paraphrase" and attempt.answers == []
    assert trial.filters == ("empty",)


def test_the_spending_cap_holds_for_trials(tmp_path: Path, openai_server: Any) -> None:
    prices = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    server = {"base_url": openai_server.url, "api_key_env": "NO_KEY", "max_spend": 40} | prices
    options = {"engine": "openai", "model": "smol", "filters": {"preset": "off"}, "openai": server}
    settings = settings_of(tmp_path, sampling={"n": 1, "max_tokens": 5}, **options)
    trial, _ = tried(settings, CAPTIONS[:2], keep=True)
    assert (trial.asked, trial.spend) == (4, 8)
    with pytest.raises(BudgetError, match="earlier runs included"):
        tried(settings, [f"a caption {number} of many" for number in range(30)])

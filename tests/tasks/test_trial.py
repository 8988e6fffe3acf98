"""A trial of a few captions: what a run would choose, and why."""

from __future__ import annotations

from collections.abc import Sequence
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
from paraclip_core.progress import silent
from tests.kit.scripted_engine import Scripted
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


def tried(settings: Settings, captions: Sequence[str] = CAPTIONS) -> Trial:
    return try_captions(Run(settings, open_store(settings.run.root)), captions, silent)


def rows_of(artifact: Artifact) -> list[tuple[str, str, str]]:
    columns = ("caption", "paraphrase_1", "paraphrase_2")
    return [tuple(row[name] for name in columns) for row in read_table(artifact.path / "paraphrases").to_pylist()]


def complete(trial: Trial) -> list[tuple[str, str, str]]:
    return [(caption.caption, first, second) for caption in trial.captions for first, second in caption.pairs if second]


def test_what_is_chosen_is_what_a_run_chooses_and_no_run_asks_for_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = answering(monkeypatch, Scripted(uneven))
    settings = settings_of(tmp_path, attempts=2, keep=3)
    trial = tried(settings)
    asked = len(engine.asked)
    assert (trial.metrics["generated"], trial.metrics["cached"]) == (asked, 0)

    _, second = both_steps(settings)
    assert len(engine.asked) == asked
    assert complete(trial) == rows_of(second)
    assert len(complete(trial)) == 18
    rejected = trial.captions[7]
    assert [(one.step, one.reason) for one in rejected.attempts] == [(1, "echo"), (1, "echo")] and rejected.pairs == []

    again = tried(settings)
    assert (again.metrics["generated"], again.metrics["cached"], len(engine.asked)) == (0, asked, asked)
    assert again.captions == trial.captions


def test_what_is_kept_on_an_object_store_is_asked_by_no_run_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = answering(monkeypatch, Scripted(uneven))
    settings = settings_of(tmp_path, filters={"preset": "off"})
    run = settings.run.model_copy(update={"root": f"memory://{tmp_path.name}-trial/root"})
    settings = settings.model_copy(update={"run": run})
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "one"))
    asked = tried(settings).metrics["generated"]
    assert open_answers(open_store(settings.run.root)).stats().keys == asked == len(engine.asked) > 0
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / "two"))
    assert tried(settings).metrics["generated"] == 0
    both_steps(settings)
    assert len(engine.asked) == asked


def test_an_attempt_shows_its_answers_and_why_none_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Scripted(uneven))
    first, seventh = (caption.attempts[0] for caption in tried(settings_of(tmp_path)).captions[::7])
    raw, parsed = first.answers[0]["raw"], first.answers[0]["parsed"]
    assert raw.startswith("1. ") and raw.endswith("?") and parsed == "Near the car a dog is running, number 0"
    assert (first.input, first.kept, first.reason) == (CAPTIONS[0], [parsed], None)
    assert [answer["raw"] for answer in seventh.answers] == ["As an AI I cannot see it.", CAPTIONS[7]]
    assert (seventh.kept, seventh.reason, seventh.detail) == ([], "echo", "repeats its input")


def test_captions_are_cleaned_and_those_that_ingest_leaves_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = answering(monkeypatch, Scripted(uneven))
    trial = tried(settings_of(tmp_path, filters={"preset": "off"}), ["  a&amp;b   c d 1 ", "dog", " \t", "x" * 99_999])
    assert [caption.caption for caption in trial.captions[:3]] == ["a&b c d 1", "dog", ""]
    assert [caption.left_out.partition(":")[0] for caption in trial.captions] == [
        "", "too_few_words", "empty", "too_long",
    ]  # fmt: skip
    assert trial.captions[0].pairs and not any(caption.attempts for caption in trial.captions[1:])
    assert engine.texts[0] == "a&b c d 1" and len(engine.asked) == 2
    assert tried(settings_of(tmp_path), []) == Trial([], None, {})


def test_paraphrases_of_the_users_own_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("caption,paraphrase_1,paraphrase_2\na red dog,one red dog,a hound in red\n")
    settings = settings_of(tmp_path, engine="file", file={"path": "own.csv"})
    trial = tried(settings, ["a red dog", "a blue cat"])
    assert complete(trial) == [("a red dog", "one red dog", "a hound in red")]
    attempt = trial.captions[1].attempts[0]
    assert attempt.reason == "no_paraphrase" and attempt.answers == []


def test_the_spending_cap_holds_for_trials(tmp_path: Path, openai_server: Any) -> None:
    prices = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    server = {"base_url": openai_server.url, "api_key_env": "NO_KEY", "max_spend": 40} | prices
    options = {"engine": "openai", "model": "smol", "filters": {"preset": "off"}, "openai": server}
    settings = settings_of(tmp_path, sampling={"n": 1, "max_tokens": 5}, **options)
    metrics = tried(settings, CAPTIONS[:2]).metrics
    assert (metrics["generated"], metrics["spend"]) == (4, 8)
    with pytest.raises(BudgetError, match="earlier runs included"):
        tried(settings, [f"a caption {number} of many" for number in range(30)])

"""What steps have left: the plan counts what a run then asks, and looks without asking, filtering or keeping
anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from paraclip.tasks.run.run import Run
from paraclip.tasks.steps_left import StepLeft, steps_left
from paraclip_core.config import Settings
from tests.kit.small_runs import made, settings_of_texts

CARS = [f"the car {n} near a beach is {'slow' if n % 8 in (0, 4, 7) else 'fast'}" for n in range(30)]


def settings_of(folder: Path, captions: Sequence[str] = CARS, engine: str = "Writer", **changed: Any) -> Settings:
    paraphrase = {"engine": f"tests.kit.scripted_engine:{engine}", "filters": {"preset": "off"}, **changed}
    return settings_of_texts(folder, captions, paraphrase)


def asked(step: int, chosen: Settings) -> int:
    """What a run of the step, and those before it, asks in the step."""
    artifacts = [made(name, chosen) for name in ("ingest", "paraphrase_1", "paraphrase_2")[: step + 1]]
    return artifacts[-1].manifest.metrics["generated"]


def left(chosen: Settings, **artifacts: Any) -> dict[int, StepLeft]:
    return steps_left(Run(chosen), artifacts)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".duckdb"))


@settings(max_examples=3, phases=(Phase.reuse, Phase.generate))
@given(st.lists(st.sampled_from(CARS), unique=True), st.lists(st.sampled_from(CARS), unique=True))
def test_what_is_counted_is_what_is_asked(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str]
) -> None:
    assume(before != after)
    settings = partial(settings_of, tmp_path_factory.mktemp("bench"))
    asked(2, settings([*before, "the car 2 is fast"]))
    chosen = settings([*after, "the car 2 is fast"])
    counted = left(chosen)
    assert counted == left(chosen, ingest=made("ingest", chosen))
    first = made("paraphrase_1", chosen)
    assert counted[1].missing == len(set(after) - set(before) - {"the car 2 is fast"})
    assert first.manifest.metrics["generated"] == counted[1].missing
    assert counted[1].rows == first.manifest.metrics["captions"] == len(after) + 1
    # Step 2 of what is missing is not known before.
    then = left(chosen, paraphrase_1=first)
    assert counted[2].missing <= then[2].missing <= counted[2].missing + counted[1].new_inputs
    assert asked(2, chosen) == then[2].missing
    done = left(chosen)
    assert [(done[step].missing, done[step].accepted + done[step].rejected) for step in (1, 2)] == [
        (0, len(after) + 1), (0, first.manifest.metrics["kept"])
    ]  # fmt: skip


def test_rows_that_are_to_be_asked_again_are_counted(tmp_path: Path) -> None:
    asked(1, settings_of(tmp_path))
    chosen = settings_of(tmp_path, attempts=2)
    counted = left(chosen)[1]
    assert (counted.missing, counted.rejected, counted.accepted) == (11, 11, 19)
    assert left(settings_of(tmp_path, attempts=3))[1].missing == 11
    assert asked(1, chosen) == 11
    assert left(chosen)[1].missing == 0


def test_answers_without_a_verdict_lead_to_requests_as_far_as_they_are_new(tmp_path: Path) -> None:
    asked(2, settings_of(tmp_path, CARS[:10], engine="Well"))
    # Ten answers are filtered anew, and known to step 2; the others are missing.
    other = {"engine": "Well", "filters": {"preset": "off", "extra": ["tests.kit.scripted_filters:short"]}}
    counted = left(settings_of(tmp_path, CARS[:14], **other))
    assert (counted[1].missing, counted[1].new_inputs, counted[1].accepted, counted[2].rows) == (4, 4, 0, 0)
    # With another prompt step 2 knows none of them.
    chosen = settings_of(tmp_path, CARS[:14], **other, prompt_2="Say {}!")
    assert left(chosen)[1].new_inputs == asked(2, chosen) == 14


def test_a_look_asks_judges_and_keeps_nothing(tmp_path: Path) -> None:
    assert left(settings_of(tmp_path, CARS[:10], engine="Refusing"))[1].missing == 10
    assert not (tmp_path / "root").exists()
    asked(1, settings_of(tmp_path, CARS[:10], engine="Well"))
    before = files(tmp_path)
    other = {"preset": "off", "extra": ["tests.kit.scripted_filters:short"]}
    counted = left(settings_of(tmp_path, engine="Refusing", filters=other))[1]
    assert (counted.rows, counted.missing, counted.accepted) == (30, 20, 0)
    assert files(tmp_path) == before


def test_tokens_grow_with_prompt_text_and_answers(tmp_path: Path) -> None:
    def tokens(captions: Sequence[str] = CARS, **changed: Any) -> tuple[float, float]:
        counted = left(settings_of(tmp_path, captions, **changed))[1]
        return counted.prompt_tokens, counted.completion_tokens

    few_shot, paper = tokens(), tokens(prompts="paper")
    assert few_shot[0] > 2 * paper[0] and few_shot[1] == paper[1]
    # Seven words make about nine tokens; twelve Chinese letters, without a blank, are about as many.
    assert 12 < paper[0] < 60 and 7 < paper[1] / 2 < 12
    chinese = tokens([f"冬天阿尔卑斯山里的老农舍 {n}" for n in range(9)], prompts="paper")
    assert 6 < chinese[1] / 2 < 12 and abs(chinese[0] - paper[0]) < 3


@pytest.mark.parametrize(("temperature", "prompts", "answers"), [(0.8, 4, 4), (0.0, 1, 1)])
def test_a_server_that_refuses_n_is_sent_the_prompt_for_each_draw(
    tmp_path: Path, temperature: float, prompts: int, answers: int
) -> None:
    def tokens(n: int, **openai: Any) -> tuple[float, float]:
        paraphrase: dict[str, Any] = {"engine": "openai", "model": "m", "prompts": "paper", "openai": openai}
        paraphrase |= {"filters": {"preset": "off"}, "sampling": {"n": n, "temperature": temperature}}
        counted = left(settings_of_texts(tmp_path, CARS, paraphrase))[1]
        return counted.prompt_tokens, counted.completion_tokens

    one = tokens(1)
    assert tokens(4) == pytest.approx((one[0], answers * one[1]))
    assert tokens(4, extra_body={"n": None}) == pytest.approx((prompts * one[0], answers * one[1]))

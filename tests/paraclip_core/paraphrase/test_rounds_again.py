"""Rounds that ask again: for several rewrites, after poor first answers and for rows rejected for a reason."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
from round_kit import (  # pyright: ignore[reportMissingImports]
    BLUE,
    FEW,
    Rows,
    Told,
    asked,
    attempts,
    both_steps,
    drawing,
    figures,
    gated,
    with_options,
)
from scripted_engine import Scripted, well  # pyright: ignore[reportMissingImports]

# Several rewrites of a caption.


def test_up_to_keep_rewrites_of_step_1_have_one_of_step_2_each(paraphrasing: Any, rows_of: Rows) -> None:
    engine = drawing(n=3)
    first, second = both_steps(paraphrasing, [rows_of(FEW[:3])], engine, with_options(keep=2))
    expected = [(text, f"{text} draw 0 answer {number}") for text in FEW[:3] for number in range(2)]
    pairs = list(zip(*(second.rows.column(name).to_pylist() for name in ("caption", "paraphrase_1")), strict=True))
    assert pairs == expected
    # One of step 2, which had drawn three, too.
    assert second.rows.column("paraphrase_2").to_pylist() == [f"{text} draw 0 answer 0" for _, text in expected]
    assert asked(engine) == [(text, 0) for text in (*FEW[:3], *(text for _, text in expected))]
    assert len(set(second.rows.column("generation_1").to_pylist())) == 3
    assert len(set(second.rows.column("generation_2").to_pylist())) == 6
    counts = [outcome.rounds.counts for outcome in (first, second)]
    assert [(c.captions, c.accepted, c.kept) for c in counts] == [(3, 3, 6), (6, 6, 6)]


def test_fewer_are_kept_where_fewer_are_accepted(paraphrasing: Any, rows_of: Rows) -> None:
    three = {"a cat": ("no", "one cat here", "a cat sits there"), "a dog": ("no", "a dog", "one dog over there")}
    options = gated("short").model_copy(update={"keep": 2})
    found = paraphrasing.run([rows_of([*three, "a cow"])], Scripted(lambda p: three.get(p.text, ("no",))), options)
    assert found.rows.column("paraphrase_1").to_pylist() == ["one cat here", "a cat sits there", "one dog over there"]
    assert (found.rounds.counts.accepted, found.rounds.counts.kept) == (2, 3)
    assert attempts(found.rejects) == [("a cow", 0)]
    one = paraphrasing.run([rows_of([*three, "a cow"])], Scripted(), gated("short"))
    assert one.rows.column("paraphrase_1").to_pylist() == ["one cat here", "one dog over there"]
    assert one.rounds.counts.judged == 0


# The first answers.


def many(count: int = 100) -> list[str]:
    return [f"a dog with number {number}" for number in range(count)]


def few_accepted(share: int) -> Scripted:
    """So many of a hundred answers hold words."""
    return Scripted(lambda p: (f"one {p.text}",) if int(p.text.split()[-1]) % 100 < share else ("",))


def test_little_acceptance_among_the_first_answers_is_told_with_reasons_and_samples(
    paraphrasing: Any, rows_of: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    told: Told = []
    with caplog.at_level(logging.WARNING):
        found = paraphrasing.run(
            [rows_of(many())], few_accepted(10), progress=lambda *step, **facts: told.append((*step, facts))
        )
    assert found.rows.num_rows == 10 and len(found.rounds.engine.asked) == 100
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("16% of the first 64 answers of scripted-1 at step 1 are accepted (empty 54); ")
    lines = message.splitlines()[1:]
    assert len(lines) == 3 and all("'a dog with number " in line and "-> '' (empty: " in line for line in lines)
    warning = "16% of the first 64 answers accepted (empty 54)"
    assert [(done, total, facts["phase"], facts.get("warning")) for done, total, facts in told] == [
        (64, 100, "asking", None), (64, 64, "judging", None), (100, 100, "asking", warning),
        (36, 36, "judging", warning),
    ]  # fmt: skip


@pytest.mark.parametrize("share", [40, 100])
def test_enough_acceptance_is_no_warning(
    share: int, paraphrasing: Any, rows_of: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        paraphrasing.run([rows_of(many())], few_accepted(share))
    assert caplog.records == []


def test_verdicts_that_were_there_count_among_the_first(
    paraphrasing: Any, elsewhere: Any, rows_of: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    paraphrasing.run([rows_of(many())], Scripted())
    shutil.copytree(paraphrasing.cache.folder / "verdicts", elsewhere.cache.folder / "verdicts", dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING):
        found = elsewhere.run([rows_of(many())], Scripted())
    assert figures(found) == (100, 100, 0) and caplog.records == []


def test_few_requests_are_no_sample(paraphrasing: Any, rows_of: Rows, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        paraphrasing.run([rows_of(many(64))], few_accepted(1))
    assert caplog.records == []


# Asking again for the rows of a reason.


def test_only_the_rows_of_a_reason_are_asked_again(paraphrasing: Any, rows_of: Rows) -> None:
    engine = drawing(lambda text, draw: "blue" in text and draw == 0)
    before = paraphrasing.run([rows_of(FEW)], engine)
    assert attempts(before.rejects) == [(text, 0) for text in BLUE]
    engine.asked.clear()
    after = paraphrasing.run([rows_of(FEW)], engine, with_options(regenerate=("empty",)))
    assert asked(engine) == [(text, 1) for text in BLUE]
    assert after.answers == before.answers | {text: f"{text} draw 1" for text in BLUE}
    assert after.rows.column("caption").to_pylist() == FEW
    # What was rejected before is still told.
    assert attempts(after.rejects) == [(text, 0) for text in BLUE]
    engine.asked.clear()
    paraphrasing.run([rows_of(FEW)], engine, with_options(regenerate=("echo",)))
    assert engine.asked == []


def test_floods_can_be_asked_for_again(paraphrasing: Any, rows_of: Rows) -> None:
    engine = Scripted(lambda p: ("one dog",) if "blue" in p.text and not p.seed else well(p))
    options = with_options(regenerate=("repeated_flood",))
    found = paraphrasing.run([rows_of(FEW)], engine, options, max_repeats=3)
    assert asked(engine)[10:] == [(text, 1) for text in BLUE]
    assert found.rows.num_rows == 10
    assert [row["reason"] for row in found.rejects.to_pylist()] == ["repeated_flood"] * 5


def test_each_entry_gives_one_more_attempt(paraphrasing: Any, rows_of: Rows) -> None:
    engine = drawing(lambda text, draw: draw < 2)
    found = paraphrasing.run([rows_of(FEW[:2])], engine, with_options(regenerate=("empty",)))
    assert found.rows.num_rows == 0
    found = paraphrasing.run([rows_of(FEW[:2])], engine, with_options(regenerate=("empty",) * 3))
    assert found.answers == {text: f"{text} draw 2" for text in FEW[:2]}
    assert attempts(found.rejects) == [(text, draw) for text in FEW[:2] for draw in (0, 1)]
    assert asked(engine) == [(text, draw) for draw in (0, 1, 2) for text in FEW[:2]]


def test_every_row_goes_on_from_its_own_last_attempt(paraphrasing: Any, elsewhere: Any, rows_of: Rows) -> None:
    """However the input is cut."""
    options, whole = (
        with_options(attempts=2, gates=gated("short").gates, regenerate=("empty", "short", "empty")),
        rows_of(FEW),
    )
    engines = [drawing(lambda text, draw: "blue" in text and draw < 3) for _ in range(2)]
    expected = elsewhere.run([whole], engines[0], options)
    found = paraphrasing.run([whole.slice(0, 3), whole.slice(3, 0), whole.slice(3)], engines[1], options)
    assert (found.rows, found.rejects) == (expected.rows, expected.rejects)
    assert found.answers == {text: f"{text} draw {3 if text in BLUE else 0}" for text in FEW}
    assert attempts(found.rejects) == [(text, draw) for text in BLUE for draw in (0, 1, 2)]
    assert asked(engines[0]) == asked(engines[1])

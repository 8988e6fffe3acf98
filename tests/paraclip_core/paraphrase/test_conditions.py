"""Conditions that users write in SQL: what they may say, and what they may not do."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import GateOptions, ParaphraseOptions, RegenerateOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.conditions import ROWS, Condition, conditions_of

TABLE = pa.Table.from_pylist(
    [
        {"step": 1, "attempt": 0, "accepted": False, "reason": "echo", "caption": "a dog", "answer": "a dog"},
        {"step": 1, "attempt": 0, "accepted": True, "caption": "A CAT's toy", "answer": "a toy", "similarity": 0.75},
        {"step": 1, "attempt": 2, "accepted": False, "reason": "empty", "caption": "x", "image_id": "7.jpg"},
        {"step": 1, "attempt": 0, "accepted": True, "caption": "<b>'; drop", "answer": "b", "similarity": 0.9},
    ],
    schema=ROWS,
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("reason = 'echo'", [0]),
        ("REASON in ('echo', 'empty')", [0, 2]),
        ("similarity < 0.8", [1]),
        ("accepted and similarity between 0.7 and 0.95", [1, 3]),
        ("caption ilike '%cat%' or length(caption) < 2", [1, 2]),
        ("caption like '%''%'", [1, 3]),
        ("regexp_matches(lower(caption), '^a (dog|cat)')", [0, 1]),
        ("caption ~ '^[a-z ]+$'", [0, 2]),
        ("not accepted and attempt + 1 >= 2", [2]),
        ("image_id is not null", [2]),
        ("case when accepted then similarity > 0.8 else attempt = 0 end", [0, 3]),
        ("levenshtein(caption, answer) = 0 -- the same text", [0]),
        ("attempt::integer = 2 and step = 1", [2]),
        ("similarity::double > 0.8 and step::text = '1' and attempt::Tinyint = 0", [3]),
        ("concat(caption, ' ', answer) = 'a dog a dog' or caption || answer like 'A CAT%'", [0, 1]),
        ("true", [0, 1, 2, 3]),
        ("accepted", [1, 3]),
        ("len(string_split(caption, ' ')) = 3", [1]),
    ],
)
def test_what_a_condition_can_say(text: str, rows: list[int]) -> None:
    assert Condition(text).rows(TABLE) == rows


@pytest.mark.parametrize(
    ("text", "why"),
    [
        # Other rows, of which the batch at hand has some.
        ("similarity < (select avg(similarity) from rows)", "contains a subquery"),
        ("count(*) > 1", "Aggregate functions are not supported"),
        ("row_number() over () = 1", "Window functions are not supported"),
        ("position = 1", '"position" .* does not exist'),
        # Clock and chance.
        ("random() < 0.5", r"random\(\) may be another value each time"),
        ("NOW () is not null", r"now\(\) may be another value each time"),
        # Plain mistakes.
        ("", "syntax error"),
        ("reson = 'echo'", '"reson" .* does not exist'),
        ("null", "neither true nor false"),
        ("caption", "VARCHAR and neither true nor false"),
        ("true, true", "syntax error"),
        ("similarity = 'high'", "Could not convert"),
        ("caption = ", "syntax error"),
        ("length(caption, 3, 4) = 1", "No function matches"),
    ],
)
def test_what_is_no_condition(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Condition(text).rows(TABLE)
    assert "columns step, attempt, accepted" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    target = tmp_path / "target.csv"
    con = Condition("true")._con
    for statement in (f"COPY (SELECT 1) TO '{target}'", f"ATTACH '{target}'", "SET enable_external_access = true"):
        with pytest.raises(Exception, match=r"disabled|locked"):
            con.execute(statement)
    assert not target.exists()


def test_a_value_that_cannot_be_converted_is_told() -> None:
    condition = Condition("caption::integer = 1")
    with pytest.raises(ConfigError, match="Could not convert string 'a dog'"):
        condition.rows(TABLE)


def conditions(**entry: str) -> tuple[Condition, ...]:
    gates = GateOptions(preset="off", extra=("scripted_gates:blue_input",))
    return conditions_of(ParaphraseOptions(gates=gates, regenerate=(RegenerateOptions(**entry),)))


def test_reasons_are_checked() -> None:
    (condition,) = conditions(reason="echo")
    assert condition.rows(TABLE) == [0]
    with pytest.raises(ConfigError, match=r"'ecko' is no reason for a rejection; there are .*echo"):
        conditions(reason="ecko")
    for wrong in ({}, {"reason": "echo", "where": "true"}, {"where": " "}):
        with pytest.raises(ValueError, match="either reason or where"):
            RegenerateOptions(**wrong)


def test_a_gate_of_ones_own_is_a_reason() -> None:
    (condition,) = conditions(reason="blue_input")
    assert condition.text == "reason = 'blue_input'"


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_an_error(text: str) -> None:
    try:
        found = Condition(text).rows(TABLE)
    except ConfigError as error:
        assert re.search("cannot be used", str(error))
    else:
        assert set(found) <= set(range(4))

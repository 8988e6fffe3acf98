"""The one driver of a run: which stage is next, and what its first failure ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from paraclip.tasks.run.drive import Row, drive
from paraclip.tasks.run.run import Node, Run, Stage
from paraclip_core.config import Settings
from paraclip_core.errors import InputError
from tests.kit.fake_stages import settings_at

INPUTS = {"a": (), "b": ("a",), "c": ("b",), "d": ("a",), "e": ("c", "d")}
STAGES = {
    name: Stage(name, 1, lambda _, inputs=inputs: inputs, lambda _: {}, lambda _: {}) for name, inputs in INPUTS.items()
}


def settings_with_a_row(root: Path) -> Settings:
    """Settings of a run that has captions to work on."""
    (root / "captions.jsonl").write_text('{"caption": "a dog on a beach", "image": "a.png"}\n')
    return settings_at(root, data={"root": str(root), "sources": [{"path": "captions.jsonl"}]})


class Hands:
    """Workers of a number, who end the stages of `last` after all others, and fail at some."""

    def __init__(self, run: Run, number: int, last: str = "", errors: Mapping[str, Exception] = {}) -> None:
        self.run, self.number, self.last, self.errors = run, number, last, errors
        self.working, self.started, self.ended = list[str](), list[str](), list[str]()
        self.together: set[int] = set()
        """How many stages were at work at once."""
        self.stopped: list[str] = []

    def start(self, node: Node, inputs: Sequence[str]) -> bool:
        assert tuple(inputs) == INPUTS[node.name] and {*inputs} <= {*self.ended}
        if len(self.working) == self.number:
            return False
        self.working.append(node.name)
        self.started.append(node.name)
        self.together.add(len(self.working))
        return True

    def next(self) -> tuple[str, Row | BaseException]:
        name = min(self.working, key=lambda name: name in self.last)
        self.working.remove(name)
        self.ended.append(name)
        return name, self.errors.get(name) or {"stage": name, "path": name}

    def wait(self) -> None:
        assert self.run.stop.is_set()
        self.stopped = list(self.working)


@pytest.mark.parametrize(
    ("number", "last", "started", "ended"),
    [(1, "", "abcde", "abcde"), (2, "d", "abdce", "abcde"), (2, "b", "abdce", "adbce"), (9, "bc", "abdce", "adbce")],
)
def test_a_stage_starts_when_its_inputs_are_there_and_somebody_is_free(
    tmp_path: Path, number: int, last: str, started: str, ended: str
) -> None:
    run = Run(settings_with_a_row(tmp_path), stages=STAGES)
    hands = Hands(run, number, last)
    shown: list[tuple[list[str], list[str]]] = []
    result = drive(run, hands, lambda rows, left: shown.append(([row["stage"] for row in rows], sorted(left))))
    assert ("".join(hands.started), "".join(hands.ended)) == (started, ended)
    assert max(hands.together) == min(number, 2), "no more can be at work"
    assert [row["stage"] for row in result.stages] == list(INPUTS) and result.name == run.settings.name
    # In the order of the stages, whichever ends first.
    assert [sorted([*rows, *left]) for rows, left in shown] == [list(INPUTS)] * len(INPUTS)
    assert all(rows == sorted(rows) and len(rows) == count for count, (rows, _) in enumerate(shown, 1))
    assert not run.stop.is_set()


def test_the_first_failure_is_the_runs_and_ends_the_others(tmp_path: Path) -> None:
    run = Run(settings_with_a_row(tmp_path), stages=STAGES)
    error: Any = InputError("captions.csv row 7 has no caption")
    hands = Hands(run, 2, "d", {"b": error})
    with pytest.raises(InputError, match=r"^b: captions\.csv row 7 has no caption$"):
        drive(run, hands)
    assert hands.started == ["a", "b", "d"] and hands.stopped == ["d"]
    assert run.stop.reason is error

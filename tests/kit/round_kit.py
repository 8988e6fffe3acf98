"""What both test modules of rounds share: rows, options, and engines whose answers show how they came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.engines import Prompt
from paraclip_core.paraphrase.filter_options import FilterOptions
from tests.kit.scripted_engine import Scripted

OFF = FilterOptions(preset="off")
OPTIONS = ParaphraseOptions(engine="transformers", filters=OFF)
CAPTIONS = [f"photo {number} of a {('red', 'blue')[number % 2]} dog" for number in range(40)]
FEW = CAPTIONS[:10]
BLUE = FEW[1::2]
Rows = Callable[[Sequence[str]], pa.RecordBatch]
Told = list[tuple[int, int | None, dict[str, Any]]]


def drawing(fails: Callable[[str, int], bool] = lambda text, draw: False, n: int = 1) -> Scripted:
    """An engine that names its draw, and answers nothing if `fails` says so."""

    def answer(prompt: Prompt) -> tuple[str, ...]:
        draw = prompt.seed // 7919
        texts = [f"{prompt.text} draw {draw}" + f" answer {number}" * (n > 1) for number in range(n)]
        return ("",) if fails(prompt.text, draw) else tuple(texts)

    return Scripted(answer)


def asked(engine: Scripted) -> list[tuple[str, int]]:
    return [(prompt.text, prompt.seed // 7919) for prompt in engine.asked]


def with_options(**changed: Any) -> ParaphraseOptions:
    return OPTIONS.model_copy(update=changed)


def filtered(*names: str) -> ParaphraseOptions:
    return with_options(
        filters=FilterOptions(preset="off", extra=tuple(f"tests.kit.scripted_filters:{name}" for name in names))
    )


def attempts(rejects: pa.Table) -> list[tuple[str, int]]:
    return [(row["input"], row["attempt"]) for row in rejects.to_pylist()]


def both_steps(kit: Any, batches: Sequence[pa.RecordBatch], engine: Any, options: ParaphraseOptions = OPTIONS) -> Any:
    first = kit.run(batches, engine, options)
    return first, kit.run(first.input_of_step_2, engine, options, step=2)


def figures(outcome: Any) -> tuple[int, int, int]:
    """Requests, answers and filter results."""
    counts = outcome.rounds.counts
    return counts.requested, counts.generated, counts.filtered

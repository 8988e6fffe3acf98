"""The loop: what it asks for, what it writes, and what it does not depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import FileEngineOptions, GateOptions, ParaphraseOptions, SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from paraclip_core.paraphrase.engines.file import FileEngine
from paraclip_core.paraphrase.estimate import MissingRequests, missing_requests
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.protocol import Completion, Engine, GenerationCache, Prompt
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

PAPER = GateOptions(preset="paper")
OPTIONS = ParaphraseOptions(engine="file", gates=PAPER, file=FileEngineOptions(path="mine.csv"))
TOKENS = Tokeniser().encode_batch
Rows = Callable[[Sequence[str]], pa.RecordBatch]


def caption(number: int) -> str:
    colour, place = ("red", "blue", "green", "black")[number % 4], ("beach", "street", "field")[number % 3]
    return f"photo {number} of a {colour} dog on the {place}"


CAPTIONS = [caption(number) for number in range(200)]


def run_step(
    step: int,
    batches: Iterable[pa.RecordBatch],
    engine: Engine,
    cache: GenerationCache,
    options: ParaphraseOptions = OPTIONS,
    **more: Any,
) -> tuple[pa.Table, pa.Table, Paraphraser]:
    paraphraser = Paraphraser(step, options, engine, cache, Chooser(options.gates, step), TOKENS, **more)
    found = list(paraphraser.run(batches))
    rows = pa.Table.from_batches([rows for rows, _ in found], schema=PARAPHRASES)
    return rows, pa.Table.from_batches([refused for _, refused in found], schema=PARAPHRASE_REJECTS), paraphraser


def both_steps(
    batches: Iterable[pa.RecordBatch],
    engine: Engine,
    cache: GenerationCache,
    options: ParaphraseOptions = OPTIONS,
) -> tuple[pa.Table, pa.Table]:
    first, _, _ = run_step(1, batches, engine, cache, options)
    second, refused, _ = run_step(2, first.select(list(INPUT_COLUMNS[2])).to_batches(), engine, cache, options)
    return second, refused


def test_both_steps_side_by_side(written_paraphrases: Path, cache: Any, rows_of: Rows) -> None:
    rows, refused = both_steps([rows_of(CAPTIONS)], FileEngine(written_paraphrases), cache)
    assert refused.num_rows == 0
    assert rows.column("caption").to_pylist() == CAPTIONS
    row = rows.to_pylist()[5]
    assert row["paraphrase_1"] == "dog 5 in blue on a field"
    assert row["paraphrase_2"] == "puppy 5 in blue at the field"
    encode = Tokeniser().encode
    for name in ("caption", "paraphrase_1", "paraphrase_2"):
        assert row[f"{name}_tokens"] == encode(row[name])
    assert row["generation_1"] in cache.rows
    assert row["generation_2"] in cache.rows
    assert (row["licence"], row["image_id"], row["similarity_1"]) == ("CC0", "image5", None)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_nothing_depends_on_the_chunk_or_on_how_the_input_is_cut(
    chunk: int, written_paraphrases: Path, cache: Any, rows_of: Rows, counting: Any
) -> None:
    whole = rows_of(CAPTIONS)
    expected, _ = both_steps([whole], FileEngine(written_paraphrases), type(cache)())
    options = OPTIONS.model_copy(update={"chunk": chunk})
    cut = [whole.slice(start, chunk) for start in range(0, whole.num_rows, chunk)]
    engine = counting(FileEngine(written_paraphrases))
    found, _ = both_steps(cut, engine, cache, options)
    assert found.equals(expected)
    assert len(engine.asked) == 400
    assert cache.appends == 2 * -(-200 // chunk)


def test_a_cached_run_asks_nothing(written_paraphrases: Path, cache: Any, rows_of: Rows, counting: Any) -> None:
    first = both_steps([rows_of(CAPTIONS)], FileEngine(written_paraphrases), cache)
    engine = counting(FileEngine(written_paraphrases))
    assert both_steps([rows_of(CAPTIONS)], engine, cache) == first
    assert engine.asked == []


def test_added_captions_cost_exactly_their_requests(
    written_paraphrases: Path, cache: Any, rows_of: Rows, counting: Any
) -> None:
    both_steps([rows_of(CAPTIONS[:150])], FileEngine(written_paraphrases), cache)
    expected = count_missing(written_paraphrases, cache, rows_of(CAPTIONS))
    engine = counting(FileEngine(written_paraphrases))
    both_steps([rows_of(CAPTIONS)], engine, cache)
    assert engine.asked[:50] == CAPTIONS[150:]
    assert len(engine.asked) == 100
    assert (expected.step_1, expected.step_2, expected.step_2_expected) == (50, 0, 50)
    assert expected.total == len(engine.asked)


def count_missing(
    path: Path, cache: GenerationCache, batch: pa.RecordBatch, options: ParaphraseOptions = OPTIONS
) -> MissingRequests:
    return missing_requests(
        [batch], options, FileEngine(path), cache, lambda step: Chooser(options.gates, step), TOKENS
    )


def test_a_changed_prompt_of_step_2_costs_step_1_nothing(
    written_paraphrases: Path, cache: Any, rows_of: Rows, counting: Any
) -> None:
    both_steps([rows_of(CAPTIONS)], FileEngine(written_paraphrases), cache)
    options = OPTIONS.model_copy(update={"prompt_2": "Say {} otherwise."})
    expected = count_missing(written_paraphrases, cache, rows_of(CAPTIONS), options)
    engine = counting(FileEngine(written_paraphrases))
    both_steps([rows_of(CAPTIONS)], engine, cache, options)
    assert len(engine.asked) == 200
    assert all(text.startswith("dog ") for text in engine.asked)
    assert (expected.step_1, expected.step_2, expected.step_2_expected) == (0, 200, 0)
    assert expected.second.prompt_tokens > 0


def test_equal_captions_are_asked_for_once(written_paraphrases: Path, cache: Any, rows_of: Rows, counting: Any) -> None:
    engine = counting(FileEngine(written_paraphrases))
    rows, _, paraphraser = run_step(1, [rows_of([caption(1)] * 5 + [caption(2)])], engine, cache)
    assert engine.asked == [caption(1), caption(2)]
    assert rows.num_rows == 6
    assert paraphraser.counts.metrics()["requested"] == 2


def test_a_text_without_paraphrase_is_a_reject_and_no_error(
    written_paraphrases: Path, cache: Any, rows_of: Rows
) -> None:
    rows, refused, paraphraser = run_step(1, [rows_of(["a cat", caption(3)])], FileEngine(written_paraphrases), cache)
    assert rows.num_rows == 1
    reject = refused.to_pylist()[0]
    assert (reject["reason"], reject["answer"], reject["input"]) == ("no_paraphrase", None, "a cat")
    assert paraphraser.counts.metrics()["rejected"] == {"no_paraphrase": 1}


class Scripted:
    """An engine whose answers are a function of text and seed; it may die after some calls."""

    name = "scripted"
    model = "scripted-1"

    def __init__(self, answer: Callable[[Prompt], tuple[str, ...]], calls: int = 1_000_000) -> None:
        self._answer, self._calls = answer, calls

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        if not self._calls:
            raise EngineError("died")
        self._calls -= 1
        return [Completion(self._answer(prompt), 10, 5) for prompt in prompts]

    def close(self) -> None:
        pass


def test_rejected_captions_are_asked_again_with_another_seed(cache: Any, rows_of: Rows, counting: Any) -> None:
    def answer(prompt: Prompt) -> tuple[str, ...]:
        return ("",) if prompt.seed == 0 and "blue" in prompt.text else (f"well {prompt.text}",)

    options = OPTIONS.model_copy(update={"attempts": 3})
    engine = counting(Scripted(answer))
    rows, refused, paraphraser = run_step(1, [rows_of(CAPTIONS[:8])], engine, cache, options)
    assert rows.num_rows == 8
    assert [(r["attempt"], r["reason"]) for r in refused.to_pylist()] == [(0, "empty"), (0, "empty")]
    assert engine.asked[8:] == [caption(1), caption(5)]
    assert paraphraser.counts.metrics()["accepted"] == 8
    # Captions come out in their order, however many attempts they took.
    assert rows.column("caption").to_pylist() == CAPTIONS[:8]


def test_what_was_answered_before_the_engine_died_is_kept(cache: Any, rows_of: Rows, counting: Any) -> None:
    options = OPTIONS.model_copy(update={"chunk": 16})

    def answer(prompt: Prompt) -> tuple[str, ...]:
        return (f"well {prompt.text}",)

    with pytest.raises(EngineError, match="died"):
        run_step(1, [rows_of(CAPTIONS)], Scripted(answer, calls=3), cache, options)
    assert len(cache.rows) == 48
    engine = counting(Scripted(answer))
    rows, _, _ = run_step(1, [rows_of(CAPTIONS)], engine, cache, options)
    assert len(engine.asked) == 152
    assert rows.equals(run_step(1, [rows_of(CAPTIONS)], Scripted(answer), type(cache)(), options)[0])


def test_a_wrong_number_of_completions_is_an_engine_error(cache: Any, rows_of: Rows) -> None:
    class Short(Scripted):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
            return super().generate(prompts, sampling)[1:]

    with pytest.raises(EngineError, match="gave 7 completions for 8 prompts"):
        run_step(1, [rows_of(CAPTIONS[:8])], Short(lambda prompt: ("x",)), cache)
    assert not cache.rows


def test_lone_surrogates_in_answers_are_stored_as_text(cache: Any, rows_of: Rows) -> None:
    rows, _, _ = run_step(1, [rows_of(["a dog"])], Scripted(lambda prompt: ("a \ud800 dog",)), cache)
    again, _, _ = run_step(1, [rows_of(["a dog"])], Scripted(lambda prompt: ()), cache)
    assert rows.num_rows == again.num_rows == 1
    assert rows.equals(again)


def test_progress_reaches_the_total_and_never_falls(written_paraphrases: Path, cache: Any, rows_of: Rows) -> None:
    seen: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None, **facts: float | int | str) -> None:
        assert {"requests_per_second", "generated", "cached"} <= set(facts)
        seen.append((done, total))

    options = OPTIONS.model_copy(update={"chunk": 50})
    run_step(1, [rows_of(CAPTIONS)], FileEngine(written_paraphrases), cache, options, progress=progress, total=200)
    assert seen == [(50, 200), (100, 200), (150, 200), (200, 200), (200, 200)]


def test_words_and_further_attempts_are_seen_while_they_are_asked_for(cache: Any, rows_of: Rows) -> None:
    seen: list[dict[str, Any]] = []

    def progress(done: int, total: int | None, **facts: float | int | str) -> None:
        more = {name: facts[name] for name in facts if name.startswith(("words", "again"))}
        assert ("eta_seconds" in facts) == (not more)
        seen.append({"done": done} | more)

    options = ParaphraseOptions(gates=GateOptions(max_overlap=0.95), chunk=1, attempts=2)
    chooser = Chooser(options.gates, 1, encoder=AllNear())
    paraphraser = Paraphraser(1, options, Thesaurus(), cache, chooser, TOKENS, progress=progress, total=1)
    list(paraphraser.run([rows_of(["the lamp is fast"])]))
    # "lamp" has no synonyms here, "fast" has two; with them the first attempt is enough.
    assert seen[:5] == [
        {"done": 1},
        {"done": 1, "words": 1, "words_total": 2},
        {"done": 1, "words": 2, "words_total": 2},
        {"done": 1, "words": 1, "words_total": 2},
        {"done": 1, "words": 2, "words_total": 2},
    ]
    seen.clear()
    without = options.model_copy(update={"synonyms": False})
    list(
        Paraphraser(1, without, Thesaurus(), cache, chooser, TOKENS, progress=progress, total=1).run(
            [rows_of(["the lamp is fast"])]
        )
    )
    assert seen == [{"done": 1, "again": 1, "again_total": 1}, {"done": 1}]


def test_a_fraction_is_stable_when_captions_are_added(rows_of: Rows, written_paraphrases: Path, cache: Any) -> None:
    options = OPTIONS.model_copy(update={"fraction": 0.3})
    few, _, _ = run_step(1, [rows_of(CAPTIONS[:100])], FileEngine(written_paraphrases), cache, options)
    many, _, _ = run_step(1, [rows_of(CAPTIONS)], FileEngine(written_paraphrases), cache, options)
    few_captions, many_captions = few.column("caption").to_pylist(), many.column("caption").to_pylist()
    assert few_captions == [text for text in many_captions if text in CAPTIONS[:100]]
    assert 30 < len(many_captions) < 90


class Thesaurus(Scripted):
    """Copies sentences, as small models do, and knows one word."""

    name = "thesaurus"

    def __init__(self) -> None:
        known = {"fast": ("quick, rapid",), "quick": ("fast",)}
        super().__init__(lambda prompt: known.get(prompt.text, ("",)) if prompt.step == 0 else (prompt.text,))


class AllNear:
    """An encoder for which all texts mean nearly the same."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), 1), 1, dtype=np.float32)


def test_synonyms_help_where_the_model_only_copies(cache: Any, rows_of: Rows, counting: Any) -> None:
    engine = counting(Thesaurus())
    options = ParaphraseOptions(gates=GateOptions(max_overlap=0.95))

    def run(**changed: Any) -> list[str]:
        chosen = options.model_copy(update=changed)
        paraphraser = Paraphraser(1, chosen, engine, cache, Chooser(chosen.gates, 1, encoder=AllNear()), TOKENS)
        return [
            row["paraphrase_1"]
            for rows, _ in paraphraser.run([rows_of(["the car is fast"])])
            for row in rows.to_pylist()
        ]

    assert run() in (["the car is quick"], ["the car is rapid"])
    # Words are asked for once, whichever step wants them, and what came of it is asked for backwards.
    assert engine.asked == ["the car is fast", "car", "fast", "quick", "rapid"]
    assert run() in (["the car is quick"], ["the car is rapid"])
    assert len(engine.asked) == 5
    assert run(synonyms=False) == []

"""The rounds of a step: what they ask for, judge and write, and what none of that depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase import rounds
from paraclip_core.paraphrase.engines import Completion, EngineFacts, Prompt, SamplingOptions
from paraclip_core.paraphrase.filter_options import FilterOptions
from tests.kit.scripted_engine import Scripted, Streaming

OPTIONS = ParaphraseOptions(engine="transformers", filters=FilterOptions(preset="off"))
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
    paths = tuple(f"tests.kit.scripted_filters:{name}" for name in names)
    return with_options(filters=FilterOptions(preset="off", extra=paths))


def both_steps(kit: Any, batches: Sequence[pa.RecordBatch], engine: Any, options: ParaphraseOptions = OPTIONS) -> Any:
    first = kit.run(batches, engine, options)
    return first, kit.run(first.input_of_step_2, engine, options, step=2)


def figures(outcome: Any) -> tuple[int, int, int]:
    """Requests, answers and filter results."""
    counts = outcome.rounds.counts
    return counts.requested, counts.generated, counts.filtered


def test_both_steps_side_by_side(paraphrasing: Any, rows_of: Rows) -> None:
    first, second = both_steps(paraphrasing, [rows_of(CAPTIONS)], Scripted())
    assert second.rejects.num_rows == 0
    assert second.rows.column("caption").to_pylist() == CAPTIONS
    row = second.rows.to_pylist()[5]
    assert (row["paraphrase_1"], row["paraphrase_2"]) == (f"well {CAPTIONS[5]}", f"well well {CAPTIONS[5]}")
    keys = pa.array([row["generation_1"], row["generation_2"]], pa.binary(16))
    assert paraphrasing.cache.lookup(keys).num_rows == 2
    assert (row["license"], row["image_id"], row["similarity_1"]) == ("CC0", "image5", None)
    assert second.rounds.counts.metrics() | {"engine_seconds": 0, "filter_seconds": 0} == {
        "captions": 40, "requested": 40, "cached": 0, "generated": 40, "filtered": 40, "accepted": 40, "kept": 40,
        "rejected": {}, "prompt_tokens": 400, "completion_tokens": 200, "engine_seconds": 0, "filter_seconds": 0,
    }  # fmt: skip
    assert first.rounds.counts.metrics()["accepted"] == 40


def test_what_is_rejected_is_asked_again_whatever_the_chunk_and_batches(
    paraphrasing: Any, elsewhere: Any, rows_of: Rows
) -> None:
    options, whole = with_options(attempts=3), rows_of(FEW)
    engines = [drawing(lambda text, draw: "blue" in text and draw < 2) for _ in range(2)]
    expected = both_steps(elsewhere, [whole], engines[0], options)
    cut = [whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 4), whole.slice(5)]
    outcomes = both_steps(paraphrasing, cut, engines[1], options.model_copy(update={"chunk": 3}))
    for one, two in zip(expected, outcomes, strict=True):
        assert (two.rows, two.rejects) == (one.rows, one.rejects)
    # In the order of the captions, however many attempts they took.
    assert [*outcomes[0].answers.items()] == [(text, f"{text} draw {2 if text in BLUE else 0}") for text in FEW]
    rejects = [(row["input"], row["attempt"], row["reason"]) for row in outcomes[0].rejects.to_pylist()]
    assert rejects == [(text, draw, "empty") for text in BLUE for draw in (0, 1)]
    assert asked(engines[0]) == asked(engines[1])
    assert asked(engines[0])[:20] == [(text, 0) for text in FEW] + [(text, draw) for draw in (1, 2) for text in BLUE]


def test_requests_are_sent_in_portions(
    paraphrasing: Any, elsewhere: Any, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = elsewhere.run([rows_of(CAPTIONS)], Streaming())
    monkeypatch.setattr(rounds, "SENT_ROWS", 7)
    engine = Streaming()
    outcome = paraphrasing.run([rows_of(CAPTIONS[:25]), rows_of(CAPTIONS).slice(25)], engine)
    assert engine.texts == CAPTIONS
    assert outcome.answers == expected.answers


def test_another_caption_costs_a_request_and_result(paraphrasing: Any, elsewhere: Any, rows_of: Rows) -> None:
    both_steps(paraphrasing, [rows_of(CAPTIONS)], Scripted())
    captions = [*CAPTIONS[:17], "a new cat", *CAPTIONS[17:]]
    engine = Scripted()
    outcomes = both_steps(paraphrasing, [rows_of(captions)], engine)
    assert engine.texts == ["a new cat", "well a new cat"]
    assert [figures(outcome) for outcome in outcomes] == [(41, 1, 1), (41, 1, 1)]
    expected = both_steps(elsewhere, [rows_of(captions)], Scripted())
    assert [outcome.rows for outcome in outcomes] == [outcome.rows for outcome in expected]


def test_equal_captions_and_paraphrases_are_asked_about_once(paraphrasing: Any, rows_of: Rows) -> None:
    engine = Scripted()
    outcome = paraphrasing.run([rows_of(["a cat", "a dog", "a cat", "a cat"])], engine)
    assert engine.texts == ["a cat", "a dog"] and figures(outcome) == (2, 2, 2)
    assert outcome.rows.column("paraphrase_1").to_pylist() == [
        f"well a {name}" for name in ("cat", "dog", "cat", "cat")
    ]
    assert len(set(outcome.rows.column("caption_id").to_pylist())) == 4
    first = paraphrasing.run([rows_of(["a pig", "a hen", "a cow"])], Scripted(lambda prompt: ("one animal",)))
    engine = Scripted()
    second = paraphrasing.run(first.input_of_step_2, engine, step=2)
    assert engine.texts == ["one animal"] and figures(second) == (1, 1, 3)
    assert second.rows.column("caption").to_pylist() == ["a pig", "a hen", "a cow"]
    both_steps(paraphrasing, [rows_of(FEW)], Scripted())
    engine = Scripted()
    both_steps(paraphrasing, [rows_of(FEW)], engine, with_options(prompt_2="Say {} otherwise."))
    assert engine.texts == [f"well {text}" for text in FEW]


def test_changed_filters_judge_again_and_ask_nothing(paraphrasing: Any, rows_of: Rows) -> None:
    engine = Scripted()
    assert paraphrasing.run([rows_of(FEW)], engine).rows.num_rows == 10
    asked_before = len(engine.asked)
    strict = paraphrasing.run([rows_of(FEW)], engine, filtered("blue_input"))
    assert figures(strict) == (10, 0, 10) and len(engine.asked) == asked_before
    assert list(strict.answers) == FEW[::2]
    assert strict.rounds.counts.metrics()["rejected"] == {"blue_input": 5}
    reject = {"step": 1, "attempt": 0, "reason": "blue_input", "detail": "it is blue", "input": FEW[1]}
    reject |= {"caption_id": rows_of(FEW).column("caption_id")[1].as_py(), "answer": f"well {FEW[1]}"}
    assert strict.rejects.drop_columns(["generation"]).to_pylist()[0] == reject
    # The filter results of both are kept.
    assert figures(paraphrasing.run([rows_of(FEW)], engine)) == (10, 0, 0)


def test_an_engine_is_checked_before_it_is_asked_and_only_then(paraphrasing: Any, rows_of: Rows) -> None:
    class Checked(Scripted):
        def check(self) -> None:
            raise EngineError("the key is wrong")

    engine = Checked()
    for batches in ([], [rows_of([])], [rows_of(["a cat"]).slice(0, 0), rows_of([])]):
        outcome = paraphrasing.run(batches, engine, with_options(attempts=2))
        assert (outcome.rows.num_rows, outcome.rejects.num_rows, figures(outcome)) == (0, 0, (0, 0, 0))
    with pytest.raises(EngineError, match="the key is wrong"):
        paraphrasing.run([rows_of(FEW)], engine)
    assert engine.asked == []
    paraphrasing.run([rows_of(FEW)], Scripted(name=engine.name))
    assert paraphrasing.run([rows_of(FEW)], engine).rows.num_rows == 10


def test_every_phase_reaches_its_total(paraphrasing: Any, rows_of: Rows) -> None:
    reports: Told = []
    engine = drawing(lambda text, draw: "blue" in text and draw == 0)
    options = with_options(chunk=5, attempts=2)
    paraphrasing.run([rows_of(FEW)], engine, options, progress=lambda *step, **facts: reports.append((*step, facts)))
    assert [(facts["phase"], done, total) for done, total, facts in reports] == [
        ("asking", 5, 10), ("asking", 10, 10), ("filtering", 10, 10), ("asking", 5, 5), ("filtering", 5, 5),
    ]  # fmt: skip
    assert all({"generated", "cached", "requests_per_second", "eta_seconds"} <= facts.keys() for _, _, facts in reports)
    assert [facts.get("acceptance") for _, _, facts in reports] == [None, None, 0.5, 0.5, 0.667]
    assert reports[-1][2]["generated"] == 15 and reports[-1][2]["eta_seconds"] == 0


def test_verdicts_meanwhile_are_the_same(
    paraphrasing: Any, elsewhere: Any, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = filtered("blue_input", "short").model_copy(update={"chunk": 16})
    expected = both_steps(elsewhere, [rows_of(CAPTIONS)], Streaming(), options)
    monkeypatch.setattr(rounds, "SENT_AHEAD", 20)
    whole = rows_of(CAPTIONS)
    # Answers come from the last to the first, and two captions have the same paraphrase.
    engine = Streaming([*range(39, -1, -1)])
    first = paraphrasing.run([whole.slice(0, 11), whole.slice(11)], engine, options, processes=2)
    second = paraphrasing.run(first.input_of_step_2, Streaming(), options, step=2)
    for one, two in zip(expected, (first, second), strict=True):
        assert (two.rows, two.rejects) == (one.rows, one.rejects)
        assert two.rounds.counts.filtered == one.rounds.counts.filtered
    assert first.rounds.counts.filter_seconds == 0 < expected[0].rounds.counts.filter_seconds


def test_an_engine_on_our_cores_is_not_disturbed(
    paraphrasing: Any, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SENT_AHEAD", 20)
    offered: list[int] = []
    monkeypatch.setattr(rounds.FilterPool, "offer", lambda self, block: offered.append(block.num_rows))
    engine = Scripted()
    engine.facts = EngineFacts(shares_cores=True)
    paraphrasing.run([rows_of(CAPTIONS)], engine)
    assert offered == []
    paraphrasing.run([rows_of([f"{text} again" for text in CAPTIONS])], Scripted())
    assert offered == [40]


def test_what_prompts_ask_is_what_the_sampling_says(paraphrasing: Any, rows_of: Rows) -> None:
    class Listening(Scripted):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
            self.sampling = sampling
            return super().generate(prompts, sampling)

    engine, sampling = Listening(), SamplingOptions(n=3, temperature=0.1)
    paraphrasing.run([rows_of(["a dog"])], engine, with_options(prompt_1="Say {} simply.", sampling=sampling))
    assert engine.sampling == sampling
    assert engine.asked == [Prompt((("user", "Say a dog simply."),), "a dog", 1, 0)]


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


def first_answers(kit: Any, rows_of: Rows, count: int, share: int, **more: Any) -> Any:
    """A step over texts of which so many of a hundred are accepted."""
    engine = Scripted(lambda p: (f"one {p.text}",) if int(p.text.split()[-1]) % 100 < share else ("",))
    return kit.run([rows_of([f"a dog with number {number}" for number in range(count)])], engine, **more)


def test_little_acceptance_is_reported_with_reasons(
    paraphrasing: Any, rows_of: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    reports: Told = []
    for count, share in ((100, 40), (64, 1)):
        first_answers(paraphrasing, rows_of, count, share)
    assert caplog.messages == [], "enough, or the step is over"
    outcome = first_answers(
        paraphrasing, rows_of, 100, 10, options=with_options(seed=1),
        progress=lambda *step, **facts: reports.append((*step, facts)),
    )  # fmt: skip
    assert outcome.rows.num_rows == 10 and len(outcome.rounds.engine.asked) == 100
    (message,) = caplog.messages
    assert message.startswith("16% of the first 64 answers of scripted-1 at step 1 are accepted (empty 54); ")
    lines = message.splitlines()[1:]
    assert len(lines) == 3 and all("'a dog with number " in line and "-> '' (empty: " in line for line in lines)
    warning = "16% of the first 64 answers accepted (empty 54)"
    assert [(done, total, facts["phase"], facts.get("warning")) for done, total, facts in reports] == [
        (64, 100, "asking", None), (64, 64, "filtering", None), (100, 100, "asking", warning),
        (36, 36, "filtering", warning),
    ]  # fmt: skip

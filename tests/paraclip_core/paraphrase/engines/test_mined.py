"""The mined engine: circles of captions, and neighbors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paraclip_core.config import MinedOptions, ParaphraseOptions, SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import EngineContext, Prompt, make_engine
from paraclip_core.paraphrase.engines.mined import MinedEngine


class Captions:
    """Captions of images, and a feature for each image that has one."""

    def __init__(self, rows: Sequence[tuple[str | None, str]], features: dict[str, list[float]] | None = None) -> None:
        self.rows, self._features, self.names = rows, features or {}, {"ingest": "i1", "features": "f1"}

    def fingerprint(self, stage: str) -> str:
        return self.names[stage]

    def captions(self, columns: Sequence[str]) -> Iterable[pa.RecordBatch]:
        assert list(columns) == ["image_id", "caption"]
        for some in (self.rows[:2], self.rows[2:]):
            images, texts = [image for image, _ in some], [text for _, text in some]
            yield pa.record_batch([pa.array(images, pa.string()), pa.array(texts, pa.string())], list(columns))

    def features(self, image_ids: pa.Array) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        rows = {image: row for row, image in enumerate(self._features)}
        matrix = np.array([*self._features.values()], np.float16)
        return matrix, np.array([rows.get(image, -1) for image in image_ids.to_pylist()], np.int64)


def engine_of(captions: Captions, **options: object) -> MinedEngine:
    chosen = ParaphraseOptions(engine="mined", mined=MinedOptions(**options))  # pyright: ignore[reportArgumentType]
    engine = make_engine(chosen, EngineContext(device="cpu", corpus=captions))
    assert isinstance(engine, MinedEngine)
    return engine


def ask(engine: MinedEngine, image: str, text: str, step: int = 1) -> tuple[str, ...]:
    return engine.generate([Prompt((), f"{image}\n{text}", step, 0)], SamplingOptions())[0].texts


@given(
    texts=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9), keep=st.integers(1, 9), across=st.booleans()
)
@settings(deadline=None, max_examples=80)
def test_no_step_gives_the_caption_back_and_both_steps_differ(texts: list[str], keep: int, across: bool) -> None:
    rows: list[tuple[str | None, str]] = [("one", f"a {text} here") for text in texts]
    engine = engine_of(
        Captions([*rows, ("two", "other")], {"one": [1, 0], "two": [0, 1]}), min_cosine=1 if across else None
    )
    different = len({*texts})
    for _, caption in rows:
        first = ask(engine, "one", caption)
        assert len(first) == (different - 1 if across or different < 3 else different - 2)
        assert caption not in first
        assert len({*first}) == len(first)
        for paraphrase in first[:keep]:
            second = ask(engine, "one", paraphrase, 2)
            if different == 2:
                assert second == (paraphrase,)
            else:
                assert second[0] != paraphrase
                assert across or second[0] != caption


def test_what_is_chosen_does_not_depend_on_the_order_of_the_captions() -> None:
    rows: list[tuple[str | None, str]] = [("x", f"caption {number}") for number in range(5)]
    answers = [ask(engine_of(Captions(some)), "x", "caption 3") for some in (rows, rows[::-1])]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


def test_a_text_on_two_images_gets_the_captions_of_each() -> None:
    rows: list[tuple[str | None, str]] = [
        ("x", "Image may contain: dog"), ("x", "a dog"), ("y", "image may contain - dog"), ("y", "a poodle"),
        (None, "no image"), ("z", "alone"), ("w", "!?"),
    ]  # fmt: skip
    engine = engine_of(Captions(rows))
    assert ask(engine, "x", "Image may contain: dog") == ("a dog",)
    assert ask(engine, "y", "image may contain - dog") == ("a poodle",)
    assert ask(engine, "y", "a poodle", 2) == ("a poodle",)
    for image, text in (("z", "alone"), ("", "no image"), ("unknown", "a dog"), ("x", "a poodle"), ("w", "!?")):
        assert ask(engine, image, text) == ()


NEAR = {"x": [1.0, 0.0], "near": [0.98, 0.2], "nearer": [0.99, 0.1], "far": [0.0, 1.0]}
ROWS: list[tuple[str | None, str]] = [
    ("x", "a dog runs"), ("near", "a running dog"), ("nearer", "a dog that runs"), ("far", "a cup"), ("lost", "a hat"),
]  # fmt: skip


def test_neighbors_captions_come_nearest_first() -> None:
    engine = engine_of(Captions(ROWS, NEAR), min_cosine=0.95)
    assert ask(engine, "x", "a dog runs") == ("a dog that runs", "a running dog")
    assert ask(engine, "x", "a dog that runs", 2) == ("a running dog", "a dog runs", "a dog that runs")
    assert ask(engine, "far", "a cup") == ask(engine, "lost", "a hat") == ()
    engine.close()
    assert ask(engine, "x", "a dog runs") == ("a dog that runs", "a running dog")


def test_what_is_mined_names_the_model() -> None:
    one = Captions(ROWS, NEAR)
    plain, across = engine_of(one), engine_of(one, min_cosine=0.9)
    assert plain.facts.inputs == ("ingest",)
    assert across.facts.inputs == ("ingest", "features")
    assert plain.facts.gates == "off"
    assert across.facts.gates == "mined"
    assert len({plain.model, across.model, engine_of(one, min_cosine=0.5).model}) == 3
    before = plain.model, across.model
    one.names["features"] = "f2"
    assert plain.model == before[0]
    assert across.model != before[1]


def test_outside_of_a_run_there_are_no_captions() -> None:
    engine = make_engine(ParaphraseOptions(engine="mined"))
    assert not engine.facts.asks
    with pytest.raises(EngineError, match="works in a run alone"):
        _ = engine.model

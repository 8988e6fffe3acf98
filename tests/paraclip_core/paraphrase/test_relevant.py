"""Options of an engine that is not in use say nothing; those of the one in use say everything."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from paraclip_core.config import EngineName, OpenAIOptions, ParaphraseOptions, TransformersOptions, VllmOptions, meaning
from paraclip_core.paraphrase.relevant import OWN, relevant, unguarded
from paraclip_core.paraphrase.shards import first_requests

OTHERS: dict[str, dict[str, Any]] = {
    "precision": {"precision": "bf16"},
    "model": {"model": "another"},
    "smollm2": {"smollm2": {"max_num_seqs": 3}},
    "transformers": {"transformers": TransformersOptions(dtype="float32", batch_size=3)},
    "vllm": {"vllm": VllmOptions(dtype="half", revision="abc", extra={"seed_more": 1}, max_num_seqs=3)},
    "openai": {"openai": OpenAIOptions(revision="2026", extra_body={"reasoning_effort": "low"}, concurrency=2)},
    "file": {"file": {"path": "mine.csv", "caption": "text", "paraphrase_1": "a", "paraphrase_2": "b"}},
}
ENGINES = get_args(EngineName)
FASTER = ("smollm2",)
"""Option groups that change no answer."""


def options(engine: str, **changed: Any) -> ParaphraseOptions:
    return ParaphraseOptions.model_validate({"engine": engine, **changed})


def test_every_engine_and_every_option_of_one_is_told() -> None:
    assert set(OWN) == set(ENGINES)
    assert {name for names in OWN.values() for name in names} == set(OTHERS)
    # An option group with an engine's name is that engine's.
    assert all(name in OWN[name] for name in set(ENGINES).intersection(ParaphraseOptions.model_fields))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OTHERS)
def test_only_the_engine_in_use_is_looked_at(engine: str, name: str) -> None:
    plain, changed = relevant(options(engine)), relevant(options(engine, **OTHERS[name]))
    assert (meaning(plain) == meaning(changed)) == (name not in OWN[engine] or name in FASTER)
    if name not in OWN[engine]:
        assert plain == changed
        assert first_requests(plain, 1, "m") == first_requests(changed, 1, "m")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_looks_at_stays(engine: str) -> None:
    given = options(engine, chunk=3, fraction=0.5, gates={"preset": "paper"}, **{n: OTHERS[n][n] for n in OWN[engine]})
    found = relevant(given)
    kept = {"engine", "chunk", "fraction", "gates", *OWN[engine]}
    assert all(getattr(found, name) == getattr(given, name) for name in kept)
    assert relevant(found) == found


def test_prompts_sampling_and_seed_are_every_models() -> None:
    for name, value in {"seed": 4, "attempts": 2, "prompts": "paper", "synonyms": False, "prompt_1": "x {}"}.items():
        for engine in ENGINES:
            same = relevant(options(engine)) == relevant(options(engine, **{name: value}))
            assert same == (engine == "file"), (engine, name)


@pytest.mark.parametrize("engine", ENGINES)
def test_who_turns_the_gates_off_for_a_language_model_is_told(engine: str) -> None:
    told = unguarded(options(engine, gates={"preset": "paper"}))
    assert (told is None) == (engine == "file")
    assert told is None or f"keeps whatever {engine} answers" in told
    assert unguarded(options(engine)) is None
    assert unguarded(options(engine, gates={"preset": "small-model"})) is None

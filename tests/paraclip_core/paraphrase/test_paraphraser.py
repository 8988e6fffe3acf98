"""Which engines there are, what they look at, and engines that live outside of the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.options import meaning
from paraclip_core.paraphrase.engines import ENGINES, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.openai import OpenAIOptions
from paraclip_core.paraphrase.engines.transformers import TransformersOptions
from paraclip_core.paraphrase.engines.vllm import VllmOptions
from paraclip_core.paraphrase.paraphraser import Paraphraser, make_engine, relevant_options, unfiltered_warning
from paraclip_core.settings import parse_settings

SOME: dict[str, dict[str, Any]] = {
    "precision": {"precision": "bf16"},
    "model": {"model": "another"},
    "options": {"options": {"case": "upper"}},
    "transformers": {"transformers": TransformersOptions(batch_size=3)},
    "vllm": {"vllm": VllmOptions(extra={"dtype": "half", "revision": "abc"})},
    "openai": {"openai": OpenAIOptions(extra_body={"reasoning_effort": "low"}, concurrency=2)},
    "file": {"file": {"path": "mine.csv"}},
}
"""Options that only some engines look at."""
LOOKING_UP = ("file",)
"""Engines that ask no model."""
OWN = """
from paraclip_core.paraphrase.engines import Completion, EngineFacts


class Shouting:
    name = "shouting"
    facts = EngineFacts(shares_cores=True)

    def __init__(self, options, context):
        self.model = f"shouting-{options.model}-{options.options.get('mark', '!')}"
        self._mark = options.options.get("mark", "!")

    def generate(self, prompts, sampling):
        return [Completion((prompt.text.upper() + self._mark,), 1, 1) for prompt in prompts]

    def close(self):
        pass


class Silent:
    name = model = "silent"

    def __init__(self, options, context):
        pass


def without_arguments():
    return Silent(None, None)
"""


def options(engine: str, **changed: Any) -> ParaphraseOptions:
    return ParaphraseOptions.model_validate({"engine": engine, **changed})


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_engines.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_engines", raising=False)
    return "my_engines"


def test_every_option_of_one_engine_is_reported() -> None:
    assert {name for entry in ENGINES.values() for name in entry.reads} | {"options"} == set(SOME)
    # An option group with an engine's name is that engine's.
    assert all(name in ENGINES[name].reads for name in ENGINES.keys() & ParaphraseOptions.model_fields)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_what_the_engine_in_use_reads_is_looked_at(engine: str) -> None:
    reads, plain = ENGINES[engine].reads, relevant_options(options(engine))
    for name, changed in SOME.items():
        relevant = relevant_options(options(engine, **changed))
        assert (plain == relevant) == (name not in reads), name
        # The options of `transformers` are operational.
        assert (meaning(plain) == meaning(relevant)) == (name not in reads or name == "transformers"), name
    # Prompts, attempts and seed are every model's.
    for changed in ({"seed": 4}, {"attempts": 2}, {"prompts": "paper"}, {"prompt_1": "x {}"}):
        assert (relevant_options(options(engine, **changed)) == plain) == (engine in LOOKING_UP), changed
    given = options(engine, chunk=3, fraction=0.5, filters={"preset": "off"}, **{n: SOME[n][n] for n in reads})
    relevant = relevant_options(given)
    assert all(getattr(relevant, n) == getattr(given, n) for n in ("engine", "chunk", "fraction", "filters", *reads))
    assert relevant_options(relevant) == relevant


@pytest.mark.parametrize("engine", ENGINES)
def test_filters_off_for_a_language_model_and_a_missing_option_are_reported(engine: str) -> None:
    warning = unfiltered_warning(options(engine, filters={"preset": "off"}))
    assert warning is None if engine in LOOKING_UP else f"keeps every answer of {engine}" in str(warning)
    assert unfiltered_warning(options(engine)) is None
    assert unfiltered_warning(options(engine, filters={"preset": "capable"})) is None
    assert Paraphraser(options(engine)).filters.preset == ("off" if engine in LOOKING_UP else "capable")
    assert Paraphraser(options(engine, filters={"preset": "capable"})).filters.preset == "capable"
    if ENGINES[engine].needs[0]:
        with pytest.raises(ConfigError, match=f"engine={engine} needs paraphrase.{ENGINES[engine].needs[0]}, "):
            make_engine(options(engine))


def test_an_engine_of_the_users_own(own_module: str) -> None:
    settings = parse_settings(
        {"paraphrase": {"engine": f"{own_module}:Shouting", "model": "loud", "options": {"mark": "?"}}}
    )
    engine = make_engine(settings.paraphrase)
    assert (engine.name, engine.model) == ("shouting", "shouting-loud-?")
    (answer,) = engine.generate([Prompt((("user", "a dog"),), "a dog", 1, 0)], SamplingOptions())
    assert answer.texts == ("A DOG?",)
    relevant = relevant_options(settings.paraphrase)
    assert (relevant.model, relevant.options) == ("loud", {"mark": "?"})
    assert relevant_options(settings.paraphrase.model_copy(update={"vllm": VllmOptions(python="p")})) == relevant


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:Engine", "No module named 'no_such_module'"),
        ("my_engines:Nothing", "no attribute 'Nothing'"),
        ("my_engines:without_arguments", "too many positional arguments"),
        ("my_engines:Silent", "has no facts, generate, close"),
    ],
)
def test_a_class_that_cannot_be_used_is_named(own_module: str, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"paraphrase.engine={name} .*{reason}"):
        make_engine(options(name))


@pytest.mark.parametrize("name", ["smolm2", "module:", ":Class", "a b:C", ""])
def test_what_can_be_no_engine_is_refused_with_the_names(name: str) -> None:
    with pytest.raises(ValidationError, match=r"is not a known engine; expected openvino, .* package\.module:Class"):
        options(name)

"""Which part of a request's key differs from the nearest generation that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.generations import GenerationStore
from paraclip.tasks.context import Run
from paraclip.tasks.why import explain
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError
from paraclip_core.paraphrase.engines import make_engine, relevant_options
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.requests import RequestKeys, sampling_json
from paraclip_core.settings import load_settings
from paraclip_core.tables import GENERATIONS

TEXT = "a dog runs on the beach"


def settings_of(*overrides: str) -> Settings:
    return load_settings(None, overrides)


def keep(store: GenerationStore, settings: Settings, text: str, step: int = 1, attempt: int = 0) -> bytes:
    """Keep an answer to what the settings ask for, as the paraphrase stages do."""
    options = relevant_options(settings.paraphrase)
    prompt, model = prompt_for(options, step), make_engine(options).model
    sampling = sampling_json(options.sampling)
    key = RequestKeys(step, model, prompt.id, prompt.hash, sampling, options.seed, attempt).key(text)
    row: dict[str, Any] = {"key": key, "step": step, "attempt": attempt, "input": text, "engine": options.engine}
    row |= {"model": model, "prompt": prompt.id, "prompt_hash": prompt.hash, "sampling": sampling}
    row |= {"seed": options.seed, "completions": ["an answer"], "prompt_tokens": 1, "completion_tokens": 1}
    store.append(pa.Table.from_pylist([row], schema=GENERATIONS))
    return key


@pytest.fixture
def store(tmp_path: Path) -> GenerationStore:
    return GenerationStore(tmp_path / "cache")


def test_a_kept_request_differs_in_nothing(store: GenerationStore) -> None:
    key = keep(store, settings_of(), TEXT)
    keep(store, settings_of(), "a cat")
    # A caption is cleaned as ingest does it.
    for what in (TEXT, "  a dog&nbsp;runs on\tthe beach ", key.hex()):
        found = explain(Run(settings_of()), store, what)
        assert (found.cached, found.differences, found.key) == (True, (), key.hex())
        assert found.nearest is not None and found.nearest["completions"] == ["an answer"]
        assert found.asked["input"] == TEXT


def test_a_folder_s_name_is_no_part_of_a_request(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path / "seed=7" / "input=a cat" / "key=0" / "cache")
    key = keep(store, settings_of(), TEXT)
    for what in (TEXT, key.hex()):
        found = explain(Run(settings_of()), store, what)
        assert (found.cached, found.differences) == (True, ())
        assert found.nearest is not None and (found.nearest["seed"], found.nearest["input"]) == (0, TEXT)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["paraphrase.seed=5"], {"seed": (5, 0)}),
        (["paraphrase.sampling.temperature=0.5"], {"sampling.temperature": (0.5, 0.8)}),
        (
            ["paraphrase.sampling.n=4", "paraphrase.sampling.top_p=0.5"],
            {"sampling.n": (4, 2), "sampling.top_p": (0.5, 0.9)},
        ),
        (["paraphrase.prompts=paper"], {"prompt": ("paper/1", "few-shot/1"), "prompt text": None}),
        (["paraphrase.precision=bf16"], {"model": None}),
        (["paraphrase.gates.min_similarity=0.1", "paraphrase.chunk=3"], {}),
    ],
)
def test_each_part_is_named(store: GenerationStore, overrides: list[str], parts: dict[str, Any]) -> None:
    key = keep(store, settings_of(), TEXT)
    for what in (TEXT, key.hex()):
        found = explain(Run(settings_of(*overrides)), store, what)
        assert {difference.part for difference in found.differences} == set(parts)
        for difference in found.differences:
            assert difference.asked != difference.kept
            if parts[difference.part] is not None:
                assert (difference.asked, difference.kept) == parts[difference.part]
        assert found.cached == (not parts)
        assert found.nearest is not None and found.nearest["key"] == key.hex()


def test_an_own_prompt_differs_by_its_text_alone(store: GenerationStore) -> None:
    keep(store, settings_of("paraphrase.prompt_1=Say {} plainly."), TEXT)
    found = explain(Run(settings_of("paraphrase.prompt_1=Say {} briefly.")), store, TEXT)
    assert [difference.part for difference in found.differences] == ["prompt text"]


def test_the_nearest_has_the_same_input_and_the_fewest_differences(store: GenerationStore) -> None:
    keep(store, settings_of("paraphrase.seed=1", "paraphrase.prompts=paper"), TEXT)
    near = keep(store, settings_of("paraphrase.seed=1"), TEXT)
    keep(store, settings_of(), "a dog runs on the beach.")
    found = explain(Run(settings_of()), store, TEXT)
    assert found.nearest is not None and found.nearest["key"] == near.hex()
    assert [difference.part for difference in found.differences] == ["seed"]


def test_an_edited_caption_is_compared_with_its_likeness(store: GenerationStore) -> None:
    keep(store, settings_of(), "two people cook dinner")
    near = keep(store, settings_of(), "a dog runs on a beach")
    found = explain(Run(settings_of()), store, TEXT)
    assert [(d.part, d.asked, d.kept) for d in found.differences] == [("input", TEXT, "a dog runs on a beach")]
    assert found.nearest is not None and found.nearest["key"] == near.hex()


def test_steps_and_attempts(store: GenerationStore) -> None:
    keep(store, settings_of(), TEXT, step=2)
    second = keep(store, settings_of("paraphrase.attempts=3"), TEXT, step=2, attempt=2)
    found = explain(Run(settings_of()), store, TEXT)
    assert {difference.part for difference in found.differences} == {"step", "prompt", "prompt text"}
    assert explain(Run(settings_of()), store, TEXT, step=2).cached
    assert explain(Run(settings_of()), store, TEXT, step=2, attempt=2).cached
    assert not explain(Run(settings_of()), store, TEXT, step=2, attempt=1).cached
    # A key of an attempt that the configuration would never make.
    found = explain(Run(settings_of()), store, second.hex())
    assert [(d.part, d.asked, d.kept) for d in found.differences] == [("attempt", 0, 2)]
    assert explain(Run(settings_of("paraphrase.attempts=3")), store, second.hex()).cached
    assert explain(Run(settings_of("paraphrase.regenerate=[echo, echo]")), store, second.hex()).cached


def test_what_cannot_be_explained(store: GenerationStore) -> None:
    empty = explain(Run(settings_of()), store, TEXT)
    assert (empty.cached, empty.nearest, empty.differences) == (False, None, ())
    with pytest.raises(ArtifactError, match="no generation has the key 0000"):
        explain(Run(settings_of()), store, "0" * 32)
    with pytest.raises(ConfigError, match="the caption is empty"):
        explain(Run(settings_of()), store, " \t")


def test_segments_of_other_writers_lack_parts(store: GenerationStore) -> None:
    keep(store, settings_of(), "a cat")
    (name,) = store.parts.names()
    plain = store.parts.read(name).select(store.parts.schema.names)
    other = GenerationStore(store.folder.parent / "other")
    other.append(plain)
    found = explain(Run(settings_of()), other, "a cat")
    assert found.cached and {d.part for d in found.differences} >= {"input", "seed"}

"""The transformers engine on a real, very small causal language model with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from paraclip_core.clip import model as clip_model
from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase.engines import (
    SMALL_BYTES,
    Completion,
    EngineContext,
    EngineOptions,
    Prompt,
    SamplingOptions,
    read_hashes,
)
from paraclip_core.paraphrase.engines.transformers import TransformersEngine, TransformersOptions
from paraclip_core.paraphrase.paraphraser import make_engine
from paraclip_core.paraphrase.sentence_encoder import PACKAGE, packaged_folder

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FEW = (
    ("user", "photo of a gray kitten on a sofa near a window"),
    ("assistant", "there is a gray kitten sitting on a sofa"),
)
TEXTS = ["a dog on the beach near a boat", "a cat", "two red birds in a tree", "a cat and a dog", "a man", "blue cars"]
SAMPLING = SamplingOptions(n=2, temperature=1.0, max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(PACKAGE, reason="its tokenizer is used")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    tokeniser = AutoTokenizer.from_pretrained(packaged_folder())
    tokeniser.chat_template = TEMPLATE
    tokeniser.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokeniser), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def engine_of(folder: Path, device: str = "cpu", **own: Any) -> TransformersEngine:
    options = EngineOptions(TransformersOptions(**own), str(folder))
    return TransformersEngine(options, EngineContext(device=device))


def ask(engine: TransformersEngine, texts: list[str], seed: int = 0, n: SamplingOptions = SAMPLING) -> list[Completion]:
    return engine.generate([Prompt((("user", text),), text, 1, seed) for text in texts], n)


def test_answers_come_in_order_and_are_repeatable(folder: Path) -> None:
    engine = engine_of(folder)
    completions = ask(engine, TEXTS)
    assert [len(completion.texts) for completion in completions] == [2] * len(TEXTS)
    assert completions[1].prompt_tokens < completions[2].prompt_tokens < completions[0].prompt_tokens
    assert all(0 < completion.completion_tokens <= 12 for completion in completions)
    assert any(len(set(completion.texts)) > 1 for completion in completions)
    torch.manual_seed(5)
    assert ask(engine, TEXTS) == completions
    # Batches are cut by length, whatever the order.
    assert ask(engine, TEXTS[::-1]) == completions[::-1]
    assert ask(engine, TEXTS, seed=1) != completions
    engine.close()
    assert ask(engine, TEXTS) == completions


def test_greedy_decoding_gives_one_answer_that_no_batch_changes(folder: Path) -> None:
    greedy = SamplingOptions(n=4, temperature=0, max_tokens=4)
    both = ask(engine_of(folder, batch_size=4), ["a dog on the beach", "a cat"], n=greedy)
    assert [len(completion.texts) for completion in both] == [1, 1]
    single = engine_of(folder, batch_size=1)
    assert ask(single, ["a cat"], n=greedy) == both[1:]


@pytest.mark.parametrize("role", ["user", "examples"])
def test_after_examples_an_answer_is_one_line(folder: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    engine = engine_of(folder)
    model, _ = engine._load()
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **way: asked.append(way) or generate(**way))
    messages = (*FEW, ("user", "a dog")) if role == "examples" else ((role, "a dog"),)
    engine.generate([Prompt(messages, "a dog", 1, 0)], SAMPLING)
    assert asked[0].get("eos_token_id") == (None if role == "user" else engine._ends)
    assert engine._ends


def test_the_model_id_changes_with_the_files_and_uses_the_remembered_hashes_of_big_weights(
    folder: Path, tmp_path: Path
) -> None:
    name, _, revision = engine_of(folder).model.partition("@")
    revision, _, drawing = revision.partition("?")
    assert (name, len(revision), drawing) == (folder.name, 24, "draws=3")
    (tmp_path / "config.json").write_text("{}")
    small = engine_of(tmp_path).model
    (tmp_path / "config.json").write_text("{ }")
    assert engine_of(tmp_path).model != small
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(SMALL_BYTES + 1))
    seen: list[Path] = []

    def remembered(files: Iterable[Path]) -> dict[str, str]:
        seen.extend(files)
        return read_hashes(seen)

    options = ParaphraseOptions(engine="transformers", model=str(tmp_path))
    engine = make_engine(options, EngineContext(hash_files=remembered))
    assert engine.model == engine_of(tmp_path).model
    assert seen == [weights]
    one = engine.model
    with weights.open("r+b") as file:
        file.seek(SMALL_BYTES // 2)
        file.write(b"edit")
    assert engine_of(tmp_path).model != one


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no config\.json"):
        engine_of(tmp_path).check()
    with pytest.raises(EngineError, match="cannot read"):
        _ = engine_of(tmp_path / "nowhere").model
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    # Only what can be seen without loading it.
    engine_of(tmp_path).check()
    with pytest.raises(EngineError, match="cannot load"):
        ask(engine_of(tmp_path), ["a dog"])


def test_the_device_of_the_run_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A device that every machine has, and that no user can name.
    monkeypatch.setattr(clip_model, "pick_device", torch.device)
    model, _ = engine_of(folder, device="meta")._load()
    assert model.device.type == "meta"
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"run\.device is 'cuda:99'"):
        ask(engine_of(folder, "cuda:99"), TEXTS[:1])

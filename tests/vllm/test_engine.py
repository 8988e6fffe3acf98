"""The engine `vllm` with real vLLM behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import EngineContext, EngineOptions, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.vllm import VllmEngine, VllmOptions
from paraclip_core.paraphrase.prompts import prompt_for

TEMPLATE = prompt_for(ParaphraseOptions(), 1)
SAMPLING = SamplingOptions(n=2, max_tokens=24)


def engine_of(model: str, **own: Any) -> VllmEngine:
    return VllmEngine(EngineOptions(VllmOptions(**own), model), EngineContext())


@pytest.fixture(scope="module")
def engine(smollm2: str, vllm_options: dict[str, Any]) -> Iterator[VllmEngine]:
    engine = engine_of(smollm2, **vllm_options)
    yield engine
    engine.close()


def prompts(texts: list[str], seed: int = 0) -> list[Prompt]:
    return [Prompt(TEMPLATE.messages(text), text, 1, seed) for text in texts]


def test_answers_come_in_the_order_of_the_prompts(engine: VllmEngine, smollm2: str, captions: list[str]) -> None:
    from transformers import AutoTokenizer

    completions = engine.generate(prompts(captions), SAMPLING)
    tokeniser: Any = AutoTokenizer.from_pretrained(smollm2)
    for text, completion in zip(captions, completions, strict=True):
        turns = [{"role": role, "content": content} for role, content in TEMPLATE.messages(text)]
        rendered = tokeniser.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert completion.prompt_tokens == len(tokeniser.encode(rendered))
        assert len(completion.texts) == 2 and not any("\n" in answer for answer in completion.texts)
        assert 0 < completion.completion_tokens <= 48
    assert len({completion.prompt_tokens for completion in completions}) > 3
    pairs = zip(captions, completions, strict=True)
    shared = [set(text.lower().split()) & set(done.texts[0].lower().split()) for text, done in pairs]
    assert sum(map(bool, shared)) > 0.8 * len(captions)


def test_draws_are_seeded_request_by_request(engine: VllmEngine, captions: list[str]) -> None:
    few = captions[:8]
    first = engine.generate(prompts(few), SAMPLING)
    # Sums in another order may flip a close draw, and no more than that.
    other_way = engine.generate(prompts(few[::-1]), SAMPLING)[::-1]
    assert sum(one.texts == other.texts for one, other in zip(first, other_way, strict=True)) >= 4
    # Cold draws of this model are often the same whatever their seed.
    hot = SAMPLING.model_copy(update={"temperature": 1.5})
    two_seeds = [engine.generate(prompts(few, seed), hot) for seed in (0, 1)]
    assert sum(one.texts == other.texts for one, other in zip(*two_seeds, strict=True)) <= 4


def test_greedy_decoding(engine: VllmEngine) -> None:
    plain = Prompt((("user", "Say fast in another word."),), "fast", 1, 0)
    greedy = SamplingOptions(temperature=0, n=3, max_tokens=4)
    one, two = engine.generate([plain, plain], greedy)
    assert one == two and len(one.texts) == 1 and one.texts[0].strip()


def test_a_prompt_that_does_not_fit_is_named(engine: VllmEngine) -> None:
    with pytest.raises(EngineError, match=r"max_model_len in paraphrase\.vllm\.extra is 1024"):
        engine.generate(prompts(["a dog on a beach " * 300]), SAMPLING)


def test_the_check_finds_model_and_vllm(engine: VllmEngine, tmp_path: Path) -> None:
    engine.check()
    with pytest.raises(EngineError, match=r"no config\.json"):
        engine_of(str(tmp_path)).check()


def test_an_unknown_engine_argument_is_named(smollm2: str, vllm_options: dict[str, Any]) -> None:
    engine = engine_of(smollm2, **vllm_options | {"extra": {"no_such_argument": 4}})
    with pytest.raises(EngineError, match=r"did not start(.|\n)*unrecognized arguments: --no-such-argument"):
        engine.generate(prompts(["a dog"]), SAMPLING)

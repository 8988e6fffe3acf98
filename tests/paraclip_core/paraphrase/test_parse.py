"""Any raw answer gives one clean line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.parse import parse_answer


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

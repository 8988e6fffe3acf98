"""Words where blanks separate them, and where none do."""

from __future__ import annotations

import pytest

from paraclip_core.captions.filters import count_words

CHINESE = {"狗": 1, "一只狗在沙滩上奔跑": 5, "一只狗在沙滩上奔跑.": 5, "两只狗, 一个球": 4, "3只狗和Bob": 4}
OTHERS = {"犬がビーチを走っている": 6, "สุนัขกำลังวิ่งบนชายหาด": 6, "หมา": 1}
SPACED = ("a dog .", "dog", "café au lait", "개가 해변에서 달린다", "собака на пляже", "\N{DOG FACE} dog")
WORDS = {**CHINESE, **OTHERS, **{text: text.count(" ") + 1 for text in SPACED}}


@pytest.mark.parametrize("text", WORDS)
def test_words_are_counted_in_every_script(text: str) -> None:
    assert count_words(text) == WORDS[text]

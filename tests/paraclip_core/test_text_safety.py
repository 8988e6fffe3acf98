"""Text from others steers no terminal, breaks no line and can be encoded."""

from __future__ import annotations

import unicodedata

from paraclip_core.text_safety import CONTROL, encodable, one_line, printable


def test_printable() -> None:
    assert printable("a dog\ton the grass, Größe 4 – 猫 🐈") == "a dog\ton the grass, Größe 4 – 猫 🐈"
    assert all(unicodedata.category(char) != "Cc" or CONTROL.match(char) for char in map(chr, (0, 7, 8, 13, 27, 155)))


def test_one_line() -> None:
    error = ValueError("\x1b[31mno such\n file\x1b[0m\a, ‮ and a 猫")
    assert one_line(error) == "no such file?, ? and a 猫"
    assert one_line("a" * 401) == "a" * 400 + "…" and one_line("abc", 3) == "abc"


def test_encodable() -> None:
    assert encodable("caf\udce9 dog") == "caf\ufffd dog"

"""Errors as users read them."""

from __future__ import annotations

from paraclip_core.errors import LONGEST, ModelError, one_line, with_notes


def test_notes_follow_the_text() -> None:
    error = ModelError("the weights are damaged")
    assert with_notes(error) == "the weights are damaged"
    error.add_note("while measuring benchmark 'stsb'")
    assert with_notes(error) == "the weights are damaged\nwhile measuring benchmark 'stsb'"


def test_an_error_as_one_line() -> None:
    assert one_line(ValueError("no\n\n  tensor\there")) == "no tensor here"
    assert one_line(ValueError("\x1b[31;1mred\x1b[0m and\x1b[K plain")) == "red and plain"
    assert len(one_line(ValueError("word " * 1000))) == LONGEST

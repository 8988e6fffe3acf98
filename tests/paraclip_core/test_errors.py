"""Errors as users read them."""

from __future__ import annotations

from paraclip_core.errors import ModelError, with_notes


def test_notes_follow_the_text() -> None:
    error = ModelError("the weights are damaged")
    assert with_notes(error) == "the weights are damaged"
    error.add_note("while measuring benchmark 'stsb'")
    assert with_notes(error) == "the weights are damaged\nwhile measuring benchmark 'stsb'"

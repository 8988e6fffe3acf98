"""Lists of texts that a user gives in Python."""

from __future__ import annotations

from collections.abc import Iterable

from paraclip_core.errors import ConfigError


def need_texts(texts: Iterable[str], what: str) -> list[str]:
    """A user's `texts` as a list; raises ConfigError, which calls them `what`, if they are anything else."""
    if isinstance(texts, str):
        # Its characters would pass for a list of texts.
        raise ConfigError(f"expected a list of {what}, got the text {texts[:60]!r}; put it into a list")
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise ConfigError(f"expected a list of {what}, got {texts!r:.60}")
    for n, text in enumerate(rows := list(texts)):
        if not isinstance(text, str):
            raise ConfigError(f"entry {n} of the {what} is {text!r:.60}, expected text")
    return rows

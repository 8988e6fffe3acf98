"""Other wordings of a query: pairs that are given, and rules for what people vary without a thought.

The rules need no language model. They are for English, and each changes as little as it can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from paraclip_core.errors import BenchmarkError

_ARTICLE = re.compile(r"\b(?:an?|the) ", re.IGNORECASE)
_PHRASE = re.compile(r"^(.+?) ((?:above|at|behind|beside|by|in|near|next to|on|under|with) .+)$", re.IGNORECASE)
_SINGULAR = re.compile(
    r"(?:an? )?((?:[a-z-]+ ){0,2}?[a-z-]{2,}[a-rt-z])(?=$|[.,]| (?:and|at|behind|by|in|near|next|of|on|under|with) )",
    re.IGNORECASE,
)


class Wording(NamedTuple):
    """A query and other words for it."""

    query: str
    rewording: str
    kind: str = ""
    """The rule that made it; empty where a person or a model did."""


def _plural(query: str) -> str:
    if not (match := _SINGULAR.match(query)):
        return query
    noun = match[1]
    if re.search(r"(ch|sh|x|z)$", noun):
        noun += "es"
    else:
        noun = f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"
    return noun + query[match.end() :]


def _order(query: str) -> str:
    body = query.rstrip(".")
    if match := _PHRASE.match(body):
        return f"{match[2]}, {match[1]}"
    first, _, rest = body.rpartition(" ")
    return f"{rest}, {first}" if first and "," not in query and not _ARTICLE.search(query) else query


def _typo(query: str) -> str:
    longest = max(re.findall(r"[^\W\d_]{4,}", query), key=len, default="")
    middle = len(longest) // 2
    swapped = longest[: middle - 1] + longest[middle] + longest[middle - 1] + longest[middle + 1 :] if longest else ""
    return query.replace(longest, swapped, 1)


RULES: Mapping[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "plural": _plural,
    "article": lambda query: _ARTICLE.sub("", query) if _ARTICLE.search(query) else f"the {query}",
    "word order": _order,
    "punctuation": lambda query: query.rstrip(".") if query.endswith(".") else f"{query}.",
    "typo": _typo,
    "a photo of": lambda query: f"a photo of {query[0].lower()}{query[1:]}",
}


def wordings(entries: Sequence[Any]) -> list[Wording]:
    """The pairs to compare: those that are given, and each rule's for a query that stands alone."""
    if isinstance(entries, str):
        raise BenchmarkError(f"expected a list of queries or pairs, got the text {entries[:60]!r}")
    pairs: list[Wording] = []
    for number, entry in enumerate(entries, 1):
        texts = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, tuple | list) else []
        if not 1 <= len(texts) <= 3 or not all(isinstance(text, str) for text in texts) or not texts[0].strip():
            raise BenchmarkError(
                f"entry {number} is {str(entry)[:60]!r}; expected a query, or a tuple of a query and its rewording"
            )
        if len(texts) > 1:
            pairs.append(Wording(*texts))
        else:
            query = texts[0].strip()
            changed = {kind: rule(query) for kind, rule in RULES.items()}
            pairs += [Wording(query, text, kind) for kind, text in changed.items() if text != query]
    return list(dict.fromkeys(pairs))

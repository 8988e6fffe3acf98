"""The paraphrase in a raw answer of a language model."""

from __future__ import annotations

import re

from paraclip_core.captions.clean import clean

_THOUGHTS_BEGIN, _THOUGHTS_END = (re.compile(tag, re.I) for tag in (r"<think(?:ing)?>", r"</think(?:ing)?>"))
_QUOTES = "\"'“”‘’«»„`*_"
_NUMBERING = re.compile(r"^(?:[-*•·–]|\(?\d{1,2}[.):])\s+")
# `*+` is possessive: otherwise a long run of white space would be split into three in every possible way.
_TEMPLATE = re.compile(
    r"<\s*+[|｜]?\s*+/?\s*+(?:im_start|im_end|endoftext|eot_id|end_of_turn|s)\s*+[|｜]?\s*+>.*$", re.S
)
_LABEL = re.compile(
    r"^(?:(?:the\s+|an?\s+|my\s+)?(?:concise\s+|possible\s+|rewritten\s+|new\s+|simple\s+)*"
    r"(?:paraphrase[ds]?|paraphrasing|paraphrased\s+\w+|rewrite|rewritten|rephrased?|caption|answer|output|response"
    r"|sentence|text|assistant|result|version)"
    r"(?:\s+(?:of|for)\s+(?:the|this)\s+(?:\w+\s+)?(?:caption|text|sentence))?(?:\s+(?:is|could\s+be|would\s+be))?)\s*:\s*",
    re.I,
)
_LEAD = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|here(?:'s| is| are)|(?:the|this) (?:original )?"
    r"(?:text|sentence|caption)(?: can be (?:paraphrased|rewritten|rephrased))?(?: as)?(?: is)?)\b[^:\n]{0,80}:\s*",
    re.I,
)
# Words with one blank between them: most answers look like this, and nothing below could change them.
_PLAIN = re.compile(r"[A-Za-z](?:[A-Za-z0-9]|[ '-](?=[A-Za-z0-9])|, (?=[A-Za-z0-9]))*[.!?]?").fullmatch
_SPACE_BEFORE_STOP = re.compile(r"\s+([.,;:!?])")


def parse_answer(raw: str | None) -> str:
    """Return the paraphrase: the first line with text, without preamble, numbering, quotes and template tokens.

    A reasoning model's thoughts are dropped first. The result is cleaned as captions are, so that it can be tokenized
    as it is; it is empty if nothing is left. Never raises, whatever the text. Cache parts written by another program
    may hold null, which counts as empty.
    """
    if raw is None:
        return ""
    if _PLAIN(raw):
        return raw
    # The text after the last closing tag (some chat templates open the thoughts themselves), up to an opening one.
    thoughtless = _THOUGHTS_BEGIN.split(_THOUGHTS_END.split(raw)[-1])[0]
    text = _TEMPLATE.sub("", thoughtless)
    return next((answer for line in text.splitlines() if (answer := _parse_line(line))), "")


def _parse_line(line: str) -> str:
    text = " ".join(line.split())
    # Labels end in a colon, and most answers have none.
    for pattern in (_NUMBERING, _LEAD, _LABEL, _NUMBERING) if ":" in text else (_NUMBERING,):
        text = pattern.sub("", text, count=1)
    text = _unquote(text)
    return clean(_SPACE_BEFORE_STOP.sub(r"\1", text))


def _unquote(text: str) -> str:
    """Strip quotes around the whole text, and a lone one at either end."""
    text = text.strip()
    if text[:1] and text[0] in _QUOTES:
        return text.lstrip(_QUOTES).rstrip(_QUOTES + " ").strip()
    if text[-1:] and text[-1] in '"“”*`' and text.count(text[-1]) == 1:
        return text[:-1].strip()
    return text

"""Gates for answers of a model that can paraphrase: what harms whoever wrote it, and no word lists about images.

A capable model fails in other ways than a small one. It explains itself, offers a choice, formats its answer as a web
page, goes round in circles, or does what a caption tells it to do.
"""

from __future__ import annotations

import re

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.meaning import Compare
from paraclip_core.paraphrase.pair import Pair, content_words, words

__all__ = ["alternatives", "comment", "loop", "markup", "obeyed_order", "several_answers", "text_before_order"]

_FIRST_PERSON = re.compile(
    r"\bI(?:'ve|'ll| have| just| only)? (?:avoided|kept|replaced|changed|used|removed|tried|hope|will|would|can|made"
    r"|did)\b"
)
_COMMENT = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|no problem|got it|yes|sorry)[,.!:]|\bnote(?: that)?\s*:"
    r"|\blet me know\b|\b(?:original|existing|same) words?\b|\bhope this helps\b|\b(?:the|this|your) caption\b",
    re.I,
)
_MARKUP = re.compile(
    r"\*\*|__|~~|`|^#{1,6}\s|\]\(|https?:|www\.|javascript:|//|\.\./|[<>{}\\]|[\[\]]\w*=|\[/|&(?:[a-z]{2,8}|#\d{1,5});",
    re.I,
)
_JOINERS = "\u200c\u200d"
"""Invisible characters that Persian and Indian scripts are written with."""
_LOOP = re.compile(r"\b([^\W\d]+(?:\W+\w+){0,5})(?:\W+\1\b){2}", re.I)

_CHOICE = re.compile(
    r"\balternatively\b|\b(?:two|three|four|some|few|several) (?:options|versions|alternatives|possibilities)\b"
    r"|\b(?:another|a second|one more) (?:option|version|way|possibility|alternative|paraphrase)\b"
    r"|\b(?:option|version|alternative|variant|choice)\s*(?:\d|[a-e]\b|one|two)\s*[:.)-]|\bor\s*:|[,;.]\s*or\s*,"
    r"|\b(?:original|input|paraphrase[ds]?|rewrite|output|caption|paraphrase \d)\s*:|(?:^|[\s(])(?:2|b|ii)[.)]\s",
    re.I,
)
_BETWEEN = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z\d])|\s+[-–—/|•*]\s+|;\s+")
SHARE_OF_WORDS = 0.5
"""Of the input's words that an alternative has, at least: the parts of one description are shorter."""
ALIKE = 0.4
"""Cosine with the input that every alternative has, at least."""

_VERB = r"\b(?:say|reply|respond|answer|output|print|return|write|repeat|reveal|tell me|give me|show me)\b"
_ORDER = re.compile(
    # Against the order to paraphrase, in the languages that web captions come in.
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.!?]{0,40}"
    r"\b(?:this|above|before|previous|prior|preceding|earlier|instructions?|prompts?|rules?|caption|everything|told)\b"
    r"|\b(?:ignor|omit|olvid|oubli|esque[cç]|dimentic|vergiss|vergesst)\w*\b[^.!?]{0,40}"
    r"\b(?:instru|istru|indica|consign|orden|anweis|regel|regl)\w*"
    r"|忽略|無視|무시|игнорируй|забудь|تجاهل|अनदेखा|התעלם|\byok say\b"
    r"|\b(?:do not|don't|stop|instead of|rather than|without) (?:paraphras|rephras|rewrit|describ|translat)\w*"
    r"|\bnew (?:task|instruction|prompt|order)s?\s*:|\bsystem prompt\b|\byou (?:are (?:now|no longer)|have no rules)\b"
    r"|\bpretend you\b|\b(?:system|assistant|user|human|instruction|response)\s*:"
    r"|im_(?:start|end)\b|start_of_turn|endoftext|eot_id"
    # What to say instead.
    rf"|{_VERB}[^.!?:]{{0,30}}\b(?:only|exactly|nothing (?:else|but)|the words?|that you|after me|instead)\b"
    rf"|(?:^|[.!?;:,]\s*|\b(?:now|then|and|also|please) ){_VERB} (?:[\"']|everything|something)"
    r"|\b(?:only|just) (?:say|reply|respond|answer|output|print)\b|\btranslate (?:this|it|to|into)\b"
    rf"|{_VERB}[^.!?:]{{0,30}}\b(?:passwords?|api[ _]?key|secrets?|environment variables?|credentials|prompt)\b",
    re.I,
)


def comment(pair: Pair, options: GateOptions) -> str | None:
    """The answer comments on itself, or speaks to its reader."""
    if "i" not in pair.source_words and (match := _FIRST_PERSON.search(pair.answer)):
        return f"says {match.group()!r}"
    match = _COMMENT.search(pair.answer)
    return f"says {match.group()!r}" if match and match.group().lower() not in pair.source.lower() else None


def markup(pair: Pair, options: GateOptions) -> str | None:
    """The answer is formatted, or holds a link, a path or code; that its input does, too, is no excuse."""
    if match := _MARKUP.search(pair.answer):
        return f"formatted with {match.group()!r}"
    hidden = [char for char in pair.answer if not char.isprintable() and char not in _JOINERS]
    return f"invisible character U+{ord(hidden[0]):04X}" if hidden else None


def loop(pair: Pair, options: GateOptions) -> str | None:
    """The answer says the same one to six words three times in a row, as its input does not."""
    match = _LOOP.search(pair.answer)
    return f"repeats {match.group(1)!r}" if match and not _LOOP.search(pair.source) else None


def alternatives(pair: Pair) -> list[str]:
    """The parts of an answer of which each could be an answer of its own; none where there is only one part."""
    parts = _BETWEEN.split(pair.answer)
    if len(parts) == 1 or len(parts) == len(_BETWEEN.split(pair.source)):
        return []
    least = SHARE_OF_WORDS * len(pair.source_words)
    return [part for part in parts if len(words(part)) >= least]


def several_answers(pair: Pair, options: GateOptions, compare: Compare) -> str | None:
    """The answer offers a choice: numbered, labelled, or one whole paraphrase behind another."""
    match = _CHOICE.search(pair.answer)
    if match and match.group().strip().lower() not in pair.source.lower():
        return f"offers a choice with {match.group().strip()!r}"
    alike = [part for part in alternatives(pair) if compare.cosine(part, pair.source) >= ALIKE]
    return f"says the whole {len(alike)} times" if len(alike) > 1 else None


def text_before_order(pair: Pair) -> str | None:
    """What the caption says before it gives an order to whoever reads it; None where it gives none."""
    match = _ORDER.search(pair.caption)
    return None if match is None else pair.caption[: match.start()].strip()


def obeyed_order(pair: Pair, options: GateOptions, compare: Compare) -> str | None:
    """The caption gives the model an order, and the answer does not describe what stands before that."""
    text = text_before_order(pair)
    if text is None:
        return None
    if len(content_words(words(text))) > 1 and compare.cosine(text, pair.answer) >= options.threshold("min_similarity"):
        return None
    return "the caption gives an order, and the answer is not about the text before that"

"""Filters: each examines one answer and returns None, or why it is not good enough, with a figure.

A filter is a function `(Pair, FilterOptions) -> str | None`; its name is the reason code. A filter on meaning takes a
third argument, `Compare`, which uses the sentence encoder. The filters of the preset `capable` are here; custom ones
follow it, by dotted path (`paraphrase.filters.extra`).

They stop what harms with any model: it explains itself, offers a choice, formats its answer as a web page, repeats
itself, obeys a caption, or says something else. None uses word lists about images.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from paraclip_core.captions.pieces import CONTEXT_LENGTH, pieces_of
from paraclip_core.errors import ConfigError
from paraclip_core.options import import_path, module_source
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.sentence_encoder import Compare
from paraclip_core.paraphrase.words import UNSPACED, content_words, words

Filter = Callable[[Pair, FilterOptions], str | None]
MeaningFilter = Callable[[Pair, FilterOptions, Compare], str | None]

_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am) (?:sorry|unable|not able)|i (?:cannot|can['’]t|can not|apologi[sz]e)|as an ai\b"
    r"|language model|i don['’]t have|please provide|unfortunately,? i)\b",
    re.I,
)
_PREAMBLE = re.compile(
    r"\b(?:paraphras\w*|rephras\w*|rewrit\w*|rewritten|the (?:original|given|following|above) (?:text|sentence|caption)"
    r"|in other words|this (?:sentence|caption|text|image) (?:is|shows|describes)|synonyms?)\b|=>|:$",
    re.I,
)
_MARKUP = re.compile(r"</?[a-z!]|https?:|www\.|\{|\}|\||\\|<|>|\.(?:jpe?g|png|gif|html?|php)\b", re.I)
# Turn delimiters of any family of chat templates; no sentence about an image holds them.
_TEMPLATE = re.compile(r"<[|/]?[a-z_|]|\[/?[A-Z_]{3,}\]|<<|\|>")
_FIRST_PERSON = re.compile(
    r"\bI(?:'ve|'ll| have| just| only)? (?:avoided|kept|replaced|changed|used|removed|tried|hope|will|would|can|made"
    r"|did)\b"
)
_COMMENT = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|no problem|got it|yes|sorry)[,.!:]|\bnote(?: that)?\s*:"
    r"|\blet me know\b|\b(?:original|existing|same) words?\b|\bhope this helps\b|\b(?:the|this|your) caption\b",
    re.I,
)
_FORMATTING = re.compile(
    r"\*\*|__|~~|`|^#{1,6}\s|\]\(|https?:|www\.|javascript:|//|\.\./|[<>{}\\]|[\[\]]\w*=|\[/|&(?:[a-z]{2,8}|#\d{1,5});",
    re.I,
)
_JOINERS = "\u200c\u200d"
"""Invisible characters that Persian and Indian scripts require."""
_LOOP = re.compile(rf"\b([^\W\d]+(?:\W+\w+){{0,5}})(?:\W+\1\b){{2}}|([{UNSPACED}]{{2,20}}?)\2{{2}}", re.I)

_CHOICE = re.compile(
    r"\balternatively\b|\b(?:two|three|four|some|few|several) (?:options|versions|alternatives|possibilities)\b"
    r"|\b(?:another|a second|one more) (?:option|version|way|possibility|alternative|paraphrase)\b"
    r"|\b(?:option|version|alternative|variant|choice)\s*(?:\d|[a-e]\b|one|two)\s*[:.)-]|\bor\s*:|[,;.]\s*or\s*,"
    r"|\b(?:original|input|paraphrase[ds]?|rewrite|output|caption|paraphrase \d)\s*:|(?:^|[\s(])(?:2|b|ii)[.)]\s",
    re.I,
)
_BETWEEN = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z\d])|\s+[-–—/|•*]\s+|;\s+|(?<=[。！？])(?=.)")
MIN_LENGTH_RATIO = 0.25
"""Minimum ratio of words in the answer to words in its input."""
SHARE_OF_WORDS = 0.5
"""Minimum share of the input's words in an alternative: the parts of one description are shorter."""
ALIKE = 0.4
"""Minimum cosine of every alternative with the input."""

_VERB = r"\b(?:say|reply|respond|answer|output|print|return|write|repeat|reveal|tell me|give me|show me)\b"
_ORDER = re.compile(
    # Orders not to paraphrase.
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.!?]{0,40}"
    r"\b(?:this|above|before|previous|prior|preceding|earlier|instructions?|prompts?|rules?|caption|everything|told)\b"
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


def empty(pair: Pair, options: FilterOptions) -> str | None:
    """The answer holds no word."""
    return None if pair.answer_words else "no word in the answer"


def refusal_or_preamble(pair: Pair, options: FilterOptions) -> str | None:
    """The answer talks about the task instead of doing it."""
    for pattern in (_REFUSAL, _PREAMBLE):
        match = pattern.search(pair.answer)
        if match and match.group().lower() not in pair.source.lower():
            return f"says {match.group()!r}"
    return None


def echo(pair: Pair, options: FilterOptions) -> str | None:
    """The answer repeats the input or, at step 2, the caption."""
    if pair.answer_words == pair.source_words:
        return "repeats its input"
    if pair.step == 2 and pair.answer_words == pair.caption_words:
        return "repeats the caption"
    return None


def character_set(pair: Pair, options: FilterOptions) -> str | None:
    """The answer holds a template token, or markup, control characters or a script that its input does not have."""
    if match := _TEMPLATE.search(pair.answer):
        return f"template token {match.group()!r}"
    match = _MARKUP.search(pair.answer)
    if match and match.group().lower() not in pair.source.lower():
        return f"markup {match.group()!r}"
    if pair.answer.isascii():
        return None
    scripts = {"LATIN", *map(_script, pair.source)} - {""}
    for char in pair.answer:
        if not char.isascii() and not char.isspace() and char not in pair.source and _script(char) not in scripts:
            return f"character U+{ord(char):04X}"
    return None


def _script(char: str) -> str:
    """The script that a character belongs to, by its name; punctuation belongs to any."""
    if unicodedata.category(char) in ("Pd", "Pi", "Pf", "Po"):
        return "LATIN"
    script = re.split(r"[ -]", unicodedata.name(char, ""), maxsplit=1)[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA", "IDEOGRAPHIC") else script


def length_ratio(pair: Pair, options: FilterOptions) -> str | None:
    """The answer is much shorter or longer than its input, in words."""
    count, base = len(pair.answer_words), len(pair.source_words)
    if count < MIN_LENGTH_RATIO * base:
        return f"{count} words for {base}, at least {MIN_LENGTH_RATIO:g} times as many are wanted"
    if count > options.max_length_ratio * base + 1:
        return f"{count} words for {base}, at most {options.max_length_ratio:g} times as many and one are wanted"
    return None


def too_long(pair: Pair, options: FilterOptions) -> str | None:
    """The answer does not fit into the text encoder's context."""
    room = CONTEXT_LENGTH - 2
    # A token covers at least one byte, so most answers need no count.
    if len(pair.answer.encode("utf-8", "surrogatepass")) <= room:
        return None
    count = pieces_of(pair.answer)
    return f"{count} tokens, {room} fit" if count > room else None


def low_caption_similarity(pair: Pair, options: FilterOptions, compare: Compare) -> str | None:
    """The answer as a whole is too far from the caption; paraphrase 2 may be further from it."""
    least = options.min_similarity if pair.step == 1 else options.min_caption_similarity
    cosine = compare.cosine(pair.caption, pair.answer)
    return None if cosine >= least else f"cosine {cosine:.2f} with the caption, at least {least:g}"


def comment(pair: Pair, options: FilterOptions) -> str | None:
    """The answer comments on itself or addresses its reader."""
    if "i" not in pair.source_words and (match := _FIRST_PERSON.search(pair.answer)):
        return f"says {match.group()!r}"
    match = _COMMENT.search(pair.answer)
    return f"says {match.group()!r}" if match and match.group().lower() not in pair.source.lower() else None


def markup(pair: Pair, options: FilterOptions) -> str | None:
    """The answer is formatted, or holds a link, a path or code, even if its input does too."""
    if match := _FORMATTING.search(pair.answer):
        return f"formatted with {match.group()!r}"
    hidden = [char for char in pair.answer if not char.isprintable() and char not in _JOINERS]
    return f"invisible character U+{ord(hidden[0]):04X}" if hidden else None


def loop(pair: Pair, options: FilterOptions) -> str | None:
    """The answer repeats the same one to six words three times in a row, and its input does not."""
    match = _LOOP.search(pair.answer)
    return f"repeats {match[1] or match[2]!r}" if match and not _LOOP.search(pair.source) else None


def alternatives(pair: Pair) -> list[str]:
    """The parts of an answer that could each be an answer on their own; none if there is only one part."""
    parts = _BETWEEN.split(pair.answer)
    if len(parts) == 1 or len(parts) == len(_BETWEEN.split(pair.source)):
        return []
    least = SHARE_OF_WORDS * len(pair.source_words)
    return [part for part in parts if len(words(part)) >= least]


def several_answers(pair: Pair, options: FilterOptions, compare: Compare) -> str | None:
    """The answer offers a choice: numbered, labeled, or one whole paraphrase after another."""
    match = _CHOICE.search(pair.answer)
    if match and match.group().strip().lower() not in pair.source.lower():
        return f"offers a choice with {match.group().strip()!r}"
    alike = [part for part in alternatives(pair) if compare.cosine(part, pair.source) >= ALIKE]
    return f"says the whole {len(alike)} times" if len(alike) > 1 else None


def text_before_order(pair: Pair) -> str | None:
    """The part of the caption before an order to its reader; None if it gives no order."""
    match = _ORDER.search(pair.caption)
    return None if match is None else pair.caption[: match.start()].strip()


def obeyed_order(pair: Pair, options: FilterOptions, compare: Compare) -> str | None:
    """The caption gives the model an order, and the answer does not describe the text before it."""
    text = text_before_order(pair)
    if text is None:
        return None
    if len(content_words(words(text))) > 1 and compare.cosine(text, pair.answer) >= options.min_similarity:
        return None
    return "the caption gives an order, and the answer is not about the text before that"


TEXT_FILTERS: tuple[Filter, ...] = (
    empty,
    refusal_or_preamble,
    comment,
    character_set,
    markup,
    loop,
    length_ratio,
    too_long,
    echo,
)
MEANING_FILTERS: tuple[MeaningFilter, ...] = (several_answers, obeyed_order, low_caption_similarity)
"""Filters of the preset `capable`, in the order in which they run."""
NO_PARAPHRASE = "no_paraphrase"
"""The reason code that no filter gives: there was no answer to filter."""


@dataclass(frozen=True)
class Filters:
    """The filters that the options select, by reason code, in the order in which they run."""

    text: dict[str, Filter]
    meaning: dict[str, MeaningFilter]


def filters_of(options: FilterOptions) -> Filters:
    """The preset's filters and the custom ones."""
    text, meaning = _by_reason(TEXT_FILTERS), _by_reason(MEANING_FILTERS)
    taken = {*text, *meaning, NO_PARAPHRASE}
    filters = Filters(_by_reason([empty]), {}) if options.preset == "off" else Filters(text, meaning)
    for path in options.extra:
        check = _imported(path)
        if check.__name__ in {*taken, *filters.text, *filters.meaning}:
            raise ConfigError(
                f"paraphrase.filters.extra: {path} is named {check.__name__}, like another filter; rename it"
            )
        (filters.meaning if _parameters(check) == 3 else filters.text)[check.__name__] = check
    return filters


def compared_texts(pair: Pair) -> set[str]:
    """The texts that the filters on meaning compare, so that the encoder gets them all at once."""
    return {pair.caption, pair.source, pair.answer, *alternatives(pair)}


def _by_reason(filters: Iterable[Any]) -> dict[str, Any]:
    return {check.__name__: check for check in filters}


def extra_filters_source(options: FilterOptions) -> dict[str, bytes]:
    """Path of each custom filter → the source of its module."""
    return {path: module_source(_imported(path)) for path in options.extra}


def _imported(path: str) -> Any:
    expected = "package.module:function of (Pair, FilterOptions), or of (Pair, FilterOptions, Compare)"
    check = import_path(path, f"paraphrase.filters.extra={path}", expected)
    if not inspect.isfunction(check) or _parameters(check) not in (2, 3):
        raise ConfigError(f"paraphrase.filters.extra={path} is not a filter; expected {expected}")
    return check


def _parameters(check: Any) -> int:
    return len(inspect.signature(check).parameters)

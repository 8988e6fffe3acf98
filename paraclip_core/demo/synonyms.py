"""Synonyms from the LLM itself, since a small model is better at synonyms than at rephrasing.

A small model copies whole sentences, yet continues a thesaurus well. So each content word is requested once, as a
request like any other (cached, and few: a corpus has far fewer words than captions). Each alternative is then requested
in turn. An alternative that is near by the sentence encoder and leads back to the word, or that is very near, may
replace it. `variants` puts the words into sentences, as further answers in addition to the LLM's own; they pass the
same filters.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from paraclip_core.demo.filters import COLORS, KINDS, LIGHT_WORDS, NUMBERS, OPPOSITES
from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.pair import Pieces
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate
from paraclip_core.paraphrase.synonyms import Encode, Fetch, SynonymTable
from paraclip_core.paraphrase.tidy import NOISE_WORDS, tidy
from paraclip_core.paraphrase.words import content_words, stem, word_set, words

_LINES = (
    ("sofa", "couch, settee"), ("quick", "fast, rapid"), ("rock", "stone, boulder"), ("physician", "doctor, medic"),
    ("forest", "woods, woodland"), ("airport", "airfield, aerodrome"), ("speak", "talk, chat"),
    ("movie", "film, picture"),
)  # fmt: skip

THESAURUS = PromptTemplate(
    "few-shot/words",
    (),
    before="A thesaurus of common words.\n" + "\n".join(f"{word}: {others}" for word, others in _LINES) + "\n",
    after=":",
    completion=True,
)
"""Requests synonyms by letting the model continue a thesaurus."""

WORD_SAMPLING = SamplingOptions(temperature=0.7, top_p=0.9, max_tokens=12, n=8)
"""Several draws, because a word that occurs more than once is more trustworthy."""

VARIANTS = 10
NEAR, VERY_NEAR = 0.58, 0.8
MOST_SYNONYMS = 4

SWAPS = {1: 1, 2: 3}
"""Maximum words that are swapped for synonyms, by step."""

BASES = {1: 2, 2: 3}
"""Texts per request in which words are swapped, by step."""

_OPENING = re.compile(
    r"^(?:(?:a|the) )?(?:stock )?(?:photo(?:graph)?|picture|image|pic) of (?=\S)|^this is (?=\S)", re.I
)

# Endings that tell a word's part of speech.
_ENDINGS = ("ing", "ed", "ly", "al", "ous", "ful", "rian")
_SHAPE = re.compile(r"[a-z]{3,}(?: [a-z]{3,})?")
_TOKEN = re.compile(r"[A-Za-z]+")
# True of the thing but of too many others: they no longer describe an image of a dog.
_HYPERNYMS = word_set("animal animals creature creatures beast pet pets individual being thing object item")
_PLURALS = word_set("children people men women cattle sheep fish folk police")


def alternatives(word: str, answers: Iterable[str]) -> list[str]:
    """Words in the raw answers that could replace `word`, the most frequent first.

    Number and ending must agree (`dogs` → `pets`, `running` → `jogging`), and words that a list knows as another kind,
    another color or the opposite are excluded.
    """
    votes: Counter[str] = Counter()
    for answer in answers:
        votes.update(sorted({part.strip(" .\"'").lower() for part in answer.strip().partition("\n")[0].split(",")}))
    return [other for other, _ in sorted(votes.items(), key=lambda item: (-item[1], item[0])) if _agrees(word, other)]


def _agrees(word: str, other: str) -> bool:
    if not _SHAPE.fullmatch(other) or stem(other) == stem(word) or word in other.split():
        return False
    if any(part.startswith(word) for part in other.split()) or _plural(word) != _plural(other):
        return False
    if any(word.endswith(end) != other.endswith(end) for end in _ENDINGS):
        return False
    if word in KINDS and _HYPERNYMS & set(other.split()):
        return False
    if other in COLORS or other in NUMBERS or not content_words(words(other)):
        return False
    if word in KINDS and other in KINDS and KINDS[word] != KINDS[other]:
        return False
    return not any((word in one and other in two) or (word in two and other in one) for one, two in OPPOSITES)


def _plural(word: str) -> bool:
    last = word.split()[-1]
    return last in _PLURALS or (last.endswith("s") and not last.endswith(("ss", "us", "is")))


def find_synonyms(texts: Iterable[str], fetch: Fetch, encode: Encode, pieces: Pieces | None = None) -> SynonymTable:
    """Synonyms of the content words of the texts, the nearest first; words without any are left out.

    `fetch` asks the LLM for synonyms of some words, and `encode` returns unit vectors, float32 [n, d]. Without
    `pieces`, a synonym may have any number of CLIP tokens.
    """

    def fits(synonym: str) -> bool:
        return pieces is None or all(pieces(part) == 1 for part in synonym.split())

    targets = sorted({word for text in texts for word in swappable(text)})
    synonyms = ((word, alternatives(word, answers)) for word, answers in sorted(fetch(targets).items()))
    forward = {word: list(filter(fits, others)) for word, others in synonyms}
    near = _near(forward, encode)
    others = sorted({other for cosines in near.values() for other in cosines})
    back = {other: alternatives(other, answers) for other, answers in fetch(others).items()}
    table = {}
    for word, cosines in near.items():
        sure = [o for o, cosine in cosines.items() if cosine >= VERY_NEAR or word in back.get(o, ())]
        if sure:
            table[word] = tuple(sure[:MOST_SYNONYMS])
    return table


def _near(forward: Mapping[str, Sequence[str]], encode: Encode) -> dict[str, dict[str, float]]:
    """Word → the alternatives that the encoder finds near, with their cosine, the nearest first."""
    texts = sorted({*forward, *(other for others in forward.values() for other in others)})
    if not texts:
        return {}
    vectors = dict(zip(texts, encode(texts), strict=True))
    near = {}
    for word, others in forward.items():
        cosines = {other: round(float(vectors[word] @ vectors[other]), 4) for other in others}
        nearest = sorted((-cosine, other) for other, cosine in cosines.items() if cosine >= NEAR)
        near[word] = {other: -minus for minus, other in nearest[: MOST_SYNONYMS + 1]}
    return near


def swappable(text: str) -> list[str]:
    """The words of a text that others may replace."""
    candidates = [word for word in content_words(words(text)) if _SHAPE.fullmatch(word)]
    return [word for word in candidates if word not in COLORS and word not in NUMBERS and word not in LIGHT_WORDS]


def bases(text: str, caption: str, answers: Sequence[str], step: int) -> list[str]:
    """Texts in which words are swapped: the input and the caption, which are still complete, and the first answers."""
    parsed = [answer for raw in answers if (answer := parse_answer(raw))]
    texts: dict[str, None] = dict.fromkeys([*([text] if step == 2 else []), bare(caption), *parsed])
    return list(texts)[: BASES[step]]


def bare(text: str) -> str:
    """Return a web caption without phrases that do not describe the image: `photo of`, `stock photo`, `| free image`.

    Returns the text unchanged if nothing would be left.
    """
    words = _OPENING.sub("", tidy(text)).split()
    while words and (not any(map(str.isalpha, words[-1])) or words[-1].strip(".,;:!|").lower() in NOISE_WORDS):
        words.pop()
    return " ".join(words) or text


def variants(text: str, caption: str, answers: Sequence[str], step: int, table: SynonymTable) -> list[str]:
    """Answers in addition to the model's: the bases with single words swapped.

    Step 2 first tries to leave step 1's new words as they are.
    """
    texts = bases(text, caption, answers, step)
    of_caption: list[str] = []
    if step == 2:
        stems = {stem(word) for word in words(caption)}
        words_of_caption = {word: others for word, others in table.items() if stem(word) in stems}
        of_caption = swapped(texts, words_of_caption, SWAPS[step])
    return list(dict.fromkeys([*of_caption, *swapped(texts, table, SWAPS[step])]))


def swapped(texts: Sequence[str], table: Mapping[str, Sequence[str]], most: int = 3) -> list[str]:
    """The texts with one to `most` words replaced, `VARIANTS` in all, taken from the texts in turn.

    Each variant picks its words by hash, so that different captions use different synonyms; the same texts give the
    same variants.
    """
    results = []
    for variant in range(VARIANTS if texts else 0):
        text = texts[variant % len(texts)]
        candidates = [word for word in dict.fromkeys(swappable(text)) if word in table]
        if not candidates:
            continue
        digest = hashlib.blake2b(f"{variant}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        # The first variants swap as many words as allowed, the later ones fewer.
        count = min(len(candidates), max(1, most - variant // 2))
        chosen = sorted(range(len(candidates)), key=lambda at: (digest[at % 16] ^ at, at))[:count]
        swaps = {
            candidates[at]: table[candidates[at]][digest[(at + 7) % 16] % len(table[candidates[at]])] for at in chosen
        }
        results.append(_put(text, swaps))
    return list(dict.fromkeys(results))


def _put(text: str, swaps: Mapping[str, str]) -> str:
    def other(match: re.Match[str]) -> str:
        word = match.group()
        new = swaps.get(word.lower())
        if new is None:
            return word
        return new.capitalize() if word[0].isupper() else new

    return _ARTICLE.sub(_article, _TOKEN.sub(other, text))


_ARTICLE = re.compile(r"\b([Aa])(n?) ([A-Za-z]+)")
_VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!n[aeiou]|s[aeiou]|rin|te|rop)|hour|honest)", re.I)


def _article(match: re.Match[str]) -> str:
    article, _, word = match.groups()
    return f"{article}{'n' if _VOWEL_SOUND.match(word) else ''} {word}"

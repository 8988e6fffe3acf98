"""Filters for answers of a small model, which copies words, breaks them and invents things.

They compare caption and answer word by word: which words the answer lost, and which replace them. They also check
details that a paraphrase must keep: numbers, colors, kinds of things, places, negations. Two texts that name the same
things can still differ in where these are (`a cup on a table` → something is on the table), which sentence encoders
hardly notice. The small word lists only filter answers: none is ever shown to the LLM, and none puts a word into a
paraphrase.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.sentence_encoder import Compare
from paraclip_core.paraphrase.tidy import NOISE_WORDS, tidy
from paraclip_core.paraphrase.words import STOP_WORDS, content_words, denies, jaccard, stem, word_set, words

LIGHT_WORDS = word_set(
    """wearing wears dressed seen shown sits sitting stands standing located placed group picture image photo photograph
    scene view"""
)
"""Words that a paraphrase may add because they say almost nothing about an image."""

DETERMINERS = word_set(
    "a an the this that these those some any his her its their one two three four five six seven eight"
)
"""Words that may precede a noun and its adjectives."""

_SURROUNDINGS = word_set(
    """street road avenue lane highway beach shore coast sea ocean water lake river pond field meadow grass lawn
    park garden mountain hill desert snow winter night city town harbour harbor dark morning evening day sand
    picture photo image ground sky air rain fog sunset dawn background distance room"""
)
PLACES = frozenset(map(stem, _SURROUNDINGS))
"""Stems of surroundings for which the preposition is a matter of style: in or on the street, at the beach."""

NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "couple": 2, "pair": 2, "pairs": 2, "both": 2, "duo": 2, "twins": 2,
    "trio": 3, "dozen": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90, "hundred": 100,
}  # fmt: skip
"""Number words with their value; `one` says no more than `a`."""


def _by_family(text: str) -> dict[str, str]:
    """Word → the first of its family; semicolons separate families."""
    return {word: family.split()[0] for family in text.split(";") for word in family.split()}


COLORS = _by_family(
    """
    red crimson scarlet maroon ruby reddish; blue navy azure teal turquoise cyan bluish;
    green olive emerald lime greenish; yellow golden gold yellowish blond blonde; orange;
    purple violet lilac lavender magenta; pink rosy; black ebony; white ivory; gray grey silver silvery;
    brown tan beige chestnut brunette
    """
)
"""Color word → its family; words of one family may replace one another."""

# Each block holds mutually exclusive things. A word of a family that the input does not name is an invention, whether
# or not the input names another family of its block. Hypernyms (animal, person, vehicle) are left out on purpose.
_KIND_BLOCKS = {
    "animal": """
        dog dogs puppy puppies pup pups hound hounds canine canines doggy pooch;
        dog terrier terriers retriever retrievers poodle poodles pitbull pitbulls;
        cat cats kitten kittens kitty feline felines;
        horse horses pony ponies mare mares stallion stallions foal foals colt colts;
        cow cows cattle calf calves bull bulls ox oxen bovine;
        bird birds chicken chickens duck ducks seagull seagulls goose geese parrot parrots;
        sheep lamb lambs goat goats; pig pigs hog hogs; mouse mice rat; fish shark sharks;
        lion lions lioness lionesses; rabbit rabbits bunny bunnies; bear bears; monkey monkeys ape apes;
        elephant elephants; squirrel squirrels; deer moose
        """,
    "person": """
        man men guy guys gentleman gentlemen male father fathers dad dads husband husbands;
        woman women lady ladies female mother mothers mom moms mum mums wife wives; boy boys lad lads; girl girls
        """,
    "vehicle": """
        car cars automobile automobiles auto autos sedan sedans; bus buses; truck trucks lorry lorries pickup pickups;
        bicycle bicycles bike bikes cycle; motorcycle motorcycles motorbike motorbikes scooter scooters;
        boat boats ship ships vessel vessels sailboat sailboats yacht yachts; train trains locomotive locomotives;
        airplane airplanes aeroplane aeroplanes plane planes jet jets aircraft; rocket rockets spaceship spaceships;
        flight flights
        """,
    "thing": """
        house houses home homes cottage cottages cabin cabins hut huts; tree trees; chair chairs stool stools;
        armchair armchairs recliner; doll dolls; glow; table tables desk desks; lamp lamps lantern lanterns;
        umbrella umbrellas parasol parasols; kite kites; cup cups mug mugs; ball balls;
        flower flowers blossom blossoms; bed beds
        """,
    "body": "mouth mouths lips; throat throats; nose noses; face faces; head heads; hand hands; foot feet",
    "sport": """
        football; soccer; baseball; basketball; volleyball; softball; rugby; tennis; hockey; golf; cricket
        """,
    "clothes": """
        clothes clothing outfit outfits attire; dress dresses gown gowns; skirt skirts; jeans; pants trousers; shorts;
        shirt shirts; jacket jackets coat coats
        """,
    "age": "adult adults; teen teens teenage teenager teenagers adolescent adolescents",
    "settlement": "city cities urban; village villages",
    "ground": """
        beach beaches shore seaside coast seashore; street streets road roads avenue roadway lane;
        highway highways motorway freeway expressway; railway railways railroad rails; sidewalk sidewalks pavement;
        desert dunes; yard yards backyard backyards; river rivers; kitchen; bathroom; mountain mountains
        """,
}  # fmt: skip

KINDS = {word: f"{block}/{head}" for block, lines in _KIND_BLOCKS.items() for word, head in _by_family(lines).items()}
"""Noun → the kind of thing it names."""

_EXPRESSIONS = """
    dirt bike, hard hat, hot dog, hot tub, ice cream, tug of war, rock climb, rock climber, fire hydrant,
    fire truck, fire engine, golden retriever, german shepherd, border collie, roller coaster, roller skate,
    monkey bar, life jacket, life vest, teddy bear, cotton candy, hula hoop, high heel, high school, baseball bat,
    stop sign, snow angel
    """
FIXED = tuple((text.strip(), [stem(word) for word in text.split()]) for text in _EXPRESSIONS.split(","))
"""Fixed expressions, with the stems of their words: with one word replaced, they name another thing or none."""

SPATIAL = (
    (frozenset({"left"}), frozenset({"right"})),
    (frozenset({"above", "over", "atop"}), frozenset({"below", "under", "beneath", "underneath"})),
    (frozenset({"front", "ahead", "before"}), frozenset({"behind", "rear"})),
)
"""Position of one thing relative to another."""

OPPOSITES = (
    *SPATIAL,
    (frozenset({"inside", "indoors", "indoor"}), frozenset({"outside", "outdoors", "outdoor"})),
    (frozenset({"night", "nighttime", "dark"}), frozenset({"day", "daytime", "daylight", "sunny"})),
    (word_set("small tiny little mini"), word_set("large big huge giant enormous massive")),
    (frozenset({"old", "aged", "elderly"}), frozenset({"young", "new"})),
    (frozenset({"sitting", "sits", "seated"}), frozenset({"standing", "stands"})),
    (word_set("catch catches catching"), word_set("throw throws throwing")),
    (word_set("push pushes pushing"), word_set("pull pulls pulling")),
    (word_set("full filled"), word_set("empty")),
    (word_set("wet"), word_set("dry")),
    (word_set("open opened"), word_set("closed shut")),
    (word_set("hot warm"), word_set("cold")),
)
"""Pairs of word sets with opposite meanings."""


_SIDES = {word: f"side/{min(side)}" for pairs in OPPOSITES for side in pairs for word in side}


def family(word: str) -> str | None:
    """The family of a word, if a list has it; words of one family do not count as new for each other."""
    return KINDS.get(word) or COLORS.get(word) or _SIDES.get(word)


MOST_DIGITS = 1000
"""Maximum digits of a number; Python converts no more than a few thousand."""


def numeral(word: str) -> int | None:
    """The number that a word or its digits express; None for endless digits from a looping model."""
    digits = len(word) <= MOST_DIGITS and word.isascii() and word.isdigit()
    return NUMBERS.get(word, int(word) if digits else None)


def joined(text_words: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Stems of the words that two neighbors form when written as one: `fire fighter` → `firefighter`."""
    return {stem(one + two): (one, two) for one, two in pairwise(text_words)}


MAX_OVERLAP = 0.85
"""Maximum Jaccard overlap of the words of input and answer."""
MAX_NEW_WORDS = 3
MIN_WORD_SIMILARITY = 0.5
"""Minimum cosine of a new word and the caption's word that it may replace."""

PAIRS = 8192
"""Number of cached pairs, those of a block, since several filters need the same facts."""

# Sizes may be dropped, and directions have their own filter.
_OTHERS = frozenset(
    word for one, two in OPPOSITES if (one, two) in SPATIAL or one & {"small", "old"} for word in one | two
)


@dataclass(frozen=True)
class Alignment:
    """The words in which a caption and an answer differ."""

    lost: tuple[str, ...]
    """Content words of the caption of which the answer has no form and no word of the same family."""
    new: tuple[str, ...]
    """Content words of the answer of which the caption has no form, including those of a known family."""
    unknown: tuple[str, ...]
    """New words that no list knows as a synonym of a word in the caption."""


def align(caption: str, answer: str) -> Alignment:
    """Compare two texts word by word, without a model."""
    all_before, all_after = words(tidy(caption)), words(answer)
    before, after = content_words(all_before), content_words(all_after)
    before = [word for word in before if not any(char.isdigit() for char in word) and word not in NOISE_WORDS]
    stems_before, stems_after = set(map(stem, before)), set(map(stem, after))
    # A word written as one in one text and as two in the other is the same.
    joined_before, joined_after = joined(all_before), joined(all_after)
    halves = {half for one in stems_after & joined_before.keys() for half in joined_before[one]}
    halves |= {half for one in stems_before & joined_after.keys() for half in joined_after[one]}
    stems_before |= joined_before.keys()
    stems_after |= joined_after.keys()
    passing = LIGHT_WORDS | halves
    families_after = _families(after)
    lost = tuple(
        word
        for word in dict.fromkeys(before)
        if stem(word) not in stems_after
        and family(word) not in families_after
        and not (word in passing or word in _OTHERS or word in NUMBERS)
    )
    new = tuple(
        word
        for word in dict.fromkeys(after)
        # Numbers have their own filter.
        if stem(word) not in stems_before and word not in passing and numeral(word) is None
    )
    families_before = _families(before)
    unknown = tuple(word for word in new if family(word) not in families_before and word not in COLORS)
    return Alignment(lost, new, unknown)


def _families(text_words: Sequence[str]) -> set[str]:
    return {name for word in text_words if (name := family(word))}


@lru_cache(PAIRS)
def alignment(pair: Pair) -> Alignment:
    return align(pair.caption, pair.answer)


@lru_cache(PAIRS)
def known_stems(pair: Pair) -> frozenset[str]:
    """Stems of all words in input and caption, including pairs written as one word."""
    alone = {stem(word) for word in (*pair.source_words, *pair.caption_words)}
    return frozenset(alone | joined(pair.source_words).keys() | joined(pair.caption_words).keys())


@lru_cache(PAIRS)
def new_words(pair: Pair) -> list[str]:
    """Content words of the answer that neither input nor caption holds in any form, each once, without numbers."""
    answer = dict.fromkeys(content_words(pair.answer_words))
    return [word for word in answer if stem(word) not in known_stems(pair) and numeral(word) is None]


def unknown_words(pair: Pair) -> list[str]:
    """New words that no list knows as a synonym of a word in input or caption."""
    families = _families((*pair.source_words, *pair.caption_words))
    return [word for word in new_words(pair) if word not in LIGHT_WORDS and family(word) not in families]


# Endings of adjectives and verbs; a noun next to one may be replaced by a synonym.
_ADJECTIVE = ("y", "ed", "en", "ous", "ful", "ish")
_VERB = ("s", "ing", "ed")


def broken_compound(caption: str, answer: str, differ: Alignment) -> str | None:
    """Half of a compound that was replaced by another word: `dirt bike` → `soil bike`, `jungle gym` → `jungle workout`.

    A synonym of a word is seldom one inside a compound. Colors, sizes, adjectives and verbs next to a word form no
    compound, as far as endings tell.
    """
    unknown, before, after = set(differ.unknown), words(tidy(caption)), words(answer)
    if (half := _half_of_a_fixed_one(before, after)) is not None:
        return half
    stems_after = set(map(stem, after))
    neighbors = [(one, two) for one, two in pairwise(before) if content_words([one, two]) == [one, two]]
    left_of, right_of = {stem(two): one for one, two in neighbors}, {stem(one): two for one, two in neighbors}
    for one, two in pairwise(after):
        if content_words([one, two]) != [one, two] or (one in unknown) == (two in unknown):
            continue
        new, gone = (one, left_of.get(stem(two))) if one in unknown else (two, right_of.get(stem(one)))
        if not gone or stem(gone) in stems_after or gone[:4] == new[:4]:
            continue
        if one in unknown:
            fits = two.endswith(_VERB) or _loose(gone)
        else:
            verbs = new.endswith(_VERB[1:]) or gone.endswith(_VERB)
            fits = verbs or one.endswith(_ADJECTIVE) or _loose(one)
        if not fits:
            return f"{one} {two}"
    return None


def _loose(word: str) -> bool:
    return word in COLORS or word in _OTHERS or word in NUMBERS or word in LIGHT_WORDS


def _half_of_a_fixed_one(before: Sequence[str], after: Sequence[str]) -> str | None:
    """An expression in the caption of which the answer keeps some words but not all."""
    stems_before, stems_after = [stem(word) for word in before], [stem(word) for word in after]
    for expression, stems in FIXED:
        size = len(stems)
        if not any(stems_before[at : at + size] == stems for at in range(len(stems_before) - size + 1)):
            continue
        remaining = [word for word in stems if word in stems_after]
        if content_words(remaining) and len(remaining) < size:
            return f"half of {expression}"
    return None


# Endings that leave a word's meaning unchanged, and longer forms of short words.
_GROWTH = ("ing", "ed", "er", "es", "land", "side", "like", "ful", "ness", "ment", "ion")
_LONG_FORMS = word_set("photograph telephon gymnasium bathtub bedroom sunlight sunshin")
_COMPARED = word_set("older younger bigger smaller larger taller shorter longer darker lighter higher lower")
_SOMEBODY = word_set("person people someone somebody child children kid kids rider riders")


def narrowed(caption: str, answer: str, differ: Alignment) -> str | None:
    """A new word that extends a lost one (`snow` → `snowstorm`), or an agent's action (`hiker` → `hikes`).

    An action is fine if a new word says who does it (`a skater` → `a person on a skateboard`). Words on a list are left
    to `changed_kind`.
    """
    fresh = set(words(answer)) - set(words(caption))
    somebody = any(word in _SOMEBODY or KINDS.get(word, "").startswith("person/") for word in fresh)
    somebody = somebody or any(word.endswith(("er", "ers")) for word in differ.unknown)
    for new in differ.unknown:
        for lost in differ.lost:
            if _grown(stem(lost), stem(new)) or (not somebody and _deed(lost, new)):
                return new
    return None


def _grown(lost: str, new: str) -> bool:
    if len(lost) < 3 or new in KINDS or new in _LONG_FORMS:
        return False
    if new.startswith(lost):
        more = new[len(lost) :]
        more = more[1:] if more[:1] == lost[-1] else more
        return len(more) >= 3 and not more.startswith(_GROWTH)
    return new.endswith(lost) and len(new) - len(lost) >= 3


def _deed(lost: str, new: str) -> bool:
    doer = lost.removesuffix("s")
    bare = stem(new)
    return (
        doer.endswith("er")
        and doer not in KINDS
        and doer not in _COMPARED
        and len(bare) >= 3
        and doer.removesuffix("er").startswith(bare)
        and not new.endswith(("er", "ers", "ing"))
    )


# `a three-year-old` and `a two-story house` are correct.
_ARTICLE = re.compile(
    r"\ba (?:(?:two|three|four|five|six|seven|eight|nine|ten)\b(?!-| year)"
    r"|(?:people|children|men|women|houses|cattle)\b)",
    re.I,
)


def copied_instruction(pair: Pair, options: FilterOptions) -> str | None:
    """Words leaked from the prompt's examples.

    A word of an example is fine if the input shares a content word with that example's input (`kids` → `children`), and
    a leak if nothing in the input calls for it.
    """
    if not pair.examples:
        return None
    leaked = []
    examples = [_vocabulary(user, answer) for user, answer in pair.examples]
    for word in new_words(pair):
        owners = [user_stems for both, user_stems in examples if word in both]
        if owners and not any(known_stems(pair) & user_stems for user_stems in owners):
            leaked.append(word)
    return f"only the prompt's examples say {', '.join(leaked[:3])}" if leaked else None


def repetition(pair: Pair, options: FilterOptions) -> str | None:
    """A content word occurs more often than in the input."""
    before = Counter(stem(word) for word in content_words(pair.source_words))
    for word, count in Counter(stem(word) for word in content_words(pair.answer_words)).items():
        if count > max(1, before[word]):
            return f"{word!r} {count} times"
    return None


def broken_words(pair: Pair, options: FilterOptions) -> str | None:
    """A new word is not a whole word of CLIP's vocabulary, or an article precedes a plural."""
    article = _ARTICLE.search(pair.answer)
    if article and article.group().lower() not in pair.source.lower():
        return f"{article.group()!r}"
    if pair.pieces is not None:
        for word in new_words(pair):
            if pair.pieces(word) > 1 and pair.pieces(stem(word)) > 1:
                return f"{word!r} is no common word"
    return None


def high_overlap(pair: Pair, options: FilterOptions) -> str | None:
    """Nearly the same words as the input."""
    overlap = jaccard(pair.answer_words, pair.source_words)
    return f"word overlap {overlap:.2f}, at most {MAX_OVERLAP:g}" if overlap > MAX_OVERLAP else None


def too_many_new_words(pair: Pair, options: FilterOptions) -> str | None:
    """More new content words than a paraphrase needs; words for a known kind do not count."""
    new = unknown_words(pair)
    if len(new) <= MAX_NEW_WORDS:
        return None
    return f"{len(new)} new words ({', '.join(new[:4])}), at most {MAX_NEW_WORDS}"


def compared_words(pair: Pair) -> set[str]:
    """Single words that `invented_word` and `lost_word` pass to the encoder."""
    differ = alignment(pair)
    return {*differ.lost, *differ.new} if differ.lost or differ.unknown else set()


def invented_word(pair: Pair, options: FilterOptions, compare: Compare) -> str | None:
    """A new word replaces no lost word of the caption."""
    least, differ = MIN_WORD_SIMILARITY, alignment(pair)
    for word in differ.unknown:
        nearest = max((compare.cosine(word, lost) for lost in differ.lost), default=0.0)
        if nearest < least:
            return f"{word!r} has cosine {nearest:.2f} with the nearest lost word, at least {least:g}"
    # A lost word may be said with two (`snowfield`, `snowy field`), and two are not needed twice.
    if len(differ.unknown) > len(differ.lost) + 1:
        return f"{len(differ.unknown)} new words ({', '.join(differ.unknown[:4])}) for {len(differ.lost)}"
    return None


def lost_word(pair: Pair, options: FilterOptions, compare: Compare) -> str | None:
    """A word of the caption is lost, and no new word replaces it."""
    least, differ = MIN_WORD_SIMILARITY, alignment(pair)
    gone = [w for w in differ.lost if max((compare.cosine(w, new) for new in differ.new), default=0.0) < least]
    return f"no word for {', '.join(gone[:4])}" if gone else None


@lru_cache(maxsize=256)
def _vocabulary(user: str, answer: str) -> tuple[frozenset[str], frozenset[str]]:
    """The content words of an example, and the stems of those in its input."""
    of_user, of_answer = (content_words(words(text)) for text in (user, answer))
    return frozenset((*of_user, *of_answer)), frozenset(map(stem, of_user))


# A pair of these is one thing.
_PAIR = re.compile(
    r"\bpair of (?=(?:\w+ ){0,2}(?:(?:sun|eye)?glasses|goggles|binoculars|headphones|scissors|jeans|pants|trousers"
    r"|shorts|tights|leggings|overalls|pajamas|pyjamas)\b)",
    re.I,
)


def changed_number(pair: Pair, options: FilterOptions) -> str | None:
    """A number that the input does not have, or a lost counting word."""
    # `tidy` removes numbers of the web image itself, not of things in it: #4, DSC4702.
    source_words = words(_PAIR.sub("", tidy(pair.source)))
    before, after = _numbers(source_words), _numbers(words(_PAIR.sub("", pair.answer)))
    added = sorted(after - before - {1})
    if added:
        return f"says {added[0]}, which the input does not"
    # Long numbers in web captions are product codes and years, which a paraphrase may drop.
    spelled = _numbers([word for word in source_words if not word.isdigit()])
    lost = sorted(n for n in before - after if 2 <= n <= 12 or (n > 12 and n in spelled))
    return f"lost {lost[0]}" if lost else None


def _numbers(text_words: Sequence[str]) -> set[int]:
    """The numbers expressed by words and digits; `twenty five` is one."""
    numbers: list[int] = []
    tens = False
    for number in map(numeral, text_words):
        if number is not None and tens and 0 < number < 10:
            numbers[-1] += number
        elif number is not None:
            numbers.append(number)
        tens = number is not None and number in range(20, 100, 10)
    return set(numbers)


def changed_colour(pair: Pair, options: FilterOptions) -> str | None:
    """A color that the input does not have, a lost color of the caption, or a color that moved to another thing."""
    before = {COLORS[word] for word in (*pair.source_words, *pair.caption_words) if word in COLORS}
    for word in pair.answer_words:
        if word in COLORS and COLORS[word] not in before:
            return f"says {word}, which the input does not"
    gone = _color_counts(pair.caption_words) - _color_counts(pair.answer_words)
    return f"lost {min(gone)}" if gone else _moved_color(pair)


def _color_counts(text_words: Sequence[str]) -> Counter[str]:
    """How often each color family occurs; `navy blue` is one color."""
    colors = [COLORS.get(word) for word in text_words]
    return Counter(color for before, color in pairwise([None, *colors]) if color and color != before)


def _moved_color(pair: Pair) -> str | None:
    owned = _owned_colors(pair.source_words)
    named = {thing(word) for word in (*pair.source_words, *pair.caption_words)}
    for noun, colors in _owned_colors(pair.answer_words).items():
        for color in sorted(colors - owned.get(noun, set())):
            others = [other for other in owned if other != noun and color in owned[other]]
            if noun in owned:
                return f"{color} {_last(noun)} was {min(owned[noun])}"
            # `pink` of `a boy in pink in a field` belongs to the boy, and is no color of the field.
            if noun in named and (others or f"in {color}" in pair.source.lower()):
                return f"{color} belongs to {_last(others[0]) if others else 'somebody'}, not to {_last(noun)}"
    return None


def _owned_colors(text_words: Sequence[str]) -> dict[str, set[str]]:
    """Noun → the color families right before it, possibly several: `a black and white cat`."""
    owned: dict[str, set[str]] = {}
    colors: set[str] = set()
    for word, following in pairwise([*text_words, ""]):
        if word in COLORS:
            colors.add(COLORS[word])
        elif word != "and" or following not in COLORS:
            if colors and word not in STOP_WORDS:
                owned.setdefault(thing(word), set()).update(colors)
            colors = set()
    return owned


def changed_kind(pair: Pair, options: FilterOptions) -> str | None:
    """A thing, animal or person that neither input nor caption names by any word."""
    kinds = {KINDS[word] for word in (*pair.source_words, *pair.caption_words) if word in KINDS}
    for word in pair.answer_words:
        if word in KINDS and KINDS[word] not in kinds and stem(word) not in known_stems(pair):
            return f"says {word}, which the input does not"
    return None


def changed_compound(pair: Pair, options: FilterOptions) -> str | None:
    """Half of a compound is replaced, a word became half of a compound, or an agent became an action."""
    texts = pair.caption, pair.answer, alignment(pair)
    wrong = broken_compound(*texts) or narrowed(*texts)
    return f"{wrong!r} is another thing" if wrong else None


def changed_negation(pair: Pair, options: FilterOptions) -> str | None:
    """One of the two texts has a negation and the other does not."""
    before, after = any(map(denies, pair.source_words)), any(map(denies, pair.answer_words))
    return "negation came or went" if before != after else None


def changed_relation(pair: Pair, options: FilterOptions) -> str | None:
    """Left for right, large for small, on for above; or a lost or new direction."""
    if lost := directions(pair.caption) - directions(pair.answer, loose=True):
        return f"{min(lost)} is lost"
    if new := directions(pair.answer) - directions(pair.caption, loose=True) - directions(pair.source, loose=True):
        return f"says {min(new)}, which the caption does not"
    for text in dict.fromkeys((pair.caption, pair.source)):
        if (wrong := misplaced(text, pair.answer)) is not None:
            return f"says {wrong}, which the input does not"
    if (wrong := new_relation(pair.caption, pair.answer)) is not None:
        return f"says {wrong}, which the caption does not"
    before, after = set(pair.source_words), set(pair.answer_words)
    for pair_of_sides in OPPOSITES:
        for side, opposite in (pair_of_sides, pair_of_sides[::-1]):
            if after & side and before & opposite and not before & side:
                return f"{min(after & side)} for {min(before & opposite)}"
    return None


Placed = dict[str, set[str]]
"""Thing → how others are placed relative to it: `on`, `in`, `next`, `with`, `and`, a direction.

`-` stands for none, `?` for what follows a verb.
"""

_PHRASES = (
    (re.compile(r"\b(?:in|at) (?:the )?front of\b|\bahead of\b"), "front"),
    (re.compile(r"\bon (?:the )?top of\b"), "on"),
    (re.compile(r"\b(?:in|at|to) (?:the )?(?:rear|back) of\b"), "behind"),
    (re.compile(r"\b(?:(?:at|to|on) (?:the )?)?(left|right)(?: side)? of\b"), r"\1"),
    (re.compile(r"\b(?:next|close|adjacent) to\b|\bby the side of\b"), "next"),
)
_STOPS = re.compile(r"[,;:.!?()|/](?!\d)")
_SIDE = re.compile(r"\b(left|right)(?= (?:side )?of\b)|(?<=\bto )(?:the )?(left|right)\b")
_WAYS = {
    "on": "on", "onto": "on", "upon": "on", "atop": "on",
    "in": "in", "inside": "in", "into": "in", "within": "in",
    "above": "above", "over": "above",
    "below": "below", "under": "below", "beneath": "below", "underneath": "below",
    "behind": "behind", "front": "front", "left": "left", "right": "right",
    "next": "next", "beside": "next", "near": "next", "by": "next", "and": "and", "with": "with",
}  # fmt: skip

# Ways that only say that both things are present; they are not a place and may not replace one.
_COMPANY = frozenset({"next", "with", "and"})
_LEFT = {"with": ({"on"},), "next": ({"on"}, {"in"})}

# Words that an answer may have only if the caption has them or words that can mean the same.
_NEW = (
    (frozenset({"toward", "towards"}), frozenset({"toward", "towards", "to", "at"})),
    (frozenset({"before"}), frozenset({"before", "front"})),
    (word_set("wearing wears"), word_set("wearing wears wear wore dressed in with on has")),
)

DIRECTIONS = frozenset({"above", "below", "behind", "front", "left", "right"})
"""Ways that a paraphrase must keep."""


def directions(text: str, loose: bool = False) -> set[str]:
    """Directions in the text, by unambiguous words; `loose`: also by words that may mean one, such as `over`."""
    flat = [word for word in _flat(text) if word not in ("left", "right") and (loose or word != "over")]
    ways = {_WAYS[word] for word in flat if word in _WAYS} & DIRECTIONS
    return ways | {one or two for one, two in _SIDE.findall(text.lower())}


def placed(text: str) -> Placed:
    """The things in a text and how others are placed relative to them."""
    places: Placed = {}
    flat = _flat(text)
    for at, word in enumerate(flat):
        last = at + 1 == len(flat) or flat[at + 1] in STOP_WORDS or flat[at + 1] in _WAYS
        if word in STOP_WORDS or word in _WAYS or word in COLORS or not last:
            continue
        begin = at
        while begin and flat[begin - 1] not in STOP_WORDS and flat[begin - 1] not in _WAYS:
            begin -= 1
        while begin and flat[begin - 1] in DETERMINERS:
            begin -= 1
        before = flat[begin - 1] if begin else ""
        way = _WAYS.get(before, "-" if before in STOP_WORDS or not before else "?")
        places.setdefault(thing(word), set()).add(way)
    return places


def misplaced(source: str, answer: str) -> str | None:
    """A placement in the answer that the source does not have; None if there is none."""
    before, after = placed(source), placed(answer)
    for noun, ways in after.items():
        ways_before = before.get(noun)
        if ways_before is None or stem(_last(noun)) in PLACES or "?" in ways_before:
            continue
        for way in sorted(ways - ways_before - _COMPANY - {"-", "?"}):
            return f"{way} {_last(noun)}"
    return None


def new_relation(caption: str, answer: str) -> str | None:
    """A motion, a garment or a companion that only the answer mentions; None if there is none."""
    words_before, words_after = set(_flat(caption)), set(_flat(answer))
    for new, old in _NEW:
        if words_after & new and not words_before & old:
            return min(words_after & new)
    before, after = placed(caption), placed(answer)
    for noun, ways in after.items():
        lost = _LEFT.get(next(iter(ways)), ()) if len(ways) == 1 else ()
        if before.get(noun) in lost and stem(_last(noun)) not in PLACES:
            return f"{min(ways)} {_last(noun)}"
    return None


def thing(noun: str) -> str:
    """What a noun names: its kind if a list has it, otherwise its stem."""
    return KINDS.get(noun) or stem(noun)


def _last(thing_name: str) -> str:
    return thing_name.rpartition("/")[2]


def _flat(text: str) -> Sequence[str]:
    # A comma ends a clause, like a word that places nothing.
    low = " ".join(words(_STOPS.sub(" then ", text)))
    for pattern, word in _PHRASES:
        low = pattern.sub(word, low)
    return low.split()

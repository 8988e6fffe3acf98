"""Small word lists with which gates see that a meaning changed: numbers, colors, kinds, directions.

They judge answers only. No list is ever shown to the LLM, and none puts a word into a paraphrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from paraclip_core.paraphrase.parse import stem, word_set

LIGHT_WORDS = word_set(
    """wearing wears dressed seen shown sits sitting stands standing located placed group picture image photo photograph
    scene view"""
)
"""Words that a rewording may add because they say next to nothing about an image."""

DETERMINERS = word_set(
    "a an the this that these those some any his her its their one two three four five six seven eight"
)
"""What may stand before a noun and its adjectives."""

PLACES = word_set(
    """street road avenue lane highway beach shore coast sea ocean water lake river pond field meadow grass lawn park
    garden mountain hill desert snow winter night city town harbour harbor dark morning evening day sand picture photo
    image ground sky air rain fog sunset dawn background distance room"""
)
"""Surroundings, where the preposition is a matter of style: in or on the street, at the beach."""

NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "couple": 2, "pair": 2, "pairs": 2, "both": 2, "duo": 2, "twins": 2,
    "trio": 3, "dozen": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90, "hundred": 100,
}  # fmt: skip
"""Number words with their value; `one` says no more than `a`."""


def _families(text: str) -> dict[str, str]:
    """Word → the first of its family; families stand between semicolons."""
    return {word: family.split()[0] for family in text.split(";") for word in family.split()}


COLORS = _families(
    """
    red crimson scarlet maroon ruby reddish; blue navy azure teal turquoise cyan bluish;
    green olive emerald lime greenish; yellow golden gold yellowish blond blonde; orange;
    purple violet lilac lavender magenta; pink rosy; black ebony; white ivory; gray grey silver silvery;
    brown tan beige chestnut brunette
    """
)
"""Color word → its family; words of one family may stand for one another."""

# One block: things of which one is not another. A word of a family that the input does not know, in a block of which
# the input knows something or not, is an invention. Hypernyms (animal, person, vehicle) are left out on purpose.
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

KINDS = {word: f"{block}/{head}" for block, lines in _KIND_BLOCKS.items() for word, head in _families(lines).items()}
"""Noun → the kind of thing it names."""

_EXPRESSIONS = """
    dirt bike, hard hat, hot dog, hot tub, ice cream, tug of war, rock climb, rock climber, fire hydrant,
    fire truck, fire engine, golden retriever, german shepherd, border collie, roller coaster, roller skate,
    monkey bar, life jacket, life vest, teddy bear, cotton candy, hula hoop, high heel, high school, baseball bat,
    stop sign, snow angel
    """
FIXED = tuple(tuple(expression.split()) for expression in _EXPRESSIONS.split(","))
"""Expressions that name a thing of their own: with one word said otherwise they name another, or none."""

SPATIAL = (
    (frozenset({"left"}), frozenset({"right"})),
    (frozenset({"above", "over", "atop"}), frozenset({"below", "under", "beneath", "underneath"})),
    (frozenset({"front", "ahead", "before"}), frozenset({"behind", "rear"})),
)
"""Where one thing stands to another."""

OPPOSITES = (
    *SPATIAL,
    (frozenset({"inside", "indoors", "indoor"}), frozenset({"outside", "outdoors", "outdoor"})),
    (frozenset({"night", "nighttime", "dark"}), frozenset({"day", "daytime", "daylight", "sunny"})),
    (
        frozenset({"small", "tiny", "little", "mini"}),
        frozenset({"large", "big", "huge", "giant", "enormous", "massive"}),
    ),
    (frozenset({"old", "aged", "elderly"}), frozenset({"young", "new"})),
    (frozenset({"sitting", "sits", "seated"}), frozenset({"standing", "stands"})),
    (word_set("catch catches catching"), word_set("throw throws throwing")),
    (word_set("push pushes pushing"), word_set("pull pulls pulling")),
    (word_set("full filled"), word_set("empty")),
    (word_set("wet"), word_set("dry")),
    (word_set("open opened"), word_set("closed shut")),
    (word_set("hot warm"), word_set("cold")),
)
"""Pairs of word sets of which one says what the other denies."""


_SIDES = {word: f"side/{min(side)}" for pairs in OPPOSITES for side in pairs for word in side}


def family(word: str) -> str | None:
    """What a word stands for, where a list knows it: words of one family are no new words for each other."""
    return KINDS.get(word) or COLORS.get(word) or _SIDES.get(word)


MOST_DIGITS = 1000
"""Of a number; Python converts no more than some thousands."""


def numeral(word: str) -> int | None:
    """The number that a word or its digits say; a model that goes on with digits for ever says none."""
    digits = len(word) <= MOST_DIGITS and word.isascii() and word.isdigit()
    return NUMBERS.get(word, int(word) if digits else None)


def joined(text_words: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Stems of the words that neighbors make where they are written as one: `fire fighter` → `firefighter`."""
    return {stem(one + two): (one, two) for one, two in pairwise(text_words)}

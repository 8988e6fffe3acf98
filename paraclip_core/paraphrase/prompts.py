"""What the LLM is asked, with the caption as data inside exactly one message."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.tables import text_hash

__all__ = ["FEW_SHOT", "PAPER", "PromptTemplate", "neutralise", "prompt_for", "tidy"]

Turns = tuple[tuple[str, str], ...]
RULES = "neutralise-1 tidy-1"
SLOT = "{}"

# A chat-template token of any model begins with `<` or `[` and a letter, a bar or a slash: `<|im_end|>`, `</s>`,
# `<start_of_turn>`, `[INST]`, `[/INST]`. A blank after the bracket makes it plain text and leaves it readable.
_TOKEN_START = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]+\])")
_NOISE = re.compile(
    r"<[^<>]{0,200}>|https?:\S+|www\.\S+|\b(?:IMG|DSC|DSCN|DSCF|PIC|P)[_ -]?\d{3,}\b|#\d+"
    r"|\.(?:jpe?g|png|gif|webp|bmp)\b",
    re.I,
)
_RUNS = re.compile(r"[!?]{2,}|\.{2,}")
# Some models' templates use the full-width forms.
_FULL_WIDTH = str.maketrans({"＜": "<", "＞": ">", "｜": "|"})


@dataclass(frozen=True)
class PromptTemplate:
    """A step's prompt: fixed turns, then one user turn that holds the text."""

    id: str
    turns: Turns
    """System turn and examples."""
    before: str = ""
    """Words of the last turn in front of the text."""
    after: str = ""
    """Words of the last turn behind the text."""
    quoted: bool = False
    """The text stands between double quotes, so it must not hold one."""
    tidied: bool = False
    """Show the text without file names, links and shouting, which small models copy or take for words."""

    @cached_property
    def hash(self) -> bytes:
        """16 bytes over everything that decides what the model reads."""
        flat = [part for turn in self.turns for part in turn]
        return text_hash(self.id, RULES, *flat, None, self.before, None, self.after, str(self.quoted), str(self.tidied))

    def messages(self, text: str) -> Turns:
        """The chat turns for one text, which is neutralised and never interpreted."""
        safe = neutralise(tidy(text) if self.tidied else text)
        if self.quoted:
            safe = safe.replace('"', "'")
        return (*self.turns, ("user", f"{self.before}{safe}{self.after}"))

    @cached_property
    def examples(self) -> tuple[tuple[str, str], ...]:
        """The examples as (user, assistant) pairs."""
        return tuple(
            (one[1], two[1]) for one, two in pairwise(self.turns) if one[0] == "user" and two[0] == "assistant"
        )


def neutralise(text: str) -> str:
    """One line of plain text that no chat template takes for anything else.

    Control and line-breaking characters become blanks, invisible format characters (zero width, bidirectional
    overrides) go, and the brackets that begin a template's tokens are set apart from what follows.
    """
    kept = []
    for char in text.translate(_FULL_WIDTH):
        category = unicodedata.category(char)
        if category in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif category not in ("Cf", "Cs", "Co", "Cn"):
            kept.append(char)
    line = " ".join("".join(kept).split())
    return _TOKEN_START.sub(lambda found: f"{found.group()} ", line)


def tidy(text: str) -> str:
    """A web caption without tags, links, file names, camera numbers and hash numbers; shouting in lower case.

    Where nothing would be left, the text as it is.
    """
    found = _NOISE.sub(" ", text)
    letters = [char for char in found if char.isalpha()]
    capitals = [word for word in found.split() if word[:1].isupper()]
    if letters and (all(char.isupper() for char in letters) or len(capitals) == len(found.split()) > 3):
        found = found.lower()
    found = " ".join(_RUNS.sub(lambda run: run.group()[0], found).split()).strip(" -|,;:#")
    return found or text


def prompt_for(options: ParaphraseOptions, step: int) -> PromptTemplate:
    """The prompt of a step: the user's own where there is one, else the chosen set's.

    Raises:
        ConfigError: an own prompt does not say where the text goes.
    """
    own = options.prompt_1 if step == 1 else options.prompt_2
    if not own:
        return (PAPER if options.prompts == "paper" else FEW_SHOT)[step]
    before, slot, after = own.partition(SLOT)
    if not slot or SLOT in after:
        raise ConfigError(
            f"paraphrase.prompt_{step} must hold {SLOT} exactly once, where the text goes; found {own[:80]!r}"
        )
    return PromptTemplate(f"own/{step}", (), before, after, quoted=before.endswith('"') and after.startswith('"'))


def _few_shot(step: int, system: str, examples: Turns) -> PromptTemplate:
    turns: list[tuple[str, str]] = [("system", system)] if system else []
    for text, answer in examples:
        turns += [("user", text), ("assistant", answer)]
    return PromptTemplate(f"few-shot/{step}", tuple(turns), tidied=True)


# Word for word from the published code (one user message, no system turn).
PAPER = {
    1: PromptTemplate(
        "paper/1",
        (),
        'Paraphrase the given caption "',
        '" concisely while preserving the meaning.',
        quoted=True,
    ),
    2: PromptTemplate(
        "paper/2",
        (),
        'Paraphrase the given text "',
        '" concisely while preserving the meaning and avoiding use of existing words.',
        quoted=True,
    ),
}
"""The published prompts, for models that follow instructions."""

FEW_SHOT = {
    1: _few_shot(
        1,
        "You rewrite image captions in plain words. Keep every object, colour and number. Add nothing.",
        (
            ("photo of a gray kitten on a sofa.jpg", "There is a gray kitten on a sofa."),
            ("two women with guitars, concert hall, 2014", "A couple of women with guitars in a concert hall."),
            ("A man is climbing up a ladder near a brick wall", "A man climbs a ladder close to a brick wall."),
            ("large silver train at the station - stock photo 88213", "A big silver train at the station."),
            ("a pink cupcake below a tiny spoon on a plate | free image", "A pink cupcake under a little spoon."),
            ("Three children wearing coats stand by a brown door .", "Three kids in coats are next to a brown door."),
        ),
    ),
    2: _few_shot(
        2,
        "",
        (
            ("A small gray kitten is beside a large sofa.", "A little grey cat sits next to a big couch."),
            ("A purple rocket is above a big rock.", "A violet spaceship is over a huge stone."),
            ("Two kids are playing in the yard.", "A pair of children have fun in the garden."),
            ("A man is climbing up a ladder.", "A guy goes up some steps."),
            ("Three pink mugs on a desk.", "A trio of rosy cups on a table."),
            ("A woman in a long coat walks in a forest.", "A lady wearing a big jacket strolls in the woods."),
            ("A huge airplane at the airport.", "A giant jet on the runway."),
            ("A silver train to the right of a tiny hut.", "A gray locomotive on the right side of a small cabin."),
        ),
    ),
}
"""Example turns for small models; step 1 shows cleaning, step 2 shows other words for the same things."""

"""The prompts: a language model reads a text as data, inside exactly one message."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.tidy import tidy
from paraclip_core.tables import text_hash

Turns = tuple[tuple[str, str], ...]
RULES = "neutralise-1 tidy-1"
SLOT = "{}"
# A chat-template token of any model begins with `<` or `[` and a letter, a bar or a slash: `<|im_end|>`, `</s>`,
# `<start_of_turn>`, `[INST]`, `[/INST]`. A blank after the bracket makes it plain text and leaves it readable.
_TOKEN_START = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]+\])")
# Some models' templates use the full-width forms.
_FULL_WIDTH = str.maketrans({"＜": "<", "＞": ">", "｜": "|"})


@dataclass(frozen=True)
class PromptTemplate:
    """A step's prompt: fixed turns, then one user turn that holds the text."""

    id: str
    turns: Turns
    """System turn and examples."""
    before: str = ""
    """Words of the last turn before the text."""
    after: str = ""
    """Words of the last turn after the text."""
    quoted: bool = False
    """The text is placed between double quotes, so it must not hold one."""
    tidied: bool = False
    """Show the text without file names, links and capitals, which small models copy or mistake for words."""

    @cached_property
    def hash(self) -> bytes:
        """16 bytes over everything that decides what the model reads."""
        turns = [part for turn in self.turns for part in turn]
        # The last flag said whether the text is continued without a chat template: no prompt does that any longer, and
        # every answer in a cache is filed under this hash.
        flags = map(str, (self.quoted, self.tidied, False))
        return text_hash(self.id, RULES, *turns, None, self.before, None, self.after, *flags)

    def messages(self, text: str) -> Turns:
        """The chat turns for one text, which is neutralized and never interpreted."""
        safe = neutralize(tidy(text) if self.tidied else text)
        if self.quoted:
            safe = safe.replace('"', "'")
        return (*self.turns, ("user", f"{self.before}{safe}{self.after}"))


def neutralize(text: str) -> str:
    """Return one line of plain text that no chat template mistakes for a token.

    Control and line-breaking characters become blanks, invisible format characters (zero width, bidirectional
    overrides) are removed, and brackets that begin a template's tokens are separated from what follows.
    """
    line = " ".join((text if text.isascii() and text.isprintable() else _visible(text)).split())
    return _TOKEN_START.sub(lambda match: f"{match.group()} ", line)


def _visible(text: str) -> str:
    chars = []
    for char in text.translate(_FULL_WIDTH):
        category = unicodedata.category(char)
        if category in ("Cc", "Zl", "Zp"):
            chars.append(" ")
        elif category not in ("Cf", "Cs", "Co", "Cn"):
            chars.append(char)
    return "".join(chars)


def prompt_for(options: ParaphraseOptions, step: int) -> PromptTemplate:
    """The prompt of a step: the user's own if there is one, otherwise that of the chosen set."""
    own = options.prompt_1 if step == 1 else options.prompt_2
    if not own:
        return (PAPER if options.prompts == "paper" else FEW_SHOT)[step]
    before, slot, after = own.partition(SLOT)
    if not slot or SLOT in after:
        raise ConfigError(
            f"paraphrase.prompt_{step} must hold {SLOT} exactly once, where the text goes; found {own[:80]!r}"
        )
    return PromptTemplate(f"own/{step}", (), before, after, quoted=before.endswith('"') and after.startswith('"'))


def _few_shot(step: int, examples: Turns) -> PromptTemplate:
    turns = [turn for text, answer in examples for turn in (("user", text), ("assistant", answer))]
    return PromptTemplate(f"few-shot/{step}", tuple(turns), tidied=True)


# Word for word from the published code (one user message, no system turn).
PAPER = {
    1: PromptTemplate(
        "paper/1", (), 'Paraphrase the given caption "', '" concisely while preserving the meaning.', quoted=True
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
        (
            ("photo of a gray kitten on a sofa", "There is a gray kitten sitting on a sofa."),
            ("A man is climbing up a ladder near a brick wall", "A man climbs a ladder close to a brick wall."),
            (
                "large silver train next to a purple rocket at the station stock photo",
                "A big silver train beside a purple rocket at the station.",
            ),
            (
                "Three children wearing coats stand by a brown door .",
                "Three kids in coats are standing next to a brown door.",
            ),
            (
                "in the forest, pink cupcake above tiny spoon | free image",
                "A pink cupcake over a little spoon in the forest.",
            ),
            (
                "monkey in red on a purple drum in a kitchen",
                "A monkey wearing red on top of a purple drum in a kitchen.",
            ),
        ),
    ),
    2: _few_shot(
        2,
        (
            ("A gray kitten on a sofa.", "A grey cat on a couch."),
            ("A purple rocket above a huge rock.", "A purple spaceship over an enormous stone."),
            ("A silver train beside a hut in the forest.", "A silver locomotive next to a cabin in the woods."),
            ("A monkey holding a pink cupcake.", "An ape with a pink cake."),
            ("A man on a ladder near a brown door.", "A guy on some steps close to a brown gate."),
            ("A tiny spoon on top of a red drum.", "A little spoon sitting on a red drum."),
            ("Three kids are running at the airport.", "Three children jog on the airfield."),
            ("A woman in a long white coat is speaking.", "A lady wearing a long white jacket is talking."),
        ),
    ),
}
"""Example turns for small models; step 1 shows cleaning, step 2 shows other words for the same things."""

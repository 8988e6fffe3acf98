"""The preset `small-model`: filters for the demo's language model of 135 M parameters."""

from __future__ import annotations

from paraclip_core.demo.filters import (
    broken_words,
    changed_colour,
    changed_compound,
    changed_kind,
    changed_negation,
    changed_number,
    changed_relation,
    compared_words,
    copied_instruction,
    high_overlap,
    invented_word,
    lost_word,
    repetition,
    too_many_new_words,
)
from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING, bases, find_synonyms, variants
from paraclip_core.paraphrase.filters import (
    Preset,
    character_set,
    echo,
    empty,
    length_ratio,
    low_caption_similarity,
    low_similarity,
    refusal_or_preamble,
    too_long,
)
from paraclip_core.paraphrase.synonyms import Words

SMALL_MODEL = Preset(
    text=(
        empty, refusal_or_preamble, copied_instruction, character_set, length_ratio, too_long, echo, repetition,
        broken_words, changed_negation, changed_number, changed_colour, changed_kind, changed_relation,
        changed_compound, too_many_new_words, high_overlap,
    ),
    meaning=(low_similarity, low_caption_similarity, invented_word, lost_word),
    thresholds={"max_length_ratio": 2.0, "min_similarity": 0.75, "min_caption_similarity": 0.65},
    min_length_ratio=0.4,
    compared={"invented_word": compared_words},
    words=Words(THESAURUS, WORD_SAMPLING, bases, find_synonyms, variants),
    known_wrong="of the embedded model's paraphrases of photographs' captions that they let pass, 6 % of step 1's and "
    "10 % of step 2's were wrong, read by hand",
)  # fmt: skip

"""The preset `small-model`: filters for the demo's language model of 135 M parameters."""

from __future__ import annotations

from paraclip_core.demo import filters as small
from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING, bases, find_synonyms, variants
from paraclip_core.paraphrase import filters as general
from paraclip_core.paraphrase.synonyms import Words

SMALL_MODEL = general.Preset(
    text=(
        general.empty, general.refusal_or_preamble, small.copied_instruction, general.character_set,
        general.length_ratio, general.too_long, general.echo, small.repetition, small.broken_words,
        small.changed_negation, small.changed_number, small.changed_colour, small.changed_kind, small.changed_relation,
        small.changed_compound, small.too_many_new_words, small.high_overlap,
    ),
    meaning=(general.low_similarity, general.low_caption_similarity, small.invented_word, small.lost_word),
    thresholds={"max_length_ratio": 2.0, "min_similarity": 0.75, "min_caption_similarity": 0.65},
    min_length_ratio=0.4,
    compared={"invented_word": small.compared_words},
    words=Words(THESAURUS, WORD_SAMPLING, bases, find_synonyms, variants),
)  # fmt: skip

"""Gates on texts: what those for a small model stop, what they let pass, and that no text makes any gate fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.gates import PRESETS, REASONS, first_failure, gates_of
from paraclip_core.paraphrase.pair import Pair

OPTIONS = GateOptions(preset="small-model")
WHOLE = Tokenizer(context_length=4096)
EXAMPLES = (("Two kids play.", "Two children have fun."), ("A coffee cup", "A mug of coffee"))


def pieces(text: str) -> int:
    return len(WHOLE.encode(text)) - 2


def pair(source: str, answer: str, step: int = 1, caption: str | None = None) -> Pair:
    return Pair(caption or source, source, answer, step, EXAMPLES, pieces)


REJECTED = [
    ("empty", "a dog", ""),
    ("empty", "a dog", "..."),
    ("refusal_or_preamble", "a dog", "I'm sorry, but I cannot do that"),
    ("refusal_or_preamble", "a dog", "I’m unable to do that"),
    ("refusal_or_preamble", "a dog", "The original text is about a dog"),
    ("refusal_or_preamble", "a dog on grass", "dog = puppy => a puppy on grass"),
    ("copied_instruction", "a dog on the beach", "a dog drinking coffee on the beach"),
    ("character_set", "a dog", "<b>a puppy</b>"),
    ("character_set", "a dog", "一只小狗 dog"),
    ("character_set", "a dog", "a puppy {name}"),
    ("length_ratio", "a small dog runs over the wet grass", "dog"),
    ("length_ratio", "a dog", "a dog that runs and runs and jumps over it"),
    ("too_long", "dogs and cats", "cats and dogs " + "x1" * 120),
    ("echo", "A small red dog.", "a small red dog"),
    ("repetition", "a white boat on the sea", "a white white boat on the sea"),
    ("broken_words", "three houses by the sea", "a three houses near the sea"),
    ("broken_words", "a woman is walking on the sand", "a woman is strollacing on the sand"),
    ("changed_negation", "a man with a hat", "a man with no hat"),
    ("changed_negation", "the shop is open", "the store isn't open"),
    ("changed_number", "twenty people wait in line", "people are waiting in line"),
    ("changed_number", "a pair of dogs on the grass", "dogs on the lawn"),
    ("changed_kind", "a woman's hand holds a cup", "a man's hand is holding a cup"),
    ("changed_number", "two dogs on the grass", "three dogs on the lawn"),
    ("changed_number", "two dogs on the grass", "dogs on the lawn"),
    ("changed_colour", "a black bicycle and a helmet", "a blue bike and a helmet"),
    ("changed_colour", "a black boat near a red cat", "a red boat near a black cat"),
    ("changed_colour", "a boy in pink in a field", "a boy in a pink field"),
    ("changed_kind", "a brown dog goes into the water", "a brown cat goes into the water"),
    ("changed_kind", "a pitbull with a stick", "a pitbull in a kitchen"),
    ("changed_relation", "a dog left of a cat", "a dog to the right of a cat"),
    ("changed_relation", "a lamp above a cup", "a lamp under a cup"),
    ("changed_relation", "a lamp above a cup", "a lamp with a cup"),
    ("changed_relation", "a large dog on the street", "a tiny dog on the street"),
    ("changed_compound", "a boy on a dirt bike", "a boy on a soil bike"),
    ("changed_compound", "a boy on a dirt bike", "a boy on a dirt bicycle"),
    ("changed_compound", "dogs play tug of war", "dogs play tug of battle"),
    ("changed_compound", "a girl on a jungle gym", "a girl on a jungle workout"),
    ("changed_relation", "a lamp under a cup", "a lamp near a cup"),
    ("changed_relation", "a black bus and a blue box", "a black bus in a blue box"),
    ("changed_relation", "a dog catches a ball", "a dog throws a ball"),
    ("changed_kind", "a dog with a ball in its mouth", "a dog with a ball in its throat"),
    ("changed_colour", "a girl in green and a green chair", "a girl in green and a chair"),
    ("changed_kind", "a dog catches a football", "a dog catches a baseball"),
    ("changed_kind", "a man in blue pants", "a man in blue jeans"),
    ("changed_kind", "an adult and a child", "a teenager and a child"),
    ("changed_compound", "a dog runs through snow", "a dog runs through a snowstorm"),
    ("changed_compound", "hikers walk along a path", "hikes walking along a trail"),
    ("changed_relation", "a brown dog runs near the water", "a brown dog running toward the water"),
    ("changed_relation", "the girls have pillows", "the girls wearing pillows"),
    ("changed_relation", "two dogs play on a carpet", "two dogs playing with a carpet"),
    ("too_many_new_words", "a dog on the grass", "a dog enjoys sunny happy weather today"),
    ("high_overlap", "a big dog on the wet green grass near trees", "the big dog on the wet green grass near trees"),
]

KEPT = [
    ("Photo of a white boat in a field.jpg", "A white boat in a field."),
    ("a hiker walks through the snowfield", "A hiker strolls through a snowy field"),
    ("five men playing in a soccer game", "A group of five men play soccer"),
    ("a boy in a red top hangs upside down from a tree", "A boy wearing a crimson top is hanging from a tree"),
    ("two dogs on the grass", "a pair of dogs on a lawn"),
    ("a small bicycle behind a large bus", "a little bike at the rear of a big coach"),
    ("a dog on the beach", "a puppy on the shore"),
    ("stock photo 88213 of a silver train", "a train in silver"),
    ("two kids on the grass", "two children sitting on the lawn"),
    ("an orange cat in a café", "an orange kitten in a café"),
    ("brown umbrella on a hill #4", "A brown umbrella on a hill."),
    ("a wooden boat on a lake", "A wood boat on a pond"),
    ("the hiker walks over small rocks", "A hiker strolls over tiny stones"),
    ("a skateboarder does a trick", "A person on a skateboard does a trick"),
    ("a girl in a red hat", "A girl wearing a red hat"),
    ("two boys ride dirt bikes", "Two children riding dirt bikes"),
    ("a 2-year-old girl eats cake", "A two-year-old girl is eating cake"),
    ("twenty people wait in line", "20 people are waiting in line"),
    ("twenty-five candles on a cake", "25 candles on top of a cake"),
    ("a man wears a pair of sunglasses", "A man is wearing sunglasses"),
    ("the child can't reach the shelf", "The kid cannot reach the shelf"),
    ("a dog is not wet", "The dog isn't wet at all"),
    ("the hat of a girl is red", "A girl's hat is red"),
    ("a man who is running on sand", "A guy who's running on the sand"),
    ("two yachts in the harbour", "Two boats in the harbor"),
    ("poodles play in the park", "Dogs are playing in the park"),
    ("an aeroplane lands", "An airplane is landing"),
    ("a navy blue car on the road", "A navy car on the street"),
    ("a black and white cat sleeps", "A white and black kitten is sleeping"),
    ("boys on a skate board", "Boys are on a skateboard"),
    ("a fire fighter holds a hose", "A firefighter is holding a hose"),
]


@pytest.mark.parametrize(("reason", "source", "answer"), REJECTED)
def test_a_gate_stops_what_it_is_for(reason: str, source: str, answer: str) -> None:
    failure = first_failure(pair(source, answer), OPTIONS)
    assert failure is not None
    assert failure[0] == reason, failure
    assert failure[1]


def test_an_answer_that_never_ends_its_number_is_stopped() -> None:
    text = "a dog with 3 balls"
    assert first_failure(Pair(text, text, f"a dog with {'9' * 5000} balls", 1), OPTIONS) is not None


@pytest.mark.parametrize(("source", "answer"), KEPT)
def test_good_paraphrases_pass(source: str, answer: str) -> None:
    assert first_failure(pair(source, answer), OPTIONS) is None


def test_step_2_may_not_go_back_to_the_caption() -> None:
    failure = first_failure(pair("a puppy on the shore", "a dog on the beach", 2, "a dog on the beach"), OPTIONS)
    assert failure == ("echo", "repeats the caption")


def test_an_example_word_that_the_input_calls_for_is_no_leak() -> None:
    assert first_failure(pair("Two kids on the beach", "Two children by the beach"), OPTIONS) is None


def test_every_gate_has_an_example_here() -> None:
    assert {reason for reason, _, _ in REJECTED} == set(gates_of(OPTIONS).text)
    assert set(gates_of(OPTIONS).text) < set(REASONS)


@pytest.mark.parametrize(("reason", "source", "answer"), REJECTED)
def test_preset_off_keeps_everything_that_is_not_empty(reason: str, source: str, answer: str) -> None:
    failure = first_failure(pair(source, answer), GateOptions(preset="off"))
    assert (failure is None) == (reason != "empty")


def test_thresholds_are_the_presets_or_as_set() -> None:
    auto = GateOptions(min_length_ratio=0.1)
    small, capable = auto.resolved("small-model"), auto.resolved("capable")
    assert (small.preset, small.min_length_ratio, small.min_similarity) == ("small-model", 0.1, 0.75)
    assert capable.min_similarity is not None and capable.min_similarity < 0.75
    assert GateOptions(preset="small-model").resolved("capable").preset == "small-model"
    # Either way of saying the same is the same, for hashes.
    assert small == GateOptions(preset="small-model", min_length_ratio=0.1, min_similarity=0.75).resolved("off")


def test_the_former_name_of_off_is_read() -> None:
    assert GateOptions.model_validate({"preset": "paper"}).preset == "off"


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80), st.integers(1, 2))
def test_no_text_breaks_a_gate(caption: str, source: str, answer: str, step: int) -> None:
    example = Pair(caption, source, answer, step, EXAMPLES, pieces)
    for gate in {gate for text, _ in PRESETS.values() for gate in text}:
        detail = gate(example, OPTIONS)
        assert detail is None or detail

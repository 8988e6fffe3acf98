"""Keys tell requests apart."""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.keys import RequestKeys, in_fraction, sampling_json

SAMPLING = '{"max_tokens":40,"n":4,"temperature":0.5,"top_p":0.9}'
TEXT = st.text(max_size=20)
REQUESTS = st.builds(
    RequestKeys,
    step=st.integers(1, 2),
    model=TEXT,
    prompt_id=TEXT,
    prompt_hash=st.binary(min_size=16, max_size=16),
    sampling=TEXT,
    seed=st.integers(-5, 5),
    attempt=st.integers(0, 3),
)


@given(REQUESTS, TEXT, REQUESTS)
def test_each_part_alone_changes_the_key(base: RequestKeys, text: str, other: RequestKeys) -> None:
    for field in fields(base):
        changed = replace(base, **{field.name: getattr(other, field.name)})
        assert (changed.key(text) == base.key(text)) == (changed == base)


@given(REQUESTS, st.text(min_size=1, max_size=6), TEXT)
def test_parts_cannot_run_together(base: RequestKeys, moved: str, text: str) -> None:
    # A piece that wanders from the end of one part to the beginning of the next.
    one = replace(base, model=base.model + moved, prompt_id=base.prompt_id)
    two = replace(base, model=base.model, prompt_id=moved + base.prompt_id)
    assert one.key(text) != two.key(text)


def test_the_key_of_a_known_request_never_changes() -> None:
    sampling = sampling_json(SamplingOptions(temperature=0.5, top_p=0.9, max_tokens=40, n=4))
    assert sampling == SAMPLING
    request = RequestKeys(1, "model==1", "few-shot/1", bytes(16), sampling, 0, 0)
    assert request.key("a dog on a beach").hex() == "1641703aa8a307a519fde2c10307666f"


def test_sampling_is_canonical() -> None:
    base = SamplingOptions(temperature=1)
    assert '"temperature":1.0,' in sampling_json(base)
    assert sampling_json(base) == sampling_json(SamplingOptions(n=base.n, temperature=1.0))
    for change in ({"temperature": 0.6}, {"top_p": 0.8}, {"max_tokens": 41}, {"n": 3}):
        assert sampling_json(base) != sampling_json(base.model_copy(update=change))


@given(st.text(max_size=30), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_fraction_holds_the_smaller_one(text: str, one: float, two: float) -> None:
    small, large = sorted((one, two))
    assert in_fraction(text, small) <= in_fraction(text, large)
    assert in_fraction(text, 1.0)

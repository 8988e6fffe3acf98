"""Generations of several machines through an object store: all have all, none is lost, the same answer counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paraclip.storage import parts
from paraclip.storage.answers import AnswerStore
from paraclip.storage.object_store import RemoteFolder
from paraclip.storage.roots import open_answers
from paraclip_core.errors import ArtifactError
from tests.kit.generation_rows import answers, cut, filter_results, filtered, numbered, rebuild
from tests.kit.machines import Machine, Objects, refuse

Cache = Callable[[str], AnswerStore]


@pytest.fixture
def cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Opens the cache as the machine of this name."""
    monkeypatch.setattr(parts, "PULL_SECONDS", 0.0)
    return lambda name: open_answers(machine(name))


def test_what_one_machine_asked_and_judged_another_knows(cache: Cache, objects: Objects) -> None:
    one, two = cache("one"), cache("two")
    assert answers(two, [1]) == {}
    one.append(numbered([1, 2]))
    one.append_filter_results(filter_results(range(5)))
    assert answers(two, [1, 2, 3]) == {1: ["answer 1"], 2: ["answer 2"]}
    assert filtered(two) == filtered(one) != []
    two.append(numbered([3]))
    two.append_filter_results(filter_results(range(5, 9)))
    assert answers(one, [1, 2, 3]) == {1: ["answer 1"], 2: ["answer 2"], 3: ["answer 3"]} and len(filtered(one)) == 9
    assert one.stats() == two.stats()
    assert sorted({path.split("/")[-2] for path in objects.names("cache")}) == ["filter_results", "segments"]
    assert (cache("three").stats().rows, cache("three").stats().filter_results) == (3, 9)
    with pytest.raises(ArtifactError, match="stay as they are"):
        one.compact()


def test_answers_that_could_not_be_sent_are_sent_later_and_the_same_one_counts_everywhere(
    cache: Cache, objects: Objects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both asked the same before they saw each other."""
    one, two = cache("one"), cache("two")
    with monkeypatch.context() as broken:
        broken.setattr(RemoteFolder, "upload", refuse)
        for store, answer in ((one, "from one"), (two, "from two")):
            store.append(numbered([1], answer))
            with pytest.raises(ArtifactError, match="network is down"):
                store.close()
    assert caplog.text.count("cannot upload new answers yet: the network is down") == 2
    assert objects.names("cache") == []
    two.close()
    # Another process of the same machine makes up for it.
    cache("one").close()
    completions = [answers(store, [1]) for store in (one, two, cache("three"))]
    assert completions[0] == completions[1] == completions[2] != {}
    assert one.stats().rows == 2
    rebuild(one)
    assert answers(one, [1]) == completions[0]


def test_nothing_is_downloaded_or_sent_twice(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = cache("one"), cache("two")
    one.append(numbered([1]))
    assert answers(two, [1]) == {1: ["answer 1"]}
    for operation in ("download", "upload"):
        monkeypatch.setattr(RemoteFolder, operation, lambda _, files: not files or pytest.fail("it is there already"))
    assert answers(two, [1]) == {1: ["answer 1"]}
    two.close()


def test_a_torn_part_is_healed_from_the_store_and_a_damaged_object_is_left_out_and_named(
    cache: Cache, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    one = cache("one")
    one.append(numbered([1]))
    cut(one.parts.folder / one.parts.names()[0])
    rebuild(one)
    assert answers(one, [1]) == {1: ["answer 1"]}
    one.append(numbered([2]))
    damaged = objects.names("cache")[0]
    objects.write(damaged, b"PAR1 and then nothing")
    two = cache("two")
    assert answers(two, [1, 2]) == {2: ["answer 2"]}
    assert f"/{damaged} is damaged and left out" in caplog.text
    assert list(two.parts.folder.glob(".*.tmp")) == []


def test_a_store_that_cannot_be_reached_is_said_before_anything_is_asked(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = cache("one")
    one.append(numbered([1]))
    with monkeypatch.context() as broken:
        broken.setattr(RemoteFolder, "sizes", refuse)
        with pytest.raises(ArtifactError, match="network is down"):
            answers(one, [1])
    assert answers(one, [1]) == {1: ["answer 1"]}
    # Later it is a warning: what was asked meanwhile is safe here.
    monkeypatch.setattr(RemoteFolder, "sizes", refuse)
    assert answers(one, [1]) == {1: ["answer 1"]}
    assert "cannot fetch the answers of other machines: the network is down" in caplog.text

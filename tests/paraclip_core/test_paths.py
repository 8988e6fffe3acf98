"""Home folders in paths that users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.paths import expand


def test_a_home_stands_in_place_of_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/models/x") == Path("/home/me/models/x")
    assert expand("models/~") == Path("models/~")


@pytest.mark.parametrize("name", ["~no-such-user/x", "~captions.csv"])
def test_what_is_nobodys_home_stays_as_it_is(name: str) -> None:
    assert expand(name) == Path(name)

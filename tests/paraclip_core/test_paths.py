"""Home folders in paths that users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.paths import expand


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("~/models/x", "/home/me/models/x"),
        # What is nobody's home stays as it is.
        *((name, name) for name in ("models/~", "~no-such-user/x", "~captions.csv")),
    ],
)
def test_a_home_stands_in_place_of_its_sign(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand(name) == Path(path)

"""How strict licenses are, however their sources spell them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.licenses import CLASSES, license_class, roll_up

STATED = {
    "CC0-1.0": "public domain",
    "https://creativecommons.org/publicdomain/zero/1.0/": "public domain",
    "No known copyright restrictions": "public domain",
    "CC-BY-4.0": "attribution",
    "Attribution License": "attribution",
    "MIT": "attribution",
    "CC-BY-SA-4.0": "share-alike",
    "Attribution-ShareAlike License": "share-alike",
    "ODbL-1.0": "share-alike",
    "Creative Commons Attribution-NonCommercial 4.0 International": "non-commercial",
    "http://creativecommons.org/licenses/by-nc-sa/2.0/": "non-commercial, share-alike",
    "Attribution-NoDerivs License": "no derivatives",
    "Attribution-NonCommercial-NoDerivs License": "non-commercial, no derivatives",
    "unknown": "unknown",
    "": "unknown",
    "not public domain": "unknown",
    "stand by me": "unknown",
    "970 others": "unknown",
}


@pytest.mark.parametrize("stated", STATED)
def test_the_class_of_a_license(stated: str) -> None:
    assert CLASSES[license_class(stated)] == STATED[stated]


@given(st.dictionaries(st.sampled_from(sorted(STATED)), st.integers(1, 9), min_size=1))
def test_the_whole_is_as_strict_as_its_strictest_part(licenses: dict[str, int]) -> None:
    found = roll_up(licenses)
    assert CLASSES.index(found.kind) >= max(map(license_class, licenses))
    worst = CLASSES[max(map(license_class, licenses))]
    assert set(found.strictest) >= {name for name in licenses if STATED[name] == worst}
    assert found.kind == worst or worst == "no derivatives"


@given(st.text())
def test_any_text_has_a_class(stated: str) -> None:
    assert 0 <= license_class(stated) < len(CLASSES)
    assert roll_up({stated: 1}).hub


def test_names_on_the_hub_and_what_must_be_heeded() -> None:
    assert roll_up({"CC0-1.0": 5, "CC BY-NC-SA 2.0": 1}).hub == ("cc-by-nc-sa-2.0",)
    assert roll_up({"CC-BY-4.0": 5, "MIT": 1}).hub == ("cc-by-4.0", "mit")
    assert roll_up({"Attribution License": 1, "MIT": 1}).hub == ("other",)  # no version, so no identifier
    assert roll_up({"CC0-1.0": 5, "unknown": 1}).hub == ("unknown",)
    assert roll_up({"unknown": 1, "of my own": 1}).hub == ("other",)
    assert roll_up({}).hub == ("unknown",)
    found = roll_up({"CC-BY-ND-4.0": 2, "CC-BY-NC-4.0": 1, "MIT": 3})
    assert found.strictest == ("CC-BY-NC-4.0", "CC-BY-ND-4.0")
    assert found.kind == "non-commercial, no derivatives"
    assert found.hub == ("cc-by-nc-4.0", "cc-by-nd-4.0")
    assert roll_up({"CC-BY-ND-4.0": 2, "CC-BY-SA-4.0": 1}).kind == "no derivatives"
    assert not roll_up({"CC0-1.0": 1, "CC-BY-SA-4.0": 1}).notes
    assert "no license that is known" in roll_up({"MIT": 1, "?": 1}).notes[0]
    assert "no derivatives" in roll_up({"CC-BY-ND-4.0": 1}).notes[0]
    assert "must not be merged" in roll_up({"CC-BY-SA-4.0": 1, "CC-BY-NC-4.0": 1}).notes[0]

"""Licenses as data sources state them: how strict each is, its name on the Hugging Face hub, and the strictest of many.

The order is by what somebody who publishes paraphrases has to heed; it is a help for reading, not legal advice. What
is not recognised counts as strictest, because nothing is allowed by a license that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CLASSES = (
    "public domain", "attribution", "share-alike", "non-commercial", "non-commercial, share-alike", "no derivatives",
    "non-commercial, no derivatives", "unknown",
)  # fmt: skip
"""Classes of licenses, the freest first."""

_SPELLINGS = (
    (re.compile(r"non[\s_-]*commercial"), "nc"),
    (re.compile(r"share[\s_-]*alike"), "sa"),
    (re.compile(r"no[\s_-]*deriv(?:ative)?s?(?:[\s_-]*works)?"), "nd"),
    (re.compile(r"public[\s_-]*domain|no known copyright restrictions"), "publicdomain"),
    (re.compile(r"united states government work|u\.?s\.? government works?"), "publicdomain"),
)
_DOUBT = frozenset({"not", "without", "except", "reserved", "proprietary", "copyrighted"})
"""Words that turn a license's name round: `not public domain`."""
_FREE = frozenset({"publicdomain", "cc0", "pddl", "pdm", "unlicense"})
_ATTRIBUTION = re.compile(r"(?:mit|isc|zlib|apache-\S+|bsd(?:-\S+)?|odc-by(?:-\S+)?|cdla-permissive-\S+)")
_SHARE_ALIKE = re.compile(r"(?:odbl(?:-\S+)?|cdla-sharing-\S+|[al]?gpl(?:-\S+)?|gfdl(?:-\S+)?)")
_PARTS = {"nc-nd": 6, "nd": 5, "nc-sa": 4, "nc": 3, "sa": 2, "": 1}
_NO_DERIVATIVES, _NON_COMMERCIAL, _NEITHER = 5, frozenset({3, 4}), 6
_ALIASES = {"cc0": "cc0-1.0", "odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl"}
_ON_THE_HUB = frozenset(
    "apache-2.0 mit isc zlib bsd bsd-2-clause bsd-3-clause cc0-1.0 pddl unlicense odc-by odbl gfdl gpl gpl-2.0 "  # noqa: SIM905
    "gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 agpl-3.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0".split()
)
"""Identifiers of https://huggingface.co/docs/hub/repositories-licenses that data sets use."""


@dataclass(frozen=True)
class RolledUp:
    """What holds for a whole data set whose rows have several licenses."""

    strictest: tuple[str, ...]
    """The licenses of the strictest class, as stated, sorted; where one forbids what another allows, of both."""
    kind: str
    """What they are together, one of :data:`CLASSES`."""
    hub: tuple[str, ...]
    """Their identifiers on the hub; `other` or `unknown` where one of them has none."""
    notes: tuple[str, ...]
    """What to heed before the whole is published."""


def license_class(stated: str) -> int:
    """Place in :data:`CLASSES` of a license as stated: an SPDX-like id, Creative Commons' name, or its address."""
    return _parsed(stated)[0]


def roll_up(licenses: Mapping[str, int]) -> RolledUp:
    """The strictest of the licenses (rows by license as stated); none at all count as unknown."""
    places = {stated: license_class(stated) for stated in licenses} or {"unknown": len(CLASSES) - 1}
    place = max(places.values())
    classes = {place}
    if place == _NO_DERIVATIVES and _NON_COMMERCIAL & set(places.values()):
        # Neither is stricter: one allows to sell, the other to change.
        classes, place = classes | _NON_COMMERCIAL, _NEITHER
    strictest = tuple(sorted(stated for stated, of in places.items() if of in classes))
    return RolledUp(strictest, CLASSES[place], _hub_names(strictest, place), tuple(_notes(set(places.values()))))


def _hub_names(strictest: Iterable[str], place: int) -> tuple[str, ...]:
    if place == len(CLASSES) - 1:
        return ("unknown",) if set(strictest) == {"unknown"} else ("other",)
    names = {_parsed(stated)[1] for stated in strictest}
    return tuple(sorted(names)) if names <= _ON_THE_HUB else ("other",)


def _notes(places: set[int]) -> Iterable[str]:
    if len(CLASSES) - 1 in places:
        yield "Some rows state no license that is known: find out whether they may be published, or leave them out."
    if places & {5, 6}:
        yield "Some rows allow no derivatives, and a paraphrase may be one: ask their authors, or leave them out."
    if places & {2} and places & {3, 4, 6}:
        yield (
            "Share-alike rows that allow commercial use stand beside non-commercial ones: each row keeps its own "
            "license, and the two must not be merged into one work."
        )


def _parsed(stated: str) -> tuple[int, str]:
    """Class and identifier; the identifier is empty where the license's version is not stated or it is not known."""
    text = stated.strip().casefold()
    for pattern, word in _SPELLINGS:
        text = pattern.sub(word, text)
    plain = "-".join(re.findall(r"[a-z0-9.+]+", text))
    plain = _ALIASES.get(plain, plain)
    if _ATTRIBUTION.fullmatch(plain):
        return 1, plain
    if _SHARE_ALIKE.fullmatch(plain):
        return 2, plain
    words = re.findall(r"[a-z]+\d?(?![a-z])|\d+(?:\.\d+)+", text)
    if _DOUBT & set(words):
        return len(CLASSES) - 1, ""
    if _FREE & set(words):
        zero = "cc0" in words or ("publicdomain" in words and "zero" in words)
        return 0, "cc0-1.0" if zero else plain
    if ("by" not in words and "attribution" not in words) or "odc" in words:
        return len(CLASSES) - 1, ""
    if not {"cc", "creative", "creativecommons", "attribution"} & set(words):
        return len(CLASSES) - 1, ""
    parts = "-".join(part for part in ("nc", "nd", "sa") if part in words)
    version = next((word for word in words if word[0].isdigit()), "")
    return _PARTS.get(parts, len(CLASSES) - 1), "-".join(filter(None, ("cc-by", _in_order(parts), version)))


def _in_order(parts: str) -> str:
    """Creative Commons writes nc before nd and sa."""
    return "-".join(sorted(parts.split("-"))) if parts else ""
